// Owns the share of a task that has only begun to take connections: it grows over the seconds of its service's label.
// Must not know which tasks take connections (store/serving.ts), nor how an engine divides them.

/** A share grows by so many steps: each is a change in the kernel. */
const steps = 10;

/** When each task began to take connections, in milliseconds, by a key of the caller's. */
export type Begun = ReadonlyMap<string, number>;

export interface Shares {
  /** What to multiply each task's weight with, by key. */
  factors: ReadonlyMap<string, number>;
  /** When they change with nothing else changed, in milliseconds; Infinity: never. */
  nextChangeAt: number;
}

/**
 * @param active keys of the tasks that take connections now
 * @param before what this returned the last time; undefined: nothing is known of it, and nobody is new
 */
export function begunOf(active: readonly string[], before: Begun | undefined, now: number): Begun {
  return new Map(active.map((key) => [key, before === undefined ? -Infinity : (before.get(key) ?? now)]));
}

/** @param window in which a share grows from a tenth to the whole, in milliseconds */
export function sharesOf(begun: Begun, window: number, now: number): Shares {
  const step = window / steps;
  const factors = new Map<string, number>();
  let nextChangeAt = Infinity;
  for (const [key, since] of begun) {
    const done = Math.floor((now - since) / step);
    factors.set(key, Math.min(done + 1, steps));
    if (done < steps - 1) nextChangeAt = Math.min(nextChangeAt, since + (done + 1) * step);
  }
  const beganTogether = new Set(begun.values()).size <= 1;
  if (!beganTogether && nextChangeAt < Infinity) return { factors, nextChangeAt };
  return { factors: new Map([...begun.keys()].map((key) => [key, 1])), nextChangeAt: Infinity };
}
