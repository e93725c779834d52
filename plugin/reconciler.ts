// Owns when the kernel is brought to what the records say: after every change, and from time to time without one.
// Must not know what is wanted (wanted.ts) nor how it gets there (datapath.ts).
import { setTimeout as sleep } from 'node:timers/promises';
import { Mapped } from '../delta/list.ts';
import { vethName } from '../net/names.ts';
import { revisionOf, type EndpointRecord, type Records } from '../store/records.ts';
import type { Row } from '../store/table.ts';
import type { Datapath } from './datapath.ts';
import type { Log } from './log.ts';
import { WantedPlanner, type NodeRecords } from './wanted.ts';

export interface ReconcilerOptions {
  records: Records;
  datapath: Datapath;
  node: string;
  log: Log;
  /** Ids of nodes that are lost now. */
  hidden: () => ReadonlySet<string>;
}

/** How long something that others took out of the kernel may be missing, in milliseconds. */
const verifyEvery = 5_000;

/** Reading a kernel with thousands of services takes a second, in which changes wait: it has one part in so many. */
const verifyShare = 20;
const verifyAtLeastEvery = 30_000;

/** What a node's operator wants to know of the last pass. */
export interface PassReport {
  /** The kernel is as the records of this revision say. */
  settled: boolean;
  /** See {@link revisionOf}; absent before the first pass. */
  revision?: string;
  /** Why not. */
  error?: string;
}

export class Reconciler {
  readonly #options: ReconcilerOptions;
  readonly #planner: WantedPlanner;
  readonly #values = {
    nodes: valuesOf<NodeRecords['nodes'][number]>(),
    networks: valuesOf<NodeRecords['networks'][number]>(),
    presence: valuesOf<NodeRecords['presence'][number]>(),
    endpoints: valuesOf<EndpointRecord>(),
    services: valuesOf<NodeRecords['services'][number]>(),
  };
  /** Endpoints that should have a link on this node. */
  readonly #linked: Mapped<EndpointRecord, EndpointRecord>;
  #running: Promise<void> | undefined;
  #pending: Promise<void> | undefined;
  #report: PassReport = { settled: false };

  constructor(options: ReconcilerOptions) {
    this.#options = options;
    this.#planner = new WantedPlanner(options.node);
    this.#linked = new Mapped((endpoint) =>
      endpoint.node === options.node && endpoint.sandbox !== undefined ? endpoint : undefined,
    );
  }

  get report(): PassReport {
    return this.#report;
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
      ...[nodes, networks, presence, endpoints, services].map(async (table) => {
        for await (const _ of table.watch({ signal })) await this.pass().catch(() => undefined);
      }),
    ]);
  }

  async #verify(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      this.#options.datapath.distrust();
      const began = performance.now();
      await this.pass().catch(() => undefined);
      const took = performance.now() - began;
      const pause = Math.min(Math.max(verifyEvery, verifyShare * took), verifyAtLeastEvery);
      await sleep(pause, undefined, { signal }).catch(() => undefined);
    }
  }

  #start(): Promise<void> {
    this.#pending = undefined;
    this.#running = this.#pass().finally(() => (this.#running = undefined));
    return this.#running;
  }

  async #pass(): Promise<void> {
    const { datapath, hidden } = this.#options;
    try {
      const { revision, ...records } = await this.#read();
      await datapath.apply(this.#planner.plan(records, hidden()));
      void this.#settle(revision);
    } catch (error) {
      this.#fail(error);
      throw error;
    }
  }

  /** Nobody waits for it: what was reported last holds until then. */
  async #settle(revision: string): Promise<void> {
    const { datapath, log } = this.#options;
    const before = this.#report;
    try {
      await datapath.tidied();
    } catch (error) {
      this.#fail(error);
      return;
    }
    // A later pass came to its end already: it has failed.
    if (this.#report !== before) return;
    if (before.error !== undefined) log.info({}, 'the kernel is as it should be again');
    this.#report = { settled: true, revision };
  }

  #fail(error: unknown): void {
    const message = error instanceof Error ? error.message : String(error);
    // The same trouble every few seconds is one trouble.
    if (this.#report.error !== message)
      this.#options.log.error({ error }, 'the kernel could not be brought to what is wanted');
    this.#report = { settled: false, error: message };
  }

  /** The records, without endpoints of this node whose link is gone: their sandbox ended without a word of Docker. */
  async #read(): Promise<NodeRecords & { revision: string }> {
    const { records, datapath } = this.#options;
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
      nodes: this.#values.nodes.of(nodes.rows),
      networks: this.#values.networks.of(networks.rows),
      presence: this.#values.presence.of(presence.rows),
      endpoints: gone.size === 0 ? values : values.filter((endpoint) => !gone.has(endpoint)),
      services: this.#values.services.of(services.rows),
    };
  }
}

function valuesOf<T extends object>(): Mapped<Row<T>, T> {
  return new Mapped((row) => row.value);
}
