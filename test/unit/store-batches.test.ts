// Owns the tests of splitting operations into commits.
// Must not need a store: its contract tests show where the limits are.
import assert from 'node:assert/strict';
import { batches } from '../../store/batches.ts';
import { encode, maxCommitBytes, maxOps, type Op } from '../../store/store.ts';

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
    it(`has every operation once and in order, in commits the store takes: ${what}`, () => {
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

  it('makes no commit of nothing, and as few as can be', () => {
    assert.deepEqual(batches([], [fence]), []);
    assert.equal(batches(sets(2 * maxOps, 1)).length, 2);
  });

  it('leaves it to the store to refuse one that is too large for any commit', () => {
    const [small, large] = [sets(1, 1)[0]!, sets(1, maxCommitBytes)[0]!];
    assert.deepEqual(batches([small, large]), [[small], [large]]);
  });
});
