// Owns the tests of the verdict on a peer, and of the pace at which peers are asked.
// Must not need sockets or wait: time is a number here.
import assert from 'node:assert/strict';
import { agreedInterval, beatMs, budgetPerSecond, intervalFor, quietFor } from '../../../peers/pace.ts';
import { begin, step, type Action, type PeerEvent, type PeerState } from '../../../peers/failure-detector.ts';
import { seeded } from '../../support/random.ts';

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
    return this.state.status;
  }
}

const answers = (action: Action) => (action === 'ask' ? 'heard' : undefined);
const refuses = (action: Action) => (action === 'connect' ? 'refused' : undefined);
const accepts = (action: Action) => (action === 'connect' ? 'accepted' : undefined);

describe('the state of a peer', () => {
  it('a peer is unknown at first, and alive with its first answer', () => {
    const watch = new Watch();
    assert.equal(watch.verdict, 'unknown');
    watch.pass(20, answers);
    assert.equal(watch.verdict, 'alive');
    assert.equal(watch.state.since, 20);
  });

  it('a peer that answers stays alive, and is not probed by TCP', () => {
    const watch = new Watch().pass(10_000, answers);
    assert.equal(watch.verdict, 'alive');
    assert.deepEqual(new Set(watch.done.map(({ action }) => action)), new Set(['ask']));
    assert.ok(watch.done.length <= 101, `${watch.done.length} questions in 10 s`);
  });

  it('a peer is dead 600 ms after its last sign of life, after three TCP probes without an answer', () => {
    const watch = new Watch().pass(1_000, answers);
    const last = watch.state.quietSince;
    watch.done = [];
    watch.pass(620);
    assert.equal(watch.verdict, 'unreachable');
    assert.ok(watch.state.since - last <= 620, `${watch.state.since - last} ms`);
    const connects = watch.done.filter(({ action }) => action === 'connect').map(({ at }) => at - last);
    assert.deepEqual(connects, [300, 400, 500]);
    assert.equal(watch.done.at(-1)?.action, 'hang up');
  });

  it('a peer stays alive when every fourth answer is lost, and when all are while TCP answers', () => {
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

  it('a peer whose kernel refuses stays alive, as during an upgrade of its plugin', () => {
    const watch = new Watch().pass(1_000, answers).pass(30_000, refuses);
    assert.equal(watch.verdict, 'alive');
    assert.equal(watch.state.since, 20);
    watch.pass(700);
    assert.equal(watch.verdict, 'unreachable', 'and dies as others do');
  });

  it('a dead peer is not alive again by its kernel’s refusal, but by what its plugin sends or accepts', () => {
    const back = new Watch().pass(1_000, answers).pass(1_000);
    assert.equal(back.verdict, 'unreachable');
    back.pass(5_000, refuses);
    assert.equal(back.verdict, 'unreachable');
    back.pass(1_100, answers);
    assert.equal(back.verdict, 'alive');
    back.pass(1_000).pass(1_100, accepts);
    assert.equal(back.verdict, 'alive');
  });

  it('a dead peer that speaks unasked is alive at once, and TCP probes are given up', () => {
    const watch = new Watch().pass(100, answers).pass(5_000);
    assert.equal(watch.verdict, 'unreachable');
    assert.deepEqual(watch.tell({ type: 'heard' }), ['hang up']);
    assert.equal(watch.verdict, 'alive');
    assert.equal(watch.state.since, watch.now);
  });

  it('a dead peer is asked ever more slowly, down to once a second', () => {
    const watch = new Watch().pass(100, answers).pass(20_000);
    watch.done = [];
    watch.pass(10_000);
    const asks = watch.done.filter(({ action }) => action === 'ask').length;
    assert.ok(asks >= 9 && asks <= 10, `${asks} in 10 s`);
    assert.equal(watch.done.filter(({ action }) => action === 'connect').length, asks);
  });

  it('a peer that never answered stays unknown', () => {
    const watch = new Watch().pass(60_000);
    assert.equal(watch.verdict, 'unknown');
    assert.equal(watch.state.since, 0);
    watch.pass(1_100, refuses);
    assert.equal(watch.verdict, 'alive');
  });

  it('a peer that asks us is asked less', () => {
    const watch = new Watch();
    watch.tell({ type: 'heard' });
    for (let i = 0; i < 100; i += 1) {
      watch.pass(80);
      watch.tell({ type: 'heard' });
    }
    assert.deepEqual(watch.done, []);
  });
});

describe('failure detection after a pause of the own process', () => {
  it('after a pause of the own process, nothing is concluded from the silence', () => {
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

  it('after a pause of the own process, the probes of a suspect begin again', () => {
    const watch = new Watch().pass(1_000, answers).pass(460);
    assert.equal(watch.state.phase.is, 'trial');
    watch.now += 5_000;
    watch.tell({ type: 'slept', ms: 5_000 });
    watch.done = [];
    watch.pass(280);
    assert.equal(watch.verdict, 'alive');
    assert.equal(watch.done.filter(({ action }) => action === 'connect').length, 3);
    watch.pass(60);
    assert.equal(
      watch.verdict,
      'unreachable',
      'a peer that really died meanwhile is found dead all the same',
    );
  });

  it('short pauses of the own process delay a verdict by no more than their length', () => {
    const watch = new Watch();
    watch.tell({ type: 'heard' });
    for (let slept = 0; slept < 5; slept += 1) {
      watch.pass(100);
      watch.now += 100;
      watch.tell({ type: 'slept', ms: 100 });
    }
    assert.equal(watch.state.phase.is, 'trial');
    watch.pass(140);
    assert.equal(watch.verdict, 'unreachable');
  });

  it('a process that cannot probe says nothing', () => {
    const watch = new Watch()
      .pass(1_000, answers)
      .pass(5_000, (action) => (action === 'connect' ? 'blind' : undefined));
    assert.equal(watch.verdict, 'alive');
    watch.pass(400);
    assert.equal(watch.verdict, 'unreachable');
  });
});

describe('the heartbeat interval', () => {
  it('the heartbeat interval is 100 ms up to 40 peers, then as the budget allows', () => {
    assert.deepEqual(
      [0, 1, 40, 41, 100, 1_000, 100_000].map(intervalFor),
      [100, 100, 100, 103, 250, 2_500, 10_000],
    );
    for (let peers = 1; peers <= 4_000; peers += 1) {
      assert.ok((peers * 1_000) / intervalFor(peers) <= budgetPerSecond);
    }
  });

  it('the heartbeat interval of two nodes is the busier one’s, within limits', () => {
    assert.equal(agreedInterval(100, 250), 250);
    assert.equal(agreedInterval(250, 100), 250);
    assert.equal(agreedInterval(100, 65_535), 10_000);
  });

  it('a longer heartbeat interval extends the silence that is tolerated', () => {
    assert.deepEqual([100, 150, 250, 2_500].map(quietFor), [300, 300, 500, 5_000]);
    const watch = new Watch(1_000);
    watch.tell({ type: 'heard' });
    watch.pass(1_980);
    assert.ok(!watch.done.some(({ action }) => action === 'connect'));
    watch.pass(400);
    assert.equal(watch.verdict, 'unreachable');
  });
});
