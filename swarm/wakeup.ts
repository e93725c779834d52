// Owns waiting for a hint that something changed.
// Must not know what.
/** Remembers one hint until it is waited for. */
export class Wakeup {
  #given = false;
  #wake: (() => void) | undefined;

  notify(): void {
    this.#given = true;
    this.#wake?.();
  }

  /** @returns whether there was a hint before the time was over */
  async wait(milliseconds: number, signal: AbortSignal): Promise<boolean> {
    if (!this.#given && !signal.aborted) {
      const { promise, resolve } = Promise.withResolvers<undefined>();
      const end = (): void => resolve(undefined);
      this.#wake = end;
      // No signal of its own ends the timer: such an end is an error with a stack, made ten times a second for nobody.
      const timer = setTimeout(end, milliseconds);
      signal.addEventListener('abort', end);
      await promise;
      signal.removeEventListener('abort', end);
      clearTimeout(timer);
    }
    const given = this.#given;
    this.#given = false;
    return given;
  }
}
