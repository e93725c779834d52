// Owns what IPAM promises Docker, call by call: replays, two sides, losers of a subnet, errors for users.
// Must not test races (test/unit/ipam/ipam-concurrency.test.ts) nor collection (test/unit/ipam/collect.test.ts).
import assert from 'node:assert/strict';
import { openEmbedded } from '../../../store/embedded.ts';
import { Node } from '../../support/ipam-world.ts';

const subnet = '10.77.0.0/16';

describe('ipam', () => {
  let node: Node;
  beforeEach(() => {
    node = new Node();
  });

  describe('one service, as Docker really asks', () => {
    it('a service’s addresses are granted on the leader, confirmed on the node, and leave nothing behind', async () => {
      const { poolId, refusal } = await node.allocateNetwork('N', subnet);
      assert.deepEqual([poolId, refusal], ['global/10.77.0.0-16', undefined]);
      const [vip, one, two] = [
        await node.address(poolId),
        await node.address(poolId),
        await node.address(poolId),
      ] as const;
      assert.deepEqual([vip, one, two], ['10.77.0.2/16', '10.77.0.3/16', '10.77.0.4/16']);

      const local = await node.createNetwork('N', subnet, '10.77.0.1');
      assert.equal(local, 'local/10.77.0.0-16');
      assert.equal(await node.address(local, '10.77.0.3'), one);
      assert.equal(await node.address(local, '10.77.0.4'), two);
      assert.deepEqual(await node.leases(), {
        '10.77.0.2': ['global'],
        '10.77.0.3': ['global', 'node/one'],
        '10.77.0.4': ['global', 'node/one'],
      });

      for (const address of [one, two]) await node.release(local, address);
      await node.deleteNetwork('N', local, '10.77.0.1');
      for (const address of [one, two, vip]) await node.release(poolId, address);
      assert.deepEqual(await node.leases(), {});
      await node.freeNetwork('N', poolId, '10.77.0.1');
      assert.deepEqual(await node.keys(), []);
    });

    it('leader and node may release in any order', async () => {
      const { poolId } = await node.allocateNetwork('N', subnet);
      const address = await node.address(poolId);
      const local = await node.createNetwork('N', subnet, '10.77.0.1');
      await node.address(local, address.split('/')[0]);
      await node.release(poolId, address);
      await node.freeNetwork('N', poolId, '10.77.0.1');
      assert.deepEqual(await node.leases(), { '10.77.0.2': ['node/one'] }, 'the node still holds it');
      await node.deleteNetwork('N', local, '10.77.0.1');
      assert.deepEqual(await node.keys(), [], 'what Docker forgot goes with the pool');
    });

    it('Swarm’s requests after an election change nothing', async () => {
      const { poolId } = await node.allocateNetwork('N', subnet);
      const address = await node.address(poolId);
      const before = await node.store.list('');
      const leader = new Node(node.store, { nodeId: 'two' });
      assert.equal(await leader.pool('global', subnet), poolId);
      assert.equal(await leader.gateway(poolId, '10.77.0.1'), '10.77.0.1/16');
      assert.equal(await leader.gateway(poolId), '10.77.0.1/16');
      assert.equal(await leader.bind('global', subnet, 'N', '10.77.0.1'), undefined);
      assert.equal(await leader.address(poolId, '10.77.0.2'), address);
      assert.deepEqual(await node.store.list(''), before);
    });

    it('the store was lost: the node confirms its addresses first, the leader later', async () => {
      assert.equal(await node.createNetwork('N', subnet, '10.77.0.1'), 'local/10.77.0.0-16');
      assert.equal(await node.address('local/10.77.0.0-16', '10.77.0.9'), '10.77.0.9/16');
      await assert.rejects(node.address('global/10.77.0.0-16'), { code: 'pool-unknown' });
      const { poolId, refusal } = await node.allocateNetwork('N', subnet);
      assert.equal(refusal, undefined);
      assert.equal(await node.address(poolId, '10.77.0.9'), '10.77.0.9/16');
      assert.deepEqual(await node.leases(), { '10.77.0.9': ['node/one', 'global'] });
    });

    it('a release of what is not known succeeds', async () => {
      for (const poolId of ['', 'nonsense', 'global/10.77.0.0-16', 'local/10.77.0.0-16']) {
        await node.release(poolId, '10.77.0.9');
        await node.release(poolId, '');
        await node.ipam.releasePool(poolId);
      }
      await node.unbind('global', 'nobody');
      const { poolId } = await node.allocateNetwork('N', subnet);
      await node.release(poolId, '10.78.0.9');
      await node.release(poolId, '10.77.0.9');
      await assert.rejects(node.ipam.requestAddress({ poolId: '', address: '', options: {} }), {
        code: 'invalid-request',
      });
    });
  });

  describe('pools', () => {
    it('RequestPool clears host bits, and keeps the range in the pool id', async () => {
      const granted = await node.ipam.requestPool({
        space: 'global',
        pool: '10.77.3.9/16',
        subPool: '10.77.5.9/24',
        v6: false,
      });
      assert.deepEqual(granted, { poolId: 'global/10.77.0.0-16/10.77.5.0-24', pool: subnet, data: {} });
      assert.equal(
        await node.pool('local', subnet, '10.0.0.0/8'),
        'local/10.77.0.0-16',
        'as Docker: the whole subnet',
      );
    });

    it('RequestPool without a subnet: the first free one of the default pool, of the size asked for', async () => {
      node.inUse.push(
        { cidr: '10.64.0.0/21', what: 'a route by eth1' },
        { cidr: '10.64.32.7', what: 'an address' },
      );
      node.inUse.push({ cidr: 'fe80::/64', what: 'a route' }, { cidr: '0.0.0.0/0', what: 'a route' });
      assert.equal(await node.pool('local', '10.64.64.0/22'), 'local/10.64.64.0-22');
      assert.equal(await node.pool('global'), 'global/10.64.16.0-20');
      assert.equal(await node.pool('local'), 'local/10.64.48.0-20');
      assert.equal(await node.pool('global', '0.0.0.0/24'), 'global/10.64.8.0-24');
      assert.equal(await node.pool('global', '0.0.0.0/0'), 'global/10.64.80.0-20');
    });

    it('RequestPool without a free default subnet: the error says so', async () => {
      const small = new Node(undefined, { defaultPool: '10.64.0.0/24', defaultSize: 25 });
      await small.pool('global');
      await small.pool('local');
      const words = /10\.64\.0\.0\/24 has no free \/25 left.*Remove networks.*--subnet.*larger default pool/;
      await assert.rejects(small.pool('local'), { code: 'no-pool-left', message: words });
      // Nobody would be told at the leader: it is given one that no network can have, and another each time.
      for (const pool of ['240.0.0.0/25', '240.0.0.128/25']) {
        const granted = await small.pool('global');
        assert.equal(granted, `global/${pool.replace('/', '-')}`);
        assert.match((await small.ipam.refusal(pool)) ?? '', words);
        await small.gateway(granted);
        assert.match((await small.bind('global', pool, `of ${pool}`)) ?? '', words);
        await small.pool('global', pool);
        assert.match((await small.ipam.refusal(pool)) ?? '', words, 'a replay changes nothing');
        await assert.rejects(small.pool('local', pool), { message: words });
      }
      await small.ipam.releasePool('local/10.64.0.128-25');
      assert.equal(await small.pool('global'), 'global/10.64.0.128-25');
      await assert.rejects(small.pool('local', '0.0.0.0/23'), { code: 'no-pool-left' });
    });

    it('a default pool that one host’s routes overlap is refused on that host alone, whoever leads', async () => {
      const route = { cidr: '10.0.0.0/8', what: 'a route by tun0' };
      const [first, second] = [new Node(), new Node()].map((each) => [
        each,
        new Node(each.store, { nodeId: 'two' }),
      ]);
      first![0]!.inUse.push(route);
      second![1]!.inUse.push(route);
      for (const [leader, other] of [first!, second!]) {
        assert.equal(await leader!.pool('global'), 'global/10.64.0.0-20');
        assert.equal(await leader!.ipam.refusal('10.64.0.0/20'), undefined);
        for (const node of [leader!, other!]) {
          const asking = node.pool('local', '10.64.0.0/20');
          if (node.inUse.length === 0) assert.equal(await asking, 'local/10.64.0.0-20');
          else
            await assert.rejects(asking, {
              code: 'overlap',
              message: /10\.64\.0\.0\/20 overlaps 10\.0\.0\.0\/8, a route by tun0.*CAUSEWAY_DEFAULT_POOL/,
            });
        }
      }
    });

    it('default subnets avoid what Docker has, and what Docker may choose while there are others', async () => {
      node.taken = [{ cidr: '10.64.0.0/20', what: "the subnet of Docker's network ov" }];
      node.avoided.push({ cidr: '10.64.0.0/16', what: 'the pool of Docker' });
      assert.equal(await node.pool('global'), 'global/10.65.0.0-20');
      const small = new Node(undefined, { defaultPool: '10.64.0.0/16' });
      [small.taken] = [node.taken];
      small.avoided.push(...node.avoided);
      assert.equal(await small.pool('global'), 'global/10.64.16.0-20');
    });

    it('RequestPool with the subnet of one of Docker’s own networks: refused until that network is gone', async () => {
      const words = /10\.0\.0\.0\/24 overlaps 10\.0\.0\.0\/24, the subnet of Docker's network ingress/;
      node.taken = [{ cidr: '10.0.0.0/24', what: "the subnet of Docker's network ingress" }];
      const { refusal } = await node.allocateNetwork('N', '10.0.0.0/24');
      assert.match(refusal ?? '', words);
      await assert.rejects(node.pool('local', '10.0.0.0/24'), { message: words });
      node.taken = undefined;
      await node.pool('global', '10.0.0.0/24');
      assert.match((await node.ipam.refusal('10.0.0.0/24')) ?? '', words, 'Docker was not heard yet');
      const again = { pool: '10.0.0.0/24', network: 'N', gateway: '10.0.0.1' };
      node.taken = [{ cidr: '10.0.0.0/16', what: "the subnet of Docker's network big" }];
      assert.match((await node.ipam.reconsider(again)) ?? '', /10\.0\.0\.0\/24 overlaps/);
      node.taken = [];
      assert.equal(await node.ipam.reconsider(again), undefined);
      assert.equal(await node.pool('local', '10.0.0.0/24'), 'local/10.0.0.0-24');
    });

    it('RequestPool for IPv6: granted to the leader, refused by the nodes', async () => {
      const poolId = await node.pool('global', 'fd00::/64');
      assert.equal(await node.gateway(poolId), 'fd00::/64');
      assert.match((await node.refusedAddress(poolId)) ?? '', /IPv6.*without --ipv6/);
      await node.release(poolId, 'fd00::/64');
      await node.ipam.releasePool(poolId);
      assert.deepEqual(await node.keys(), []);
    });

    it('RequestPool for IPv6 or nonsense: the error says what is wrong', async () => {
      await assert.rejects(node.ipam.requestPool({ space: 'local', pool: '', subPool: '', v6: true }), {
        code: 'not-supported',
        message: /IPv6.*without --ipv6/,
      });
      await assert.rejects(node.pool('local', 'fd00::/64'), { code: 'not-supported' });
      await assert.rejects(node.pool('local', '10.77.0.0'), { code: 'invalid-request' });
      await assert.rejects(node.pool('local', '', '10.77.0.0/24'), {
        code: 'invalid-request',
        message: /--subnet/,
      });
    });

    it('RequestPool on a node: a problem is an error, and nothing is kept', async () => {
      node.inUse.push({ cidr: '192.168.1.0/24', what: 'a route by eth0' });
      await node.pool('local', '10.77.0.0/16');
      const before = await node.keys();
      for (const [pool, range, code, message] of [
        ['192.168.0.0/16', '', 'overlap', /192\.168\.0\.0\/16 overlaps 192\.168\.1\.0\/24, a route by eth0/],
        ['10.77.8.0/24', '', 'overlap', /overlaps 10\.77\.0\.0\/16, another pool of Causeway/],
        ['10.0.0.0/8', '', 'overlap', /overlaps 10\.77\.0\.0\/16/],
        ['127.5.0.0/16', '', 'pool-unusable', /loopback/],
        ['10.1.0.0/16', '10.2.0.0/24', 'pool-unusable', /--ip-range inside/],
      ] as const)
        await assert.rejects(node.pool('local', pool, range), { name: 'IpamError', code, message });
      assert.deepEqual(await node.keys(), before);
    });

    it('RequestPool on the leader: a pool with a problem is granted as refused, so that the nodes can say why', async () => {
      node.taken = [{ cidr: '192.168.1.0/24', what: 'a route by eth0' }];
      const poolId = await node.pool('global', '192.168.0.0/16');
      assert.match(
        (await node.ipam.refusal('192.168.0.0/16')) ?? '',
        /overlaps 192\.168\.1\.0\/24, a route by eth0/,
      );
      const gateway = await node.gateway(poolId);
      assert.equal(gateway, '192.168.0.1/16');
      assert.match((await node.bind('global', '192.168.0.0/16', 'N', gateway)) ?? '', /a route by eth0/);
      await assert.rejects(node.pool('local', '192.168.0.0/16'), { message: /a route by eth0/ });
      await node.freeNetwork('N', poolId, gateway);
      assert.deepEqual(await node.keys(), []);
    });

    it('a refused pool blocks nobody, and is accepted once the reason is gone', async () => {
      const winner = await node.pool('global', '10.77.0.0/16');
      await node.pool('global', '10.77.8.0/24');
      assert.match((await node.ipam.refusal('10.77.8.0/24')) ?? '', /overlaps 10\.77\.0\.0\/16/);
      assert.equal(await node.pool('local', '10.77.0.0/16'), 'local/10.77.0.0-16');
      assert.equal(await node.ipam.refusal('10.77.0.0/16'), undefined);
      await node.pool('global', '10.77.8.0/24');
      assert.match((await node.ipam.refusal('10.77.8.0/24')) ?? '', /overlaps/, 'a replay changes nothing');
      await node.ipam.releasePool(winner);
      await node.ipam.releasePool('local/10.77.0.0-16');
      await node.pool('global', '10.77.8.0/24');
      assert.equal(await node.ipam.refusal('10.77.8.0/24'), undefined);
    });

    it('a new pool may overlap a refused one', async () => {
      await node.pool('global', '10.77.0.0/24');
      await node.pool('global', '10.77.0.0/16');
      assert.equal(await node.pool('local', '10.77.9.0/24'), 'local/10.77.9.0-24');
      assert.equal(await node.pool('local', '0.0.0.0/24'), 'local/10.64.0.0-24');
    });

    it('a pool whose removal was cut short is opened again', async () => {
      const pool = { v: 1, gateway: '10.77.0.9', closing: true };
      await node.store.commit([{ op: 'set', key: 'ipam/pools/10.77.0.0-16', value: pool }]);
      assert.equal(await node.gateway(await node.pool('local', subnet)), '10.77.0.9/16');
      assert.deepEqual((await node.store.get('ipam/pools/10.77.0.0-16'))?.value, {
        v: 1,
        gateway: '10.77.0.9',
      });
    });

    it('a pool and its owner stay while a hold on it cannot be read', async () => {
      const poolId = await node.createNetwork('N', subnet, '10.77.0.1');
      await node.store.commit([{ op: 'set', key: 'ipam/holds/10.77.0.0-16/node/x', value: 'broken' }]);
      await node.deleteNetwork('N', poolId, '10.77.0.1');
      await node.pool('global', subnet);
      assert.match((await node.bind('global', subnet, 'M')) ?? '', /belongs to network N/);
    });

    it('a node checks a pool against its own host, whatever the leader’s host said', async () => {
      await node.allocateNetwork('N', subnet);
      const other = new Node(node.store, { nodeId: 'two' });
      other.inUse.push({ cidr: '10.77.0.9', what: 'an address of eth0' });
      await assert.rejects(other.pool('local', subnet), {
        code: 'overlap',
        message: /10\.77\.0\.9\/32, an address of eth0/,
      });
      await node.createNetwork('N', subnet, '10.77.0.1');
    });

    it('an overlap’s error names the network in the way', async () => {
      await node.allocateNetwork('N', subnet);
      await assert.rejects(node.pool('local', '10.77.1.0/24'), {
        message: /10\.77\.0\.0\/16, the pool of network N\./,
      });
    });

    it('an unreadable pool counts as taken', async () => {
      await node.store.commit([{ op: 'set', key: 'ipam/pools/10.64.0.0-20', value: { v: 99 } }]);
      assert.equal(await node.pool('global'), 'global/10.64.16.0-20');
      await assert.rejects(node.pool('local', '10.64.1.0/24'), {
        code: 'overlap',
        message: /record cannot be read/,
      });
      await assert.rejects(node.pool('local', '10.64.0.0/20'), { name: 'StoreError', code: 'corrupt' });
    });
  });

  describe('a second network with the same subnet', () => {
    it('a second network with the same subnet is refused at its binding, and its removal takes nothing from the first', async () => {
      const { poolId } = await node.allocateNetwork('first', subnet);
      const address = await node.address(poolId);
      const state = async (): Promise<unknown> => (await node.store.list('ipam/')).entries;
      const before = await state();

      assert.equal(await node.pool('global', subnet), poolId);
      assert.equal(await node.gateway(poolId), '10.77.0.1/16');
      const refusal = await node.bind('global', subnet, 'second', '10.77.0.1');
      assert.match(refusal ?? '', /10\.77\.0\.0\/16 belongs to network first\. .*another --subnet/);
      await node.freeNetwork('second', poolId, '10.77.0.1');
      assert.deepEqual(await state(), before);

      assert.equal(await node.address(poolId, address.split('/')[0]), address);
      await node.freeNetwork('first', poolId, '10.77.0.1');
      assert.equal(await node.pool('global', subnet), poolId);
      assert.equal(await node.bind('global', subnet, 'second'), undefined);
    });

    it('a second network with the same subnet, but another gateway, range or node, is refused too', async () => {
      const { poolId } = await node.allocateNetwork('first', subnet);
      await node.createNetwork('first', subnet, '10.77.0.1');
      const before = await node.store.list('ipam/');
      const second = await node.pool('global', subnet, '10.77.9.0/24');
      assert.equal(await node.gateway(second, '10.77.9.1'), '10.77.9.1/16', 'the leader is not told');
      assert.match(
        (await node.bind('global', subnet, 'second', '10.77.9.1')) ?? '',
        /belongs to network first/,
      );
      await node.freeNetwork('second', second, '10.77.9.1');
      await assert.rejects(node.createNetwork('third', subnet, '10.77.0.1'), /belongs to network first/);
      await assert.rejects(node.gateway('local/10.77.0.0-16', '10.77.9.1'), { code: 'pool-taken' });
      assert.deepEqual(await node.store.list('ipam/'), before);
      assert.equal(await node.gateway(poolId), '10.77.0.1/16');

      const other = new Node(node.store, { nodeId: 'two' });
      await assert.rejects(other.createNetwork('third', subnet, '10.77.0.1'), /belongs to network first/);
      assert.deepEqual((await node.store.list('ipam/')).entries, before.entries);
    });

    it('a second network has the subnet once Swarm removed the first, on each node once it is gone there', async () => {
      const { poolId } = await node.allocateNetwork('first', subnet);
      const local = await node.createNetwork('first', subnet, '10.77.0.1');
      const address = await node.address(poolId);
      await node.address(local, address.split('/')[0]);
      await node.release(poolId, address);
      await node.freeNetwork('first', poolId, '10.77.0.1');

      // A stack that was removed and is deployed again, while the old container is still stopping.
      assert.equal((await node.allocateNetwork('second', subnet)).refusal, undefined);
      assert.equal(await node.address(poolId), '10.77.0.3/16', 'not the address of the old container');
      assert.match((await node.refusedAddress(poolId, '10.77.0.1')) ?? '', /is the gateway/);
      await assert.rejects(
        node.createNetwork('second', subnet, '10.77.0.1'),
        /10\.77\.0\.0\/16 is still in use on this node by network first\. .*try again in a moment/,
      );
      const other = new Node(node.store, { nodeId: 'two' });
      await other.createNetwork('second', subnet, '10.77.0.1');
      await node.release(local, address);
      await node.deleteNetwork('first', local, '10.77.0.1');
      await node.createNetwork('second', subnet, '10.77.0.1');
      assert.deepEqual(await node.leases(), { '10.77.0.3': ['global'] });

      await node.deleteNetwork('second', local, '10.77.0.1');
      await other.deleteNetwork('second', local, '10.77.0.1');
      await node.freeNetwork('second', poolId, '10.77.0.1');
      assert.deepEqual(await node.keys(), []);
    });

    it('a subnet of a network of one node alone cannot be taken by another network', async () => {
      await node.createNetwork('local', subnet, '10.77.0.1');
      const { poolId, refusal } = await node.allocateNetwork('swarm', subnet);
      assert.match(refusal ?? '', /belongs to network local/);
      await node.freeNetwork('swarm', poolId, '10.77.0.1');
      assert.match((await node.bind('global', subnet, 'swarm')) ?? '', /belongs to network local/);
    });
  });

  describe('gateway', () => {
    it('the gateway is the first address of the subnet, or of the range as Docker’s own allocator picks it', async () => {
      assert.equal(await node.gateway(await node.pool('global', '10.1.0.0/24')), '10.1.0.1/24');
      assert.equal(
        await node.gateway(await node.pool('global', '10.2.0.0/16', '10.2.5.0/24')),
        '10.2.5.0/16',
      );
      assert.equal(await node.gateway(await node.pool('local', '10.3.0.0/16', '10.3.0.0/24')), '10.3.0.1/16');
    });

    it('the gateway may be any address of the subnet, and is never given to a container', async () => {
      const poolId = await node.pool('global', '10.1.0.0/29');
      assert.equal(await node.gateway(poolId, '10.1.0.3'), '10.1.0.3/29');
      assert.equal(await node.gateway(poolId), '10.1.0.3/29');
      const given = [];
      for (let n = 0; n < 5; n++) given.push(await node.address(poolId));
      assert.deepEqual(given, ['10.1.0.1/29', '10.1.0.2/29', '10.1.0.4/29', '10.1.0.5/29', '10.1.0.6/29']);
      assert.match((await node.refusedAddress(poolId)) ?? '', /is full/);
      await assert.rejects(node.address('local/10.1.0.0-29', '10.1.0.3'), {
        code: 'address-unusable',
        message: /is the gateway/,
      });
    });

    it('the gateway may change until a network has the pool', async () => {
      const poolId = await node.pool('local', '10.1.0.0/24');
      await node.gateway(poolId);
      assert.equal(await node.gateway(poolId, '10.1.0.9'), '10.1.0.9/24');
      assert.equal(
        await node.bind('local', '10.1.0.0/24', 'N', '10.1.0.8/24'),
        undefined,
        'the network knows best',
      );
      assert.equal(await node.gateway(poolId), '10.1.0.8/24');
    });

    it('an impossible gateway: an error on a node, recorded as a refusal on the leader', async () => {
      const local = await node.pool('local', '10.1.0.0/24');
      await node.address(local, '10.1.0.7');
      for (const [gateway, code] of [
        ['10.1.1.1', 'address-unusable'],
        ['10.1.0.0', 'address-unusable'],
        ['10.1.0.255', 'address-unusable'],
        ['10.1.0.7', 'address-in-use'],
        ['gateway', 'invalid-request'],
      ] as const)
        await assert.rejects(node.gateway(local, gateway), { code });
      const poolId = await node.pool('global', '10.2.0.0/24');
      assert.equal(await node.gateway(poolId, '10.2.0.255'), '10.2.0.255/24');
      assert.match((await node.ipam.refusal('10.2.0.0/24')) ?? '', /10\.2\.0\.255 is the broadcast address/);
    });

    it('the gateway is refused at the binding if a container has it', async () => {
      const poolId = await node.pool('local', '10.1.0.0/24');
      await node.address(poolId, '10.1.0.1');
      assert.match(
        (await node.bind('local', '10.1.0.0/24', 'N', '10.1.0.1')) ?? '',
        /gateway 10\.1\.0\.1 is the address of a container/,
      );
      assert.equal(await node.gateway(poolId), '10.1.0.2/24');
    });
  });

  describe('addresses', () => {
    it('addresses rotate: the one released last comes last, also after a restart', async () => {
      const poolId = await node.pool('global', '10.1.0.0/29');
      const given: string[] = [];
      for (let n = 0; n < 3; n++) given.push(await node.address(poolId));
      await node.release(poolId, '10.1.0.3');
      await node.release(poolId, '10.1.0.1');
      const restarted = new Node(node.store);
      for (let n = 0; n < 4; n++) given.push(await restarted.address(poolId));
      assert.deepEqual(given.map((address) => address.slice(7, 8)).join(''), '1234561');
    });

    it('addresses come from the range, but by name from anywhere in the subnet', async () => {
      const poolId = await node.pool('global', '10.1.0.0/16', '10.1.255.252/30');
      assert.equal(await node.address(poolId, '10.1.0.9'), '10.1.0.9/16');
      const given = [];
      for (let n = 0; n < 3; n++) given.push(await node.address(poolId));
      assert.deepEqual(given, ['10.1.255.252/16', '10.1.255.253/16', '10.1.255.254/16']);
      assert.match(
        (await node.refusedAddress(poolId)) ?? '',
        /10\.1\.0\.0\/16 \(range 10\.1\.255\.252\/30\) is full: 3 of 3 addresses/,
      );
    });

    it('a /31 has two usable addresses and a /32 one, as in Docker', async () => {
      const two = await node.pool('local', '10.1.0.0/31');
      assert.deepEqual([await node.gateway(two), await node.address(two)], ['10.1.0.0/31', '10.1.0.1/31']);
      const one = await node.pool('local', '10.2.0.7/32');
      assert.equal(await node.gateway(one), '10.2.0.7/32');
      await assert.rejects(node.address(one), { code: 'pool-full', message: /1 of 1 addresses/ });
      const none = await node.pool('local', '10.3.0.0/24', '10.3.0.255/32');
      await assert.rejects(node.address(none), { code: 'pool-unusable', message: /--ip-range/ });
    });

    it('no free address: the error has counts and a remedy, until one is released', async () => {
      const poolId = await node.pool('global', '10.1.0.0/24');
      await node.gateway(poolId);
      const given = new Set<string>();
      for (let n = 0; n < 253; n++) given.add(await node.address(poolId));
      assert.equal(given.size, 253);
      const words =
        /10\.1\.0\.0\/24 is full: 254 of 254 addresses are in use\. Remove services .*larger --subnet/;
      const local = await node.pool('local', '10.1.0.0/24');
      await assert.rejects(node.address(local), { code: 'pool-full', message: words });
      await node.release(poolId, '10.1.0.77');
      assert.equal(await node.address(poolId), '10.1.0.77/24');
    });

    it('no free address: the leader is given what the node refuses with the reason, as often as it asks', async () => {
      const { poolId } = await node.allocateNetwork('N', '10.1.0.0/29');
      const local = await node.createNetwork('N', '10.1.0.0/29', '10.1.0.1');
      for (let n = 0; n < 5; n++) await node.address(poolId);
      const before = await node.keys();
      const words = /10\.1\.0\.0\/29 is full: 6 of 6 addresses are in use/;
      for (let n = 0; n < 3; n++) {
        assert.match((await node.refusedAddress(poolId)) ?? '', words);
        assert.equal(await node.address(poolId), '10.1.0.0/29');
        await assert.rejects(node.address(local, '10.1.0.0'), { code: 'pool-full', message: words });
      }
      assert.deepEqual(await node.keys(), before, 'nothing is kept of it');
      await node.release(poolId, '10.1.0.0/29');
      await node.release(poolId, '10.1.0.4');
      await assert.rejects(node.address(local, '10.1.0.0'), { code: 'address-unusable' });
      assert.equal(
        await node.address(poolId, '10.1.0.0'),
        '10.1.0.4/29',
        'at the next election there is one',
      );
      for (const unusable of ['10.1.0.1', '10.1.0.7', '10.9.0.1']) {
        assert.equal(await node.address(poolId, unusable), `${unusable}/29`);
        await assert.rejects(node.address(local, unusable), { code: 'address-unusable' });
      }
      assert.deepEqual(await node.keys(), before);
    });

    it('an address by name that cannot be had is refused with the reason', async () => {
      const poolId = await node.pool('local', '10.1.0.0/24');
      for (const [address, code] of [
        ['10.1.0.0', 'address-unusable'],
        ['10.1.0.255', 'address-unusable'],
        ['10.9.0.1', 'address-unusable'],
        ['10.1.0.1/24', 'invalid-request'],
        ['x', 'invalid-request'],
      ] as const)
        await assert.rejects(node.address(poolId, address), { name: 'IpamError', code });
    });

    it('an address that is on one node is refused to another, which is told where it is', async () => {
      const { poolId } = await node.allocateNetwork('N', subnet);
      await node.address(poolId, '10.77.0.9');
      await node.address('local/10.77.0.0-16', '10.77.0.9');
      const other = new Node(node.store, { nodeId: 'two' });
      await assert.rejects(other.address('local/10.77.0.0-16', '10.77.0.9'), {
        code: 'address-in-use',
        message: /10\.77\.0\.9 is in use on another node \(one\)/,
      });
      await node.release('local/10.77.0.0-16', '10.77.0.9');
      assert.equal(await other.address('local/10.77.0.0-16', '10.77.0.9'), '10.77.0.9/16');
    });

    describe('ipam addresses that Swarm has assigned', () => {
      let global: string;
      let local: string;
      const vip = '10.77.0.2';
      const other = (): Node => new Node(node.store, { nodeId: 'two' });
      beforeEach(async () => {
        global = (await node.allocateNetwork('N', subnet)).poolId;
        local = await node.createNetwork('N', subnet, '10.77.0.1');
        assert.equal(await node.address(global), `${vip}/16`);
      });

      it('a container asks for an address that Swarm has assigned: the refusal names the service', async () => {
        assert.equal(await node.address(global, vip), `${vip}/16`, 'Swarm would not tell the user');
        await assert.rejects(node.address(local, vip), { message: /in use by a service or a starting task/ });
        node.vips.set(`N ${vip}`, 'web');
        await assert.rejects(node.address(local, vip), {
          code: 'address-in-use',
          message: /10\.77\.0\.2 is in use by service web\. Choose another --ip, or none/,
        });
        await node.release(global, vip);
        assert.deepEqual(
          await node.leases(),
          { [vip]: ['global'] },
          'what the container held is not the VIP',
        );
        await node.release(global, vip);
        assert.deepEqual(await node.leases(), {});
      });

      it('an assigned address stays with the task that is about to start elsewhere, and no container gets it', async () => {
        await node.address(global, vip);
        await assert.rejects(other().address(local, vip), { code: 'address-in-use' });
        await node.release(global, vip);
        assert.equal(await node.address(local, vip), `${vip}/16`);
        assert.deepEqual(await node.leases(), { [vip]: ['global', 'node/one'] });
      });

      for (const [how, asNext] of Object.entries({
        'the same leader': () => node,
        'another leader': () => other(),
        'a leader whose plugin was started anew': () => new Node(node.store),
      }))
        it(`after each election an assigned address is asked for once, by ${how}, and counted anew`, async () => {
          await node.address(global, vip);
          const leader = asNext();
          for (let election = 0; election < 3; election++) {
            await leader.allocateNetwork('N', subnet);
            assert.equal(await leader.address(global, vip), `${vip}/16`);
          }
          assert.equal(await node.address(local, vip), `${vip}/16`, 'one claim: it may be this node’s task');
          await node.release(local, vip);
          await leader.address(global, vip);
          await assert.rejects(node.address(local, vip), { code: 'address-in-use' });
        });

      it('assigned addresses stay assigned when the plugin starts anew in between', async () => {
        await new Node(node.store).address(global, vip);
        await new Node(node.store).release(global, vip);
        assert.deepEqual(await node.leases(), { [vip]: ['global'] });
      });

      it('an address that two claimed stays with the running container when the other claim is gone', async () => {
        await node.address(global, vip);
        for (const left of [{ [vip]: ['global'] }, {}]) {
          await node.release(global, vip);
          assert.deepEqual(await node.leases(), left);
        }
      });

      it('assigned addresses are not claimed by a second network with the same subnet', async () => {
        await node.allocateNetwork('M', subnet);
        await node.address(global, vip);
        await assert.rejects(node.address(local, vip), { code: 'address-in-use' });
      });
    });

    it('an address whose record cannot be read is not free', async () => {
      const poolId = await node.pool('global', '10.1.0.0/30');
      await node.store.commit([{ op: 'set', key: 'ipam/leases/10.1.0.0-30/10.1.0.1', value: 'broken' }]);
      assert.equal(await node.address(poolId), '10.1.0.2/30');
      assert.match((await node.refusedAddress(poolId)) ?? '', /is full/);
      await assert.rejects(node.address(poolId, '10.1.0.1'), { name: 'StoreError', code: 'corrupt' });
    });

    it('a network with two subnets: an address is found whichever pool Swarm names', async () => {
      const first = await node.pool('global', '10.1.0.0/30');
      const second = await node.pool('global', '10.2.0.0/29');
      await node.gateway(first);
      await node.gateway(second);
      await node.bind('global', '10.1.0.0/30', 'N');
      await node.bind('global', '10.2.0.0/29', 'N');
      assert.equal(await node.address(first, '10.2.0.5'), '10.2.0.5/29');
      assert.equal(await node.address(first), '10.1.0.2/30');
      assert.equal(await node.address(first), '10.2.0.2/29', 'the first is full');
      await node.release(first, '10.2.0.5');
      assert.deepEqual(Object.keys(await node.leases()).sort(), ['10.1.0.2', '10.2.0.2']);
      for (let n = 0; n < 4; n++) await node.address(second);
      assert.match((await node.refusedAddress(first)) ?? '', /10\.1\.0\.0\/30.* is full/);
      await node.unbind('global', 'N');
      assert.deepEqual(await node.keys(), []);
    });
  });

  it('errors of the store are passed on', async () => {
    const store = openEmbedded(':memory:');
    const closed = new Node(store);
    await store.close();
    await assert.rejects(closed.pool('global'), { name: 'StoreError', code: 'closed' });
  });
});
