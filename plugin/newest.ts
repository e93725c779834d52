// Owns giving a slow worker the newest of what comes in.
// Must not know what is worked on.

/** One piece of work at a time; what came in meanwhile and is not the newest is never worked on. */
export class Newest<T> {
  readonly #work: (input: T) => Promise<void>;
  #next: { input: T } | undefined;
  #running: Promise<void> | undefined;

  /** @param work must not throw */
  constructor(work: (input: T) => Promise<void>) {
    this.#work = work;
  }

  /** Returns at once. */
  give(input: T): void {
    this.#next = { input };
    this.#running ??= this.#run().finally(() => (this.#running = undefined));
  }

  /** Resolves when nothing is under way. */
  async idle(): Promise<void> {
    await this.#running;
  }

  async #run(): Promise<void> {
    while (this.#next !== undefined) {
      const { input } = this.#next;
      this.#next = undefined;
      await this.#work(input);
    }
  }
}
