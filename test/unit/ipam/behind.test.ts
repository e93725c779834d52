// Owns the tests of what an address's lease becomes behind the answer to Docker.
// Must not test which address is given, nor what is refused; test/unit/ipam/ipam.test.ts does.
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { openEmbedded } from '../../../store/embedded.ts';
import { StoreError } from '../../../store/errors.ts';
import type { Store } from '../../../store/store.ts';
import { HeldStore } from '../../fake/held-store.ts';
import { Node } from '../../support/ipam-world.ts';
import { eventually } from '../../support/until.ts';

const subnet = '10.77.0.0/16';
const address = '10.77.0.9';
const globally = 'global/10.77.0.0-16';
const locally = 'local/10.77.0.0-16';
const lease = [['ipam/leases/10.77.0.0-16/10.77.0.9', 'ipam/pools/10.77.0.0-16']];

describe('ipam: writes behind the answer to Docker', () => {
  let inner: Store;
  let held: HeldStore;
  let node: Node;
  beforeEach(async () => {
    inner = openEmbedded(':memory:');
    held = new HeldStore(inner);
    node = new Node(held.store);
    await node.pool('global', subnet);
    await node.bind('global', subnet, 'front');
    await node.pool('local', subnet);
    await node.bind('local', subnet, 'front');
  });
  afterEach(async () => {
    held.open();
    await node.ipam.idle();
    await node.store.close();
  });

  const claim = (poolId: string): Promise<unknown> =>
    node.ipam.requestAddress({ poolId, address, options: {} });
  const release = (poolId: string): Promise<void> => node.ipam.releaseAddress({ poolId, address });
  const settled = (): Promise<void> => node.ipam.settled({ pool: subnet, address });

  async function isOpen(promise: Promise<unknown>): Promise<boolean> {
    return Promise.race([promise.then(() => false), sleep(50, true)]);
  }

  it('the leader’s half of a lease is there: the node is answered first, and its half is written behind', async () => {
    await node.address(globally, address);
    held.hold();
    assert.deepEqual(await claim(locally), { address: '10.77.0.9/16' });
    assert.deepEqual(held.waiting, lease);
    const use = settled();
    assert.equal(await isOpen(use), true);
    held.open();
    await use;
    assert.deepEqual(await node.leases(), { [address]: ['global', 'node/one'] });
  });

  it('the leader’s half of a lease is not there: the node is answered by the store', async () => {
    held.hold();
    const asked = claim(locally);
    assert.equal(await isOpen(asked), true);
    held.open();
    await asked;
  });

  it('a late write fails: who uses the address is told, once, the log too, and the lease is as it was', async () => {
    await node.address(globally, address);
    held.hold();
    await claim(locally);
    await held.next(new StoreError('unavailable', 'away'));
    await assert.rejects(settled(), /away/);
    await settled();
    assert.deepEqual(node.failures, ['10.77.0.0-16/10.77.0.9']);
    assert.deepEqual(await node.leases(), { [address]: ['global'] });
  });

  it('another node claimed the address first: who uses the address is told', async () => {
    await node.address(globally, address);
    held.hold();
    await claim(locally);
    const [[key = ''] = []] = held.waiting;
    const version = (await inner.get(key))?.version ?? 0;
    await inner.commit([{ op: 'set', key, value: { v: 1, holders: ['global', 'node/two'] }, version }]);
    held.open();
    await assert.rejects(settled(), /in use on another node \(two\)/);
    assert.deepEqual(await node.leases(), { [address]: ['global', 'node/two'] });
  });

  it('a release that comes before the claim is written waits its turn', async () => {
    await node.address(globally, address);
    held.hold();
    await claim(locally);
    await release(locally);
    await release(globally);
    held.open();
    await node.ipam.idle();
    assert.deepEqual(await node.leases(), {});
  });

  it('an address that is released and claimed again at once stays claimed', async () => {
    await node.address(globally, address);
    await node.address(locally, address);
    held.hold();
    await release(locally);
    await release(globally);
    const again = claim(globally);
    held.open();
    await again;
    await claim(locally);
    await settled();
    assert.deepEqual(await node.leases(), { [address]: ['global', 'node/one'] });
  });

  it('a late release fails: the log says so, nobody waits, and the collector frees the address', async () => {
    await node.address(globally, address);
    await node.address(locally, address);
    held.hold();
    await release(locally);
    await held.next(new StoreError('unavailable', 'away'));
    held.open();
    await node.ipam.idle();
    assert.deepEqual(node.failures, ['10.77.0.0-16/10.77.0.9']);
    await release(globally);
    await node.ipam.idle();
    assert.deepEqual(await node.leases(), { [address]: ['node/one'] });
    const local = [{ pool: subnet, network: 'front', addresses: new Set<string>() }];
    await node.collect({ local });
    node.now += 60_000;
    await node.collect({ local });
    assert.deepEqual(await node.leases(), {});
  });

  it('the last address of a pool, released a moment ago, can be had', async () => {
    const small = await node.pool('global', '10.78.0.0/30');
    await node.bind('global', '10.78.0.0/30', 'small', '10.78.0.1');
    const last = await node.address(small);
    held.hold(1);
    await node.ipam.releaseAddress({ poolId: small, address: last.split('/')[0] ?? '' });
    await eventually(() => held.waiting.length > 0);
    const again = node.ipam.requestAddress({ poolId: small, address: '', options: {} });
    assert.equal(await isOpen(again), true);
    held.open();
    assert.deepEqual(await again, { address: last });
  });
});
