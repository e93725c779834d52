// Owns bringing Swarm's services into the store: events are hints to look, lists are the truth, and one of the managers
// writes them.
// Must not decide how services are balanced, and must not delete anything because Docker was silent.
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { batches } from '../store/batches.ts';
import { StoreError } from '../store/errors.ts';
import type { Op, Store } from '../store/store.ts';
import type { Records } from '../store/records.ts';
import {
  DockerError,
  type Docker,
  type Info,
  type Listed,
  type Network,
  type Node,
  type Service,
  type Task,
} from './docker.ts';
import type { EngineHealth } from './engine-health.ts';
import { Wakeup } from './wakeup.ts';
import { NodeInfo } from './node-info.ts';
import { PollSchedule } from './poll-schedule.ts';
import { nextDrained, renderServices, whatIsUnderWay, type UnderWay } from './services.ts';

/** How long services wait for the names of networks to be written, in milliseconds: the store may be away. */
const describePatience = 300;

/** The part of pino that is used here. */
export interface Log {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  debug(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

/** One complete look at Docker, all lists read. */
export interface Observation {
  networks: readonly Network[];
  /** From which Docker takes the subnets of its overlay networks; empty where that is not known. */
  addressPools: readonly string[];
  /** What the manager knows that leads; undefined on all other nodes. Empty where there is no Swarm. */
  swarm: Swarm | undefined;
}

export interface Swarm {
  /** This node is the manager that Swarm's managers have elected. */
  leader: boolean;
  services: readonly Service[];
  /** Tasks that shall run, now or later. */
  tasks: readonly Task[];
  /** Empty where there is no Swarm. */
  nodes: readonly Node[];
  /** Services of which not all could be read, by id, and why: what was published of them stays. */
  unreadable: ReadonlyMap<string, string>;
}

/** What Docker says of the Swarm that this node is in. */
export interface Belonging {
  info: Info['Swarm'];
  /** This node is the manager that was elected. */
  leader: boolean;
  /** As managers list them. */
  nodes: readonly Node[];
}

export interface PublisherOptions {
  docker: Docker;
  /** Told of each look whether Docker answered it. */
  health: Pick<EngineHealth, 'answered' | 'failed'>;
  store: Store;
  records: Records;
  log: Log;
  /** Whether the records are those of the Swarm that this node is in. Absent: they always are. */
  belongs?: (seen: Belonging) => Promise<boolean>;
  /**
   * Whether this node writes for the cluster, by what it knows of Swarm; with operations that make each commit fail
   * when that is no longer so. Undefined: it does not.
   */
  elect: (swarm: Swarm | undefined, signal: AbortSignal) => Promise<readonly Op[] | undefined>;
  /**
   * Told of each complete look, for who needs Docker's word beyond services. Must not wait: a task that ends leaves the
   * balancers with the next look, and Swarm gives it two seconds.
   */
  observed: (observation: Observation, elected: boolean) => void;
  /** Milliseconds of Unix time. */
  now: () => number;
  /** Ports that no service can publish, as `8500/tcp`, and whose they are; absent: none. */
  reserved?: ReadonlyMap<string, string>;
}

/** As long as the publisher runs. */
interface Publishing extends PublisherOptions {
  /** What was told once. */
  told: Set<string>;
  info: NodeInfo;
}

const hintTypes = ['service', 'container', 'network', 'node'] as const;
// `exec_*` comes with every health check and tells nothing about where a task is.
const noise = /^(exec_|top$|attach$|resize$)/;

/** A glance at more services than these is no glance any more; the others have to wait for the next whole look. */
const glanceLimit = 100;

/** Runs until the signal aborts; throws nothing else. */
export async function runPublisher(how: PublisherOptions, signal: AbortSignal): Promise<void> {
  const options: Publishing = { ...how, told: new Set(), info: new NodeInfo(how.docker) };
  const hints = new Wakeup();
  const listening = Promise.all([listen(options, hints, signal), follow(options, hints, signal)]);
  const pace = new PollSchedule();
  let troubled = false;
  let seen: Seen | undefined;
  while (!signal.aborted) {
    const { look, wait } = pace.next();
    if (wait > 0) {
      if (await hints.wait(wait, signal)) pace.hint();
      continue;
    }
    const began = performance.now();
    try {
      // Whatever is wrong with a glance, a whole look tells.
      const glanced =
        look === 'glance' && seen && (await glance(options, seen, signal).catch(() => undefined));
      seen = glanced || (await lookAtAll(options, signal));
      pace.looked(glanced ? 'glance' : 'whole', performance.now() - began, {
        underWay: seen.underWay,
        dueIn: seen.due - options.now(),
        bystander: seen.swarm === undefined,
      });
      if (troubled) options.log.info({}, 'services updated again');
      troubled = false;
    } catch (error) {
      if (!troubled)
        options.log.warn({ error }, 'cannot update services, balancing with the last known ones');
      troubled = true;
      pace.failed();
    }
  }
  await listening;
}

async function listen({ docker, log }: PublisherOptions, hints: Wakeup, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    try {
      // What happened while nobody listened is found by looking.
      hints.notify();
      for await (const { Action } of docker.events(hintTypes, signal))
        if (!noise.test(Action)) hints.notify();
    } catch (error) {
      log.debug({ error }, 'Docker event stream ended');
    }
    await sleep(1000, undefined, { signal }).catch(() => undefined);
  }
}

/**
 * An endpoint that comes or goes is a hint too: Docker tells of its own containers only, and a task of another node
 * joins its network moments before Swarm hears that it runs.
 */
async function follow({ records }: PublisherOptions, hints: Wakeup, signal: AbortSignal): Promise<void> {
  for await (const _ of records.endpoints.watch({ signal })) hints.notify();
}

/** What the last look found. */
interface Seen {
  swarm: Swarm | undefined;
  underWay: UnderWay;
  /** When the next look has to be at the latest, in milliseconds of Unix time; Infinity when nothing is due. */
  due: number;
}

const nothing: Pick<Seen, 'underWay' | 'due'> = { underWay: { updating: [], starting: [] }, due: Infinity };

async function lookAtAll(options: Publishing, signal: AbortSignal): Promise<Seen> {
  const [heard, belonging] = await hear(options, signal);
  const belongs = (await options.belongs?.(belonging)) ?? true;
  // In the records of another Swarm this one is nobody's to look after.
  const swarm = belongs ? heard.swarm : undefined;
  const observation = { ...heard, swarm };
  const fence = await options.elect(swarm, signal);
  if (fence !== undefined) {
    // A task on several networks is reached by the first of them by name: a service is balanced by what they are called.
    const described = describeNetworks(options.records, heard.networks).catch((error: unknown) =>
      options.log.debug({ error }, 'names of networks cannot be written'),
    );
    await Promise.race([described, sleep(describePatience, undefined, { ref: false })]);
  }
  const next = fence === undefined || swarm === undefined ? nothing : await publish(options, swarm, fence);
  options.observed(observation, fence !== undefined);
  return { swarm, ...(next ?? nothing) };
}

/**
 * Looks at the services again to which something is about to happen, and takes all else as it was: a look at the lists of
 * a large Swarm takes longer than a task has until it ends.
 *
 * @returns undefined when that cannot be told without a look at all
 */
async function glance(
  options: Publishing,
  { swarm: before, underWay }: Seen,
  signal: AbortSignal,
): Promise<Seen | undefined> {
  const wanted = [...underWay.updating, ...underWay.starting].slice(0, glanceLimit);
  if (before === undefined || wanted.length === 0) return undefined;
  const { docker, elect } = options;
  const { rows: services } = await docker.services(signal, wanted);
  // One that is gone is an error to those who ask for its tasks, and the others' are not told.
  const ids = new Set(services.map(({ ID }) => ID));
  if (!wanted.every((id) => ids.has(id))) return undefined;
  const { rows: tasks, unreadable } = await docker.tasks(signal, wanted);
  if (unreadable.length > 0) return undefined;
  const swarm = {
    ...before,
    services: [...before.services.filter(({ ID }) => !ids.has(ID)), ...services],
    tasks: [...before.tasks.filter(({ ServiceID }) => !ids.has(ServiceID)), ...tasks],
  };
  const fence = await elect(swarm, signal);
  const next = fence && (await publish(options, swarm, fence));
  return next && { swarm, ...next };
}

/** Sees all there is to see, and tells whether it could. */
async function hear(
  { docker, info, health }: Publishing,
  signal: AbortSignal,
): Promise<[Observation, Belonging]> {
  try {
    const observed = await observe(docker, info, signal);
    health.answered();
    return observed;
  } catch (error) {
    if (!signal.aborted) health.failed(error);
    throw error;
  }
}

async function observe(
  docker: Docker,
  nodeInfo: NodeInfo,
  signal: AbortSignal,
): Promise<[Observation, Belonging]> {
  try {
    const [nodes, networks] = await Promise.all([docker.nodes(signal), docker.networks(signal)]);
    const info = await nodeInfo.get(nodes, signal);
    const leader = nodes.find(({ ID }) => ID === info.NodeID)?.ManagerStatus?.Leader ?? false;
    // The others would ask the leader for its lists, each as often as it does itself, and do nothing with them.
    const addressPools = info.Cluster?.DefaultAddrPool ?? [];
    const belonging = { info, leader, nodes };
    if (!leader) return [{ networks, addressPools, swarm: undefined }, belonging];
    // Services before tasks: a task of a service that is too new to be in the list is dropped, and seen next time.
    const services = await docker.services(signal);
    const tasks = await docker.tasks(signal);
    const unreadable = new Map([...unreadableOf(services, 'ID'), ...unreadableOf(tasks, 'ServiceID')]);
    const swarm = { leader, services: services.rows, tasks: tasks.rows, nodes, unreadable };
    return [{ networks, addressPools, swarm }, belonging];
  } catch (error) {
    // 503 is Docker's word for "this node is not a manager"; 406 was, in older versions.
    if (!(error instanceof DockerError && (error.status === 503 || error.status === 406))) throw error;
    const [info, networks] = await Promise.all([nodeInfo.get(undefined, signal), docker.networks(signal)]);
    const swarm =
      info.LocalNodeState === 'inactive'
        ? { leader: false, services: [], tasks: [], nodes: [], unreadable: new Map<string, string>() }
        : undefined;
    return [
      { networks, addressPools: [], swarm },
      { info, leader: false, nodes: [] },
    ];
  }
}

/** @returns ids of services and why not all of them could be read */
function unreadableOf({ unreadable }: Listed<unknown>, key: string): [string, string][] {
  return unreadable.flatMap(({ value, reason }) => {
    const id = (value as Record<string, unknown> | null)?.[key];
    return typeof id === 'string' ? [[id, `Docker’s answer cannot be read: ${reason}`]] : [];
  });
}

/** Writes what changed, and only that. @returns undefined when another manager has taken over */
async function publish(
  { store, records, log, now, told, reserved }: Publishing,
  swarm: Swarm,
  fence: readonly Op[],
): Promise<Pick<Seen, 'underWay' | 'due'> | undefined> {
  const [networks, endpoints, services] = await Promise.all([
    records.networks.list(),
    records.endpoints.list(),
    records.services.list(),
  ]);
  const tell = (what: string, say: () => void): void => {
    if (!told.has(what)) say();
    told.add(what);
  };
  const before = new Map(services.rows.map(({ id, value }) => [id, value]));
  const readable = swarm.services.filter(({ ID }) => !swarm.unreadable.has(ID));
  const wanted = renderServices(readable, swarm.tasks, {
    networks: new Set(networks.rows.map(({ id }) => id)),
    endpoints: new Set(endpoints.rows.map(({ value }) => `${value.network} ${value.address}`)),
    before,
    ...(reserved && { reserved }),
    now: now(),
  });
  const ops: Op[] = [];
  for (const record of wanted) {
    const known = before.get(record.id);
    if (!isDeepStrictEqual(known, record)) ops.push(records.services.set(record.id, record));
    if (record.problems !== undefined && !isDeepStrictEqual(known?.problems, record.problems))
      log.warn(
        { service: record.name, problems: record.problems },
        'service has settings that cannot be applied',
      );
    before.delete(record.id);
  }
  for (const [id, reason] of swarm.unreadable) {
    const known = before.get(id);
    before.delete(id);
    tell(`${id} ${reason}`, () =>
      log.error({ service: known?.name ?? id, reason }, 'service record kept as it was'),
    );
    const marked = known && { ...known, problems: [reason] };
    if (marked !== undefined && !isDeepStrictEqual(marked, known)) ops.push(records.services.set(id, marked));
  }
  for (const id of before.keys()) ops.push(records.services.remove(id));
  for (const commit of batches(ops, fence)) {
    try {
      // Services have one owner, so a manager that Swarm elected may write while the store is away.
      const { ok } = await store.commit(commit, { offline: true });
      if (!ok) return undefined;
    } catch (error) {
      // One that the store does not take costs only itself.
      if (!(error instanceof StoreError && error.code === 'invalid')) throw error;
      for (const op of commit.slice(fence.length)) {
        const alone = await store.commit([...fence, op], { offline: true }).catch((reason: unknown) => {
          if (!(reason instanceof StoreError && reason.code === 'invalid')) throw reason;
          tell(`${op.key} ${reason.message}`, () =>
            log.error(
              { error: reason, key: op.key },
              'service record rejected by the store, keeping the last one',
            ),
          );
          return { ok: true };
        });
        if (!alone.ok) return undefined;
      }
    }
  }
  if (ops.length > 0) log.debug({ changes: ops.length }, 'services published');
  const ours = new Set(wanted.map(({ id }) => id));
  const underWay = whatIsUnderWay(
    swarm.services.filter(({ ID }) => ours.has(ID)),
    swarm.tasks,
  );
  return { due: nextDrained(wanted), underWay };
}

/**
 * Writes what Docker alone knows of the networks that are ours.
 * @throws StoreError when the store is away
 */
async function describeNetworks(records: Records, networks: readonly Network[]): Promise<void> {
  for (const { Id, Name: name, Internal: internal } of networks) {
    // The record belongs to the network driver, which may change it meanwhile.
    await records.networks.update(Id, (record) => {
      if (record === undefined) return undefined;
      if (record.name === name && record.internal === internal) return record;
      return { ...record, name, internal };
    });
  }
}
