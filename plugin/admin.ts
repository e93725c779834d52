// Owns the admin API: what Causeway does on this node and why, for people and programs.
// Must not change anything.
import express, { type Express, type NextFunction, type Request, type Response } from 'express';
import { virtualServerId, type Engine, type VirtualServer } from '../lb/model.ts';
import type { HostProblem } from '../net/host-problems.ts';
import type { PeerView } from '../peers/peers.ts';
import type { Difference, ReplicaState } from '../store/replica.ts';
import { revisionOf, type Records } from '../store/records.ts';
import type { EngineState } from '../swarm/engine-health.ts';
import type { Config } from './config.ts';
import type { Address } from './listen.ts';
import type { NameRedirects } from './name-redirects.ts';
import { unreadableIn, type PassReport } from './reconciler.ts';

/** What `/status` and `/healthz` tell, asked at each request. */
export interface StatusSource {
  version: string;
  node: string;
  engine: { name: string; why: string };
  /** What of a policy the engine cannot do. */
  unsupported: Engine['unsupported'];
  /** The same of ports that a container publishes by itself, which no engine balances. */
  unsupportedByHostPorts: Engine['unsupported'];
  report: () => PassReport;
  /** What the kernel was last told to balance. */
  servers: () => readonly VirtualServer[];
  /** How many addresses of a pool are in use, and how many there are. */
  usage: (pool: string) => Promise<{ used: number; size: number }>;
  /** Why nothing is written from here: the records are another Swarm's. */
  foreign: () => string | undefined;
  /** What is wrong with how the cluster is set up, in words for its operator. */
  warnings: () => readonly string[];
  /** What of the host's settings keeps packets from Causeway. */
  host: () => readonly HostProblem[];
  /** Ids of unreachable nodes. */
  unreachable: () => ReadonlySet<string>;
  store: () => ReplicaState | 'embedded';
  docker: () => EngineState;
  /** What differs between the shared store and what this node takes for its contents. */
  compare: () => Promise<Difference>;
  /** How many sandboxes are answered, and which are left to Docker's resolver; or why all are. */
  names: () => NameRedirects['state'] | string;
  /** What is known of the nodes that are watched, by id. */
  peers: () => ReadonlyMap<string, PeerView>;
}

/**
 * `GET /healthz` is 200 while the kernel is as desired, Docker can be used and the records are its Swarm's, else 503 and why; what is wrong with the host it tells
 * either way, and in `degraded` what is left out for a record that cannot be used, for no one record shall take a node out of
 * service. `GET /status` tells everything, or 503 and why not:
 * the store was never in reach. `GET /diff` compares what this node believes with the shared store.
 */
export function createAdminServer(source: StatusSource, records: Records): Express {
  const app = express();
  app.disable('x-powered-by');
  app.get('/healthz', (_request, response) => {
    const report = source.report();
    const docker = source.docker();
    const warnings = source.warnings();
    const host = source.host();
    const foreign = source.foreign();
    const well = report.settled && docker.error === undefined && foreign === undefined;
    response.status(well ? 200 : 503).json({
      ...report,
      docker,
      ...(foreign !== undefined && { foreign }),
      ...(warnings.length > 0 && { warnings }),
      ...(host.length > 0 && { host }),
    });
  });
  app.get('/status', async (_request, response: Response) => {
    const [nodes, networks, presence, endpoints, services] = await Promise.all([
      records.nodes.list(),
      records.networks.list(),
      records.presence.list(),
      records.endpoints.list(),
      records.services.list(),
    ]);
    const report = source.report();
    const values = <T>({ rows }: { rows: readonly { value: T }[] }): T[] => rows.map(({ value }) => value);
    const corrupt = [nodes, networks, presence, endpoints, services].flatMap(unreadableIn);
    response.json({
      version: source.version,
      node: source.node,
      engine: source.engine,
      host: source.host(),
      store: source.store(),
      docker: source.docker(),
      names: source.names(),
      warnings: source.warnings(),
      ...(source.foreign() !== undefined && { foreign: source.foreign() }),
      kernel: {
        ...report,
        settled:
          report.settled && report.revision === revisionOf([nodes, networks, presence, endpoints, services]),
      },
      nodes: values(nodes).map((node) => ({
        ...node,
        unreachable: source.unreachable().has(node.id),
        ...source.peers().get(node.id),
      })),
      networks: await Promise.all(
        values(networks).map(async (network) => ({
          ...network,
          addresses: await source.usage(network.subnet),
        })),
      ),
      presence: values(presence),
      endpoints: values(endpoints).map((endpoint) => ({
        ...endpoint,
        ...(endpoint.access?.by === 'container' && {
          unsupported: source.unsupportedByHostPorts(endpoint.access.policy),
        }),
      })),
      services: values(services),
      virtualServers: source.servers().map((server) => ({
        id: virtualServerId(server),
        ...server,
        unsupported: source.unsupported(server.policy),
      })),
      corrupt,
    });
  });
  app.get('/diff', async (_request, response: Response) => {
    response.json(await source.compare());
  });
  // Four parameters are what tells Express that this is for errors.
  app.use((error: unknown, _request: Request, response: Response, _next: NextFunction) => {
    response.status(503).json({ error: error instanceof Error ? error.message : String(error) });
  });
  return app;
}

/**
 * @param setting `CAUSEWAY_ADMIN`, checked by config.ts
 * @param hostRun where the host's /run is in the plugin
 */
export function adminAddress(setting: Config['CAUSEWAY_ADMIN'], hostRun: string): Address {
  if (setting.startsWith('unix://')) {
    const path = setting.slice('unix://'.length);
    return { path: path.startsWith('/run/') ? hostRun + path.slice('/run'.length) : path };
  }
  const { hostname, port } = new URL(setting);
  return { host: hostname.replace(/^\[|\]$/g, ''), port: Number(port) };
}
