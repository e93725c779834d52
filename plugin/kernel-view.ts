// Owns what the plugin believes the kernel to hold: as it was written last, or read.
// Must not write to the kernel, nor know what is desired of it.

/**
 * Reading a kernel takes a second on a busy node, and a task that ends must have left the balancers after two. So it is
 * read while passes write, and what was read counts if nothing was written meanwhile.
 *
 * @typeParam T what is known
 */
export class KernelView<T> {
  readonly #read: () => Promise<T>;
  readonly #now: () => number;
  #known: T | undefined;
  /** Read beside the passes; good as long as nothing is written. */
  #found: { known: T; writes: number } | undefined;
  /** Remembered until the next pass begins: what a pass that is under way writes down would undo it. */
  #distrusted = false;
  /** Counted when a command that writes begins and when it ends. */
  #writes = 0;
  #isFresh = false;
  #readAt = -Infinity;

  /**
   * @param read looks at the kernel
   * @param now in milliseconds, of a clock that never goes back
   */
  constructor(read: () => Promise<T>, now: () => number = () => performance.now()) {
    this.#read = read;
    this.#now = now;
  }

  /** Undefined: to be read. */
  get known(): T | undefined {
    return this.#known;
  }

  /** What is known was read, and nothing was made of it yet. */
  get isFresh(): boolean {
    return this.#isFresh;
  }

  /** When what was read last came to count, by the clock. */
  get readAt(): number {
    return this.#readAt;
  }

  /** A command that writes begins, or has ended. */
  touch(): void {
    this.#writes += 1;
  }

  /** As it is after a pass. */
  write(known: T): void {
    this.#known = known;
    this.#isFresh = false;
  }

  forget(): void {
    this.#known = undefined;
  }

  /** From the next pass on: others may have changed what is known. */
  invalidate(): void {
    this.#distrusted = true;
  }

  /** A pass begins. @param idle nothing is left to be written by the one before */
  begin(idle: boolean): void {
    const found = this.#found;
    this.#found = undefined;
    if (this.#distrusted) {
      this.#distrusted = false;
      this.#known = undefined;
    } else if (idle && this.#known !== undefined && found?.writes === this.#writes) this.#take(found.known);
  }

  /** Reads it for the pass that has begun, unless it is known. */
  async get(): Promise<T> {
    if (this.#known === undefined) this.#take(await this.#read());
    return this.#known as T;
  }

  /** Reads it beside the passes, for the next one. */
  async look(): Promise<void> {
    const writes = this.#writes;
    const known = await this.#read();
    if (writes === this.#writes) this.#found = { known, writes };
  }

  #take(known: T): void {
    this.#known = known;
    this.#isFresh = true;
    this.#readAt = this.#now();
  }
}
