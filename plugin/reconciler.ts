// Owns when the kernel is brought to what the records say: after every change, and from time to time without one.
// Must not know what is desired (desired-state.ts) nor how it gets there (datapath.ts).
import { setTimeout as sleep } from 'node:timers/promises';
import { MapCache } from '../delta/list.ts';
import type { VirtualServer } from '../lb/model.ts';
import { vethName } from '../net/names.ts';
import type { Loss } from '../net/watch.ts';
import { revisionOf, type EndpointRecord, type Records } from '../store/records.ts';
import type { Row, Rows } from '../store/table.ts';
import { Wakeup } from '../swarm/wakeup.ts';
import type { Datapath } from './datapath.ts';
import type { Log } from './log.ts';
import { Told } from './told.ts';
import { DesiredStatePlanner, type NodeRecords } from './desired-state.ts';

export interface ReconcilerOptions {
  records: Records;
  datapath: Datapath;
  node: string;
  log: Log;
  /** Ids of unreachable nodes. */
  unreachable: () => ReadonlySet<string>;
  /** Ports that no service can have, as `8500/tcp`; absent: none. */
  reserved?: ReadonlyMap<string, string>;
  /** The first pass waits for it: before, the records say less than what is in the kernel for good reason. Absent: they never do. */
  ready?: Promise<unknown>;
  /** Whether the records are another Swarm's. */
  foreign?: () => boolean;
  /** What was taken out of the kernel since it was asked last; absent where nobody can tell. */
  removals?: (() => ReadonlySet<Loss>) | undefined;
  /** A monotonic clock in milliseconds. */
  now?: () => number;
}

const noServices: NodeRecords['services'] = [];

/** How often it is asked for losses, in milliseconds. */
const askEvery = 200;

/** How long something that others took out of the kernel may be missing if nobody noticed, in milliseconds. */
const verifyEvery = 5_000;

/** Reading a kernel with thousands of services takes a second, in which changes wait: it has one part in so many. */
const verifyShare = 20;
const verifyAtLeastEvery = 30_000;

/** How soon it is read again where a pass wrote meanwhile, in milliseconds; its part of the time is no larger for that. */
const verifyAgain = 1_000;

/**
 * Passes that only follow the records have one part in so many of the time, as long as no change waits for more than so many
 * milliseconds: while many tasks start each of them changes several records, one after the other, on every node. Who asks for a
 * pass has it at once, and with it whatever else has changed.
 */
const followShare = 4;
const longestRest = 300;

/** What a node's operator wants to know of the last pass. */
export interface PassReport {
  /** The kernel is as the records of this revision say. */
  settled: boolean;
  /** See {@link revisionOf}; absent before the first pass. */
  revision?: string;
  /** Why not. */
  error?: string;
  /** What is left out, or as it was, because of a record that cannot be used; all else is as desired. */
  degraded?: readonly string[];
}

export class Reconciler {
  readonly #options: ReconcilerOptions;
  readonly #planner: DesiredStatePlanner;
  readonly #values = {
    nodes: valuesOf<NodeRecords['nodes'][number]>(),
    networks: valuesOf<NodeRecords['networks'][number]>(),
    presence: valuesOf<NodeRecords['presence'][number]>(),
    endpoints: valuesOf<EndpointRecord>(),
    services: valuesOf<NodeRecords['services'][number]>(),
  };
  /** Endpoints that should have a link on this node. */
  readonly #linked: MapCache<EndpointRecord, EndpointRecord>;
  #running: Promise<void> | undefined;
  #pending: Promise<void> | undefined;
  #report: PassReport = { settled: false };
  /** How many passes have begun, and which of them was reported last. */
  #passes = 0;
  #reported = 0;
  readonly #told = new Told();
  readonly #now: () => number;
  readonly #changes = new Wakeup();
  /** Until what is desired changes by itself. */
  #timer: NodeJS.Timeout | undefined;
  #servers: readonly VirtualServer[] = [];

  constructor(options: ReconcilerOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
    this.#planner = new DesiredStatePlanner(options.node, options.reserved);
    this.#linked = new MapCache((endpoint) =>
      endpoint.node === options.node && endpoint.sandbox !== undefined ? endpoint : undefined,
    );
  }

  get report(): PassReport {
    return this.#report;
  }

  /** What the kernel was last told to balance. */
  get servers(): readonly VirtualServer[] {
    return this.#servers;
  }

  /**
   * Makes a pass that starts after this call; calls that come while one is running share the next.
   * @throws what the pass threw
   */
  pass(): Promise<void> {
    if (this.#running === undefined) return this.#start();
    this.#pending ??= this.#running.then(
      () => this.#start(),
      () => this.#start(),
    );
    return this.#pending;
  }

  /** Follows the records and looks after the kernel until the signal aborts. */
  async run(signal: AbortSignal): Promise<void> {
    const { nodes, networks, presence, endpoints, services } = this.#options.records;
    await Promise.all([
      this.#verify(signal),
      this.#follow(signal),
      this.#notice(signal),
      ...[nodes, networks, presence, endpoints, services].map(async (table) => {
        for await (const _ of table.watch({ signal })) this.#changes.notify();
      }),
    ]);
    clearTimeout(this.#timer);
  }

  async #follow(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      if (!(await this.#changes.wait(verifyAtLeastEvery, signal))) continue;
      const began = performance.now();
      await this.pass().catch(() => undefined);
      const rest = Math.min((followShare - 1) * (performance.now() - began), longestRest);
      await sleep(rest, undefined, { signal }).catch(() => undefined);
    }
  }

  async #verify(signal: AbortSignal): Promise<void> {
    const { datapath } = this.#options;
    while (!signal.aborted) {
      const began = performance.now();
      // Where passes write all the time it is never quiet enough to read beside them.
      if (began - datapath.readAt >= verifyAtLeastEvery) datapath.invalidate();
      else await datapath.look().catch(() => datapath.invalidate());
      await this.pass().catch(() => undefined);
      const took = performance.now() - began;
      const least = datapath.readAt < began ? verifyAgain : verifyEvery;
      const pause = Math.min(Math.max(least, verifyShare * took), verifyAtLeastEvery);
      await sleep(pause, undefined, { signal }).catch(() => undefined);
    }
  }

  /** What others take away is put back at once, and not only when it is time to distrust. */
  async #notice(signal: AbortSignal): Promise<void> {
    const { removals: lost, datapath, log } = this.#options;
    if (lost === undefined) return;
    for (let before = datapath.removals; !signal.aborted;) {
      const [taken, now] = [lost(), datapath.removals];
      // What the data path takes away itself is no loss, and at the same moment cannot be told from one.
      const byOthers = [...taken].some((what) => now[what] === before[what] && now[what] % 2 === 0);
      before = now;
      if (byOthers) {
        log.info({}, 'rules or routes were removed by somebody else, restoring');
        datapath.invalidate();
        await this.pass().catch(() => undefined);
      }
      await sleep(askEvery, undefined, { signal }).catch(() => undefined);
    }
  }

  #start(): Promise<void> {
    this.#pending = undefined;
    this.#running = this.#pass().finally(() => (this.#running = undefined));
    return this.#running;
  }

  async #pass(): Promise<void> {
    const { datapath, ready, unreachable } = this.#options;
    await ready;
    const pass = (this.#passes += 1);
    try {
      const { revision, unreadable, ...records } = await this.#read();
      const desired = this.#planner.plan(records, unreachable(), this.#now());
      this.#expect(this.#planner.nextChangeAt);
      await datapath.apply(desired);
      this.#servers = desired.servers;
      void this.#settle(pass, revision, this.#degraded(unreadable));
    } catch (error) {
      this.#fail(pass, error);
      throw error;
    }
  }

  /** @param when what is desired is something else though no record changed */
  #expect(when: number): void {
    clearTimeout(this.#timer);
    if (when === Infinity) return;
    this.#timer = setTimeout(() => this.#changes.notify(), Math.max(0, when - this.#now()));
    this.#timer.unref();
  }

  /** Told once for as long as it is so. */
  #degraded(unreadable: readonly string[]): readonly string[] {
    const { datapath, log } = this.#options;
    const refused = datapath.refusals.map(
      ({ what, why }) => `${what} is left out: the kernel refuses it (${why})`,
    );
    const degraded = [...unreadable, ...refused];
    for (const text of this.#told.news(degraded))
      log.error({}, `one part of what is desired cannot be had, and all else goes on: ${text}`);
    return degraded;
  }

  /** Nobody waits for it: what was reported last holds until then. */
  async #settle(pass: number, revision: string, degraded: readonly string[]): Promise<void> {
    const { datapath, log } = this.#options;
    try {
      await datapath.cleanedUp();
    } catch (error) {
      this.#fail(pass, error);
      return;
    }
    // A later one came to its end already.
    if (this.#reported > pass) return;
    this.#reported = pass;
    if (this.#report.error !== undefined) log.info({}, 'reconcile recovered');
    this.#report = { settled: true, revision, ...(degraded.length > 0 && { degraded }) };
  }

  #fail(pass: number, error: unknown): void {
    if (this.#reported > pass) return;
    this.#reported = pass;
    const message = error instanceof Error ? error.message : String(error);
    // The same trouble every few seconds is one trouble.
    if (this.#report.error !== message) this.#options.log.error({ error }, 'reconcile failed, retrying');
    this.#report = { settled: false, error: message };
  }

  /** The records, without endpoints of this node whose link is gone: their sandbox ended without a word of Docker. */
  async #read(): Promise<NodeRecords & { revision: string; unreadable: string[] }> {
    const { records, datapath, foreign } = this.#options;
    const lists = await Promise.all([
      records.nodes.list(),
      records.networks.list(),
      records.presence.list(),
      records.endpoints.list(),
      records.services.list(),
    ]);
    const [nodes, networks, presence, endpoints, services] = lists;
    const values = this.#values.endpoints.of(endpoints.rows);
    const linked = this.#linked.of(values);
    const links = await datapath.links(linked.map(({ id }) => vethName(id)));
    const gone = new Set(linked.filter(({ id }) => !links.has(vethName(id))));
    return {
      revision: revisionOf(lists),
      unreadable: lists.flatMap(unreadableIn),
      nodes: this.#values.nodes.of(nodes.rows),
      networks: this.#values.networks.of(networks.rows),
      presence: this.#values.presence.of(presence.rows),
      endpoints: gone.size === 0 ? values : values.filter((endpoint) => !gone.has(endpoint)),
      // What another Swarm publishes is none of this node's business.
      services: foreign?.() === true ? noServices : this.#values.services.of(services.rows),
    };
  }
}

/** In words for the user, what holds in place of each record that cannot be read. */
export function unreadableIn({ rows, corrupt }: Rows<unknown>): string[] {
  if (corrupt.length === 0) return [];
  const outdated = new Set(rows.flatMap(({ id, outdated }) => (outdated === true ? id : [])));
  return corrupt.map(
    ({ id, error }) =>
      `${error.message} ${outdated.has(id) ? 'Until then it counts as it was before.' : 'What it was before is not known here, so it counts for nothing.'}`,
  );
}

function valuesOf<T extends object>(): MapCache<Row<T>, T> {
  return new MapCache((row) => row.value);
}
