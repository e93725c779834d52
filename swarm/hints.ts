// Owns waiting for a hint that something changed.
// Must not know what.
import { setTimeout as sleep } from 'node:timers/promises';

/** Remembers one hint until it is waited for. */
export class Hints {
  #given = false;
  #wake: (() => void) | undefined;

  give(): void {
    this.#given = true;
    this.#wake?.();
  }

  /** @returns whether there was a hint before the time was over */
  async wait(milliseconds: number, signal: AbortSignal): Promise<boolean> {
    if (!this.#given) {
      const timer = new AbortController();
      const woken = new Promise<void>((resolve) => (this.#wake = resolve));
      const timeout = sleep(milliseconds, undefined, {
        signal: AbortSignal.any([signal, timer.signal]),
      }).catch(() => undefined);
      await Promise.race([woken, timeout]);
      timer.abort();
    }
    const given = this.#given;
    this.#given = false;
    return given;
  }
}
