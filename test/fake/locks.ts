// Owns locks over a store that only one process uses, in the place of Consul's: who holds a key is known in memory, the key is for
// those who look.
// Must not survive the process: after its end every lock is free, and a key it left is overwritten by the next holder.
import { setTimeout as sleep } from 'node:timers/promises';
import { StoreError } from '../../store/errors.ts';
import { encode, type Lock, type LockOptions, type SharedStore, type Store } from '../../store/store.ts';
import { backOff, isPassing } from '../../store/watch.ts';

const minPauseMs = 100;
const maxPauseMs = 2_000;

/** The same store, with locks. */
export function withLocks(store: Store): SharedStore {
  const locks = new LocalLocks(store);
  return {
    get: (...args) => store.get(...args),
    list: (...args) => store.list(...args),
    commit: (...args) => store.commit(...args),
    lock: (key, value, options = {}) => locks.lock(key, value, options),
    async close() {
      // They commit before they first wait, while the store still takes it.
      const released = locks.close();
      await store.close();
      await released;
    },
  };
}

class LocalLocks {
  readonly #store: Pick<Store, 'list' | 'commit'>;
  readonly #holders = new Map<string, Held>();
  readonly #closed = new AbortController();

  constructor(store: Pick<Store, 'list' | 'commit'>) {
    this.#store = store;
  }

  /** As {@link SharedStore.lock}. */
  async lock(key: string, value: unknown, options: LockOptions): Promise<Lock> {
    const { signal, takeOver = false, onError } = options;
    encode([{ op: 'set', key, value }]);
    const ends = signal ? AbortSignal.any([signal, this.#closed.signal]) : this.#closed.signal;
    for (let failures = 0; ;) {
      signal?.throwIfAborted();
      if (this.#closed.signal.aborted) throw new StoreError('closed', 'The store is closed.');
      const holder = this.#holders.get(key);
      if (holder && !takeOver) {
        await either(holder.ended, ends);
        continue;
      }
      holder?.lose('it was taken over');
      const held = new Held(this.#store, key, () => {
        if (this.#holders.get(key) === held) this.#holders.delete(key);
      });
      // Before anything is awaited: from here on nobody else takes it.
      this.#holders.set(key, held);
      try {
        await held.write(value);
        return held;
      } catch (error) {
        held.end();
        if (!isPassing(error)) throw error;
        const pauseMs = backOff(failures++, minPauseMs, maxPauseMs);
        onError?.(error, pauseMs);
        await sleep(pauseMs, undefined, { signal: ends }).catch(() => undefined);
      }
    }
  }

  /** To be called while the store still takes commits. */
  async close(): Promise<void> {
    this.#closed.abort();
    const held = [...this.#holders.values()];
    for (const each of held) each.lose('the store was closed');
    await Promise.allSettled(held.map((each) => each.release()));
  }
}

class Held implements Lock {
  readonly key: string;
  readonly #store: Pick<Store, 'list' | 'commit'>;
  readonly #onEnd: () => void;
  readonly #lost = new AbortController();
  readonly #ended = new AbortController();
  #version = 0;
  #releasing: Promise<void> | undefined;

  constructor(store: Pick<Store, 'list' | 'commit'>, key: string, onEnd: () => void) {
    this.#store = store;
    this.key = key;
    this.#onEnd = onEnd;
  }

  get version(): number {
    return this.#version;
  }

  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  /** Aborts when the lock is no longer ours, for whatever reason. */
  get ended(): AbortSignal {
    return this.#ended.signal;
  }

  /** Gives the key a version that no holder before had, even one of the same value. */
  async write(value: unknown): Promise<void> {
    await this.#store.commit([{ op: 'delete', key: this.key }]);
    const result = await this.#store.commit([{ op: 'set', key: this.key, value }]);
    if (!result.ok) throw new StoreError('conflict', `The lock ${this.key} could not be written.`);
    this.#version = result.index;
    void this.#watch(result.index);
  }

  release(): Promise<void> {
    this.#releasing ??= this.#delete();
    return this.#releasing;
  }

  lose(why: string): void {
    if (this.#ended.signal.aborted) return;
    this.end();
    this.#lost.abort(
      new StoreError('lost', `The lock ${this.key} is no longer ours: ${why}.`, { key: this.key }),
    );
  }

  end(): void {
    this.#ended.abort();
    this.#onEnd();
  }

  async #delete(): Promise<void> {
    try {
      await this.#store.commit([{ op: 'delete', key: this.key, version: this.version }]);
    } finally {
      this.end();
    }
  }

  async #watch(after: number): Promise<void> {
    const { signal } = this.#ended;
    try {
      while (!signal.aborted) {
        const { index, entries } = await this.#store.list(this.key, { after, signal });
        after = index;
        const entry = entries.find(({ key }) => key === this.key);
        if (entry?.version !== this.version) this.lose('its key was deleted or written');
      }
    } catch {
      // Aborted, or closed: told by other ways. A store that cannot be read is in nobody else's hands.
    }
  }
}

function either(a: AbortSignal, b: AbortSignal): Promise<void> {
  const signal = AbortSignal.any([a, b]);
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
}
