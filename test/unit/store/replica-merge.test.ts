// Owns who is right about a key that was written while the store was away, and what a replay sends.
// Must not open a store.
import assert from 'node:assert/strict';
import { planReplay, resolveConflict, coalesce, type JournalEntry } from '../../../store/replica-merge.ts';
import { maxCommitBytes, maxOps, type Entry } from '../../../store/store.ts';

const pending = (over: Partial<JournalEntry>): JournalEntry => ({
  key: 'k',
  base: 5,
  value: 'ours',
  version: 2 ** 52 + 1,
  at: 1000,
  earlier: [],
  ...over,
});
const entry = (value: unknown, version: number): Entry => ({ key: 'k', value, version });

describe('replica: settle', () => {
  const cases: [string, ReturnType<typeof resolveConflict>, Partial<JournalEntry>, Entry | undefined][] = [
    ['nobody else wrote', 'ours', {}, entry('old', 5)],
    ['nobody else created', 'ours', { base: 0 }, undefined],
    ['nobody else wrote what we deleted', 'ours', { value: undefined }, entry('old', 5)],
    ['the store has it already', 'done', {}, entry('ours', 9)],
    [
      'the store has it already, its members in another order',
      'done',
      { value: { a: 1, b: 2 } },
      entry({ b: 2, a: 1 }, 9),
    ],
    ['what we deleted is gone', 'done', { value: undefined }, undefined],
    ['somebody changed what is ours', 'ours', {}, entry('theirs', 9)],
    ['somebody deleted what is ours', 'ours', {}, undefined],
    ['somebody created it too', 'theirs', { base: 0 }, entry('theirs', 9)],
    [
      'somebody created what we created and deleted',
      'theirs',
      { base: 0, value: undefined },
      entry('theirs', 9),
    ],
    ['somebody changed what we deleted', 'theirs', { value: undefined }, entry('theirs', 9)],
    [
      'we created it, unacknowledged, and changed it',
      'ours',
      { base: 0, earlier: ['first'] },
      entry('first', 9),
    ],
    [
      'we created it, unacknowledged, and deleted it',
      'ours',
      { base: 0, value: undefined, earlier: ['first'] },
      entry('first', 9),
    ],
  ];
  for (const [what, verdict, over, theirs] of cases)
    it(`settle: ${what}: ${verdict}`, () => assert.equal(resolveConflict(pending(over), theirs), verdict));
});

describe('replica: planReplay', () => {
  const nothing = (): undefined => undefined;

  it('a replayed write is compared with what the store has now, not with what it was based on', () => {
    const theirs = (): Entry => entry('theirs', 9);
    assert.deepEqual(
      planReplay([pending({})], theirs, nothing).writes.map(({ op }) => op),
      [{ op: 'set', key: 'k', value: 'ours', version: 9 }],
    );
    assert.deepEqual(
      planReplay([pending({ base: 9, value: undefined })], theirs, nothing).writes.map(({ op }) => op),
      [{ op: 'delete', key: 'k', version: 9 }],
    );
  });

  it('a replay keeps to the limits of one commit', () => {
    const many = Array.from({ length: maxOps + 1 }, (_, n) => pending({ key: `k${n}`, base: 0 }));
    assert.equal(planReplay(many, nothing, nothing).writes.length, maxOps);
    const value = 'x'.repeat(maxCommitBytes * 0.4);
    const large = many.map((each) => ({ ...each, value }));
    assert.equal(planReplay(large, nothing, nothing).writes.length, 2);
  });

  it('a replay leaves a key to the node that wrote it later', () => {
    const replay = planReplay(
      [pending({ at: 1000 })],
      () => entry('old', 5),
      () => 1001,
    );
    assert.deepEqual([replay.done.length, replay.writes.length], [1, 0]);
    assert.equal(
      planReplay(
        [pending({ at: 1000 })],
        () => entry('old', 5),
        () => 999,
      ).writes.length,
      1,
    );
  });
});

describe('replica: supersede', () => {
  it('superseding writes keep what the first one was based on, and every value in between, once', () => {
    let now: JournalEntry | undefined;
    for (const [n, value] of ['a', 'b', undefined, 'b', 'c'].entries())
      now = coalesce(now, { key: 'k', base: n + 5, value, version: n, at: n });
    assert.deepEqual(now, { key: 'k', base: 5, value: 'c', version: 4, at: 4, earlier: ['a', 'b'] });
  });
});
