// Owns the tests of work on the newest input.
// Must not test any work.
import assert from 'node:assert/strict';
import { Newest } from '../../plugin/newest.ts';

describe('work on the newest', () => {
  it('does one thing at a time, skips what is not the newest, and is idle at the end', async () => {
    const begun: number[] = [];
    const first = Promise.withResolvers<undefined>();
    const newest = new Newest<number>(async (input) => {
      begun.push(input);
      if (input === 1) await first.promise;
    });
    await newest.idle();
    for (const input of [1, 2, 3]) newest.give(input);
    assert.deepEqual(begun, [1]);
    first.resolve(undefined);
    await newest.idle();
    assert.deepEqual(begun, [1, 3]);
    newest.give(4);
    await newest.idle();
    assert.deepEqual(begun, [1, 3, 4]);
  });
});
