// Owns the tests of what cannot be had: the words Docker shows for it, and that nothing half-made is left behind.
// Must not test requests that cannot be understood; calls.test.ts does.
import assert from 'node:assert/strict';
import { vethName } from '../../net/names.ts';
import { StoreError } from '../../store/errors.ts';
import { HeldStore } from '../fake/held-store.ts';
import { FakeKernel } from '../fake/kernel.ts';
import { bare, endpointRequest, gatewayOptions, joinRequest, label, Node, refusedOption } from './node.ts';

const front = 'f'.repeat(64);
const back = 'b'.repeat(64);
const first = 'e1'.repeat(32);
const second = 'e2'.repeat(32);

describe('a network that is refused', () => {
  let node: Node;
  beforeEach(async () => {
    node = await Node.start();
  });
  afterEach(() => node.stop());

  /** What -o or the subnets may be on the leader, and the words with which the node refuses. */
  const refused: Record<string, [{ subnet?: string; options?: Record<string, string> }, RegExp]> = {
    'with an unknown option': [{ options: { colour: 'red' } }, /unknown network option colour.*mode.*mtu/],
    'with a mode there is not': [{ options: { mode: 'bridge' } }, /mode=bridge is not available.*overlay/],
    'with an MTU that is no number': [{ options: { [label.mtu]: 'jumbo' } }, /mtu=jumbo is not a number/],
    'with an MTU too small for IPv4': [{ options: { [label.mtu]: '500' } }, /mtu=500 .* from 576/],
    "on the subnet of one of Docker's own networks": [
      { subnet: '10.0.0.0/24' },
      /10\.0\.0\.0\/24 overlaps 10\.0\.0\.0\/24, the subnet of Docker's network ingress.*Choose another --subnet/,
    ],
    'on loopback addresses': [{ subnet: '127.7.0.0/16' }, /loopback.*Choose another --subnet/],
  };
  for (const [what, [wanted, words]] of Object.entries(refused)) {
    it(`${what} is allocated with the reason, and refused where the user sees it`, async () => {
      node.taken.push({ cidr: '10.0.0.0/24', what: "the subnet of Docker's network ingress" });
      const network = await node.allocate(front, wanted);
      assert.match(network.options[refusedOption] ?? '', words);
      assert.partialDeepStrictEqual(
        network.options,
        wanted.options ?? {},
        'the options are echoed all the same',
      );
      const [state, kernel] = [await node.state(), node.kernel.dump()];
      const creation = {
        NetworkID: front,
        Options: { [label.generic]: network.options },
        IPv4Data: [{ AddressSpace: 'causeway-local', Pool: network.subnet, Gateway: network.gateway }],
        IPv6Data: [],
      };
      assert.match(await node.refusal('NetworkDriver.CreateNetwork', creation), words);
      assert.equal(await node.state(), state);
      assert.equal(node.kernel.dump(), kernel);
      await node.free(network);
      assert.equal(await node.state(), '', 'it can be removed');
    });
  }

  for (const [what, IPv4Data] of Object.entries({
    'of two subnets': [
      { AddressSpace: 'causeway-global', Pool: '10.77.0.0/16', Gateway: '10.77.0.1/16' },
      { AddressSpace: 'causeway-global', Pool: '10.78.0.0/16', Gateway: '10.78.0.1/16' },
    ],
    'of an IPv6 subnet': [
      { AddressSpace: 'causeway-global', Pool: 'fd00::/64', Gateway: 'fd00::1/64' },
      { AddressSpace: 'causeway-global', Pool: '10.77.0.0/16', Gateway: '10.77.0.1/16' },
    ],
    'without a subnet': [],
    'without a gateway': [{ AddressSpace: 'causeway-global', Pool: '10.77.0.0/16', Gateway: '' }],
  })) {
    it(`${what} is allocated with the reason, and refused where the user sees it`, async () => {
      const allocation = { NetworkID: front, Options: { mode: 'overlay' }, IPv4Data, IPv6Data: null };
      const { Options } = await node.client.call('NetworkDriver.AllocateNetwork', allocation);
      const words = /one IPv4 subnet|no gateway|IPv6 is not available/;
      assert.match((Options as Record<string, string>)[refusedOption] ?? '', words);
      const creation = { NetworkID: front, Options: { [label.generic]: Options }, IPv4Data, IPv6Data: [] };
      assert.match(await node.refusal('NetworkDriver.CreateNetwork', creation), words);
      await node.client.call('NetworkDriver.FreeNetwork', { NetworkID: front });
      assert.equal(await node.state(), '');
    });
  }

  /** What only the node is told. */
  const onNode: Record<string, [Record<string, unknown>, RegExp]> = {
    'with IPv6': [{ [label.ipv6]: true }, /without --ipv6/],
    'without IPv4': [{ [label.ipv4]: false }, /needs IPv4/],
    'with an MTU larger than the underlay leaves': [
      { [label.generic]: { [label.mtu]: '1451' } },
      /1451 is larger than 1450.*eth0/,
    ],
  };
  for (const [what, [options, words]] of Object.entries(onNode)) {
    it(`${what} is refused by the node, which keeps nothing of it`, async () => {
      const network = await node.allocate(front);
      const creation = await node.creation(network, options);
      const [state, kernel] = [await node.state(), node.kernel.dump()];
      assert.match(await node.refusal('NetworkDriver.CreateNetwork', creation), words);
      assert.equal(await node.state(), state);
      assert.equal(node.kernel.dump(), kernel);
    });
  }

  it('CreateNetwork without IPv4 data is refused by the node: it takes exactly one subnet', async () => {
    const creation = { NetworkID: front, Options: { [label.generic]: {} }, IPv4Data: [], IPv6Data: [] };
    assert.match(await node.refusal('NetworkDriver.CreateNetwork', creation), /exactly one IPv4 subnet/);
  });

  it('a subnet that overlaps an address of one host: that host alone refuses the network', async () => {
    const network = await node.allocate(front, { subnet: '203.0.113.0/25' });
    assert.equal(network.options[refusedOption], undefined, 'other nodes may have it');
    const pool = {
      AddressSpace: 'causeway-local',
      Pool: network.subnet,
      SubPool: '',
      Options: null,
      V6: false,
    };
    assert.match(
      await node.refusal('IpamDriver.RequestPool', pool),
      /203\.0\.113\.0\/25 overlaps .*eth0.*Choose another --subnet/,
    );
  });

  it('nodes that share no records: a network of another node’s store is refused, one from before stays', async () => {
    const swarms = (letter: string): string => letter.repeat(25);
    const known = await node.allocate(swarms('k'));
    const unknown = { ...known, id: swarms('u') };
    node.keepApart();
    await node.client.call('NetworkDriver.CreateNetwork', await node.creation(known));
    assert.match(
      await node.refusal('NetworkDriver.CreateNetwork', await node.creation(unknown)),
      /keeps Causeway's records to itself .*allocated by another node .*set CAUSEWAY_STORE to one Consul/,
    );
    await node.client.call('NetworkDriver.CreateNetwork', await node.creation(await node.allocate(front)));
  });

  it('the reason for a refusal is gone: the node accepts the network, although Swarm keeps the reason', async () => {
    await node.network(front, { subnet: '10.77.0.0/16' });
    const network = await node.allocate(back, { subnet: '10.77.8.0/24' });
    const record = (await node.records.networks.get(back))!.value;
    const create = () => {
      const [pool, Options] = [{ Pool: network.subnet, Gateway: network.gateway }, network.options];
      return {
        ...{ NetworkID: back, Options: { [label.generic]: Options }, IPv6Data: [] },
        IPv4Data: [{ AddressSpace: 'causeway-local', ...pool }],
      };
    };
    await node.records.networks.put(back, { ...record, refused: 'another reason' });
    assert.match(await node.refusal('NetworkDriver.CreateNetwork', create()), /another reason/);
    const { refused: _, ...usable } = record;
    await node.records.networks.put(back, usable);
    assert.doesNotMatch(
      JSON.stringify(await node.client.post('NetworkDriver.CreateNetwork', create())),
      /another reason/,
    );
  });

  it('a network without a free address: the leader is given one, the node refuses it, the log says so once', async () => {
    const network = await node.network(front, { subnet: '10.77.0.0/29' });
    for (let turn = 0; turn < 5; turn += 1) await node.address(network.globalPool);
    for (let turn = 0; turn < 2; turn += 1) {
      const address = await node.address(network.globalPool);
      const request = { PoolID: network.localPool, Address: bare(address), Options: null };
      assert.match(
        await node.refusal('IpamDriver.RequestAddress', request),
        /10\.77\.0\.0\/29 is full.*Remove services/,
      );
    }
    const told = node.lines.filter(({ msg }) => msg === 'Swarm asks for an address that cannot be had');
    assert.deepEqual([told.length, told[0]?.['level']], [1, 'error']);
  });

  it('a container asks for an address that is a VIP: the refusal names the service', async () => {
    const network = await node.network(front, { subnet: '10.77.0.0/16' });
    const vip = bare(await node.address(network.globalPool));
    await node.records.services.put('web-id', {
      ...{ v: 1, id: 'web-id', name: 'web', vips: { [front]: vip }, networks: [front], ports: [], tasks: [] },
    });
    await node.address(network.globalPool, vip);
    const request = { PoolID: network.localPool, Address: vip, Options: null };
    assert.match(
      await node.refusal('IpamDriver.RequestAddress', request),
      new RegExp(`${vip} is in use by service web`),
    );
    await node.client.call('IpamDriver.ReleaseAddress', { PoolID: network.globalPool, Address: vip });
    assert.match(await node.state(), new RegExp(`leases/10.77.0.0-16/${vip} .*global`));
  });

  it('a network created without --ipam-driver has addresses of Docker’s own allocator, and works', async () => {
    const from = { Pool: '10.0.5.0/24', Gateway: '10.0.5.1/24' };
    const { Options } = await node.client.call('NetworkDriver.AllocateNetwork', {
      ...{ NetworkID: front, Options: {}, IPv6Data: null },
      IPv4Data: [{ AddressSpace: 'GlobalDefault', ...from }],
    });
    assert.deepEqual(Options, {});
    await node.client.call('NetworkDriver.CreateNetwork', {
      ...{ NetworkID: front, Options: { [label.generic]: {} }, IPv6Data: [] },
      IPv4Data: [{ AddressSpace: 'LocalDefault', ...from }],
    });
    await node.client.call(
      'NetworkDriver.CreateEndpoint',
      endpointRequest({ id: front }, first, '10.0.5.3/24'),
    );
    await node.client.call('NetworkDriver.Join', joinRequest({ id: front }, first));
    await node.client.call('NetworkDriver.Leave', { NetworkID: front, EndpointID: first });
    await node.client.call('NetworkDriver.DeleteEndpoint', { NetworkID: front, EndpointID: first });
    await node.client.call('NetworkDriver.DeleteNetwork', { NetworkID: front });
    await node.client.call('NetworkDriver.FreeNetwork', { NetworkID: front });
    assert.equal(await node.state(), '');
  });

  it('CreateNetwork with a subnet that overlaps another network’s: the refusal names that network', async () => {
    await node.network(front, { subnet: '10.77.0.0/16' });
    const network = await node.allocate(back, { subnet: '10.77.8.0/24' });
    assert.match(
      network.options[refusedOption] ?? '',
      new RegExp(`10\\.77\\.8\\.0/24 overlaps 10\\.77\\.0\\.0/16.*${front}`),
    );
    const pool = {
      AddressSpace: 'causeway-local',
      Pool: '10.77.8.0/24',
      SubPool: '',
      Options: null,
      V6: false,
    };
    assert.match(await node.refusal('IpamDriver.RequestPool', pool), /overlaps 10\.77\.0\.0\/16/);
    assert.equal(network.options['mode'], undefined);
  });

  it('CreateNetwork with the subnet of another network: the refusal names that one, which outlives the refused one’s removal', async () => {
    await node.network(front, { subnet: '10.77.0.0/16' });
    const state = await node.state();
    const twin = await node.allocate(back, { subnet: '10.77.0.0/16' });
    assert.match(twin.options[refusedOption] ?? '', new RegExp(`belongs to network ${front}`));
    await node.free(twin);
    assert.equal(await node.state(), state);
  });

  it('the reason for a refusal is gone: a leader that asks again is granted the subnet', async () => {
    const other = await node.network(front, { subnet: '10.77.0.0/16' });
    const network = await node.allocate(back, { subnet: '10.77.8.0/24' });
    assert.ok(refusedOption in network.options);
    await node.deleteNetwork(other);
    await node.free(other);
    // Swarm adds what AllocateNetwork returned to the options it asks with.
    const again = await node.allocate(back, { subnet: '10.77.8.0/24', options: network.options });
    assert.deepEqual(again.options, {});
  });

  it('a pool in an address space of others is refused', async () => {
    const pool = { AddressSpace: 'LocalDefault', Pool: '', SubPool: '', Options: null, V6: false };
    assert.match(await node.refusal('IpamDriver.RequestPool', pool), /LocalDefault.*causeway-local/);
  });

  it('a pool of IPv6 addresses is refused', async () => {
    const pool = { AddressSpace: 'causeway-local', Pool: 'fd00::/64', SubPool: '', Options: null, V6: true };
    assert.match(await node.refusal('IpamDriver.RequestPool', pool), /--ipv6/);
  });
});

describe('an endpoint that is refused', () => {
  let node: Node;
  beforeEach(async () => {
    node = await Node.start();
  });
  afterEach(() => node.stop());

  it('an unknown network: each call for an endpoint that needs the network is refused', async () => {
    const created = endpointRequest({ id: 'unknown' }, first, '10.77.0.5/16');
    assert.match(await node.refusal('NetworkDriver.CreateEndpoint', created), /network unknown is not known/);
    const joined = joinRequest({ id: 'unknown' }, first);
    assert.match(
      await node.refusal('NetworkDriver.Join', joined),
      /network unknown is not known.*create it again/,
    );
  });

  it('an unknown endpoint: each call that needs one is refused', async () => {
    await node.network(front);
    const ids = { NetworkID: front, EndpointID: first };
    assert.match(
      await node.refusal('NetworkDriver.Join', joinRequest({ id: front }, first)),
      /endpoint .* is not known/,
    );
    assert.match(await node.refusal('NetworkDriver.EndpointOperInfo', ids), /endpoint .* is not known/);
  });

  it('two endpoints with one address: the second to join is refused', async () => {
    const network = await node.network(front);
    const address = await node.endpoint(network, first);
    await node.client.call('NetworkDriver.CreateEndpoint', endpointRequest(network, second, address));
    await node.join(network, first);
    const before = node.kernel.dump();
    assert.match(
      await node.refusal('NetworkDriver.Join', joinRequest(network, second)),
      new RegExp(`address ${bare(address)} is in use by endpoint e1e1e1e1e1e1`),
    );
    assert.equal(node.kernel.dump(), before);
  });

  it('an endpoint with an address in use: the refusal names the holder, unless the holder is dead', async () => {
    const network = await node.network(front);
    const address = await node.endpoint(network, first);
    await node.join(network, first);
    const created = endpointRequest(network, second, address);
    const state = await node.state();
    assert.match(
      await node.refusal('NetworkDriver.CreateEndpoint', created),
      new RegExp(`address ${bare(address)} is in use by endpoint e1e1e1e1e1e1`),
    );
    assert.equal(await node.state(), state);
    node.kernel.host.removeLink(vethName(first));
    await node.client.call('NetworkDriver.CreateEndpoint', created);
  });

  it('the lease of an address cannot be had: Join is refused and leaves nothing', async () => {
    const held = new HeldStore(node.store);
    const other = await Node.start({ kernel: node.kernel, store: held.store });
    try {
      const network = await other.network(front);
      const address = await other.address(network.globalPool);
      const [before, kernel] = [await other.state(), node.kernel.dump()];
      held.hold();
      await other.address(network.localPool, bare(address));
      await other.client.call('NetworkDriver.CreateEndpoint', endpointRequest(network, first, address));
      const refused = other.refusal('NetworkDriver.Join', joinRequest(network, first));
      await held.next(new StoreError('unavailable', 'The shared store is away.'));
      held.open();
      assert.equal(await refused, 'The shared store is away.');
      assert.equal(await other.state(), before);
      assert.equal(node.kernel.dump(), kernel);
    } finally {
      held.open();
      await other.stop();
    }
  });

  it('CreateEndpoint without an IPv4 address: the refusal says that the network has the wrong IPAM', async () => {
    const network = await node.network(front);
    assert.match(
      await node.refusal('NetworkDriver.CreateEndpoint', endpointRequest(network, first, '')),
      /--ipam-driver/,
    );
  });

  it('an endpoint that publishes a port in use is refused, and none of its ports is published', async () => {
    const network = await node.network(front);
    for (const endpoint of [first, second]) {
      await node.endpoint(network, endpoint);
      await node.join(network, endpoint);
    }
    const publish = (EndpointID: string, ...ports: number[]) => ({
      NetworkID: front,
      EndpointID,
      Options: {
        [label.portMap]: ports.map((port) => ({
          Proto: 6,
          IP: '',
          Port: 80,
          HostIP: '',
          HostPort: port,
          HostPortEnd: port,
        })),
      },
    });
    const method = 'NetworkDriver.ProgramExternalConnectivity';
    await node.client.call(method, publish(first, 8080));
    const before = await node.state();
    assert.match(
      await node.refusal(method, publish(second, 8081, 8080)),
      /port 8080\/tcp .*another container.*Free it/,
    );
    node.portsInUse.add('8082/tcp');
    assert.match(
      await node.refusal(method, publish(second, 8082)),
      /8082\/tcp .*program on this node listens/,
    );
    assert.equal(await node.state(), before);
    await node.client.call('NetworkDriver.RevokeExternalConnectivity', {
      NetworkID: front,
      EndpointID: first,
    });
    await node.client.call(method, publish(second, 8080));
    // A container that died with Docker keeps nothing from the one that comes in its place.
    node.kernel.host.removeLink(vethName(second));
    await node.client.call(method, publish(first, 8080));
  });
});

describe('an address that is refused', () => {
  let node: Node;
  let pool: string;
  beforeEach(async () => {
    node = await Node.start();
    const network = await node.network(front, { subnet: '10.77.0.0/29' });
    pool = network.localPool;
  });
  afterEach(() => node.stop());

  for (const [what, Address, words] of [
    ['outside of the subnet', '10.78.0.5', /not in the subnet 10\.77\.0\.0\/29/],
    ['the gateway', '10.77.0.1', /gateway/],
    ['the broadcast address', '10.77.0.7', /broadcast/],
    ['no address', 'ten', /ten/],
  ] as const) {
    it(`RequestAddress for one that is ${what} is refused with the reason`, async () => {
      assert.match(
        await node.refusal('IpamDriver.RequestAddress', { PoolID: pool, Address, Options: {} }),
        words,
      );
    });
  }

  it('RequestAddress in a full pool: the refusal says how large the pool is', async () => {
    for (let turn = 0; turn < 5; turn += 1) await node.address(pool);
    const request = { PoolID: pool, Address: '', Options: {} };
    assert.match(
      await node.refusal('IpamDriver.RequestAddress', request),
      /10\.77\.0\.0\/29.*no free address|full/,
    );
  });

  it('ReleaseAddress and ReleasePool with an unknown or empty pool id succeed: Swarm sends such', async () => {
    await node.client.call('IpamDriver.ReleaseAddress', { PoolID: '', Address: '10.77.0.5' });
    await node.client.call('IpamDriver.ReleaseAddress', { PoolID: 'of somebody else', Address: '10.77.0.5' });
    await node.client.call('IpamDriver.ReleasePool', { PoolID: '' });
  });
});

describe('a kernel that refuses', () => {
  let node: Node;
  let untouched: string;
  beforeEach(async () => {
    const kernel = new FakeKernel();
    untouched = kernel.dump();
    node = await Node.start({ kernel });
  });
  afterEach(() => node.stop());

  const broken = 'Error: Could not process rule: Operation not supported\n';

  it('another device has the VNI: CreateNetwork names it, and leaves nothing on the node', async () => {
    node.kernel.host.step(
      'link add flannel.1 mtu 1450 type vxlan id 4790 dstport 4790 local 203.0.113.1 nolearning',
    );
    const before = node.kernel.dump();
    const network = await node.allocate(front);
    const state = await node.state();
    const creation = await node.creation(network);
    assert.match(
      await node.refusal('NetworkDriver.CreateNetwork', creation),
      /flannel\.1 already has VNI 4790.*CAUSEWAY_FABRIC_VNI/,
    );
    assert.equal(node.kernel.dump(), before);
    await releaseLocal(network.gateway, network.localPool);
    assert.equal(await node.state(), state);
  });

  it('another program has the UDP port: CreateNetwork names it, and leaves nothing on the node', async () => {
    node.kernel.host.boundPorts.add(4790);
    const network = await node.allocate(front);
    const state = await node.state();
    const creation = await node.creation(network);
    assert.match(
      await node.refusal('NetworkDriver.CreateNetwork', creation),
      /UDP port 4790 is in use.*CAUSEWAY_FABRIC_PORT/,
    );
    assert.equal(node.kernel.dump(), untouched);
    await releaseLocal(network.gateway, network.localPool);
    assert.equal(await node.state(), state);
  });

  it('the kernel refuses the rules: CreateNetwork says what they need, and leaves nothing on the node', async () => {
    node.kernel.refuse = (command) => (command === 'nft -f -' ? broken : undefined);
    const network = await node.allocate(front);
    const creation = await node.creation(network);
    assert.match(await node.refusal('NetworkDriver.CreateNetwork', creation), /kernel refused.*nf_tables/);
    assert.equal(node.kernel.dump(), untouched);
  });

  it('the kernel refuses the link: Join fails with the reason, leaves no link, and the endpoint is not joined', async () => {
    const network = await node.network(front);
    await node.endpoint(network, first);
    const [state, before] = [await node.state(), node.kernel.dump()];
    node.kernel.refuse = (_command, input) =>
      input.includes('type veth') ? 'RTNETLINK answers: Operation not supported\n' : undefined;
    assert.match(await node.refusal('NetworkDriver.Join', joinRequest(network, first)), /not supported/);
    assert.equal(await node.state(), state);
    assert.equal(node.kernel.dump(), before);
    node.kernel.refuse = () => undefined;
    await node.join(network, first);
  });

  it('the kernel refuses the rules: Join fails with the reason, leaves no link, and the endpoint is not joined', async () => {
    const network = await node.network(front);
    const address = await node.endpoint(network, first);
    const [state, before] = [await node.state(), node.kernel.dump()];
    node.kernel.refuse = (command) => (command === 'nft -f -' ? broken : undefined);
    assert.match(await node.refusal('NetworkDriver.Join', joinRequest(network, first)), /kernel refused/);
    assert.equal(await node.state(), state);
    assert.equal(node.kernel.host.links.has(vethName(first)), false);
    node.kernel.refuse = () => undefined;
    await node.reconciler.pass();
    assert.equal(node.kernel.dump(), before);
    await node.join(network, first);
    assert.ok(node.kernel.host.routes.some(({ dst }) => dst === bare(address)));
  });

  it('the kernel refuses the removal of rules: the endpoint is forgotten all the same, and the rules go once the kernel allows it', async () => {
    const network = await node.network(front);
    await node.endpoint(network, first);
    await node.join(network, first);
    node.kernel.refuse = (command) => (command === 'nft -f -' ? broken : undefined);
    const ids = { NetworkID: front, EndpointID: first };
    for (const method of ['Leave', 'DeleteEndpoint', 'DeleteNetwork'])
      assert.match(await node.refusal(`NetworkDriver.${method}`, ids), /not supported/);
    assert.deepEqual((await node.records.endpoints.list()).rows, []);
    assert.deepEqual((await node.records.presence.list()).rows, []);
    assert.equal((await node.records.networks.get(front))?.value.allocated, true);
    node.kernel.refuse = () => undefined;
    await node.reconciler.pass();
    assert.equal(node.kernel.dump(), untouched);
  });

  /** What Docker does on the node after CreateNetwork failed. */
  async function releaseLocal(gateway: string, PoolID: string): Promise<void> {
    await node.client.call('IpamDriver.ReleaseAddress', {
      PoolID,
      Address: bare(gateway),
      Options: gatewayOptions,
    });
    await node.client.call('IpamDriver.ReleasePool', { PoolID });
  }
});
