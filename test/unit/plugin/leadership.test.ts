// Owns the tests of who writes for the cluster.
// Must not test Swarm's election.
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { Leadership, leaderKey } from '../../../plugin/leadership.ts';
import { openEmbedded } from '../../../store/embedded.ts';
import { StoreError } from '../../../store/errors.ts';
import type { Op, SharedStore } from '../../../store/store.ts';
import { withLocks } from '../../fake/locks.ts';
import { captureLog } from '../../fake/log.ts';

describe('leadership', () => {
  const { signal } = new AbortController();
  let store: SharedStore;
  beforeEach(() => (store = withLocks(openEmbedded(':memory:'))));
  afterEach(() => store.close());

  const leadership = (node: string, locks: Pick<SharedStore, 'lock'> = store): Leadership =>
    new Leadership({ lock: (...args) => locks.lock(...args), node, log: captureLog().log });
  const write = async (fence: readonly Op[] | undefined, key: string) =>
    fence && (await store.commit([...fence, { op: 'set', key, value: 1 }])).ok;

  it('the node that Swarm elected is leader, and fences off the one before', async () => {
    const [one, two] = [leadership('one'), leadership('two')];
    assert.equal(await one.elect(false, signal), undefined);
    const first = await one.elect(true, signal);
    assert.equal(await write(first, 'a'), true);
    const second = await two.elect(true, signal);
    assert.equal(await write(second, 'b'), true);
    assert.equal(await write(first, 'c'), false, 'deposed, without knowing it');
    assert.equal(await one.elect(false, signal), undefined);
    assert.equal(await write(second, 'd'), true, 'stepping down takes nothing from the next one');
  });

  it('leadership ends with the election', async () => {
    const one = leadership('one');
    await one.elect(true, signal);
    await one.elect(false, signal);
    assert.equal(await store.get(leaderKey), undefined);
  });

  it('leadership goes by Swarm alone while the store is away', async () => {
    const away = { lock: () => Promise.reject(new StoreError('unavailable', 'no')) };
    assert.deepEqual(await leadership('one', away).elect(true, signal), []);
  });

  it('leadership waits shortly, and once, for a silent store, and uses its answer when it comes', async () => {
    const answer = Promise.withResolvers<undefined>();
    const lock: SharedStore['lock'] = async (...args) => {
      await answer.promise;
      return store.lock(...args);
    };
    const one = leadership('one', { lock });
    assert.deepEqual(await one.elect(true, signal), []);
    const again = performance.now();
    assert.deepEqual(await one.elect(true, signal), []);
    assert.ok(performance.now() - again < 100, 'who publishes does not wait again');
    answer.resolve(undefined);
    let fence: readonly Op[] | undefined = [];
    for (let tries = 0; tries < 100 && fence?.length === 0; tries++) {
      await sleep(5);
      fence = await one.elect(true, signal);
    }
    assert.deepEqual(
      fence?.map(({ key }) => key),
      [leaderKey],
    );
  });

  it('a lock that the store grants after the election is lost is released', async () => {
    const answer = Promise.withResolvers<undefined>();
    const lock: SharedStore['lock'] = async (...args) => {
      await answer.promise;
      return store.lock(...args);
    };
    const one = leadership('one', { lock });
    await one.elect(true, signal);
    await one.elect(false, signal);
    answer.resolve(undefined);
    await sleep(20);
    assert.equal(await store.get(leaderKey), undefined);
  });
});
