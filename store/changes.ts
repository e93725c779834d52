// Owns waking readers that wait for a change under a prefix.
// Must not know what changed to what: it says "look".

interface Waiter {
  prefix: string;
  wake: () => void;
}

export class Changes {
  readonly #waiters = new Set<Waiter>();
  /**
   * Index of the last change under each prefix that somebody waits on again and again. Deleted keys leave no trace
   * in a store, so this is how a change between two blocking lists is seen. An unknown prefix counts as changed.
   */
  readonly #changed = new Map<string, number>();

  /** The keys have changed at this index. */
  announce(keys: readonly string[], index: number): void {
    for (const prefix of this.#changed.keys())
      if (keys.some((key) => key.startsWith(prefix))) this.#changed.set(prefix, index);
    for (const waiter of this.#waiters) if (keys.some((key) => key.startsWith(waiter.prefix))) waiter.wake();
  }

  /**
   * Resolves once something under the prefix has changed past `after`, at {@link wakeAll}, and when the signal aborts.
   * @param index the store's now
   */
  async past(after: number, prefix: string, index: number, signal: AbortSignal | undefined): Promise<void> {
    const changed = this.#changed.get(prefix) ?? index;
    this.#changed.set(prefix, changed);
    // A greater `after` is of a store that was replaced by this one.
    if (after >= changed && after <= index) await this.#next(prefix, signal);
  }

  wakeAll(): void {
    for (const waiter of this.#waiters) waiter.wake();
  }

  #next(prefix: string, signal: AbortSignal | undefined): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<undefined>();
    const waiter: Waiter = { prefix, wake: () => resolve(undefined) };
    this.#waiters.add(waiter);
    signal?.addEventListener('abort', waiter.wake, { once: true });
    return promise.finally(() => {
      this.#waiters.delete(waiter);
      signal?.removeEventListener('abort', waiter.wake);
    });
  }
}
