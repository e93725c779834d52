// Owns the tests of Docker's calls in the order in which Docker makes them, from network create to network rm.
// Must not test what is refused; refusals.test.ts does.
import assert from 'node:assert/strict';
import { bare, gatewayOptions, joinRequest, label, Node, type DockerNetwork } from './node.ts';

const front = 'f'.repeat(64);
const first = 'e1'.repeat(32);
const second = 'e2'.repeat(32);

describe('the order of Docker’s calls', () => {
  let node: Node;
  beforeEach(async () => {
    node = await Node.start();
  });
  afterEach(() => node.stop());

  it('a service of two tasks: each of Docker’s calls gets the answer it was measured to expect', async () => {
    const { client } = node;
    const pool = { Pool: '10.77.0.0/16', SubPool: '', Options: null, V6: false };
    // The leader.
    const global = { AddressSpace: 'causeway-global', ...pool };
    assert.deepEqual(await client.call('IpamDriver.RequestPool', global), {
      PoolID: 'global/10.77.0.0-16',
      Pool: '10.77.0.0/16',
      Data: {},
    });
    assert.equal(await node.address('global/10.77.0.0-16', '', gatewayOptions), '10.77.0.1/16');
    const allocated = await client.call('NetworkDriver.AllocateNetwork', {
      NetworkID: front,
      Options: { mode: 'overlay' },
      IPv4Data: [
        {
          AddressSpace: 'causeway-global',
          Pool: '10.77.0.0/16',
          Gateway: '10.77.0.1/16',
          AuxAddresses: null,
        },
      ],
      IPv6Data: null,
    });
    assert.deepEqual(allocated, { Options: { mode: 'overlay' } }, 'workers see no options but these');
    // The VIP and two tasks, without a mark.
    const addresses = [];
    for (let turn = 0; turn < 3; turn += 1) addresses.push(await node.address('global/10.77.0.0-16'));
    assert.deepEqual(addresses, ['10.77.0.2/16', '10.77.0.3/16', '10.77.0.4/16']);

    // The node of a task.
    const local = { AddressSpace: 'causeway-local', ...pool };
    assert.equal((await client.call('IpamDriver.RequestPool', local))['PoolID'], 'local/10.77.0.0-16');
    assert.equal(await node.address('local/10.77.0.0-16', '10.77.0.1', gatewayOptions), '10.77.0.1/16');
    const created = await client.call('NetworkDriver.CreateNetwork', {
      NetworkID: front,
      Options: { [label.ipv6]: false, [label.generic]: allocated['Options'] },
      IPv4Data: [
        { AddressSpace: 'causeway-local', Pool: '10.77.0.0/16', Gateway: '10.77.0.1/16', AuxAddresses: {} },
      ],
      IPv6Data: [],
    });
    assert.deepEqual(created, {});
    assert.equal(await node.address('local/10.77.0.0-16', '10.77.0.3'), '10.77.0.3/32');
    const ids = { NetworkID: front, EndpointID: first };
    const endpoint = await client.call('NetworkDriver.CreateEndpoint', {
      ...ids,
      Interface: { Address: '10.77.0.3/32', AddressIPv6: '', MacAddress: '' },
      Options: { [label.ports]: [{ Proto: 6, Port: 80 }], [label.portMap]: [] },
    });
    assert.deepEqual(endpoint, { Interface: { MacAddress: '02:42:0a:4d:00:03' } }, 'only what came in empty');
    assert.deepEqual(await client.call('NetworkDriver.Join', joinRequest({ id: front }, first)), {
      InterfaceName: { SrcName: 'cwpe1e1e1e1e1e1', DstPrefix: 'eth' },
      Gateway: '10.77.0.1',
      StaticRoutes: [
        { Destination: '10.77.0.1/32', RouteType: 1 },
        { Destination: '10.77.0.0/16', RouteType: 0, NextHop: '10.77.0.1' },
      ],
    });
    const external = { ...ids, Options: { [label.ports]: [], [label.portMap]: [] } };
    assert.deepEqual(await client.call('NetworkDriver.ProgramExternalConnectivity', external), {});
    for (let turn = 0; turn < 3; turn += 1) {
      assert.deepEqual(await client.call('NetworkDriver.EndpointOperInfo', ids), {
        Value: { 'com.docker.network.endpoint.macaddress': '02:42:0a:4d:00:03' },
      });
    }
    assert.deepEqual(await client.call('NetworkDriver.RevokeExternalConnectivity', ids), {});
    assert.deepEqual(await client.call('NetworkDriver.Leave', ids), {});
    assert.deepEqual(await client.call('NetworkDriver.DeleteEndpoint', ids), {});
  });

  it('Join returns: link, route and rules are in place', async () => {
    const network = await node.network(front);
    const address = bare(await node.endpoint(network, first));
    await node.join(network, first);
    const { host, nft } = node.kernel;
    assert.equal(host.links.get('cw-e1e1e1e1e1e1')?.up, true);
    assert.equal(host.routes.find(({ dst }) => dst === address)?.dev, 'cw-e1e1e1e1e1e1');
    assert.ok(nft.table?.sets.get('sources')?.elements.has(`cw-e1e1e1e1e1e1 . ${address}`));
  });

  it('an endpoint is told to other nodes from Join to Leave, not before and not after', async () => {
    const network = await node.network(front);
    const recorded = async (): Promise<string[]> =>
      (await node.records.endpoints.list()).rows.map(({ value }) => value.id);
    const ids = { NetworkID: front, EndpointID: first };
    await node.endpoint(network, first);
    assert.deepEqual(await recorded(), []);
    await node.join(network, first);
    assert.deepEqual(await recorded(), [first]);
    await node.client.call('NetworkDriver.Leave', ids);
    assert.deepEqual(await recorded(), []);
    await node.join(network, first);
    assert.deepEqual(await recorded(), [first], 'it may come again');
  });

  it('a MAC address that Docker chose itself is kept', async () => {
    const network = await node.network(front);
    const address = await node.address(network.globalPool);
    const answer = await node.client.call('NetworkDriver.CreateEndpoint', {
      NetworkID: front,
      EndpointID: first,
      Interface: { Address: address, AddressIPv6: '', MacAddress: '02:00:00:00:00:01' },
      Options: {},
    });
    assert.deepEqual(answer, { Interface: {} });
  });

  it('everything is removed again: store and kernel are as they were before', async () => {
    const before = node.kernel.dump();
    const network = await node.network(front, { subnet: '10.77.0.0/16' });
    const addresses = [await node.endpoint(network, first), await node.endpoint(network, second)];
    await node.join(network, first);
    await node.join(network, second);
    await node.remove(network, first, addresses[0] ?? '');
    await node.remove(network, second, addresses[1] ?? '');
    await node.deleteNetwork(network);
    await node.free(network);
    assert.equal(await node.state(), '');
    assert.equal(node.kernel.dump(), before);
  });

  it('an address is free again once both leader and node released it, not by one alone', async () => {
    const network = await node.network(front, { subnet: '10.77.0.0/29' });
    // .1 is the gateway: five are left.
    const taken = [];
    for (let turn = 0; turn < 5; turn += 1) taken.push(await node.address(network.globalPool));
    const [one = ''] = taken;
    await node.address(network.localPool, bare(one));
    // There is none, but Swarm's leader must not be told so: see refusals.test.ts.
    assert.equal(await node.address(network.globalPool), '10.77.0.0/29');
    await node.client.call('IpamDriver.ReleaseAddress', { PoolID: network.globalPool, Address: bare(one) });
    assert.equal(await node.address(network.globalPool), '10.77.0.0/29');
    await node.client.call('IpamDriver.ReleaseAddress', { PoolID: network.localPool, Address: bare(one) });
    assert.equal(await node.address(network.globalPool), one);
  });
});

describe('calls that Docker repeats', () => {
  let node: Node;
  let network: DockerNetwork;
  let address: string;
  beforeEach(async () => {
    node = await Node.start();
    network = await node.network(front, { subnet: '10.77.0.0/16', options: { [label.mtu]: '1400' } });
    address = await node.endpoint(network, first);
    await node.join(network, first);
  });
  afterEach(() => node.stop());

  /** What a new leader asks for: everything there is. */
  async function replay(): Promise<void> {
    const again = await node.pool('global', '10.77.0.0/16');
    assert.equal(again.id, network.globalPool);
    assert.equal(await node.address(again.id, bare(network.gateway), gatewayOptions), network.gateway);
    const { Options } = (await node.client.call('NetworkDriver.AllocateNetwork', {
      NetworkID: front,
      Options: network.options,
      IPv4Data: [{ AddressSpace: 'causeway-global', Pool: network.subnet, Gateway: network.gateway }],
    })) as { Options: Record<string, string> };
    assert.deepEqual(Options, network.options);
    assert.equal(await node.address(again.id, bare(address)), address);
  }

  it('calls that Swarm repeats after an election change nothing', async () => {
    const vip = await node.address(network.globalPool);
    const [state, kernel] = [await node.state(), node.kernel.dump()];
    for (let turn = 0; turn < 2; turn += 1) {
      await replay();
      assert.equal(await node.address(network.globalPool, bare(vip)), vip);
    }
    assert.equal(await node.state(), state);
    assert.equal(node.kernel.dump(), kernel);
  });

  it('calls to a restarted plugin continue from what the store has', async () => {
    const kernel = node.kernel.dump();
    const restarted = await Node.start({ kernel: node.kernel, store: node.store });
    try {
      const changes = node.kernel.changes.length;
      await restarted.reconciler.pass();
      assert.deepEqual(node.kernel.changes.slice(changes), [], 'the kernel was left as it should be');
      const ids = { NetworkID: front, EndpointID: first };
      assert.ok('Value' in (await restarted.client.call('NetworkDriver.EndpointOperInfo', ids)));
      // Docker does not create the network again for it.
      const other = await restarted.endpoint(network, second);
      await restarted.join(network, second);
      await restarted.remove(network, second, other);
      assert.equal(node.kernel.dump(), kernel);
    } finally {
      await restarted.stop();
    }
  });

  it('CreateNetwork, CreateEndpoint and Join twice, as after a lost answer: the second succeeds and changes nothing', async () => {
    const state = await node.state();
    await node.client.call('NetworkDriver.CreateNetwork', await node.creation(network));
    assert.equal(await node.state(), state);
    const other = await node.endpoint(network, second);
    const { body } = await node.client.post('NetworkDriver.CreateEndpoint', {
      NetworkID: front,
      EndpointID: second,
      Interface: { Address: other, AddressIPv6: '', MacAddress: '' },
      Options: null,
    });
    assert.ok('Interface' in body);
    const answer = await node.client.call('NetworkDriver.Join', joinRequest(network, second));
    assert.deepEqual(await node.client.call('NetworkDriver.Join', joinRequest(network, second)), answer);
    assert.ok(node.kernel.host.links.has('cwpe2e2e2e2e2e2'), 'the link waits to be moved');
    assert.equal(node.kernel.host.routes.filter(({ dst }) => dst === bare(other)).length, 1);
  });

  it('deleting what is gone already succeeds and changes nothing', async () => {
    await node.remove(network, first, address);
    await node.remove(network, first, address);
    await node.deleteNetwork(network);
    await node.deleteNetwork(network);
    await node.free(network);
    await node.free(network);
    assert.equal(await node.state(), '');
  });

  it('the plugin is killed between CreateEndpoint and Join: the container can be started again', async () => {
    const before = await node.state();
    const other = await node.endpoint(network, second);
    const restarted = await Node.start({ kernel: node.kernel, store: node.store });
    try {
      assert.match(
        await restarted.refusal('NetworkDriver.Join', joinRequest(network, second)),
        /is not known to Causeway on this node: start its container again/,
      );
      await restarted.remove(network, second, other);
      assert.equal(await restarted.state(), before, 'nothing is left of it');
      await restarted.endpoint(network, second);
      await restarted.join(network, second);
    } finally {
      await restarted.stop();
    }
  });

  it('the plugin is killed between Leave and DeleteEndpoint: DeleteEndpoint succeeds afterwards', async () => {
    const ids = { NetworkID: front, EndpointID: first };
    await node.client.call('NetworkDriver.Leave', ids);
    const restarted = await Node.start({ kernel: node.kernel, store: node.store });
    try {
      await restarted.client.call('NetworkDriver.DeleteEndpoint', ids);
      assert.equal(node.kernel.host.links.has('cw-e1e1e1e1e1e1'), false);
      assert.deepEqual((await restarted.records.endpoints.list()).rows, []);
    } finally {
      await restarted.stop();
    }
  });

  it('a sandbox that ended without Leave, as after a kill of the daemon, is forgotten', async () => {
    node.kernel.host.removeLink('cw-e1e1e1e1e1e1');
    // What the reconciler does every few seconds.
    node.datapath.invalidate();
    await node.reconciler.pass();
    assert.equal(node.kernel.nft.table?.sets.get('sources')?.elements.size, 0);
  });
});
