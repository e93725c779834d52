// Owns the tests of splitting operations into commits.
// Must not need a store: its contract tests show where the limits are.
import assert from 'node:assert/strict';
import { batches } from '../../../store/batches.ts';
import { encode, maxCommitBytes, maxOps, type Op } from '../../../store/store.ts';

const fence: Op = { op: 'check', key: 'leader', version: 7 };

function sets(count: number, bytes: number): Op[] {
  return Array.from({ length: count }, (_, at) => ({ op: 'set', key: `k${at}`, value: 'x'.repeat(bytes) }));
}

describe('batches', () => {
  for (const [what, ops] of Object.entries({
    'many small ones': sets(5 * maxOps + 1, 10),
    'large ones': sets(maxOps, maxCommitBytes / 5),
    'some of each': [...sets(3, maxCommitBytes / 2), ...sets(200, 1).slice(3)],
  })) {
    it(`batches: every operation once and in order, in commits the store accepts: ${what}`, () => {
      const commits = batches(ops, [fence]);
      for (const commit of commits) {
        assert.equal(commit[0], fence);
        assert.doesNotThrow(() => encode(commit));
      }
      assert.deepEqual(
        commits.flatMap((commit) => commit.slice(1)),
        ops,
      );
    });
  }

  it('batches: no operations make no commit, and others as few as possible', () => {
    assert.deepEqual(batches([], [fence]), []);
    assert.equal(batches(sets(2 * maxOps, 1)).length, 2);
  });

  it('batches: an operation too large for any commit is left to the store to refuse', () => {
    const [small, large] = [sets(1, 1)[0]!, sets(1, maxCommitBytes)[0]!];
    assert.deepEqual(batches([small, large]), [[small], [large]]);
  });
});
