// Owns turning blocking lists into a stream of snapshots: level-triggered, coalesced, patient with an absent store.
// Must not know an implementation, nor compute differences: whoever reads looks at the whole snapshot.
import { setTimeout as sleep } from 'node:timers/promises';
import { StoreError } from './errors.ts';
import type { Snapshot, Store } from './store.ts';

export interface WatchOptions {
  signal: AbortSignal;
  /** Told of every failed read that is retried, with the pause before the next one in ms. For the log. */
  onError?: (error: StoreError, pauseMs: number) => void;
  /** First and longest pause between retries, in ms. */
  minPauseMs?: number;
  maxPauseMs?: number;
}

/**
 * Yields the contents under a prefix now, and again whenever they may have changed. Changes that arrive while the
 * reader is busy come as one snapshot. Ends, without an error, when the signal aborts. While the store is
 * unavailable, or refuses us, it yields nothing: silence is not emptiness. Once it is back, what is there is yielded at once.
 * @throws StoreError of any code other than `unavailable` and `forbidden`
 */
export async function* watch(store: Store, prefix: string, options: WatchOptions): AsyncGenerator<Snapshot> {
  const { signal, onError, minPauseMs = 250, maxPauseMs = 10_000 } = options;
  let after: number | undefined;
  let failures = 0;
  while (!signal.aborted) {
    try {
      const snapshot = await store.list(prefix, { after, signal });
      failures = 0;
      // An index that runs backwards is a store that was rebuilt; with the old one we would wait for ever.
      const rebuilt = after !== undefined && snapshot.index < after;
      after = rebuilt ? undefined : snapshot.index;
      if (!rebuilt) yield snapshot;
    } catch (error) {
      // An aborted read rejects with the signal's reason; a reader that throws ends the generator without passing here.
      if (isAborted(signal)) return;
      if (!isPassing(error)) throw error;
      // Not to wait for a change after a failure: the next answer tells the reader that the store is back.
      after = undefined;
      const pauseMs = backOff(failures++, minPauseMs, maxPauseMs);
      onError?.(error, pauseMs);
      await sleep(pauseMs, undefined, { signal }).catch(() => undefined);
    }
  }
}

/** Whether it may be otherwise later without a change of ours. */
export function isPassing(error: unknown): error is StoreError {
  return error instanceof StoreError && (error.code === 'unavailable' || error.code === 'forbidden');
}

/**
 * The pause in ms before the next attempt, after so many that failed before this one. Half of it is random, so that a
 * thousand nodes do not come back in step.
 */
export function backOff(failures: number, minPauseMs: number, maxPauseMs: number): number {
  return Math.min(maxPauseMs, minPauseMs * 2 ** failures) * (0.5 + Math.random() / 2);
}

/** A function, because the compiler does not know that `aborted` changes between two reads. */
function isAborted(signal: AbortSignal): boolean {
  return signal.aborted;
}
