// Owns a stand-in for the Docker Engine's API with the few lists Causeway reads, for tests that play Docker.
// Must not grow behaviour of its own: the docker tests run the real one.
import { createServer, type Server, type ServerResponse } from 'node:http';
import type { ContainerDetails, Network, Node, Service, Task } from '../../swarm/docker.ts';

export class FakeDockerApi {
  networks: Network[] = [];
  services: Service[] = [];
  tasks: Task[] = [];
  /** Those that run. */
  containers: ContainerDetails[] = [];
  /** Ids of those that it cannot tell of: it fails, or never answers. */
  readonly untold = new Map<string, 'fails' | 'hangs'>();
  /** Swarm's id of the node this engine is on. */
  id = 'node';
  nodes: Node[] = [{ ID: 'node', Status: { State: 'ready' }, ManagerStatus: { Leader: true } }];
  /** False: answers 503 as a worker does. */
  manager = true;
  /** `inactive`: not in a Swarm (any more); set `manager` to false too. */
  swarm: 'active' | 'inactive' = 'active';
  /** Swarm's id of the cluster, which managers tell. */
  cluster = 'cluster';
  /** Of which nodes a worker knows that they manage. */
  remoteManagers: string[] = [];
  /** What it says of itself; it refuses other versions of the API as the real one does. */
  engine = { Version: '28.5.2', ApiVersion: '1.51', MinAPIVersion: '1.24' };
  /** Paths it was asked for, with the version. */
  readonly asked: string[] = [];
  /** Why it refuses whatever it is asked. */
  refusal: string | undefined;
  /** True: accepts connections and never answers, as a daemon that is starting. */
  silent = false;
  readonly #server: Server;
  readonly #listeners = new Set<ServerResponse>();

  constructor() {
    this.#server = createServer((request, response) => {
      const { pathname, searchParams } = new URL(request.url ?? '/', 'http://docker');
      const [, api, path] = /^(?:\/v1\.(\d+))?(.*)$/.exec(pathname) as unknown as [string, string?, string?];
      this.asked.push(pathname);
      if (this.silent) return;
      const untold = this.untold.get(/^\/containers\/(.*)\/json$/.exec(path ?? '')?.[1] ?? '');
      if (untold === 'hangs') return;
      const refused =
        untold === 'fails' ? ([500, { message: 'no such device' }] as const) : this.#refuse(api);
      if (path === '/events' && refused === undefined) {
        response.writeHead(200).flushHeaders();
        this.#listeners.add(response);
        response.on('close', () => this.#listeners.delete(response));
        return;
      }
      const [status, body] = refused ?? this.#answer(path ?? '', searchParams.get('filters') ?? '{}');
      response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
    });
  }

  #refuse(api: string | undefined): [number, { message: string }] | undefined {
    if (this.refusal !== undefined) return [403, { message: this.refusal }];
    if (api === undefined) return undefined;
    const { ApiVersion, MinAPIVersion } = this.engine;
    const [newest, oldest] = [ApiVersion, MinAPIVersion].map((version) => Number(version.slice('1.'.length)));
    const version = `client version 1.${api}`;
    if (Number(api) < oldest!)
      return [400, { message: `${version} is too old. Minimum supported API version is ${MinAPIVersion}` }];
    if (Number(api) > newest!)
      return [400, { message: `${version} is too new. Maximum supported API version is ${ApiVersion}` }];
    return undefined;
  }

  #answer(path: string, filters: string): [number, unknown] {
    const swarm = {
      NodeID: this.id,
      NodeAddr: '',
      LocalNodeState: this.swarm,
      ControlAvailable: this.manager,
      RemoteManagers: this.remoteManagers.map((NodeID) => ({ NodeID })),
      ...(this.manager && { Cluster: { ID: this.cluster } }),
    };
    if (path === '/version') return [200, this.engine];
    if (path === '/info') return [200, { Swarm: swarm }];
    if (path === '/networks') return [200, this.networks];
    if (path === '/containers/json') return [200, this.containers.map(({ Id }) => ({ Id }))];
    const container = this.containers.find(({ Id }) => path === `/containers/${Id}/json`);
    if (container !== undefined) return [200, container];
    if (!this.manager) return [503, { message: 'This node is not a swarm manager.' }];
    if (path === '/nodes') return [200, this.nodes];
    const asked = JSON.parse(filters) as { id?: string[]; service?: string[]; 'desired-state'?: string[] };
    if (path === '/services') return [200, this.services.filter(({ ID }) => asked.id?.includes(ID) ?? true)];
    if (path === '/tasks') {
      const unknown = asked.service?.find((id) => !this.services.some(({ ID }) => ID === id));
      if (unknown !== undefined) return [404, { message: `service ${unknown} not found` }];
      const tasks = this.tasks
        .filter(({ DesiredState }) => asked['desired-state']?.includes(DesiredState) ?? true)
        .filter(({ ServiceID }) => asked.service?.includes(ServiceID) ?? true);
      return [200, tasks];
    }
    return [404, { message: 'page not found' }];
  }

  /** Says that something happened. */
  hint(event = { Type: 'service', Action: 'update' }): void {
    for (const listener of this.#listeners) listener.write(`${JSON.stringify(event)}\n`);
  }

  async listen(path: string): Promise<void> {
    await new Promise<void>((resolve) => this.#server.listen(path, resolve));
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}
