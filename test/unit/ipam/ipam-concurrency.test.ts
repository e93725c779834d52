// Owns what must hold when many ask at once, in one process and in several over one store.
// Must not test what one caller alone can see (test/unit/ipam/ipam.test.ts).
import assert from 'node:assert/strict';
import { setImmediate as turn } from 'node:timers/promises';
import { IpamError } from '../../../ipam/errors.ts';
import { overlaps, parseSubnet } from '../../../ipam/subnet.ts';
import { openEmbedded } from '../../../store/embedded.ts';
import type { Store } from '../../../store/store.ts';
import { Node } from '../../support/ipam-world.ts';
import { seeded } from '../../support/random.ts';

/** A store whose answers take a random number of turns, so that callers interleave as over a network. */
function slow(store: Store, seed: number): Store {
  const random = seeded(seed);
  const delayed = async <T>(call: () => Promise<T>): Promise<T> => {
    for (let n = random(4); n > 0; n--) await turn();
    const result = await call();
    for (let n = random(4); n > 0; n--) await turn();
    return result;
  };
  return {
    get: (key, options) => delayed(() => store.get(key, options)),
    list: (prefix, options) => delayed(() => store.list(prefix, options)),
    commit: (ops, options) => delayed(() => store.commit(ops, options)),
    close: () => store.close(),
  };
}

/** What was granted, and the codes of what was refused. */
async function settled<T>(calls: Promise<T>[]): Promise<{ granted: T[]; refused: string[] }> {
  const results = await Promise.allSettled(calls);
  return {
    granted: results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : [])),
    refused: results.flatMap((result) => {
      if (result.status === 'fulfilled') return [];
      if (result.reason instanceof IpamError) return [result.reason.code];
      throw result.reason;
    }),
  };
}

describe('ipam under concurrency', function () {
  this.timeout(60_000);
  const cluster = (size: number, seed: number): Node[] => {
    const store = openEmbedded(':memory:');
    return Array.from({ length: size }, (_, n) => new Node(slow(store, seed + n), { nodeId: `n${n}` }));
  };

  it('processes that race for addresses: each address is given once, and all of them are', async () => {
    const nodes = cluster(6, 1);
    const pools = await Promise.all(nodes.map((node) => node.pool('local', '10.1.0.0/24')));
    const gateways = await Promise.all(nodes.map((node, n) => node.gateway(pools[n]!)));
    assert.equal(new Set(gateways).size, 1, 'one gateway for all');
    const calls = Array.from({ length: 300 }, (_, n) => nodes[n % 6]!.address(pools[n % 6]!));
    const { granted, refused } = await settled(calls);
    assert.equal(new Set([...granted, gateways[0]]).size, granted.length + 1);
    assert.deepEqual([granted.length, refused.length], [253, 47]);
    assert.deepEqual([...new Set(refused)], ['pool-full']);
  });

  it('processes that request and release at once: no address is given twice', async () => {
    const nodes = cluster(4, 10);
    const random = seeded(3);
    const pools = await Promise.all(nodes.map((node) => node.pool('local', '10.1.0.0/27')));
    const inUse = new Set<string>();
    await Promise.all(
      nodes.map(async (node, n) => {
        for (let round = 0; round < 60; round++) {
          const address = await node.address(pools[n]!);
          assert.ok(!inUse.has(address), `${address} was given twice`);
          inUse.add(address);
          for (let wait = random(5); wait > 0; wait--) await turn();
          inUse.delete(address);
          await node.release(pools[n]!, address);
        }
      }),
    );
    assert.deepEqual(await nodes[0]!.leases(), {});
  });

  it('leader and node that request and release one address at once end with one lease', async () => {
    const [leader, worker] = cluster(2, 20) as [Node, Node];
    const global = await leader.pool('global', '10.1.0.0/24');
    const local = await worker.pool('local', '10.1.0.0/24');
    for (let round = 0; round < 50; round++) {
      await Promise.all([leader.address(global, '10.1.0.9'), worker.address(local, '10.1.0.9')]);
      assert.deepEqual((await leader.leases())['10.1.0.9']?.toSorted(), ['global', 'node/n1']);
      await Promise.all([leader.release(global, '10.1.0.9'), worker.release(local, '10.1.0.9')]);
      assert.deepEqual(await leader.leases(), {});
    }
  });

  it('an address that is requested between the collector’s look and its write is not freed', async () => {
    for (let seed = 100; seed < 160; seed++) {
      const [node] = cluster(1, seed) as [Node];
      const { poolId } = await node.allocateNetwork('N', '10.1.0.0/24');
      await node.address(poolId, '10.1.0.2');
      const truth = { global: [{ pool: '10.1.0.0/24', network: 'N', addresses: new Set<string>() }] };
      await node.collect(truth);
      node.now += 60_000;
      await Promise.all([node.collect(truth), node.address(poolId, '10.1.0.2')]);
      assert.deepEqual(await node.leases(), { '10.1.0.2': ['global'] }, `seed ${seed}`);
    }
  });

  it('a pool that is requested between the collector’s look and its write is not freed', async () => {
    for (let seed = 200; seed < 260; seed++) {
      const [node] = cluster(1, seed) as [Node];
      await node.pool('local', '10.1.0.0/24');
      await node.collect({ local: [] });
      node.now += 60_000;
      await Promise.all([node.collect({ local: [] }), node.pool('local', '10.1.0.0/24')]);
      assert.ok((await node.keys()).includes('holds/10.1.0.0-24/node/n0'), `seed ${seed}`);
      assert.ok((await node.keys()).includes('pools/10.1.0.0-24'), `seed ${seed}`);
    }
  });

  it('a race for the gateway: no address is both the gateway and a container’s', async () => {
    for (let seed = 300; seed < 340; seed++) {
      const [one, two, three] = cluster(3, seed) as [Node, Node, Node];
      const [a, b, c] = (await Promise.all(
        [one, two, three].map((node) => node.pool('local', '10.1.0.0/29')),
      )) as [string, string, string];
      const { granted } = await settled([
        one.gateway(a),
        two.address(b, '10.1.0.1'),
        three.address(c),
        two.bind('local', '10.1.0.0/29', 'N', '10.1.0.2').then(() => ''),
      ]);
      const gateway = await one.gateway(a);
      assert.ok(!(await one.leases())[gateway.split('/')[0]!], `seed ${seed}: ${granted.join()}`);
    }
  });

  it('a race with a pool’s end: no address of a pool that goes is given', async () => {
    for (let seed = 400; seed < 440; seed++) {
      const [node] = cluster(1, seed) as [Node];
      const poolId = await node.pool('local', '10.1.0.0/24');
      await settled<unknown>([
        node.address(poolId),
        node.address(poolId),
        node.ipam.releasePool(poolId),
        node.address(poolId),
      ]);
      assert.deepEqual(await node.keys(), [], `seed ${seed}`);
    }
  });

  it('a pool that goes takes every lease with it, although some change meanwhile', async () => {
    for (let seed = 500; seed < 540; seed++) {
      const [node, other] = cluster(2, seed) as [Node, Node];
      const poolId = await node.pool('local', '10.1.0.0/24');
      for (let n = 0; n < 5; n++) await node.address(poolId);
      await Promise.all([
        node.ipam.releasePool(poolId),
        node.release(poolId, '10.1.0.3'),
        other.address('global/10.1.0.0-24', '10.1.0.4'),
      ]);
      const keys = await node.keys();
      const left = keys.filter((key) => key !== 'leases/10.1.0.0-24/10.1.0.4');
      assert.deepEqual(left, [], `seed ${seed}`);
    }
  });

  it('processes that race for pools: no two overlap', async () => {
    const nodes = cluster(4, 30);
    const calls = Array.from({ length: 12 }, (_, n) => nodes[n % 4]!.pool('local'));
    const { granted, refused } = await settled(calls);
    assert.deepEqual([new Set(granted).size, refused], [12, []]);

    const explicit = [
      '10.1.0.0/16',
      '10.1.2.0/24',
      '10.0.0.0/15',
      '10.1.2.128/25',
      '10.2.0.0/16',
      '10.1.0.0/17',
    ];
    const tried = await settled(explicit.map((pool, n) => nodes[n % 4]!.pool('local', pool)));
    const subnets = tried.granted.map((id) => parseSubnet(id.slice('local/'.length).replace('-', '/')));
    for (const [n, one] of subnets.entries())
      for (const other of subnets.slice(n + 1))
        assert.ok(!overlaps(one, other), `${one.cidr} and ${other.cidr}`);
    assert.ok(tried.refused.every((code) => code === 'overlap') && subnets.length > 0);
  });

  it('processes that request and release a pool: it exists exactly while somebody holds it', async () => {
    const [one, two, three] = cluster(3, 40) as [Node, Node, Node];
    const cidr = '10.1.0.0/24';
    for (let round = 0; round < 80; round++) {
      const first = await one.pool('local', cidr);
      await one.gateway(first);
      // One leaves while another comes, and a third comes and goes.
      const [, second] = await Promise.all([
        one.ipam.releasePool(first),
        two
          .pool('local', cidr)
          .then(async (id) => [id, await two.gateway(id), await two.address(id)] as const),
        three.pool('local', cidr).then((id) => three.ipam.releasePool(id)),
      ]);
      const keys = await one.keys();
      assert.ok(
        keys.includes('pools/10.1.0.0-24') && keys.includes('holds/10.1.0.0-24/node/n1'),
        keys.join(),
      );
      assert.ok(!keys.includes('holds/10.1.0.0-24/node/n0') && !keys.includes('holds/10.1.0.0-24/node/n2'));
      assert.equal(await two.gateway(second[0]), second[1]);
      assert.ok(
        keys.includes(`leases/10.1.0.0-24/${second[2].split('/')[0]!}`),
        'its address was deleted with the old pool',
      );
      assert.ok(!JSON.stringify(await one.store.get('ipam/pools/10.1.0.0-24')).includes('closing'));
      await two.ipam.releasePool(second[0]);
      assert.deepEqual(await one.keys(), []);
    }
  });

  it('two networks race for one pool: one has it', async () => {
    const [one, two] = cluster(2, 50) as [Node, Node];
    for (let round = 0; round < 40; round++) {
      const results = await Promise.allSettled([
        one.createNetwork('A', '10.1.0.0/24', '10.1.0.1'),
        two.createNetwork('B', '10.1.0.0/24', '10.1.0.1'),
      ]);
      const winners = results.filter((result) => result.status === 'fulfilled');
      assert.equal(winners.length, 1);
      await one.deleteNetwork('A', 'local/10.1.0.0-24', '10.1.0.1');
      await two.deleteNetwork('B', 'local/10.1.0.0-24', '10.1.0.1');
      assert.deepEqual(await one.keys(), []);
    }
  });
});
