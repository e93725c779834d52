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
import { nextDrained, renderServices, whatIsUnderWay } from './services.ts';

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

/**
 * Pauses between looks after a hint, in milliseconds. Tasks have no events of their own: an endpoint joins some 0.2 to
 * 1.5 s before Swarm's manager knows that its task runs, so one hint is worth a row of looks. The last pause repeats.
 */
const pauses = [0, ...Array.from({ length: 15 }, () => 100), 150, 250, 500, 1000, 2000, 5000];

/** After a look it rests for as long as the look took, up to this many milliseconds. */
const maxRest = 5_000;

/**
 * From look to look while tasks are about to change, in milliseconds: a task that shall end has left every balancer well
 * before the two seconds are over that Docker leaves it alone.
 */
const watchfulPause = 200;

/** While tasks only begin, looks have one part in so many of the time: one may begin again and again for ever. */
const startShare = 10;

/**
 * @param took the last look, in milliseconds
 * @returns how long it may be until the next one, in milliseconds
 */
export function patience(underWay: Next['underWay'], took: number): number {
  if (underWay === undefined) return Infinity;
  return underWay === 'update' ? watchfulPause : Math.max(watchfulPause, (startShare - 1) * took);
}

const hintTypes = ['service', 'container', 'network', 'node'] as const;
// `exec_*` comes with every health check and tells nothing about where a task is.
const noise = /^(exec_|top$|attach$|resize$)/;

/** Runs until the signal aborts; throws nothing else. */
export async function runPublisher(options: PublisherOptions, signal: AbortSignal): Promise<void> {
  const hints = new Hints();
  const listening = Promise.all([listen(options, hints, signal), follow(options, hints, signal)]);
  let step = 0;
  let silent = false;
  let next = nothing;
  while (!signal.aborted) {
    const began = performance.now();
    try {
      next = await look(options, signal);
      if (silent) options.log.info({}, 'Docker answers again: services are up to date');
      silent = false;
    } catch (error) {
      if (!silent)
        options.log.warn({ error }, 'Docker does not tell its services: balancing goes on with those known');
      silent = true;
      step = pauses.length - 2;
      // What was due is due again. What was under way goes on.
      if (Number.isFinite(next.due)) next = { ...next, due: options.now() + watchfulPause };
    }
    // Whatever the hints: of a large Swarm the lists are many megabytes, and Docker has other work than to make them.
    const took = performance.now() - began;
    await sleep(Math.min(took, maxRest), undefined, { signal }).catch(() => undefined);
    const pause = pauses[Math.min((step += 1), pauses.length - 1)] ?? 5000;
    const untilDue = Math.max(0, next.due - options.now());
    const hinted = await hints.wait(Math.min(pause, untilDue, patience(next.underWay, took)), signal);
    if (hinted) step = 0;
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

/** What the next look is for. */
interface Next {
  /** When it has to be at the latest, in milliseconds of Unix time; Infinity when nothing is due. */
  due: number;
  underWay: ReturnType<typeof whatIsUnderWay>;
}

const nothing: Next = { due: Infinity, underWay: undefined };

async function look(options: PublisherOptions, signal: AbortSignal): Promise<Next> {
  const observation = await observe(options.docker, signal);
  const fence = await options.elect(observation.swarm, signal);
  const next =
    fence === undefined || observation.swarm === undefined
      ? nothing
      : await publish(options, observation.swarm, fence);
  options.observed(observation, fence !== undefined);
  return next;
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

/** Writes what changed, and only that. */
async function publish(
  { store, records, log, now }: PublisherOptions,
  swarm: Swarm,
  fence: readonly Op[],
): Promise<Next> {
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
    if (!ok) return nothing;
  }
  if (ops.length > 0) log.debug({ changes: ops.length }, 'published what Swarm says');
  return { due: nextDrained(wanted), underWay: whatIsUnderWay(swarm.services, swarm.tasks) };
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
