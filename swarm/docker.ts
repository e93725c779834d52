// Owns the calls to the Docker Engine's API and the shape of its answers, as far as Causeway reads them.
// Must not be called inside a driver call: Docker holds locks there, and its API may not be served yet.
import { once } from 'node:events';
import { Agent, get as httpGet, type IncomingMessage } from 'node:http';
import { text } from 'node:stream/consumers';
import * as z from 'zod';
import { chooseApiVersion, EngineVersion } from './api-version.ts';

const Info = z.object({
  Swarm: z
    .object({
      NodeID: z.string(),
      NodeAddr: z.string(),
      LocalNodeState: z.string(),
      ControlAvailable: z.boolean(),
      RemoteManagers: z.array(z.object({ NodeID: z.string() })).nullish(),
      /** Only managers tell. The id is that of the Swarm's certificates, which `--force-new-cluster` keeps. */
      Cluster: z
        .object({ ID: z.string().optional(), DefaultAddrPool: z.array(z.string()).nullish() })
        .nullish(),
    })
    .partial(),
});
export type Info = z.infer<typeof Info>;

const Network = z.object({
  Id: z.string(),
  Name: z.string(),
  Driver: z.string(),
  Internal: z.boolean(),
  Scope: z.string(),
  IPAM: z
    .object({ Driver: z.string(), Config: z.array(z.object({ Subnet: z.string().default('') })).nullish() })
    .nullish(),
});
export type Network = z.infer<typeof Network>;

const Port = z.object({
  Name: z.string().optional(),
  Protocol: z.enum(['tcp', 'udp', 'sctp']).default('tcp'),
  TargetPort: z.number(),
  PublishedPort: z.number().optional(),
  PublishMode: z.string().default('ingress'),
});

const Attachment = z.object({ Target: z.string(), Aliases: z.array(z.string()).nullish() });

const Labels = z.record(z.string(), z.string()).nullish();

const Service = z.object({
  ID: z.string(),
  Spec: z.object({
    Name: z.string(),
    Labels,
    TaskTemplate: z.object({
      ContainerSpec: z.object({ Labels }).nullish(),
      Networks: z.array(Attachment).nullish(),
    }),
    Networks: z.array(Attachment).nullish(),
  }),
  Endpoint: z
    .object({
      Ports: z.array(Port).nullish(),
      VirtualIPs: z.array(z.object({ NetworkID: z.string(), Addr: z.string().default('') })).nullish(),
    })
    .nullish(),
  UpdateStatus: z.object({ State: z.string().optional() }).nullish(),
});
export type Service = z.infer<typeof Service>;

const Task = z.object({
  ID: z.string(),
  ServiceID: z.string().default(''),
  NodeID: z.string().default(''),
  DesiredState: z.string(),
  Status: z.object({ State: z.string(), Timestamp: z.string().optional() }),
  Spec: z.object({ ContainerSpec: z.object({ Labels }).nullish() }).nullish(),
  NetworksAttachments: z
    .array(z.object({ Network: z.object({ ID: z.string() }), Addresses: z.array(z.string()).nullish() }))
    .nullish(),
});
export type Task = z.infer<typeof Task>;

const Node = z.object({
  ID: z.string(),
  Status: z.object({ State: z.string() }),
  ManagerStatus: z.object({ Leader: z.boolean().default(false) }).nullish(),
  Description: z
    .object({
      Hostname: z.string().optional(),
      Engine: z
        .object({ Plugins: z.array(z.object({ Type: z.string(), Name: z.string() })).nullish() })
        .nullish(),
    })
    .nullish(),
});
/** A node of the Swarm, as its managers list it. */
export type Node = z.infer<typeof Node>;

const Container = z.object({ Id: z.string() });

const ContainerDetails = z.object({
  Id: z.string(),
  Name: z.string(),
  Config: z.object({ Hostname: z.string(), Labels }),
  HostConfig: z
    .object({ Privileged: z.boolean().optional(), CapAdd: z.array(z.string()).nullish() })
    .optional(),
  State: z.object({
    Running: z.boolean(),
    Health: z.object({ Status: z.string() }).nullish(),
  }),
  NetworkSettings: z.object({
    /** By name. */
    Networks: z.record(
      z.string(),
      z.object({ NetworkID: z.string(), EndpointID: z.string(), Aliases: z.array(z.string()).nullish() }),
    ),
  }),
});
/** A container, as far as its names and labels go. */
export type ContainerDetails = z.infer<typeof ContainerDetails>;

const Event = z.object({
  Type: z.string(),
  Action: z.string(),
  Actor: z
    .object({
      /** Of the container, the network, … */
      ID: z.string(),
      /** Of a network's event: `container` is the one it is about. */
      Attributes: z.record(z.string(), z.string()).nullish(),
    })
    .nullish(),
});
export type Event = z.infer<typeof Event>;

/** The Docker Engine did not answer, or answered with an error. */
export class DockerError extends Error {
  override readonly name = 'DockerError';
  /** HTTP status; undefined when there was no answer at all. */
  readonly status: number | undefined;

  constructor(message: string, status?: number, options?: ErrorOptions) {
    super(message, options);
    this.status = status;
  }
}

/** Where a task's state does not change any more. */
const ends = ['complete', 'shutdown', 'failed', 'rejected', 'remove', 'orphaned'];

/**
 * A job's task shall be `complete` from its beginning. Once it is, Swarm has taken its addresses back, although it still
 * lists them. A task that shall be `running` keeps them when it ends, until its service's next one takes its place.
 */
function isDone({ DesiredState, Status }: Task): boolean {
  return DesiredState === 'complete' && ends.includes(Status.State);
}

// At the start of the daemon its socket accepts and does not answer for a while: better to ask again than to wait.
const timeoutMilliseconds = 5_000;

/** An engine, and the API version it is spoken to with. */
export interface SpokenTo {
  version: string;
  api: string;
}

/** A list, as far as it could be read. */
export interface Listed<T> {
  rows: T[];
  /** What could not be, and why, in one line. */
  unreadable: { value: unknown; reason: string }[];
}

export interface Docker {
  /** What the engine said of itself when it was asked last; undefined until it has spoken, and once it fell silent. */
  readonly engine: SpokenTo | undefined;
  info(signal: AbortSignal): Promise<Info>;
  networks(signal: AbortSignal): Promise<Network[]>;
  nodes(signal: AbortSignal): Promise<Node[]>;
  /** @param ids only these, as far as they are there */
  services(signal: AbortSignal, ids?: readonly string[]): Promise<Listed<Service>>;
  /**
   * Tasks that shall run, whatever state they are in now; also those that shall as soon as another has ended, or after
   * their restart delay: they have their addresses already. Of a job those that are not done yet.
   *
   * @param services only theirs
   * @throws DockerError when one of these is not there
   */
  tasks(signal: AbortSignal, services?: readonly string[]): Promise<Listed<Task>>;
  /** Ids of the running containers of this engine. */
  containers(signal: AbortSignal): Promise<string[]>;
  /** @returns undefined when there is no such container (any more) */
  container(id: string, signal: AbortSignal): Promise<ContainerDetails | undefined>;
  /** Events from now on; ends or throws when the connection does. */
  events(types: readonly string[], signal: AbortSignal): AsyncIterable<Event>;
  close(): void;
}

/** @param socketPath of the Docker Engine's API */
export function connectDocker(socketPath: string): Docker {
  const agent = new Agent({ keepAlive: true, maxSockets: 4, timeout: 10_000 });
  let engine: SpokenTo | undefined;

  /** Asks without a version, which every engine answers. */
  async function negotiate(signal: AbortSignal): Promise<SpokenTo> {
    const response = await ask('/version', signal, timeoutMilliseconds);
    const said = EngineVersion.parse(JSON.parse(await text(response)));
    return (engine = { version: said.Version, api: chooseApiVersion(said) });
  }

  /** @param silence after how many milliseconds without a byte the answer counts as broken; 0 for never */
  async function open(path: string, signal: AbortSignal, silence: number): Promise<IncomingMessage> {
    const { api } = engine ?? (await negotiate(signal));
    try {
      return await ask(`/v${api}${path}`, signal, silence);
    } catch (error) {
      // Without an answer it may be another engine that answers next; and one that refuses may have become another.
      if (!(error instanceof DockerError) || (error.status !== undefined && error.status !== 400))
        throw error;
      engine = undefined;
      const other = error.status === undefined ? undefined : await negotiate(signal);
      if (other === undefined || other.api === api) throw error;
      return await ask(`/v${other.api}${path}`, signal, silence);
    }
  }

  async function ask(path: string, signal: AbortSignal, silence: number): Promise<IncomingMessage> {
    const request = httpGet({
      socketPath,
      path,
      headers: { host: 'docker' },
      agent,
      signal,
    });
    // What happens to it after its answer began, or after it was given up, is told by the answer's stream.
    request.on('error', () => undefined);
    // No signal's timeout, which would end, as an error with its stack, seconds after the answer.
    const patience = setTimeout(() => request.destroy(new Error('no answer in time')), timeoutMilliseconds);
    try {
      const [response] = (await once(request, 'response')) as [IncomingMessage];
      response.setTimeout(silence, () => response.destroy(new Error('the answer broke off')));
      if (response.statusCode === 200) return response;
      throw new DockerError(`GET ${path}: ${(await text(response)).trim()}`, response.statusCode);
    } catch (error) {
      request.destroy();
      if (error instanceof DockerError) throw error;
      signal.throwIfAborted();
      throw new DockerError(`GET ${path}: no answer from the Docker Engine at ${socketPath}`, undefined, {
        cause: error,
      });
    } finally {
      clearTimeout(patience);
    }
  }

  async function get<T>(path: string, schema: z.ZodType<T>, signal: AbortSignal): Promise<T> {
    const response = await open(path, signal, timeoutMilliseconds);
    return schema.parse(JSON.parse(await text(response)));
  }

  /** One that cannot be read costs only itself. */
  async function list<T>(path: string, schema: z.ZodType<T>, signal: AbortSignal): Promise<Listed<T>> {
    const listed: Listed<T> = { rows: [], unreadable: [] };
    for (const value of await get(path, z.array(z.unknown()), signal)) {
      const { success, data, error } = schema.safeParse(value);
      if (success) listed.rows.push(data);
      else listed.unreadable.push({ value, reason: z.prettifyError(error).replaceAll('\n', ' ') });
    }
    return listed;
  }

  const query = (filters: Record<string, readonly string[]>): string =>
    `?filters=${encodeURIComponent(JSON.stringify(filters))}`;

  return {
    get engine() {
      return engine;
    },
    info: (signal) => get('/info', Info, signal),
    networks: (signal) => get('/networks', z.array(Network), signal),
    nodes: (signal) => get('/nodes', z.array(Node), signal),
    services: (signal, ids) =>
      list(`/services${ids === undefined ? '' : query({ id: ids })}`, Service, signal),
    tasks: async (signal, services) => {
      const of = services === undefined ? {} : { service: services };
      const path = `/tasks${query({ 'desired-state': ['ready', 'running', 'complete'], ...of })}`;
      const { rows, unreadable } = await list(path, Task, signal);
      return { rows: rows.filter((task) => !isDone(task)), unreadable };
    },
    containers: async (signal) =>
      (await get('/containers/json', z.array(Container), signal)).map(({ Id }) => Id),
    async container(id, signal) {
      try {
        return await get(`/containers/${id}/json`, ContainerDetails, signal);
      } catch (error) {
        if (error instanceof DockerError && error.status === 404) return undefined;
        throw error;
      }
    },
    async *events(types, signal) {
      const response = await open(`/events${query({ type: types })}`, signal, 0);
      let rest = '';
      try {
        for await (const chunk of response.setEncoding('utf8') as AsyncIterable<string>) {
          const lines = (rest + chunk).split('\n');
          rest = lines.pop() ?? '';
          for (const line of lines) if (line !== '') yield Event.parse(JSON.parse(line));
        }
      } finally {
        // The stream ends when the engine does: the next one may be newer.
        engine = undefined;
      }
    },
    close: () => agent.destroy(),
  };
}
