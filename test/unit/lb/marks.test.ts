// Owns the tests of which mark names which virtual server.
// Must not need an engine.
import assert from 'node:assert/strict';
import { assignMarks, observedMarks } from '../../../lb/marks.ts';
import { markBase, markMask } from '../../../net/names.ts';
import { seeded } from '../../support/random.ts';

describe('assignMarks', () => {
  it('each virtual server has a mark of its own, in Causeway’s range', () => {
    const marks = [...assignMarks(['a', 'b', 'c'], new Map()).values()];
    assert.equal(new Set(marks).size, 3);
    for (const mark of marks) assert.equal((mark & markMask) >>> 0, markBase);
    assert.ok(!marks.includes(markBase), 'the base alone names none');
  });

  it('marks stay the same whoever comes or goes, and in whatever order', () => {
    const random = seeded(3);
    let kept = new Map<string, number>();
    for (let round = 0; round < 200; round += 1) {
      const ids = ['a', 'b', 'c', 'd', 'e', 'f'].filter(() => random(2) === 0);
      if (random(2) === 0) ids.reverse();
      const next = assignMarks(ids, kept);
      assert.deepEqual([...next.keys()].sort(), [...ids].sort());
      assert.equal(new Set(next.values()).size, ids.length);
      for (const [id, mark] of next) assert.equal(kept.get(id) ?? mark, mark);
      kept = next;
    }
  });

  it('a mark is not reused while its last owner is still in the kernel', () => {
    const kept = assignMarks(['old'], new Map());
    assert.notEqual(assignMarks(['new'], kept).get('new'), kept.get('old'));
  });
});

describe('observedMarks', () => {
  it('observed marks come from the table, by the names of the virtual servers', () => {
    const elements = new Map([
      ['vip_marks', new Map([['10.64.0.2', '201326593']])],
      ['port_marks', new Map([['tcp . 8080', '201326594']])],
    ]);
    assert.deepEqual(
      observedMarks({ elements, chains: new Map(), timeouts: new Set() }),
      new Map([
        ['vip-10.64.0.2', 201326593],
        ['port-tcp-8080', 201326594],
      ]),
    );
  });

  it('no table, or one of the other engine: no marks are observed', () => {
    assert.equal(observedMarks(undefined).size, 0);
    assert.equal(observedMarks({ elements: new Map(), chains: new Map(), timeouts: new Set() }).size, 0);
  });
});
