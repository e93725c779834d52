// Owns when tasks are checked, and when the answers make one healthy or not.
// Must not know how a check is made (probe.ts), nor what follows from it.
import type { Check, probe } from './probe.ts';

export interface Target {
  /** Unique; a target that keeps it keeps what is known of it. */
  id: string;
  /** IPv4. */
  address: string;
  check: Check;
  /** From one check to the next, in milliseconds; one that takes longer has failed. */
  intervalMs: number;
  /** Checks in a row until it is healthy, or is so no longer. */
  rise: number;
  fall: number;
  /** What was found by whoever checked before. */
  healthy?: boolean | undefined;
}

export interface ProberOptions {
  probe: typeof probe;
  /** Told what became of a target, and why it is not healthy; again after its next check if that failed. */
  onVerdict: (target: Target, healthy: boolean, why?: string) => Promise<void>;
}

/** A target that is not healthy yet is checked at least so often, in milliseconds: somebody waits for it. */
const eagerMs = 250;

interface Watched {
  target: Target;
  healthy: boolean | undefined;
  /** What the last checks said, so many in a row. */
  says: boolean | undefined;
  inRow: number;
  timer?: NodeJS.Timeout;
}

export class Prober {
  readonly #options: ProberOptions;
  readonly #watched = new Map<string, Watched>();

  constructor(options: ProberOptions) {
    this.#options = options;
  }

  /** These are to be checked from now on, and no others. */
  watch(targets: readonly Target[]): void {
    const wanted = new Map(targets.map((target) => [target.id, target]));
    for (const [id, { timer }] of this.#watched)
      if (!wanted.has(id)) {
        clearTimeout(timer);
        this.#watched.delete(id);
      }
    for (const [id, target] of wanted) {
      const known = this.#watched.get(id);
      if (known !== undefined) {
        known.target = target;
        // Others go by what they were told: where that is lost, it is told again.
        if (known.healthy !== target.healthy) known.healthy = target.healthy;
      } else {
        const watched: Watched = { target, healthy: target.healthy, says: undefined, inRow: 0 };
        this.#watched.set(id, watched);
        void this.#check(watched);
      }
    }
  }

  async #check(watched: Watched): Promise<void> {
    const { target } = watched;
    const began = performance.now();
    const why = await this.#options.probe(target.check, target.address, target.intervalMs);
    if (!this.#isWatched(watched)) return;
    await this.#count(watched, why);
    if (!this.#isWatched(watched)) return;
    const { intervalMs } = watched.target;
    const pause = watched.healthy === true ? intervalMs : Math.min(intervalMs, eagerMs);
    const timer = setTimeout(() => void this.#check(watched), Math.max(0, began + pause - performance.now()));
    watched.timer = timer;
  }

  #isWatched(watched: Watched): boolean {
    return this.#watched.get(watched.target.id) === watched;
  }

  async #count(watched: Watched, why: string | undefined): Promise<void> {
    const healthy = why === undefined;
    watched.inRow = healthy === watched.says ? watched.inRow + 1 : 1;
    watched.says = healthy;
    const { target } = watched;
    if (healthy === watched.healthy || watched.inRow < (healthy ? target.rise : target.fall)) return;
    try {
      await this.#options.onVerdict(target, healthy, why);
    } catch {
      // Not told: the next check finds the same and tells it.
      return;
    }
    watched.healthy = healthy;
  }
}
