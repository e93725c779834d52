// Owns the tests of consistent choices: shares, order, and what a change moves.
import assert from 'node:assert/strict';
import { fillTable, placesFor, type Candidate } from '../../../lb/maglev.ts';

const servers = (count: number): Candidate[] =>
  Array.from({ length: count }, (_, at) => ({ name: `10.0.0.${at + 1}`, weight: 1 }));
const named = (candidates: readonly Candidate[], places: number): string[] =>
  fillTable(candidates, places).map((index) => candidates[index]?.name ?? '');
const shares = (candidates: readonly Candidate[], places: number): number[] =>
  candidates.map((_, index) => fillTable(candidates, places).filter((owner) => owner === index).length);

describe('the table of consistent choices', () => {
  it('the Maglev table has a few sizes only', () => {
    assert.deepEqual([1, 7, 8, 50, 1_000].map(placesFor), [251, 251, 1_021, 4_093, 16_381]);
  });

  it('Maglev fills every place, each server with as many as the others', () => {
    for (const count of [1, 2, 3, 7, 50]) {
      const found = shares(servers(count), placesFor(count));
      assert.equal(
        found.reduce((sum, share) => sum + share, 0),
        placesFor(count),
      );
      assert.ok(Math.max(...found) - Math.min(...found) <= 1, found.join());
    }
  });

  it('Maglev gives places by weight', () => {
    const [one, three] = shares(
      servers(2).map((server, at) => ({ ...server, weight: at === 0 ? 1 : 3 })),
      251,
    );
    assert.deepEqual([one, three], [63, 188]);
  });

  it('the Maglev table is the same in whatever order servers are listed', () => {
    const list = servers(7);
    assert.deepEqual(named(list.toReversed(), 251), named(list, 251));
  });

  it('a server leaves: few places of the others move in the Maglev table', () => {
    const [gone, ...rest] = servers(8);
    const places = placesFor(8);
    const [before, after] = [named([gone!, ...rest], places), named(rest, places)];
    const moved = before.filter((name, place) => name !== gone!.name && name !== after[place]).length;
    assert.ok(moved < places * 0.15, `${moved} of ${places}`);
  });

  it('the Maglev table without servers is empty', () => assert.deepEqual(fillTable([], 251), []));
});
