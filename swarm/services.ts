// Owns the translation of Swarm's services and tasks into service records. Pure.
// Must not call Docker or the store.
import type { PolicyRecord, ServiceRecord } from '../store/records.ts';
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
    .filter(({ networks }) => networks.length > 0);
}

function renderService({ ID, Spec, Endpoint }: Service, tasks: readonly Task[], known: Known): ServiceRecord {
  const attachments = [...(Spec.TaskTemplate.Networks ?? []), ...(Spec.Networks ?? [])];
  const vips = (Endpoint?.VirtualIPs ?? []).filter(
    ({ NetworkID, Addr }) => known.networks.has(NetworkID) && Addr !== '',
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
  const ports = (Endpoint?.Ports ?? []).flatMap(
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
  const aliases = attachments.flatMap(({ Target, Aliases }) =>
    networks.has(Target) && Aliases && Aliases.length > 0 ? [[Target, Aliases] as const] : [],
  );
  const problems = [...policy.problems, ...readTaskPolicy(Spec.TaskTemplate.ContainerSpec?.Labels).problems];
  return {
    v: 1,
    id: ID,
    name: Spec.Name,
    vips: Object.fromEntries(vips.map(({ NetworkID, Addr }) => [NetworkID, bare(Addr)])),
    networks: [...networks].sort(),
    ...(aliases.length > 0 ? { aliases: Object.fromEntries(aliases) } : {}),
    ports,
    tasks: [...running, ...draining(ID, running, known, policy.value)].sort((a, b) => (a.id < b.id ? -1 : 1)),
    ...(Object.keys(policy.value).length > 0 ? { policy: policy.value } : {}),
    ...(problems.length > 0 ? { problems } : {}),
  };
}

type TaskEntry = ServiceRecord['tasks'][number];

function renderTask({ ID, NetworksAttachments, Spec }: Task, known: Known): TaskEntry {
  const { weight } = readTaskPolicy(Spec?.ContainerSpec?.Labels).value;
  const addresses = (NetworksAttachments ?? []).flatMap(({ Network, Addresses }) => {
    const first = Addresses?.[0];
    return known.networks.has(Network.ID) && first !== undefined ? [[Network.ID, bare(first)] as const] : [];
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

/** Docker writes addresses with the prefix of their network. */
function bare(address: string): string {
  return address.split('/', 1)[0] ?? address;
}
