// Owns the collection of leaks: what is freed and when, what is taken over, what is left alone in doubt.
// Must not test how requests work (test/unit/ipam/ipam.test.ts).
import assert from 'node:assert/strict';
import { planCollect, type HeldPool, type Truth } from '../../../ipam/collect.ts';
import { Node } from '../../support/ipam-world.ts';

const subnet = '10.77.0.0/16';
const held = (network: string, ...addresses: string[]): HeldPool => ({
  pool: subnet,
  network,
  gateway: '10.77.0.1',
  addresses: new Set(addresses),
});

describe('ipam collect', () => {
  let node: Node;
  let poolId: string;
  beforeEach(async () => {
    node = new Node();
    ({ poolId } = await node.allocateNetwork('N', subnet));
    await node.createNetwork('N', subnet, '10.77.0.1');
    await node.address(poolId, '10.77.0.2');
    await node.address(poolId, '10.77.0.3');
    await node.address('local/10.77.0.0-16', '10.77.0.3');
  });

  /** Two looks, further apart than the grace time. */
  const twice = async (truth: Truth): Promise<string[]> => {
    const first = await node.collect(truth);
    assert.deepEqual(first.freed, []);
    node.now += 60_000;
    const { freed, corrupt, failed } = await node.collect(truth);
    assert.deepEqual([corrupt, failed], [[], []]);
    return freed.map(({ what, address, pool, holder }) => `${what} ${address ?? pool} ${holder}`);
  };

  it('collect frees nothing that is held or unknown', async () => {
    const before = await node.store.list('');
    assert.deepEqual(await twice({}), []);
    assert.deepEqual(await twice({ global: undefined, local: [held('N', '10.77.0.3')] }), []);
    assert.deepEqual(await twice({ global: [held('N', '10.77.0.2', '10.77.0.3')] }), []);
    assert.deepEqual(await twice({ nodes: new Set(['one']) }), []);
    assert.deepEqual(await node.store.list(''), before);
  });

  it('collect frees the leader’s and the nodes’ side separately', async () => {
    const truth = { global: [held('N', '10.77.0.3')], local: [held('N')] };
    assert.deepEqual(await twice(truth), ['address 10.77.0.2 global', 'address 10.77.0.3 node/one']);
    assert.deepEqual(await node.leases(), { '10.77.0.3': ['global'] });
    assert.deepEqual(await twice(truth), []);
  });

  it('collect frees a whole network that is gone on both sides, with its gateway', async () => {
    assert.deepEqual(await twice({ global: [], local: [] }), [
      'address 10.77.0.2 global',
      'address 10.77.0.3 global',
      'address 10.77.0.3 node/one',
      'pool 10.77.0.0/16 global',
      'pool 10.77.0.0/16 node/one',
    ]);
    assert.deepEqual(await node.keys(), []);
  });

  it('collect keeps a pool and its gateway while one side has it', async () => {
    await twice({ global: [], local: [held('N', '10.77.0.3')] });
    assert.deepEqual(await node.leases(), { '10.77.0.3': ['node/one'] });
    assert.equal(await node.gateway('local/10.77.0.0-16'), '10.77.0.1/16');
    assert.match((await node.bind('local', subnet, 'other')) ?? '', /in use on this node by network N/);
  });

  it('a pool’s recorded owner is gone: the network that really has the subnet becomes its owner', async () => {
    await twice({ global: [held('new')], local: [] });
    const { adopted, failed } = await node.collect({ global: [held('new')], local: [] });
    assert.deepEqual([adopted, failed], [[{ what: 'pool', pool: subnet, holder: 'global' }], []]);
    assert.equal(await node.bind('global', subnet, 'new'), undefined);
    assert.equal(await node.gateway(poolId), '10.77.0.1/16');
  });

  it('collect frees after the grace time, which begins anew when the thing was held, changed or asked for', async () => {
    const lost: Truth = { global: [held('N', '10.77.0.3')] };
    const found: Truth = { global: [held('N', '10.77.0.2', '10.77.0.3')] };
    const freedAfter = async (ms: number, truth: Truth): Promise<number> => {
      node.now += ms;
      return (await node.collect(truth)).freed.length;
    };
    assert.equal(await freedAfter(0, lost), 0);
    assert.equal(await freedAfter(59_999, lost), 0);
    assert.equal(await freedAfter(1, found), 0, 'held again');
    assert.equal(await freedAfter(60_000, lost), 0);
    await node.bind('global', subnet, 'N');
    await node.address(poolId, '10.77.0.2');
    assert.equal(await freedAfter(60_000, lost), 0, 'replayed');
    await node.address('local/10.77.0.0-16', '10.77.0.2');
    assert.equal(await freedAfter(60_000, lost), 0, 'changed by the other side');
    await node.release(poolId, '10.77.0.2');
    await node.address(poolId, '10.77.0.2');
    assert.equal(await freedAfter(60_000, lost), 0, 'released and taken again');
    assert.equal(await freedAfter(59_999, lost), 0);
    assert.equal(await freedAfter(1, lost), 1);
  });

  it('two of Swarm’s claims on an address count as one when there is but one, not on one look', async () => {
    await node.address(poolId, '10.77.0.2');
    const local = node.address('local/10.77.0.0-16', '10.77.0.2');
    await assert.rejects(local, { code: 'address-in-use' });
    const one: Truth = { global: [held('N', '10.77.0.2', '10.77.0.3')] };
    const two: Truth = { global: [{ ...one.global![0]!, shared: new Set(['10.77.0.2']) }] };
    for (const truth of [one, two, one]) {
      assert.deepEqual((await node.collect(truth)).freed, []);
      node.now += 60_000;
    }
    assert.equal((await node.collect(one)).freed.length, 1);
    assert.equal(await node.address('local/10.77.0.0-16', '10.77.0.2'), '10.77.0.2/16');
    await node.release(poolId, '10.77.0.2');
    assert.deepEqual((await node.leases())['10.77.0.2'], ['node/one']);
  });

  it('a pool that Swarm asks for again is not freed because of an earlier look', async () => {
    const truth: Truth = { local: [] };
    await node.collect(truth);
    node.now += 60_000;
    await node.pool('local', subnet);
    assert.ok(!(await node.collect(truth)).freed.some(({ what }) => what === 'pool'));
  });

  it('collect frees what nodes held that left the cluster', async () => {
    const gone = new Node(node.store, { nodeId: 'gone' });
    await gone.createNetwork('N', subnet, '10.77.0.1');
    await gone.address('local/10.77.0.0-16', '10.77.0.8');
    assert.deepEqual(await twice({ nodes: new Set(['one', 'gone']) }), []);
    assert.deepEqual(await twice({ nodes: new Set(['one']) }), [
      'address 10.77.0.8 node/gone',
      'pool 10.77.0.0/16 node/gone',
    ]);
  });

  it('collect records at once what is held and not recorded, addresses before their pool', async () => {
    const empty = new Node();
    const truth: Truth = {
      global: [held('N', '10.77.0.2', '10.77.0.3', '10.77.0.1')],
      local: [held('N', '10.77.0.3')],
    };
    const { adopted, failed } = await empty.collect(truth);
    assert.deepEqual(
      adopted.map(({ what, address, holder }) => `${what} ${address ?? ''} ${holder}`),
      [
        'address 10.77.0.2 global',
        'address 10.77.0.3 global',
        'pool  global',
        'address 10.77.0.3 node/one',
        'pool  node/one',
      ],
    );
    assert.deepEqual(failed, []);
    assert.deepEqual(await empty.leases(), { '10.77.0.2': ['global'], '10.77.0.3': ['global', 'node/one'] });
    assert.equal(await empty.address('global/10.77.0.0-16'), '10.77.0.4/16');
    assert.equal(await empty.gateway('local/10.77.0.0-16'), '10.77.0.1/16');
    assert.deepEqual((await empty.collect(truth)).adopted, []);
    assert.match((await empty.bind('global', subnet, 'other')) ?? '', /belongs to network N/);
  });

  it('collect reports what it cannot record or read, and continues with the rest', async () => {
    await node.store.commit([{ op: 'set', key: 'ipam/leases/10.77.0.0-16/10.77.0.4', value: { v: 2 } }]);
    const truth: Truth = { local: [held('N', '10.77.0.3', '10.77.0.4', '10.99.0.1', 'x', '10.77.0.9')] };
    const { adopted, failed, corrupt } = await node.collect(truth);
    assert.deepEqual(
      adopted.map(({ address }) => address),
      ['10.77.0.9'],
    );
    assert.deepEqual(
      failed.map(({ what }) => what.address),
      ['10.77.0.4', '10.99.0.1', 'x'],
    );
    assert.deepEqual(
      corrupt.map(({ key }) => key),
      ['ipam/leases/10.77.0.0-16/10.77.0.4'],
    );
  });

  describe('ipam collect with stray keys among its records', () => {
    const pools = ['x', '10.77.0.5-16', '10.64.0.0', '10.64.0.0-20/y', '999.1.1.1-8'];
    const inPool = ['x', 'x/10.77.0.9', '10.77.0.0-16', '10.77.0.0-16/', '10.77.0.0-16/x'];
    const values = {
      pools: { v: 1 },
      holds: { v: 1 },
      leases: { v: 1, holders: ['global'] },
      cursors: { v: 1 },
    };
    const strays = (['pools', 'holds', 'leases', 'cursors'] as const).flatMap((kind) =>
      (kind === 'pools' ? pools : inPool).map((id) => ({ kind, id, key: `ipam/${kind}/${id}` })),
    );
    for (const { kind, id, key } of strays)
      it(`collect reports the stray key ${key}, and continues with all others`, async () => {
        // One that looks like a record, and one that does not.
        for (const value of [values[kind], 'text']) {
          await node.store.commit([{ op: 'set', key, value }]);
          const { corrupt, failed, freed } = await node.collect({ local: [held('N', '10.77.0.3')] });
          const told = kind === 'cursors' ? [] : [key];
          assert.deepEqual([corrupt.map((error) => error.key), failed, freed], [told, [], []]);
          for (const error of corrupt)
            assert.match(error.message, /none that Causeway writes.*delete it by hand/);
          const other = await node.pool('local', '10.9.0.0/16');
          await node.ipam.releasePool(other);
          await node.ipam.releasePool(await node.pool('local'));
          await node.release(poolId, await node.address(poolId));
          assert.deepEqual(await node.ipam.usage(subnet), { used: 3, size: 65_534 });
        }
        await node.unbind('local', 'N');
        await node.unbind('global', 'N');
        assert.deepEqual(await node.keys(), [`${kind}/${id}`]);
      });

    it('a cursor that cannot be read counts for nothing', async () => {
      const key = 'ipam/cursors/10.77.0.0-16/10.77.0.0-16';
      for (const value of ['text', { v: 1, last: 'x' }, { v: 2 }]) {
        await node.store.commit([{ op: 'set', key, value }]);
        assert.equal(await node.address(poolId), '10.77.0.4/16');
        await node.release(poolId, '10.77.0.4');
      }
    });
  });

  it('collect looks twice before it frees, even without a grace time', async () => {
    assert.deepEqual((await node.ipam.collect({ global: [], graceMs: 0 })).freed, []);
    assert.equal((await node.ipam.collect({ global: [], graceMs: 0 })).freed.length, 3);
  });

  it('collect finishes what a dead process began: a pool without holds, an owner without a pool', async () => {
    const remove = (key: string) =>
      node.store.commit([{ op: 'delete', key: `ipam/holds/10.77.0.0-16/${key}` }]);
    await node.store.commit([{ op: 'set', key: 'ipam/holds/10.77.0.0-16/global', value: { v: 1 } }]);
    await remove('node/one');
    assert.deepEqual((await node.collect({})).freed, [{ what: 'pool', pool: subnet }]);
    assert.equal(await node.bind('global', subnet, 'other'), undefined);
    await remove('global');
    assert.deepEqual((await node.collect({})).freed, [{ what: 'pool', pool: subnet }]);
    assert.deepEqual(await node.keys(), []);
  });

  it('collect keeps a pool whose only hold cannot be read', async () => {
    const hold = 'ipam/holds/10.77.0.0-16/';
    await node.store.commit([
      { op: 'set', key: `${hold}global`, value: 'broken' },
      { op: 'delete', key: `${hold}node/one` },
    ]);
    await assert.rejects(node.ipam.releasePool(poolId), { name: 'StoreError', code: 'corrupt' });
    const { freed, corrupt } = await node
      .collect({ global: [], local: [] })
      .catch(() => ({ freed: [], corrupt: [1] }));
    assert.deepEqual([freed, corrupt.length], [[], 1]);
    assert.ok((await node.keys()).includes('pools/10.77.0.0-16'));
  });

  it('two networks claim one subnet: collect keeps the addresses of both', async () => {
    assert.deepEqual(await twice({ global: [held('N', '10.77.0.2'), held('loser', '10.77.0.3')] }), []);
  });

  it('collect does nothing for a side that it was told nothing of', () => {
    const leases = [
      { id: '10.77.0.0-16/10.77.0.2', version: 1, value: { v: 1 as const, holders: ['global', 'node/x'] } },
    ];
    const options = { nodeId: 'one', now: 0, graceMs: 0 };
    const { steps, sightings } = planCollect(
      { pools: [], holds: [], leases },
      { local: [] },
      new Map(),
      options,
    );
    assert.deepEqual([steps, sightings.size], [[], 0]);
  });
});
