// Owns the admin API: what Causeway does on this node and why, for people and programs.
// Must not change anything.
import express, { type Express, type NextFunction, type Request, type Response } from 'express';
import { planVirtualServers } from '../lb/plan.ts';
import { virtualServerId, type Engine } from '../lb/model.ts';
import type { PeerView } from '../peers/peers.ts';
import type { Difference, ReplicaState } from '../store/replica.ts';
import { revisionOf, type Records } from '../store/records.ts';
import type { Config } from './config.ts';
import type { Address } from './listen.ts';
import type { PassReport } from './reconciler.ts';

export interface Facts {
  version: string;
  node: string;
  engine: { name: string; why: string };
  /** What of a policy the engine cannot do. */
  shortcomings: Engine['shortcomings'];
  /** The same of ports that a container publishes by itself, which no engine balances. */
  portShortcomings: Engine['shortcomings'];
  report: () => PassReport;
  /** Ids of nodes that are lost now. */
  hidden: () => ReadonlySet<string>;
  store: () => ReplicaState | 'embedded';
  /** What differs between the shared store and what this node takes for its contents. */
  compare: () => Promise<Difference>;
  /** What is known of the nodes that are watched, by id. */
  peers: () => ReadonlyMap<string, PeerView>;
}

/**
 * `GET /healthz` is 200 while the kernel is as wanted, else 503; `GET /status` tells everything, or 503 and why not:
 * the store was never in reach. `GET /diff` compares what this node believes with the shared store.
 */
export function createAdminServer(facts: Facts, records: Records): Express {
  const app = express();
  app.disable('x-powered-by');
  app.get('/healthz', (_request, response) => {
    const report = facts.report();
    response.status(report.settled ? 200 : 503).json(report);
  });
  app.get('/status', async (_request, response: Response) => {
    const [nodes, networks, presence, endpoints, services] = await Promise.all([
      records.nodes.list(),
      records.networks.list(),
      records.presence.list(),
      records.endpoints.list(),
      records.services.list(),
    ]);
    const report = facts.report();
    const values = <T>({ rows }: { rows: readonly { value: T }[] }): T[] => rows.map(({ value }) => value);
    const servers = planVirtualServers(
      values(services),
      values(networks),
      values(endpoints),
      facts.node,
      facts.hidden(),
    );
    const corrupt = [nodes, networks, presence, endpoints, services].flatMap((table) =>
      table.corrupt.map(({ error }) => error.message),
    );
    response.json({
      version: facts.version,
      node: facts.node,
      engine: facts.engine,
      store: facts.store(),
      kernel: {
        ...report,
        settled:
          report.settled && report.revision === revisionOf([nodes, networks, presence, endpoints, services]),
      },
      nodes: values(nodes).map((node) => ({
        ...node,
        hidden: facts.hidden().has(node.id),
        ...facts.peers().get(node.id),
      })),
      networks: values(networks),
      presence: values(presence),
      endpoints: values(endpoints).map((endpoint) => ({
        ...endpoint,
        ...(endpoint.access?.by === 'container' && {
          shortcomings: facts.portShortcomings(endpoint.access.policy),
        }),
      })),
      services: values(services),
      virtualServers: servers.map((server) => ({
        id: virtualServerId(server),
        ...server,
        shortcomings: facts.shortcomings(server.policy),
      })),
      corrupt,
    });
  });
  app.get('/diff', async (_request, response: Response) => {
    response.json(await facts.compare());
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
