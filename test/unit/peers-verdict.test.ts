// Owns the tests of the verdict on a peer, and of the pace at which peers are asked.
// Must not need sockets or wait: time is a number here.
import assert from 'node:assert/strict';
import { agreedInterval, beatMs, budgetPerSecond, intervalFor, quietFor } from '../../peers/pace.ts';
import { begin, step, type Action, type PeerEvent, type PeerState } from '../../peers/verdict.ts';
import { seeded } from './random.ts';

/** A peer and a clock. */
class Watch {
  now = 0;
  state: PeerState;
  readonly interval: number;
  /** What was done, with when. */
  done: { at: number; action: Action }[] = [];

  constructor(interval = beatMs) {
    this.interval = interval;
    this.state = begin({ now: 0, interval, jitter: 1 }, 0);
  }

  tell(event: PeerEvent, jitter = 1): readonly Action[] {
    const { state, actions } = step(this.state, event, { now: this.now, interval: this.interval, jitter });
    this.state = state;
    this.done.push(...actions.map((action) => ({ at: this.now, action })));
    return actions;
  }

  /** Lets time pass, looked at every 20 ms. @param answered what comes back of an action */
  pass(ms: number, answered: (action: Action) => PeerEvent['type'] | undefined = () => undefined): this {
    for (const end = this.now + ms; this.now < end;) {
      this.now += 20;
      for (const action of this.tell({ type: 'tick' })) {
        const type = answered(action);
        if (type !== undefined) this.tell({ type } as PeerEvent);
      }
    }
    return this;
  }

  get verdict(): string {
    return this.state.verdict;
  }
}

const answers = (action: Action) => (action === 'ask' ? 'heard' : undefined);
const refuses = (action: Action) => (action === 'connect' ? 'refused' : undefined);
const accepts = (action: Action) => (action === 'connect' ? 'accepted' : undefined);

describe('the verdict on a peer', () => {
  it('is unknown first, and alive with the first answer', () => {
    const watch = new Watch();
    assert.equal(watch.verdict, 'unknown');
    watch.pass(20, answers);
    assert.equal(watch.verdict, 'alive');
    assert.equal(watch.state.since, 20);
  });

  it('stays alive while answers come, and nothing is tried by TCP', () => {
    const watch = new Watch().pass(10_000, answers);
    assert.equal(watch.verdict, 'alive');
    assert.deepEqual(new Set(watch.done.map(({ action }) => action)), new Set(['ask']));
    assert.ok(watch.done.length <= 101, `${watch.done.length} questions in 10 s`);
  });

  it('is dead 600 ms after the last sign, after three connections without an answer', () => {
    const watch = new Watch().pass(1_000, answers);
    const last = watch.state.quietSince;
    watch.done = [];
    watch.pass(620);
    assert.equal(watch.verdict, 'dead');
    assert.ok(watch.state.since - last <= 620, `${watch.state.since - last} ms`);
    const connects = watch.done.filter(({ action }) => action === 'connect').map(({ at }) => at - last);
    assert.deepEqual(connects, [300, 400, 500]);
    assert.equal(watch.done.at(-1)?.action, 'hang up');
  });

  it('outlives the loss of every fourth answer, and of all heartbeats while TCP answers', () => {
    const random = seeded(7);
    const lossy = new Watch()
      .pass(20, answers)
      .pass(60_000, (action) =>
        action === 'hang up' || random(4) === 0 ? undefined : action === 'ask' ? 'heard' : 'accepted',
      );
    assert.equal(lossy.verdict, 'alive');
    assert.equal(lossy.state.since, 20);
    const none = new Watch().pass(20, answers).pass(60_000, accepts);
    assert.equal(none.verdict, 'alive');
    assert.equal(none.state.since, 20);
  });

  it('stays alive while the kernel there refuses, as when its plugin is upgraded', () => {
    const watch = new Watch().pass(1_000, answers).pass(30_000, refuses);
    assert.equal(watch.verdict, 'alive');
    assert.equal(watch.state.since, 20);
    watch.pass(700);
    assert.equal(watch.verdict, 'dead', 'and dies as others do');
  });

  it('is not brought back by a kernel that refuses, but by what its plugin says or takes', () => {
    const back = new Watch().pass(1_000, answers).pass(1_000);
    assert.equal(back.verdict, 'dead');
    back.pass(5_000, refuses);
    assert.equal(back.verdict, 'dead');
    back.pass(1_100, answers);
    assert.equal(back.verdict, 'alive');
    back.pass(1_000).pass(1_100, accepts);
    assert.equal(back.verdict, 'alive');
  });

  it('is alive at once when a peer that was dead speaks unasked, and gives up connections', () => {
    const watch = new Watch().pass(100, answers).pass(5_000);
    assert.equal(watch.verdict, 'dead');
    assert.deepEqual(watch.tell({ type: 'heard' }), ['hang up']);
    assert.equal(watch.verdict, 'alive');
    assert.equal(watch.state.since, watch.now);
  });

  it('asks the dead ever more slowly, down to once a second', () => {
    const watch = new Watch().pass(100, answers).pass(20_000);
    watch.done = [];
    watch.pass(10_000);
    const asks = watch.done.filter(({ action }) => action === 'ask').length;
    assert.ok(asks >= 9 && asks <= 10, `${asks} in 10 s`);
    assert.equal(watch.done.filter(({ action }) => action === 'connect').length, asks);
  });

  it('stays unknown while there was never an answer', () => {
    const watch = new Watch().pass(60_000);
    assert.equal(watch.verdict, 'unknown');
    assert.equal(watch.state.since, 0);
    watch.pass(1_100, refuses);
    assert.equal(watch.verdict, 'alive');
  });

  it('asks less while the peer asks', () => {
    const watch = new Watch();
    watch.tell({ type: 'heard' });
    for (let i = 0; i < 100; i += 1) {
      watch.pass(80);
      watch.tell({ type: 'heard' });
    }
    assert.deepEqual(watch.done, []);
  });
});

describe('a process that was not running', () => {
  it('concludes nothing from the time it slept', () => {
    const watch = new Watch().pass(1_000, answers);
    for (let i = 0; i < 10; i += 1) {
      watch.now += 2_000;
      watch.tell({ type: 'slept', ms: 2_000 });
      watch.done = [];
      watch.pass(60);
      assert.ok(!watch.done.some(({ action }) => action === 'connect'), 'not even a suspicion');
      watch.pass(100, answers);
    }
    assert.equal(watch.verdict, 'alive');
    assert.equal(watch.state.since, 20);
  });

  it('begins the trial of a suspect again', () => {
    const watch = new Watch().pass(1_000, answers).pass(460);
    assert.equal(watch.state.phase.is, 'trial');
    watch.now += 5_000;
    watch.tell({ type: 'slept', ms: 5_000 });
    watch.done = [];
    watch.pass(280);
    assert.equal(watch.verdict, 'alive');
    assert.equal(watch.done.filter(({ action }) => action === 'connect').length, 3);
    watch.pass(60);
    assert.equal(watch.verdict, 'dead', 'a peer that really died meanwhile is found dead all the same');
  });

  it('for a moment, again and again, comes to its verdict later by no more than that', () => {
    const watch = new Watch();
    watch.tell({ type: 'heard' });
    for (let slept = 0; slept < 5; slept += 1) {
      watch.pass(100);
      watch.now += 100;
      watch.tell({ type: 'slept', ms: 100 });
    }
    assert.equal(watch.state.phase.is, 'trial');
    watch.pass(140);
    assert.equal(watch.verdict, 'dead');
  });

  it('that can try nothing says nothing', () => {
    const watch = new Watch()
      .pass(1_000, answers)
      .pass(5_000, (action) => (action === 'connect' ? 'blind' : undefined));
    assert.equal(watch.verdict, 'alive');
    watch.pass(400);
    assert.equal(watch.verdict, 'dead');
  });
});

describe('the pace', () => {
  it('is 100 ms up to 40 peers, and then what the budget allows', () => {
    assert.deepEqual(
      [0, 1, 40, 41, 100, 1_000, 100_000].map(intervalFor),
      [100, 100, 100, 103, 250, 2_500, 10_000],
    );
    for (let peers = 1; peers <= 4_000; peers += 1) {
      assert.ok((peers * 1_000) / intervalFor(peers) <= budgetPerSecond);
    }
  });

  it('of two is that of the busier one, within reason', () => {
    assert.equal(agreedInterval(100, 250), 250);
    assert.equal(agreedInterval(250, 100), 250);
    assert.equal(agreedInterval(100, 65_535), 10_000);
  });

  it('stretches the silence that is borne', () => {
    assert.deepEqual([100, 150, 250, 2_500].map(quietFor), [300, 300, 500, 5_000]);
    const watch = new Watch(1_000);
    watch.tell({ type: 'heard' });
    watch.pass(1_980);
    assert.ok(!watch.done.some(({ action }) => action === 'connect'));
    watch.pass(400);
    assert.equal(watch.verdict, 'dead');
  });
});
