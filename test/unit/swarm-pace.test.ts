// Owns the tests of when Swarm is looked at next, and how much of it.
// Must not look at anything.
import assert from 'node:assert/strict';
import { Pace, type Look } from '../../swarm/pace.ts';
import type { UnderWay } from '../../swarm/services.ts';

const nothing: UnderWay = { updating: [], starting: [] };
const updating = { updating: ['web'], starting: [] };
const starting = { updating: [], starting: ['web'] };

describe('the pace of looks at Swarm', () => {
  let now: number;
  let pace: Pace;

  /** Takes `took` milliseconds for the next look. @returns how long it waited for its turn */
  function look(took: number, underWay = nothing, dueIn = Infinity): { look: Look; wait: number } {
    const next = pace.next();
    now += next.wait + took;
    pace.looked(next.look, took, { underWay, dueIn });
    return next;
  }

  beforeEach(() => {
    now = 1_000;
    pace = new Pace(() => now);
  });

  it('begins at once, goes on with a row of looks, and then ever more rarely', () => {
    assert.deepEqual(look(1), { look: 'whole', wait: 0 });
    const waits = Array.from({ length: 30 }, () => look(1).wait);
    assert.deepEqual(waits.slice(0, 20), Array(20).fill(100));
    assert.deepEqual(waits.slice(20), [150, 250, 500, 1000, 2000, 5000, 5000, 5000, 5000, 5000]);
  });

  it('looks at once at a hint, but after a look rests as long as that took, up to five seconds', () => {
    look(1);
    now += 50;
    pace.hint();
    assert.equal(look(2_000).wait, 0);
    pace.hint();
    assert.equal(look(60_000).wait, 2_000);
    pace.hint();
    assert.equal(pace.next().wait, 5_000);
  });

  it('glances in an update every 200 ms, also while it rests', () => {
    look(1_500, updating);
    for (let turn = 0; turn < 7; turn += 1)
      assert.deepEqual(look(5, updating), { look: 'glance', wait: 200 });
    assert.equal(pace.next().look, 'whole');
    assert.equal(look(1, nothing).wait, 65);
    assert.equal(pace.next().look, 'whole');
  });

  it('has fewer looks in its row where each takes long, and is through as soon', () => {
    const began = now;
    let looks = 0;
    while (look(400).wait < 5_000) looks += 1;
    assert.ok(looks < 10, String(looks));
    assert.ok(now - began < 18_000, String(now - began));
  });

  it('has one part in ten of the time for glances while tasks only begin', () => {
    for (let turn = 0; turn < 30; turn += 1) look(1, nothing);
    look(1, starting);
    assert.deepEqual(look(300, starting), { look: 'glance', wait: 200 });
    assert.deepEqual(pace.next(), { look: 'glance', wait: 2_700 });
  });

  it('looks when something is due, and soon again when that fails, or anything in an update', () => {
    for (let turn = 0; turn < 30; turn += 1) look(1, nothing);
    look(1, nothing, 700);
    assert.deepEqual(pace.next(), { look: 'whole', wait: 700 });
    pace.failed();
    assert.equal(look(1, updating).wait, 200);
    pace.failed();
    assert.equal(look(1, nothing).wait, 200);
    pace.failed();
    assert.equal(pace.next().wait, 5_000);
  });
});
