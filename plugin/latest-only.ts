// Owns giving a slow worker the newest of what comes in.
// Must not know what is worked on.
import { setTimeout as sleep } from 'node:timers/promises';

export interface LatestOnlyOptions {
  /** So many milliseconds lie between two pieces of work. */
  restMs?: number;
  /** Ends the rest, and with it all work. */
  signal?: AbortSignal;
}

/** One piece of work at a time; what came in meanwhile and is not the newest is never worked on. */
export class LatestOnly<T> {
  readonly #work: (input: T) => Promise<void>;
  readonly #options: LatestOnlyOptions;
  #next: { input: T } | undefined;
  #running: Promise<void> | undefined;

  /** @param work must not throw */
  constructor(work: (input: T) => Promise<void>, options: LatestOnlyOptions = {}) {
    this.#work = work;
    this.#options = options;
  }

  /** Returns at once. */
  submit(input: T): void {
    this.#next = { input };
    this.#running ??= this.#run().finally(() => (this.#running = undefined));
  }

  /** Resolves when nothing is under way. */
  async idle(): Promise<void> {
    await this.#running;
  }

  async #run(): Promise<void> {
    const { restMs = 0, signal } = this.#options;
    while (this.#next !== undefined && signal?.aborted !== true) {
      const { input } = this.#next;
      this.#next = undefined;
      await this.#work(input);
      if (restMs > 0) await sleep(restMs, undefined, { signal }).catch(() => undefined);
    }
  }
}
