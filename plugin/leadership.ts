// Owns which of the managers writes for the cluster: the one Swarm elected, and the store knows of it.
// Must not elect: Swarm's managers do, and only a majority of them can.
import { z } from 'zod';
import { StoreError } from '../store/errors.ts';
import type { Lock, Op, Store } from '../store/store.ts';
import type { Log } from './log.ts';

/** `leader`: held by the node that publishes what Swarm says. */
export const leaderKey = 'leader';
export const LeaderRecord = z.object({ v: z.literal(1), node: z.string() });

/** How long to wait for the store's word, in milliseconds, before going on with Swarm's alone. */
const patience = 5_000;

export interface LeadershipOptions {
  store: Store;
  node: string;
  log: Log;
}

export class Leadership {
  readonly #options: LeadershipOptions;
  #lock: Lock | undefined;
  /** Elected, and without the store's word. */
  #unconfirmed = false;

  constructor(options: LeadershipOptions) {
    this.#options = options;
  }

  /**
   * Takes over from whoever led before, or steps down.
   * @param elected what Swarm says of this node
   * @returns operations that make a commit fail once another node has taken over; undefined when this node does not lead
   */
  async elect(elected: boolean, signal: AbortSignal): Promise<readonly Op[] | undefined> {
    if (!elected) {
      await this.#stepDown();
      return undefined;
    }
    if (this.#lock?.lost.aborted === true) this.#lock = undefined;
    this.#lock ??= await this.#take(signal);
    // The store is away: Swarm's election alone decides, of which there is one at most.
    if (this.#lock === undefined) return [];
    return [{ op: 'check', key: this.#lock.key, version: this.#lock.version }];
  }

  async #take(signal: AbortSignal): Promise<Lock | undefined> {
    const { store, node, log } = this.#options;
    const limit = AbortSignal.timeout(patience);
    try {
      const lock = await store.lock(leaderKey, { v: 1, node } satisfies z.infer<typeof LeaderRecord>, {
        takeOver: true,
        signal: AbortSignal.any([signal, limit]),
      });
      log.info({}, 'this node publishes services for the cluster: Swarm elected it');
      this.#unconfirmed = false;
      return lock;
    } catch (error) {
      const isAway = limit.aborted || (error instanceof StoreError && error.code === 'unavailable');
      if (!isAway || signal.aborted) throw error;
      if (!this.#unconfirmed)
        log.warn({ error }, 'Swarm elected this node, and the store cannot be asked: publishing on its word');
      this.#unconfirmed = true;
      return undefined;
    }
  }

  async #stepDown(): Promise<void> {
    const lock = this.#lock;
    this.#lock = undefined;
    if (lock === undefined) return;
    this.#options.log.info({}, 'this node does not publish any more: Swarm elected another manager');
    // It vanishes by itself where the store cannot be told.
    await lock.release().catch(() => undefined);
  }
}
