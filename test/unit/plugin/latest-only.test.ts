// Owns the tests of work on the newest input.
// Must not test any work.
import assert from 'node:assert/strict';
import { LatestOnly } from '../../../plugin/latest-only.ts';

describe('LatestOnly', () => {
  it('LatestOnly does one thing at a time, skips what is not the newest, and is idle at the end', async () => {
    const begun: number[] = [];
    const first = Promise.withResolvers<undefined>();
    const newest = new LatestOnly<number>(async (input) => {
      begun.push(input);
      if (input === 1) await first.promise;
    });
    await newest.idle();
    for (const input of [1, 2, 3]) newest.submit(input);
    assert.deepEqual(begun, [1]);
    first.resolve(undefined);
    await newest.idle();
    assert.deepEqual(begun, [1, 3]);
    newest.submit(4);
    await newest.idle();
    assert.deepEqual(begun, [1, 3, 4]);
  });

  it('LatestOnly rests between two, then takes the newest, and is idle at once when it is told to end', async () => {
    const begun: number[] = [];
    const stop = new AbortController();
    const newest = new LatestOnly<number>(
      (input) => {
        begun.push(input);
        return Promise.resolve();
      },
      { restMs: 20, signal: stop.signal },
    );
    for (const input of [1, 2, 3]) newest.submit(input);
    await newest.idle();
    assert.deepEqual(begun, [1, 3]);
    const long = new LatestOnly<number>(() => Promise.resolve(), { restMs: 3_600_000, signal: stop.signal });
    long.submit(1);
    stop.abort();
    await long.idle();
  });
});
