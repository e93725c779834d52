// Owns what is known of this node's containers, and when those who use it look. Level-triggered: Docker's events and
// changed records are hints, Docker's lists and the records are the truth.
// Must not decide anything by it, and must not be called inside a driver call.
import { setTimeout as sleep } from 'node:timers/promises';
import { MapCache } from '../delta/list.ts';
import type { EndpointRecord, Records } from '../store/records.ts';
import type { Row } from '../store/table.ts';
import type { ContainerDetails, Docker, Event } from '../swarm/docker.ts';
import { Wakeup } from '../swarm/wakeup.ts';
import type { Log } from './log.ts';

/** This node at one moment. */
export interface ContainerSnapshot {
  /** Its endpoints that a sandbox has joined. */
  joined: readonly EndpointRecord[];
  /** Its running containers; none while there is no such endpoint. */
  containers: readonly ContainerDetails[];
  /** Ids of running containers of which Docker has not told anything: what was known of them may still be so. */
  untold: ReadonlySet<string>;
}

/** Handles one snapshot. @returns false to be called again soon */
export type ContainerHandler = (snapshot: ContainerSnapshot) => Promise<boolean>;

export interface ContainersOptions {
  docker: Docker;
  records: Records;
  node: string;
  log: Log;
  /** Each is called at every look, whatever becomes of the others. */
  followers: readonly ContainerHandler[];
}

/** What changes a container's names or health; `exec_*` comes with every health check and changes nothing. */
const telling = /^(start|die|rename|health_status|connect|disconnect)/;

/** How long without a hint until it looks all the same, in milliseconds. */
const lookEvery = 30_000;

/** A failed look is repeated after this, in milliseconds. */
const retryAfter = 1_000;

/** One that is not done is repeated after this, in milliseconds, and then ever more slowly until there is a hint. */
const soon = 100;
const growth = 1.2;

/** How long a look waits for Docker to tell of a container, in milliseconds; who is told of later has a look of its own. */
const patience = 1_000;

/** A container that Docker could not tell of is asked for again after this, in milliseconds. */
const askAgainAfter = 10_000;

export class Containers {
  readonly #options: ContainersOptions;
  readonly #hints = new Wakeup();
  /** What Docker told last, by id. */
  readonly #known = new Map<string, ContainerDetails>();
  /** Ids of those that have changed since. */
  readonly #stale = new Set<string>();
  /** Those that are being asked for, by id. */
  readonly #asking = new Map<string, Promise<void>>();
  /** When those that Docker could not tell of are asked for again, by id, on the monotonic clock. */
  readonly #failed = new Map<string, number>();
  readonly #joined: MapCache<Row<EndpointRecord>, EndpointRecord>;

  constructor(options: ContainersOptions) {
    this.#options = options;
    this.#joined = new MapCache(({ value }) =>
      value.node === options.node && value.sandbox !== undefined ? value : undefined,
    );
  }

  /** Runs until the signal aborts; throws nothing else. */
  async run(signal: AbortSignal): Promise<void> {
    const { log, records } = this.#options;
    const following = Promise.all([
      this.#listen(signal),
      (async () => {
        // Most that is written of endpoints is of other nodes, or of one that nobody has joined yet.
        let before: readonly EndpointRecord[] | undefined;
        for await (const { rows } of records.endpoints.watch({ signal })) {
          const joined = this.#joined.of(rows);
          if (joined !== before) this.#hints.notify();
          before = joined;
        }
      })(),
    ]);
    let quiet = true;
    let undone = 0;
    while (!signal.aborted) {
      let pause = lookEvery;
      try {
        if (await this.#look(signal)) {
          undone = 0;
          if (this.#failed.size > 0) pause = askAgainAfter;
        } else pause = Math.min(soon * growth ** undone++, lookEvery);
        quiet = true;
      } catch (error) {
        if (quiet) log.warn({ error }, 'cannot update names and ports of this node’s containers, retrying');
        quiet = false;
        pause = retryAfter;
      }
      if (await this.#hints.wait(pause, signal)) undone = 0;
    }
    await following;
  }

  async #listen(signal: AbortSignal): Promise<void> {
    const { docker, log } = this.#options;
    while (!signal.aborted) {
      try {
        // What happened while nobody listened is found by looking at everything anew.
        for (const id of this.#known.keys()) this.#stale.add(id);
        this.#failed.clear();
        this.#hints.notify();
        for await (const event of docker.events(['container', 'network'], signal)) this.#hear(event);
      } catch (error) {
        log.debug({ error }, 'Docker event stream ended');
      }
      await sleep(retryAfter, undefined, { signal }).catch(() => undefined);
    }
  }

  #hear({ Type, Action, Actor }: Event): void {
    if (!telling.test(Action)) return;
    const id = Type === 'network' ? Actor?.Attributes?.['container'] : Actor?.ID;
    if (id !== undefined) this.#stale.add(id);
    this.#hints.notify();
  }

  /** @returns whether all is done that can be done now */
  async #look(signal: AbortSignal): Promise<boolean> {
    const { records, followers } = this.#options;
    const joined = this.#joined.of((await records.endpoints.list()).rows);
    const seen = await this.#read(joined.length > 0, signal);
    const done = await Promise.allSettled(followers.map((follow) => follow({ joined, ...seen })));
    for (const outcome of done) if (outcome.status === 'rejected') throw outcome.reason;
    return done.every((outcome) => outcome.status === 'fulfilled' && outcome.value);
  }

  /** @param any a node without endpoints of ours has nothing to ask for */
  async #read(any: boolean, signal: AbortSignal): Promise<Pick<ContainerSnapshot, 'containers' | 'untold'>> {
    const { docker } = this.#options;
    const running = new Set(any ? await docker.containers(signal) : []);
    for (const kept of [this.#known, this.#stale, this.#failed])
      for (const id of kept.keys()) if (!running.has(id)) kept.delete(id);
    for (const id of running) {
      const due = (this.#failed.get(id) ?? 0) <= performance.now();
      if ((!this.#known.has(id) || this.#stale.has(id)) && !this.#asking.has(id) && due)
        this.#ask(id, signal);
    }
    // One that hangs costs only itself.
    const waited = new AbortController();
    const enough = sleep(patience, undefined, { signal: waited.signal }).catch(() => undefined);
    await Promise.race([Promise.all(this.#asking.values()), enough]);
    waited.abort();
    return {
      containers: [...this.#known.values()],
      untold: new Set([...running].filter((id) => !this.#known.has(id))),
    };
  }

  #ask(id: string, signal: AbortSignal): void {
    const { docker, log } = this.#options;
    const began = performance.now();
    this.#stale.delete(id);
    const asking = docker.container(id, signal).then(
      (details) => {
        this.#failed.delete(id);
        if (details === undefined) this.#known.delete(id);
        else this.#known.set(id, details);
      },
      (error: unknown) => {
        if (signal.aborted) return;
        this.#stale.add(id);
        if (!this.#failed.has(id))
          log.warn(
            { error, container: id },
            'cannot inspect a container: its names and ports stay as they are',
          );
        this.#failed.set(id, performance.now() + askAgainAfter);
      },
    );
    this.#asking.set(
      id,
      asking.finally(() => {
        this.#asking.delete(id);
        // The look that asked is over.
        if (performance.now() - began >= patience) this.#hints.notify();
      }),
    );
  }
}
