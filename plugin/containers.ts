// Owns what is known of this node's containers, and when those who use it look. Level-triggered: Docker's events and
// changed records are hints, Docker's lists and the records are the truth.
// Must not decide anything by it, and must not be called inside a driver call.
import { setTimeout as sleep } from 'node:timers/promises';
import type { EndpointRecord, Records } from '../store/records.ts';
import type { ContainerDetails, Docker, Event } from '../swarm/docker.ts';
import { Hints } from '../swarm/hints.ts';
import type { Log } from './log.ts';

/** This node at one moment. */
export interface Sight {
  /** Its endpoints that a sandbox has joined. */
  joined: readonly EndpointRecord[];
  /** Its running containers; none while there is no such endpoint. */
  containers: readonly ContainerDetails[];
}

/** Does what it wants to do about it. @returns whether all is done that can be done now; else it is soon asked again */
export type Follower = (sight: Sight) => Promise<boolean>;

export interface ContainersOptions {
  docker: Docker;
  records: Records;
  node: string;
  log: Log;
  /** Each is called at every look, whatever becomes of the others. */
  followers: readonly Follower[];
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

export class Containers {
  readonly #options: ContainersOptions;
  readonly #hints = new Hints();
  /** By id; what is not here is asked for. */
  readonly #known = new Map<string, ContainerDetails>();

  constructor(options: ContainersOptions) {
    this.#options = options;
  }

  /** Runs until the signal aborts; throws nothing else. */
  async run(signal: AbortSignal): Promise<void> {
    const { log, records } = this.#options;
    const following = Promise.all([
      this.#listen(signal),
      (async () => {
        for await (const _ of records.endpoints.watch({ signal })) this.#hints.give();
      })(),
    ]);
    let quiet = true;
    let undone = 0;
    while (!signal.aborted) {
      let pause = lookEvery;
      try {
        if (await this.#look(signal)) undone = 0;
        else pause = Math.min(soon * growth ** undone++, lookEvery);
        quiet = true;
      } catch (error) {
        if (quiet)
          log.warn({ error }, 'names and ports of this node’s containers could not be brought up to date');
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
        this.#known.clear();
        this.#hints.give();
        for await (const event of docker.events(['container', 'network'], signal)) this.#hear(event);
      } catch (error) {
        log.debug({ error }, 'the stream of Docker events ended');
      }
      await sleep(retryAfter, undefined, { signal }).catch(() => undefined);
    }
  }

  #hear({ Type, Action, Actor }: Event): void {
    if (!telling.test(Action)) return;
    const id = Type === 'network' ? Actor?.Attributes?.['container'] : Actor?.ID;
    if (id !== undefined) this.#known.delete(id);
    this.#hints.give();
  }

  /** @returns whether all is done that can be done now */
  async #look(signal: AbortSignal): Promise<boolean> {
    const { records, node, followers } = this.#options;
    const { rows } = await records.endpoints.list();
    const joined = rows
      .map(({ value }) => value)
      .filter((endpoint) => endpoint.node === node && endpoint.sandbox !== undefined);
    const containers = await this.#read(joined.length > 0, signal);
    const done = await Promise.allSettled(followers.map((follow) => follow({ joined, containers })));
    for (const outcome of done) if (outcome.status === 'rejected') throw outcome.reason;
    return done.every((outcome) => outcome.status === 'fulfilled' && outcome.value);
  }

  /** @param any a node without endpoints of ours has nothing to ask for */
  async #read(any: boolean, signal: AbortSignal): Promise<ContainerDetails[]> {
    const { docker } = this.#options;
    const running = new Set(any ? await docker.containers(signal) : []);
    for (const id of this.#known.keys()) if (!running.has(id)) this.#known.delete(id);
    for (const id of running) {
      if (this.#known.has(id)) continue;
      const details = await docker.container(id, signal);
      if (details !== undefined) this.#known.set(id, details);
    }
    return [...this.#known.values()];
  }
}
