// Owns bringing Swarm's services into the store: events are hints to look, lists are the truth, and one of the managers
// writes them.
// Must not decide how services are balanced, and must not delete anything because Docker was silent.
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { batches } from '../store/batches.ts';
import type { Op, Store } from '../store/store.ts';
import type { Records } from '../store/records.ts';
import { DockerError, type Docker, type Network, type Node, type Service, type Task } from './docker.ts';
import { Hints } from './hints.ts';
import { Pace } from './pace.ts';
import { nextDrained, renderServices, whatIsUnderWay, type UnderWay } from './services.ts';

/** The part of pino that is used here. */
export interface Log {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  debug(fields: object, message: string): void;
}

/** One complete look at Docker, all lists read. */
export interface Observation {
  networks: readonly Network[];
  /** What a manager knows; undefined on a worker. Empty where there is no Swarm. */
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
}

export interface PublisherOptions {
  docker: Docker;
  store: Store;
  records: Records;
  log: Log;
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
}

const hintTypes = ['service', 'container', 'network', 'node'] as const;
// `exec_*` comes with every health check and tells nothing about where a task is.
const noise = /^(exec_|top$|attach$|resize$)/;

/** A glance at more services than these is no glance any more; the others have to wait for the next whole look. */
const glanceLimit = 100;

/** Runs until the signal aborts; throws nothing else. */
export async function runPublisher(options: PublisherOptions, signal: AbortSignal): Promise<void> {
  const hints = new Hints();
  const listening = Promise.all([listen(options, hints, signal), follow(options, hints, signal)]);
  const pace = new Pace();
  let silent = false;
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
      });
      if (silent) options.log.info({}, 'Docker answers again: services are up to date');
      silent = false;
    } catch (error) {
      if (!silent)
        options.log.warn({ error }, 'Docker does not tell its services: balancing goes on with those known');
      silent = true;
      pace.failed();
    }
  }
  await listening;
}

async function listen({ docker, log }: PublisherOptions, hints: Hints, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    try {
      // What happened while nobody listened is found by looking.
      hints.give();
      for await (const { Action } of docker.events(hintTypes, signal)) if (!noise.test(Action)) hints.give();
    } catch (error) {
      log.debug({ error }, 'the stream of Docker events ended');
    }
    await sleep(1000, undefined, { signal }).catch(() => undefined);
  }
}

/**
 * An endpoint that comes or goes is a hint too: Docker tells of its own containers only, and a task of another node
 * joins its network moments before Swarm hears that it runs.
 */
async function follow({ records }: PublisherOptions, hints: Hints, signal: AbortSignal): Promise<void> {
  for await (const _ of records.endpoints.watch({ signal })) hints.give();
}

/** What the last look found. */
interface Seen {
  swarm: Swarm | undefined;
  underWay: UnderWay;
  /** When the next look has to be at the latest, in milliseconds of Unix time; Infinity when nothing is due. */
  due: number;
}

const nothing: Pick<Seen, 'underWay' | 'due'> = { underWay: { updating: [], starting: [] }, due: Infinity };

async function lookAtAll(options: PublisherOptions, signal: AbortSignal): Promise<Seen> {
  const observation = await observe(options.docker, signal);
  const { swarm } = observation;
  const fence = await options.elect(swarm, signal);
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
  options: PublisherOptions,
  { swarm: before, underWay }: Seen,
  signal: AbortSignal,
): Promise<Seen | undefined> {
  const wanted = [...underWay.updating, ...underWay.starting].slice(0, glanceLimit);
  if (before === undefined || wanted.length === 0) return undefined;
  const { docker, elect } = options;
  const services = await docker.services(signal, wanted);
  // One that is gone is an error to those who ask for its tasks, and the others' are not told.
  const ids = new Set(services.map(({ ID }) => ID));
  if (!wanted.every((id) => ids.has(id))) return undefined;
  const tasks = await docker.tasks(signal, wanted);
  const swarm = {
    ...before,
    services: [...before.services.filter(({ ID }) => !ids.has(ID)), ...services],
    tasks: [...before.tasks.filter(({ ServiceID }) => !ids.has(ServiceID)), ...tasks],
  };
  const fence = await elect(swarm, signal);
  const next = fence && (await publish(options, swarm, fence));
  return next && { swarm, ...next };
}

async function observe(docker: Docker, signal: AbortSignal): Promise<Observation> {
  try {
    // Services before tasks: a task of a service that is too new to be in the list is dropped, and seen next time.
    const services = await docker.services(signal);
    const [tasks, networks, nodes, info] = await Promise.all([
      docker.tasks(signal),
      docker.networks(signal),
      docker.nodes(signal),
      docker.info(signal),
    ]);
    const leader = nodes.find(({ ID }) => ID === info.Swarm.NodeID)?.ManagerStatus?.Leader ?? false;
    return { networks, swarm: { leader, services, tasks, nodes } };
  } catch (error) {
    // 503 is Docker's word for "this node is not a manager"; 406 was, in older versions.
    if (!(error instanceof DockerError && (error.status === 503 || error.status === 406))) throw error;
    const [{ Swarm }, networks] = await Promise.all([docker.info(signal), docker.networks(signal)]);
    const swarm =
      Swarm.LocalNodeState === 'inactive' ? { leader: false, services: [], tasks: [], nodes: [] } : undefined;
    return { networks, swarm };
  }
}

/** Writes what changed, and only that. @returns undefined when another manager has taken over */
async function publish(
  { store, records, log, now }: PublisherOptions,
  swarm: Swarm,
  fence: readonly Op[],
): Promise<Pick<Seen, 'underWay' | 'due'> | undefined> {
  const [networks, endpoints, services] = await Promise.all([
    records.networks.list(),
    records.endpoints.list(),
    records.services.list(),
  ]);
  const before = new Map(services.rows.map(({ id, value }) => [id, value]));
  const wanted = renderServices(swarm.services, swarm.tasks, {
    networks: new Set(networks.rows.map(({ id }) => id)),
    endpoints: new Set(endpoints.rows.map(({ value }) => `${value.network} ${value.address}`)),
    before,
    now: now(),
  });
  const ops: Op[] = [];
  for (const record of wanted) {
    const known = before.get(record.id);
    if (!isDeepStrictEqual(known, record)) ops.push(records.services.set(record.id, record));
    if (record.problems !== undefined && !isDeepStrictEqual(known?.problems, record.problems))
      log.warn(
        { service: record.name, problems: record.problems },
        'labels of a service are left out of account',
      );
    before.delete(record.id);
  }
  for (const id of before.keys()) ops.push(records.services.remove(id));
  for (const commit of batches(ops, fence)) {
    // Services have one owner, so a manager that Swarm elected may write while the store is away.
    const { ok } = await store.commit(commit, { offline: true });
    if (!ok) return undefined;
  }
  if (ops.length > 0) log.debug({ changes: ops.length }, 'published what Swarm says');
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
export async function describeNetworks(records: Records, networks: readonly Network[]): Promise<void> {
  for (const { Id, Name: name, Internal: internal } of networks) {
    // The record belongs to the network driver, which may change it meanwhile.
    await records.networks.update(Id, (record) => {
      if (record === undefined) return undefined;
      if (record.name === name && record.internal === internal) return record;
      return { ...record, name, internal };
    });
  }
}
