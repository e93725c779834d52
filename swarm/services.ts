// Owns the translation of Swarm's services and tasks into service records. Pure.
// Must not call Docker or the store.
import { storedService, type PolicyRecord, type ServiceRecord } from '../store/records.ts';
import { maxCommitBytes } from '../store/store.ts';
import type { Service, Task } from './docker.ts';
import { readPolicy, readTaskPolicy } from './policy.ts';

/** What is known outside of Swarm's lists. */
export interface Known {
  /** Ids of the networks that are ours. */
  networks: ReadonlySet<string>;
  /** `NETWORK ADDRESS` of every endpoint there is. */
  endpoints: ReadonlySet<string>;
  /** The records as they are, by service. */
  before: ReadonlyMap<string, ServiceRecord>;
  /** Ports that no service can publish, as `8500/tcp`, and whose they are; absent: none. */
  reserved?: ReadonlyMap<string, string>;
  /** Milliseconds of Unix time. */
  now: number;
}

/** @returns a record for each service that is on a network of ours */
export function renderServices(
  services: readonly Service[],
  tasks: readonly Task[],
  known: Known,
): ServiceRecord[] {
  const byService = Map.groupBy(tasks, ({ ServiceID }) => ServiceID);
  return services
    .map((service) => renderService(service, byService.get(service.ID) ?? [], known))
    .filter(({ networks }) => networks.length > 0)
    .map(fitting);
}

/** What a record may have, with room for what each commit carries besides. */
const maxRecordBytes = maxCommitBytes - 4 * 1024;

/** @returns the record, or as much of it as the store takes, with a word about what is missing */
function fitting(record: ServiceRecord): ServiceRecord {
  let fitted = record;
  for (;;) {
    const stored = storedService(fitted);
    const over = bytesOf(stored) - maxRecordBytes;
    if (over <= 0) return fitted;
    const [ports, tasks] = [bytesOf(stored.ports), bytesOf(fitted.tasks)];
    const part = (bytes: number): number => Math.max(0, 1 - (over + 1024) / bytes);
    if (ports > tasks)
      fitted = { ...fitted, ports: fitted.ports.slice(0, Math.floor(fitted.ports.length * part(ports))) };
    else if (tasks > 2)
      fitted = { ...fitted, tasks: fitted.tasks.slice(0, Math.floor(fitted.tasks.length * part(tasks))) };
    else
      return {
        ...fitted,
        aliases: {},
        problems: ['its names and labels are too long: they are left out of account'],
      };
    const missing = [
      [record.ports.length - fitted.ports.length, 'published ports are left to Docker’s own mesh'],
      [record.tasks.length - fitted.tasks.length, 'tasks get no connections'],
    ] as const;
    fitted = {
      ...fitted,
      problems: [
        ...(record.problems ?? []),
        ...missing
          .filter(([count]) => count > 0)
          .map(([count, what]) => `the service is too large for the store: ${count} of its ${what}`),
      ],
    };
  }
}

const bytesOf = (value: unknown): number => Buffer.byteLength(JSON.stringify(value));

function renderService({ ID, Spec, Endpoint }: Service, tasks: readonly Task[], known: Known): ServiceRecord {
  const attachments = [...(Spec.TaskTemplate.Networks ?? []), ...(Spec.Networks ?? [])];
  const vips = (Endpoint?.VirtualIPs ?? []).filter(
    ({ NetworkID, Addr }) => known.networks.has(NetworkID) && Addr !== '' && !isStandIn(Addr),
  );
  // Swarm names a VIP's network by id; a spec may name it otherwise when it was written by hand.
  const networks = new Set(
    [...attachments.map(({ Target }) => Target), ...vips.map(({ NetworkID }) => NetworkID)].filter((id) =>
      known.networks.has(id),
    ),
  );
  const policy = readPolicy(Spec.Labels);
  const checked = policy.value.health !== undefined;
  const running = tasks
    .filter(({ Status }) => Status.State === 'running')
    .map((task) => renderTask(task, known))
    .map((task) =>
      checked && wasThere(task, known.before.get(ID)) ? { ...task, assumed: true as const } : task,
    );
  // Where a task runs it is the one to find, and nothing is written because another one starts.
  const starting = (running.length > 0 ? [] : tasks.filter((task) => isWaiting(task, known.now)))
    .map((task) => renderTask(task, known))
    .map(({ id, addresses }) => ({ id, addresses }))
    .sort((a, b) => (a.id < b.id ? -1 : 1))
    .slice(0, maxStarting);
  const published = (Endpoint?.Ports ?? []).flatMap(
    ({ Protocol, PublishedPort, TargetPort, PublishMode, Name }) =>
      PublishMode === 'ingress' && PublishedPort !== undefined && PublishedPort > 0
        ? [
            {
              protocol: Protocol,
              port: PublishedPort,
              targetPort: TargetPort,
              ...(Name ? { name: Name } : {}),
            },
          ]
        : [],
  );
  const whose = ({ port, protocol }: { port: number; protocol: string }): string | undefined =>
    known.reserved?.get(`${port}/${protocol}`);
  const ports = published.filter((port) => whose(port) === undefined);
  // In the order in which neighbours are written as one.
  if (ports.length >= manyPorts)
    ports.sort((a, b) => a.protocol.localeCompare(b.protocol) || a.port - b.port);
  const aliases = attachments.flatMap(({ Target, Aliases }) =>
    networks.has(Target) && Aliases && Aliases.length > 0 ? [[Target, Aliases] as const] : [],
  );
  const ofTasks = readTaskPolicy(Spec.TaskTemplate.ContainerSpec?.Labels);
  const problems = [
    ...policy.problems,
    ...ofTasks.problems,
    ...published.flatMap((port) => {
      const name = `${port.port}/${port.protocol}`;
      const owner = whose(port);
      if (owner !== undefined)
        return [`port ${name} is not published: on every node it is that of ${owner}; publish another`];
      return name === '22/tcp' ? [sshd] : [];
    }),
  ];
  // As a stack's file has it: labels of the service itself are below `deploy`, those beside it are the containers'.
  const said: PolicyRecord = ofTasks.closed ? { ...policy.value, closed: true } : policy.value;
  return {
    v: 1,
    id: ID,
    name: Spec.Name,
    vips: Object.fromEntries(vips.map(({ NetworkID, Addr }) => [NetworkID, bare(Addr)])),
    networks: [...networks].sort(),
    ...(aliases.length > 0 ? { aliases: Object.fromEntries(aliases) } : {}),
    ports,
    tasks: [...running, ...draining(ID, running, known, policy.value)].sort((a, b) => (a.id < b.id ? -1 : 1)),
    ...(starting.length > 0 ? { starting } : {}),
    ...(Object.keys(said).length > 0 ? { policy: said } : {}),
    ...(problems.length > 0 ? { problems } : {}),
  };
}

/** Enough to find each other by; a record has no room for any number. */
const maxStarting = 50;

/** A task without a health check is over with starting before that, in milliseconds, and needs no record of it. */
const startsAtOnce = 1_000;

/** Whether its health check is what a task waits for: its container runs. */
function isWaiting({ DesiredState, Status }: Task, now: number): boolean {
  if (Status.State !== 'starting' || DesiredState !== 'running') return false;
  // By the clock of the task's node: one that is ahead costs as many seconds more, and no time at all is long ago.
  const since = Date.parse(Status.Timestamp ?? '');
  return !(now - since < startsAtOnce);
}

/** So many have an order of ours; fewer are as Swarm has them. */
const manyPorts = 64;

/** Docker's own mesh does the same, and whoever notices has no way in any more. */
const sshd =
  'port 22/tcp is published: who connects to port 22 of a node reaches the service, not the node’s sshd';

type TaskEntry = ServiceRecord['tasks'][number];

function renderTask({ ID, NetworksAttachments, Spec }: Task, known: Known): TaskEntry {
  const { weight } = readTaskPolicy(Spec?.ContainerSpec?.Labels).value;
  const addresses = (NetworksAttachments ?? []).flatMap(({ Network, Addresses }) => {
    const first = Addresses?.[0];
    return known.networks.has(Network.ID) && first !== undefined && !isStandIn(first)
      ? [[Network.ID, bare(first)] as const]
      : [];
  });
  return {
    id: ID,
    addresses: Object.fromEntries(addresses),
    draining: false,
    ...(weight === undefined ? {} : { weight }),
  };
}

/** Tasks that took connections and shall not run any longer, for as long as they have an endpoint to answer from. */
function draining(
  service: string,
  running: readonly TaskEntry[],
  known: Known,
  { drain }: PolicyRecord,
): TaskEntry[] {
  const current = new Set(running.map(({ id }) => id));
  const taken = new Set(
    running.flatMap(({ addresses }) => Object.entries(addresses).map((pair) => pair.join(' '))),
  );
  return (known.before.get(service)?.tasks ?? [])
    .filter(({ id }) => !current.has(id))
    .filter(({ addresses }) =>
      Object.entries(addresses).some(
        (pair) => known.endpoints.has(pair.join(' ')) && !taken.has(pair.join(' ')),
      ),
    )
    .map(({ since = known.now, drained: _, ...task }) => ({
      ...task,
      draining: true,
      ...(drain !== undefined && {
        since,
        ...(known.now >= since + drain * 1000 && { drained: true as const }),
      }),
    }));
}

/** Whether a task was there when nobody asked for its health, so that it may not have been told yet. */
function wasThere({ id }: TaskEntry, before: ServiceRecord | undefined): boolean {
  const task = before?.tasks.find((other) => other.id === id);
  return task !== undefined && (before?.policy?.health === undefined || task.assumed === true);
}

/** @returns when the next of the tasks has drained for as long as its service's policy says; Infinity if none will */
export function nextDrained(services: readonly ServiceRecord[]): number {
  const times = services.flatMap(({ tasks, policy: { drain } = {} }) =>
    tasks.flatMap(({ since, drained }) =>
      since === undefined || drain === undefined || drained === true ? [] : since + drain * 1000,
    ),
  );
  return Math.min(Infinity, ...times);
}

/** Ids of services to which something is about to happen at a moment that no event tells. */
export interface UnderWay {
  /** Tasks end, as the next ones in an update have their turn. */
  updating: readonly string[];
  /** No more than this: tasks begin, as a check of their health succeeds. */
  starting: readonly string[];
}

export function whatIsUnderWay(services: readonly Service[], tasks: readonly Task[]): UnderWay {
  const begun = new Set(
    tasks.filter(({ Status }) => Status.State === 'starting').map(({ ServiceID }) => ServiceID),
  );
  const updating: string[] = [];
  const starting: string[] = [];
  for (const { ID, UpdateStatus } of services)
    if (/^(updating|rollback_started)$/.test(UpdateStatus?.State ?? '')) updating.push(ID);
    else if (begun.has(ID)) starting.push(ID);
  return { updating, starting };
}

/**
 * Whether the address is that of its subnet itself, which Swarm was given when the pool was full (docs/adr/0003-ipam.md):
 * such a service has no VIP.
 */
function isStandIn(address: string): boolean {
  const [text = '', length = '32'] = address.split('/');
  const value = text.split('.').reduce((sum, octet) => sum * 256 + Number(octet), 0);
  return Number(length) <= 30 && value % 2 ** (32 - Number(length)) === 0;
}

/** Docker writes addresses with the prefix of their network. */
function bare(address: string): string {
  return address.split('/', 1)[0] ?? address;
}
