// Owns what the outcomes of a load say of a loss: until when connections failed. Pure.
// Must not make the load, nor cause the loss.
import type { Outcome } from '../test/lab/asking.ts';

export interface LossReport {
  /**
   * From the cut to the beginning of the last connection that failed, in milliseconds; 0 when none did. Connections
   * that were begun before the cut and caught by it do not count: no balancer could have known.
   */
  lastFailed: number;
  /** How many that were begun between the cut and the return were there, and how many of them failed. */
  begun: number;
  failed: number;
  /** How many succeeded only because the client's kernel tried again, and when the last of them was begun after the cut. */
  retried: number;
  lastRetried: number;
  /** How many failed that were begun long enough before the cut to have been over by then. */
  failedBefore: number;
  /** How many failed that were begun after the node's power was back, and how many succeeded only at a second try. */
  failedAfter: number;
  retriedAfter: number;
}

/**
 * @param cut when the power went
 * @param back when it came again
 */
export function reportLoss(
  outcomes: readonly Outcome[],
  { cut, back }: { cut: number; back: number },
): LossReport {
  const during = outcomes.filter(({ at }) => at >= cut && at < back);
  const after = outcomes.filter(({ at }) => at >= back);
  const failures = during.filter(hasFailed);
  const retries = during.filter(wasRetried);
  return {
    lastFailed: Math.max(0, ...failures.map(({ at }) => at - cut)),
    begun: during.length,
    failed: failures.length,
    retried: retries.length,
    lastRetried: Math.max(0, ...retries.map(({ at }) => at - cut)),
    failedBefore: outcomes.filter((one) => hasFailed(one) && one.at < cut - underWayMs).length,
    failedAfter: after.filter(hasFailed).length,
    retriedAfter: after.filter(wasRetried).length,
  };
}

/** A SYN without an answer is sent again after a second (RFC 6298 §2.1). */
const retryMs = 950;

/** A connection that was begun this long before the cut is over when it comes, unless it failed by itself. */
const underWayMs = 100;

export function hasFailed({ error }: Outcome): boolean {
  return error !== undefined;
}

/** Whether it is there only because the client's kernel tried again. */
export function wasRetried({ error, connected = 0 }: Outcome): boolean {
  return error === undefined && connected >= retryMs;
}
