// Owns a store whose commits wait to be let through: what a caller waits for can be told from what it does not.
// Must not change what is committed.
import { setTimeout as sleep } from 'node:timers/promises';
import type { CommitResult, Store } from '../../store/store.ts';

export class HeldStore {
  readonly store: Store;
  /** Keys of the commits that wait, in their order. */
  readonly waiting: string[][] = [];
  /** How many came. */
  commits = 0;
  #toHold = 0;
  readonly #gates: ((error?: Error) => void)[] = [];

  constructor(inner: Store) {
    this.store = {
      get: (...args) => inner.get(...args),
      list: (...args) => inner.list(...args),
      close: () => inner.close(),
      commit: async (ops, options): Promise<CommitResult> => {
        this.commits += 1;
        if (this.#toHold > 0) {
          this.#toHold -= 1;
          const { promise, resolve, reject } = Promise.withResolvers<undefined>();
          this.waiting.push(ops.map(({ key }) => key));
          this.#gates.push((error) => (error === undefined ? resolve(undefined) : reject(error)));
          await promise;
        }
        return inner.commit(ops, options);
      },
    };
  }

  /** From now on so many commits wait. */
  hold(count = Infinity): void {
    this.#toHold = count;
  }

  /** Lets the first that waits through, or has it fail; waits until there is one. */
  async next(error?: Error): Promise<void> {
    while (this.waiting.length === 0) await sleep(1);
    this.#release(error);
  }

  /** Lets all through, also those to come. */
  open(): void {
    this.#toHold = 0;
    while (this.waiting.length > 0) this.#release();
  }

  #release(error?: Error): void {
    this.waiting.shift();
    this.#gates.shift()?.(error);
  }
}
