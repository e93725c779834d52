// Owns the tests of lists that change a little, among them that nothing is missed over random histories.
// Must not measure: bench/scale.ts does.
import assert from 'node:assert/strict';
import { difference, MapCache, memoByObject, memoLast, runs } from '../../../delta/list.ts';
import { seeded, type Random } from '../../support/random.ts';

interface Item {
  name: number;
}

const items = Array.from({ length: 60 }, (_, name): Item => ({ name }));

/** A list without some items, with new ones, and at times in another order. */
function vary(list: readonly Item[], random: Random): Item[] {
  const next = list.flatMap((item): Item[] => {
    const dice = random(20);
    return dice === 0
      ? []
      : dice === 1
        ? [item, { name: random(1000) }]
        : dice === 2
          ? [{ ...item }]
          : [item];
  });
  return random(10) === 0 ? next.sort(() => random(3) - 1) : next;
}

describe('runs', () => {
  it('runs cover both lists from end to end, with the same items where they say so', () => {
    const random = seeded(5);
    let before = items;
    for (let round = 0; round < 500; round += 1) {
      const after = vary(random(30) === 0 ? items : before, random);
      let [i, j] = [0, 0];
      for (const run of runs(before, after)) {
        assert.deepEqual([run.before[0], run.after[0]], [i, j]);
        [i, j] = [run.before[1], run.after[1]];
        if (run.same) assert.deepEqual(before.slice(...run.before), after.slice(...run.after));
      }
      assert.deepEqual([i, j], [before.length, after.length]);
      before = after;
    }
  });

  it('runs show two changes far apart, and what lies between them', () => {
    const after = [...items.slice(0, 5), ...items.slice(6, 50), { name: -1 }, ...items.slice(50)];
    const changed = runs(items, after).filter(({ same }) => !same);
    assert.deepEqual(changed, [
      { same: false, before: [5, 6], after: [5, 5] },
      { same: false, before: [50, 50], after: [49, 50] },
    ]);
  });
});

describe('difference', () => {
  it('difference is what one list has and the other has not, whatever moved', () => {
    const random = seeded(6);
    let before = items;
    for (let round = 0; round < 500; round += 1) {
      const after = vary(before, random);
      const { removed, added } = difference(before, after);
      assert.deepEqual(new Set(removed), new Set(before.filter((item) => !after.includes(item))));
      assert.deepEqual(new Set(added), new Set(after.filter((item) => !before.includes(item))));
      before = after;
    }
  });
});

describe('Mapped', () => {
  const make = (item: Item, factor: { by: number }): Item | undefined =>
    item.name % 3 === 0 ? undefined : { name: item.name * factor.by };

  it('Mapped is what mapping everything anew would be', () => {
    const random = seeded(7);
    const mapped = new MapCache(make);
    let [list, factor] = [items, { by: 2 }];
    for (let round = 0; round < 500; round += 1) {
      const result = mapped.of(list, factor);
      const kept = list.filter((item) => make(item, factor) !== undefined);
      assert.deepEqual(
        result,
        kept.map((item) => make(item, factor)),
      );
      list = vary(random(30) === 0 ? items : list, random);
      if (round % 50 === 49) {
        factor = { by: random(5) };
      }
    }
  });

  it('Mapped maps only what changed', () => {
    let made = 0;
    const mapped = new MapCache((item: Item) => {
      made += 1;
      return { ...item };
    });
    mapped.of(items);
    made = 0;
    mapped.of([...items.slice(0, 7), { name: 99 }, ...items.slice(8)]);
    assert.equal(made, 1);
  });

  it('Mapped is the same list as long as it has the same items', () => {
    const mapped = new MapCache((item: Item) => (item.name < 3 ? item : undefined));
    assert.equal(mapped.of(items), mapped.of([...items.slice(0, 9), ...items.slice(20)]));
  });
});

describe('remember and once', () => {
  it('remember and once compute again only for other objects', () => {
    let asked = 0;
    const ask = (one: Item, other: Item): number => (asked += 1) + one.name + other.name;
    const [a, b] = [items[0]!, items[1]!];
    const last = memoLast(ask);
    assert.equal(last(a, b), last(a, b));
    last(b, a);
    last(a, b);
    assert.equal(asked, 3);
    const each = memoByObject((item: Item) => (asked += 1) + item.name);
    each(a);
    each(b);
    assert.equal(each(a), 4);
    assert.equal(asked, 5);
  });
});
