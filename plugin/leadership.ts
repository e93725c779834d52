// Owns which of the managers writes for the cluster: the one Swarm elected, and the store knows of it.
// Must not elect: Swarm's managers do, and only a majority of them can.
import { setTimeout as sleep } from 'node:timers/promises';
import * as z from 'zod';
import type { Lock, Op, SharedStore } from '../store/store.ts';
import type { Log } from './log.ts';

/** `leader`: held by the node that publishes what Swarm says. */
export const leaderKey = 'leader';
export const LeaderRecord = z.object({ v: z.literal(1), node: z.string() });

/**
 * How long a new leader waits for the store's word before it goes on with Swarm's alone, in milliseconds. A task that
 * ends has to leave the balancers of all nodes within two seconds, and this is a part of them.
 */
const patience = 300;

/** After so many milliseconds an attempt to have the store's word begins anew. */
const attemptLasts = 5_000;

export interface LeadershipOptions {
  /** The store's. */
  lock: SharedStore['lock'];
  node: string;
  log: Log;
}

export class Leadership {
  readonly #options: LeadershipOptions;
  #lock: Lock | undefined;
  /** The attempt to get the lock that is under way, and what ends it. */
  #attempt: { done: Promise<void>; giveUp: AbortController } | undefined;
  /** Elected, and without the store's word. */
  #unconfirmed = false;
  /** The log has been told of that. */
  #told = false;

  constructor(options: LeadershipOptions) {
    this.#options = options;
  }

  /**
   * Takes over from whoever led before, or steps down. Waits for the store only when it leads for the first time, and
   * not for long.
   * @param elected what Swarm says of this node
   * @returns operations that make a commit fail once another node has taken over, none as long as the store has not
   *   said that this node leads; undefined when it does not
   */
  async elect(elected: boolean, signal: AbortSignal): Promise<readonly Op[] | undefined> {
    if (!elected) {
      await this.#stepDown();
      return undefined;
    }
    if (this.#lock?.lost.aborted === true) {
      this.#lock = undefined;
      this.#unconfirmed = true;
    }
    if (this.#lock === undefined) {
      this.#attempt ??= this.#begin(signal);
      if (!this.#unconfirmed) {
        await Promise.race([this.#attempt.done, sleep(patience, undefined, { ref: false })]);
        this.#unconfirmed = this.#fence().length === 0;
      }
    }
    // The store is away: Swarm's election alone decides, of which there is one at most.
    return this.#fence();
  }

  #fence(): Op[] {
    return this.#lock === undefined
      ? []
      : [{ op: 'check', key: this.#lock.key, version: this.#lock.version }];
  }

  #begin(signal: AbortSignal): { done: Promise<void>; giveUp: AbortController } {
    const giveUp = new AbortController();
    const limit = AbortSignal.any([signal, giveUp.signal, AbortSignal.timeout(attemptLasts)]);
    return { done: this.#take(limit, giveUp.signal), giveUp };
  }

  async #take(limit: AbortSignal, givenUp: AbortSignal): Promise<void> {
    const { lock: take, node, log } = this.#options;
    try {
      const value = { v: 1, node } satisfies z.infer<typeof LeaderRecord>;
      const lock = await take(leaderKey, value, { takeOver: true, signal: limit });
      if (givenUp.aborted) {
        await lock.release();
        return;
      }
      this.#lock = lock;
      this.#unconfirmed = false;
      this.#told = false;
      log.info({}, 'elected: this node publishes services for the cluster');
    } catch (error) {
      if (!this.#told && !givenUp.aborted)
        log.warn({ error }, 'elected by Swarm while the store is unreachable: publishing anyway');
      this.#told = true;
    } finally {
      this.#attempt = undefined;
    }
  }

  async #stepDown(): Promise<void> {
    this.#attempt?.giveUp.abort();
    this.#unconfirmed = false;
    const lock = this.#lock;
    this.#lock = undefined;
    if (lock === undefined) return;
    this.#options.log.info({}, 'no longer leader: another manager publishes services');
    // It vanishes by itself where the store cannot be told.
    await lock.release().catch(() => undefined);
  }
}
