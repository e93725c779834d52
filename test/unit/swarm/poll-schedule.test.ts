// Owns the tests of when Swarm is looked at next, and how much of it.
// Must not look at anything.
import assert from 'node:assert/strict';
import { PollSchedule, type Look } from '../../../swarm/poll-schedule.ts';
import type { UnderWay } from '../../../swarm/services.ts';

const nothing: UnderWay = { updating: [], starting: [] };
const updating = { updating: ['web'], starting: [] };
const starting = { updating: [], starting: ['web'] };

describe('the poll schedule of Swarm', () => {
  let now: number;
  let pace: PollSchedule;

  /** Takes `took` milliseconds for the next look. @returns how long it waited for its turn */
  function look(took: number, underWay = nothing, dueIn = Infinity): { look: Look; wait: number } {
    const next = pace.next();
    now += next.wait + took;
    pace.looked(next.look, took, { underWay, dueIn });
    return next;
  }

  beforeEach(() => {
    now = 1_000;
    pace = new PollSchedule(() => now);
  });

  it('polling begins at once, goes on with a few quick looks, and then becomes rarer', () => {
    assert.deepEqual(look(1), { look: 'whole', wait: 0 });
    const waits = Array.from({ length: 30 }, () => look(1).wait);
    assert.deepEqual(waits.slice(0, 20), Array(20).fill(100));
    assert.deepEqual(waits.slice(20), [150, 250, 500, 1000, 2000, 5000, 5000, 5000, 5000, 5000]);
  });

  it('a hint causes a look at once, then a rest as long as the look took, up to five seconds', () => {
    look(1);
    now += 50;
    pace.hint();
    assert.equal(look(2_000).wait, 0);
    pace.hint();
    assert.equal(look(60_000).wait, 2_000);
    pace.hint();
    assert.equal(pace.next().wait, 5_000);
  });

  it('short looks take at most a quarter of the time, however many hints there are', () => {
    look(1);
    for (const [took, rest] of [
      [50, 150],
      [100, 300],
      [200, 300],
      [400, 400],
    ] as const) {
      look(took);
      pace.hint();
      assert.equal(pace.next().wait, rest, `after ${took} ms`);
    }
  });

  it('polling is slow where nothing of it is this node’s to publish', () => {
    const bystander = (): number => {
      const next = pace.next();
      now += next.wait + 1;
      pace.looked(next.look, 1, { underWay: nothing, dueIn: Infinity, bystander: true });
      return next.wait;
    };
    bystander();
    pace.hint();
    assert.deepEqual(Array.from({ length: 5 }, bystander), [500, 500, 1000, 2000, 5000]);
  });

  it('during an update there is a glance every 200 ms, also while polling rests', () => {
    look(1_500, updating);
    for (let turn = 0; turn < 7; turn += 1)
      assert.deepEqual(look(5, updating), { look: 'glance', wait: 200 });
    assert.equal(pace.next().look, 'whole');
    assert.equal(look(1, nothing).wait, 65);
    assert.equal(pace.next().look, 'whole');
  });

  it('slow looks: fewer quick ones in a row, which end as soon', () => {
    const began = now;
    let looks = 0;
    while (look(400).wait < 5_000) looks += 1;
    assert.ok(looks < 10, String(looks));
    assert.ok(now - began < 18_000, String(now - began));
  });

  it('glances take a tenth of the time while tasks only begin', () => {
    for (let turn = 0; turn < 30; turn += 1) look(1, nothing);
    look(1, starting);
    assert.deepEqual(look(300, starting), { look: 'glance', wait: 200 });
    assert.deepEqual(pace.next(), { look: 'glance', wait: 2_700 });
  });

  it('a look is made when something is due, soon again when it fails, and during an update', () => {
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
