// Owns the tests of what is freed that nobody holds: never on one look, never what is held, never by silence.
// Must not test IPAM's own bookkeeping; test/unit/ipam/collect.test.ts does.
import assert from 'node:assert/strict';
import { Ipam } from '../../../ipam/ipam.ts';
import { createVeth } from '../../../net/links.ts';
import { peerName, vethName } from '../../../net/names.ts';
import { Collector } from '../../../plugin/collector.ts';
import { openEmbedded } from '../../../store/embedded.ts';
import { endpointKey, openRecords, type EndpointRecord, type Records } from '../../../store/records.ts';
import type { Store } from '../../../store/store.ts';
import type { Observation, Swarm } from '../../../swarm/publisher.ts';
import { FakeKernel } from '../../fake/kernel.ts';
import { captureLog, type LogLine } from '../../fake/log.ts';

const node = 'node-1';
const grace = 60_000;
const network = { Id: 'front', Name: 'front', Driver: 'causeway', Internal: false, Scope: 'swarm' };
const swarm: Swarm = {
  ...{ leader: true, services: [], tasks: [], unreadable: new Map() },
  nodes: [{ ID: 'swarm-1', Status: { State: 'ready' } }],
};
const nothing: Observation = { networks: [], addressPools: [], swarm };

describe('the collector', () => {
  let kernel: FakeKernel;
  let store: Store;
  let records: Records;
  let ipam: Ipam;
  let collector: Collector;
  let now: number;
  let lines: LogLine[];

  beforeEach(async () => {
    kernel = new FakeKernel();
    store = openEmbedded(':memory:');
    records = openRecords(store);
    now = 1_000_000;
    ipam = new Ipam(store, {
      defaultPool: '10.64.0.0/12',
      defaultSize: 20,
      nodeId: node,
      inUse: () => Promise.resolve([]),
      taken: () => Promise.resolve([]),
      avoided: () => Promise.resolve([]),
      serviceAt: () => Promise.resolve(undefined),
      onFailure: () => undefined,
      now: () => now,
    });
    const { run } = kernel;
    const captured = captureLog();
    ({ lines } = captured);
    collector = new Collector({
      store,
      records,
      ipam,
      run,
      node,
      log: captured.log,
      now: () => now,
      grace,
    });
    for (const space of ['global', 'local'] as const) {
      await ipam.requestPool({ space, pool: '10.77.0.0/16', subPool: '', v6: false });
      await ipam.bindPool({ space, pool: '10.77.0.0/16', network: 'front', gateway: '10.77.0.1/16' });
    }
    await records.networks.put('front', {
      v: 1,
      id: 'front',
      subnet: '10.77.0.0/16',
      gateway: '10.77.0.1',
      internal: false,
      allocated: true,
    });
    await records.presence.put(`front/${node}`, { v: 1, network: 'front', node });
  });
  afterEach(() => store.close());

  async function endpoint(id: string, address: string, on = node): Promise<void> {
    const record: EndpointRecord = {
      ...{
        v: 1,
        id,
        network: 'front',
        node: on,
        address,
        mac: '02:42:0a:4d:00:05',
        sandbox: '/run/docker/netns/sandbox',
        healthy: true,
      },
      ...{ ports: [{ protocol: 'tcp', port: 8080, targetPort: 80 }], access: { by: 'nobody' } },
    };
    await records.endpoints.put(endpointKey(record), record);
    if (on !== node) return;
    await createVeth(kernel.run, kernel.sysctl, { endpointId: id, mac: '02:42:0a:4d:00:05', mtu: 1450 });
    kernel.host.moveToSandbox(peerName(id));
    await claim('local', address);
  }

  async function claim(space: 'global' | 'local', address: string): Promise<void> {
    await ipam.requestAddress({ poolId: `${space}/10.77.0.0-16`, address, options: {} });
  }

  /** A look, this many milliseconds after the last one. */
  async function look(
    after: number,
    observation: Observation = { ...nothing, networks: [network] },
  ): Promise<void> {
    now += after;
    await collector.collect(observation, true);
  }

  const endpoints = async (): Promise<string[]> =>
    (await records.endpoints.list()).rows.map(({ value }) => value.id);
  const leases = async (): Promise<string[]> =>
    (await store.list('ipam/leases/')).entries.map(({ key }) => key.split('/').at(-1) ?? '');

  it('the collector logs trouble with records once, for as long as it lasts', async () => {
    await endpoint('one', '10.77.0.5');
    for (const key of ['ipam/pools/x', 'ipam/leases/10.77.0.0-16/10.77.0.5'])
      await store.commit([{ op: 'set', key, value: 'broken' }]);
    for (let turn = 0; turn < 5; turn += 1) await look(1_000);
    assert.equal(lines.filter(({ level }) => level === 'error').length, 3);
    await store.commit([{ op: 'delete', key: 'ipam/pools/x' }]);
    await look(1_000);
    await store.commit([{ op: 'set', key: 'ipam/pools/x', value: 'broken' }]);
    await look(1_000);
    assert.equal(lines.filter(({ level }) => level === 'error').length, 4);
  });

  it('an endpoint whose link is gone is forgotten after the grace time, not before', async () => {
    await endpoint('dead', '10.77.0.5');
    await endpoint('alive', '10.77.0.6');
    kernel.host.removeLink(vethName('dead'));
    await look(0);
    await look(grace);
    assert.deepEqual(await endpoints(), ['alive', 'dead']);
    await look(1);
    assert.deepEqual(await endpoints(), ['alive']);
  });

  it('an endpoint whose link never came into a sandbox is forgotten, with the link', async () => {
    await endpoint('alive', '10.77.0.6');
    const half = {
      v: 1 as const,
      id: 'half',
      network: 'front',
      node,
      address: '10.77.0.5',
      mac: '02:42:0a:4d:00:05',
    };
    await records.endpoints.put(endpointKey(half), half);
    await createVeth(kernel.run, kernel.sysctl, { endpointId: 'half', mac: '02:42:0a:4d:00:05', mtu: 1450 });
    await claim('local', half.address);
    await look(0);
    // A node with too much to do may take minutes to start a container.
    await look(10 * grace);
    assert.deepEqual(await endpoints(), ['alive', 'half']);
    await look(1);
    assert.deepEqual(await endpoints(), ['alive']);
    assert.equal(kernel.host.links.has(vethName('half')), false);
    await look(grace);
    assert.deepEqual(await leases(), ['10.77.0.6']);
  });

  it('a link without a record, as after plugin and daemon were killed at Join, is removed', async () => {
    await endpoint('alive', '10.77.0.6');
    await createVeth(kernel.run, kernel.sysctl, { endpointId: 'half', mac: '02:42:0a:4d:00:05', mtu: 1450 });
    await look(0);
    await look(10 * grace);
    assert.ok(kernel.host.links.has(vethName('half')));
    await look(1);
    assert.equal(kernel.host.links.has(vethName('half')), false);
    assert.ok(kernel.host.links.has(vethName('alive')));
  });

  it('an endpoint without its sandbox is reported at once, and forgotten later', async () => {
    await endpoint('dead', '10.77.0.5');
    await endpoint('alive', '10.77.0.6');
    await endpoint('far', '10.77.0.7', 'node-2');
    kernel.host.removeLink(vethName('dead'));
    await collector.unjoin();
    const joined = (await records.endpoints.list()).rows.filter(({ value }) => value.sandbox !== undefined);
    assert.deepEqual(joined.map(({ value }) => value.id).sort(), ['alive', 'far']);
    const { ports, access, healthy } = (await records.endpoints.get('front/dead'))?.value ?? {};
    assert.deepEqual({ ports, access, healthy }, { ports: undefined, access: undefined, healthy: undefined });
  });

  it('the collector frees nothing on one look, however long ago the one before was', async () => {
    await endpoint('dead', '10.77.0.5');
    await claim('global', '10.77.0.9');
    kernel.host.removeLink(vethName('dead'));
    await look(100 * grace, nothing);
    assert.deepEqual(await endpoints(), ['dead']);
    assert.deepEqual(await leases(), ['10.77.0.5', '10.77.0.9']);
    assert.ok(await records.networks.get('front'));
  });

  it('the grace time begins anew when the link was seen in between', async () => {
    await endpoint('slow', '10.77.0.5');
    kernel.host.removeLink(vethName('slow'));
    await look(0);
    await endpoint('slow', '10.77.0.5');
    await look(grace);
    kernel.host.removeLink(vethName('slow'));
    await look(1);
    await look(grace);
    assert.deepEqual(await endpoints(), ['slow']);
  });

  it('endpoints of other nodes are left to them', async () => {
    await endpoint('far', '10.77.0.7', 'node-2');
    for (let turn = 0; turn < 3; turn += 1) await look(2 * grace);
    assert.deepEqual(await endpoints(), ['far']);
  });

  it('the addresses of a task and a VIP that Swarm no longer has are freed, and no others', async () => {
    await endpoint('alive', '10.77.0.5');
    for (const address of ['10.77.0.2', '10.77.0.5', '10.77.0.8', '10.77.0.9'])
      await claim('global', address);
    const observation: Observation = {
      networks: [network],
      addressPools: [],
      swarm: {
        ...swarm,
        services: [
          {
            ID: 'web',
            Spec: { Name: 'web', TaskTemplate: {} },
            Endpoint: { VirtualIPs: [{ NetworkID: 'front', Addr: '10.77.0.2/16' }] },
          },
        ],
        tasks: [
          {
            ID: 'task',
            ServiceID: 'web',
            NodeID: node,
            DesiredState: 'running',
            Status: { State: 'preparing' },
            NetworksAttachments: [{ Network: { ID: 'front' }, Addresses: ['10.77.0.5/16'] }],
          },
        ],
      },
    };
    await look(0, observation);
    assert.equal((await leases()).length, 4);
    await look(2 * grace, observation);
    assert.deepEqual(await leases(), ['10.77.0.2', '10.77.0.5']);
  });

  it('a node that left the Swarm is forgotten with all it had, one that is down is not', async () => {
    const nodes = ['node-1', 'node-2', 'node-3'];
    for (const [index, id] of nodes.entries()) {
      const number = index + 1;
      await records.nodes.put(id, {
        v: 1,
        id,
        name: id,
        address: `203.0.113.${number}`,
        number,
        mtu: 1500,
        fabric: { port: 4790, vni: 4790 },
        swarm: id,
      });
      await records.numbers.put(String(number), { v: 1, node: id });
    }
    for (const id of ['node-2', 'node-3']) {
      await endpoint(`of-${id}`, `10.77.0.${id.slice(-1)}`, id);
      await records.presence.put(`front/${id}`, { v: 1, network: 'front', node: id });
    }
    const listed = [
      { ID: 'node-1', Status: { State: 'ready' } },
      { ID: 'node-3', Status: { State: 'down' } },
    ];
    const observation = { networks: [network], addressPools: [], swarm: { ...swarm, nodes: listed } };
    await look(0, observation);
    await look(grace, observation);
    assert.equal((await records.nodes.list()).rows.length, 3);
    await look(1, observation);
    assert.deepEqual(
      (await records.nodes.list()).rows.map(({ id }) => id),
      ['node-1', 'node-3'],
    );
    assert.deepEqual(await records.numbers.ids(), ['1', '3']);
    assert.deepEqual(await endpoints(), ['of-node-3']);
    assert.deepEqual(await records.presence.ids('front/'), ['front/node-1', 'front/node-3']);
  });

  it('no address is freed while a network of another driver may have addresses from us', async () => {
    await claim('global', '10.77.0.9');
    const bridge = { ...network, Id: 'bridge', Driver: 'bridge', IPAM: { Driver: 'causeway' } };
    for (let turn = 0; turn < 3; turn += 1)
      await look(2 * grace, { ...nothing, networks: [network, bridge] });
    assert.deepEqual(await leases(), ['10.77.0.9']);
  });

  it('an address in use that has no record is recorded again', async () => {
    await endpoint('alive', '10.77.0.5');
    await store.commit([{ op: 'delete', key: 'ipam/leases/10.77.0.0-16/10.77.0.5' }]);
    await look(0);
    assert.deepEqual(await leases(), ['10.77.0.5']);
  });

  it('a network that Docker no longer has is forgotten, with its pool', async () => {
    await look(0, nothing);
    await look(grace, nothing);
    assert.ok(await records.networks.get('front'));
    await look(1, nothing);
    // Swarm's word first, then that of the node.
    await look(1, nothing);
    assert.equal(await records.networks.get('front'), undefined);
    await look(2 * grace, nothing);
    assert.deepEqual((await store.list('ipam/pools/')).entries, []);
  });

  /** The nodes that have the network, and `swarm`; undefined when its record is gone. */
  const holders = async (): Promise<string[] | undefined> => {
    const record = await records.networks.get('front');
    const nodes = (await records.presence.list('front/')).rows.map(({ value }) => value.node);
    return record && [...nodes, ...(record.value.allocated ? ['swarm'] : [])];
  };

  it('a network with nothing attached on the node is released there, and kept for Swarm', async () => {
    await look(0);
    // Docker makes it before it fetches the image of the first task, which may take long.
    await look(60 * grace);
    assert.deepEqual(await holders(), [node, 'swarm']);
    await look(1);
    assert.deepEqual(await holders(), ['swarm']);
  });

  it('a network that Swarm no longer has is released on the node', async () => {
    await records.networks.update('front', (record) => record && { ...record, allocated: false });
    await look(0);
    await look(grace);
    assert.deepEqual(await holders(), [node]);
    await look(1);
    assert.deepEqual(await holders(), []);
  });

  it('a network with endpoints on the node is kept, whatever Docker lists', async () => {
    await endpoint('alive', '10.77.0.5');
    for (let turn = 0; turn < 3; turn += 1) await look(2 * grace, nothing);
    assert.deepEqual(await holders(), [node]);
  });

  it('the grace time begins anew when Docker had the network in between', async () => {
    await endpoint('alive', '10.77.0.5');
    await look(0, nothing);
    await look(grace);
    await look(1, nothing);
    await look(grace, nothing);
    assert.deepEqual(await holders(), [node, 'swarm']);
  });

  describe('the collector and a network that another one blocks', () => {
    const next = { ...network, Id: 'next', Name: 'next' };
    const allocate = async (): Promise<string | undefined> => {
      await ipam.requestPool({ space: 'global', pool: '10.77.0.0/16', subPool: '', v6: false });
      const request = { pool: '10.77.0.0/16', network: 'next', gateway: '10.77.0.1' };
      const refused = await ipam.bindPool({ space: 'global', ...request });
      await records.networks.put('next', {
        ...{
          v: 1,
          id: 'next',
          subnet: '10.77.0.0/16',
          gateway: '10.77.0.1',
          internal: false,
          allocated: true,
        },
        ...(refused !== undefined && { refused }),
      });
      return refused;
    };
    const refusal = async (): Promise<string | undefined> =>
      (await records.networks.get('next'))?.value.refused;

    it('a refused network gets its subnet at the second look, once Docker no longer has the one that blocked it', async () => {
      assert.match((await allocate()) ?? '', /belongs to network front/);
      const both = { ...nothing, networks: [network, next] };
      for (let looks = 0; looks < 3; looks++) await look(grace, both);
      assert.match((await refusal()) ?? '', /belongs to network front/, 'Docker has it');
      const one = { ...nothing, networks: [next] };
      await look(1, one);
      assert.match((await refusal()) ?? '', /belongs to network front/, 'one look');
      await look(1, one);
      assert.equal(await refusal(), undefined);
      assert.equal(await ipam.ownerOf('10.77.0.0/16'), 'next');
    });

    it('a network whose options are impossible stays refused', async () => {
      const record = (await records.networks.get('front'))!.value;
      await records.networks.put('front', { ...record, refused: 'unknown option' });
      await look(1);
      assert.equal((await records.networks.get('front'))?.value.refused, 'unknown option');
    });
  });

  it('a node that left its Swarm: all networks of that are forgotten at the second look', async () => {
    const left = { ...nothing, swarm: { ...swarm, nodes: [] } };
    await look(1, left);
    assert.equal((await records.networks.get('front'))?.value.allocated, true);
    await look(1, left);
    assert.equal((await records.networks.get('front'))?.value.allocated, false);
    const { entries } = await store.list('ipam/holds/');
    assert.deepEqual(
      entries.map(({ key }) => key),
      [`ipam/holds/10.77.0.0-16/node/${node}`],
      'the node has it still',
    );
  });

  it('a network that other nodes hold is left to them', async () => {
    await records.presence.put('front/node-2', { v: 1, network: 'front', node: 'node-2' });
    await look(0, nothing);
    await look(2 * grace, nothing);
    await look(1, nothing);
    assert.deepEqual(await holders(), ['node-2']);
  });
});
