// Owns the tests of what the bench makes of a load's outcomes around a loss.
// Must not start a load.
import assert from 'node:assert/strict';
import { reportLoss } from '../../../bench/failover-outcome.ts';
import type { Outcome } from '../../lab/asking.ts';

const ok = (at: number): Outcome => ({ at, ms: 3 });
const failed = (at: number, ms = 5_000): Outcome => ({ at, ms, error: 'no answer' });
const retried = (at: number): Outcome => ({ at, ms: 1_004, connected: 1_001 });
const none = { retried: 0, lastRetried: 0, retriedAfter: 0 };
const when = { cut: 10_000, back: 20_000 };

describe('the report of a loss', () => {
  it('the report counts a connection by when it began, not by when it was given up', () => {
    const report = reportLoss([failed(10_600), ok(10_650), failed(10_200, 100)], when);
    assert.deepEqual(report, {
      lastFailed: 600,
      begun: 3,
      failed: 2,
      failedBefore: 0,
      failedAfter: 0,
      ...none,
    });
  });

  it('the report leaves out connections that the cut interrupted, and shows those that failed without it', () => {
    const report = reportLoss([failed(9_000), failed(9_950), ok(10_000)], when);
    assert.deepEqual(report, {
      lastFailed: 0,
      begun: 1,
      failed: 0,
      failedBefore: 1,
      failedAfter: 0,
      ...none,
    });
  });

  it('the report shows which connections came about by the second try', () => {
    const report = reportLoss(
      [retried(10_300), { at: 10_400, ms: 3_000, connected: 1 }, failed(10_500)],
      when,
    );
    assert.deepEqual([report.retried, report.lastRetried, report.failed], [1, 300, 1]);
  });

  it('the report tells failures after the return from those of the loss', () => {
    const report = reportLoss([ok(10_100), failed(20_000), retried(22_000), failed(25_000)], when);
    assert.deepEqual(report, {
      lastFailed: 0,
      begun: 1,
      failed: 0,
      failedBefore: 0,
      failedAfter: 2,
      ...none,
      retriedAfter: 1,
    });
  });
});
