// Owns letting callers of this process take turns by key, so that they do not race each other in the store.
// Must not be needed for correctness: other processes take no turns, compare-and-set is what keeps them apart.

export class KeyedMutex {
  readonly #last = new Map<string, Promise<unknown>>();

  /** Runs `body` once everything that was called before with the same key is over, whatever became of it. */
  runExclusive<T>(key: string, body: () => Promise<T>): Promise<T> {
    const turn = (this.#last.get(key) ?? Promise.resolve()).then(body, body);
    this.#last.set(key, turn);
    const leave = (): void => {
      if (this.#last.get(key) === turn) this.#last.delete(key);
    };
    turn.then(leave, leave);
    return turn;
  }
}
