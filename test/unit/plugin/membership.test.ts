// Owns the tests of what a node tells the others of itself.
// Must not test what they make of it.
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { vethName } from '../../../net/names.ts';
import { Membership } from '../../../plugin/membership.ts';
import { openEmbedded } from '../../../store/embedded.ts';
import { openRecords, type NodeRecord, type Records } from '../../../store/records.ts';
import type { Store } from '../../../store/store.ts';
import type { Docker, Info } from '../../../swarm/docker.ts';
import { captureLog, type LogLine } from '../../fake/log.ts';
import { eventually } from '../../support/until.ts';

const fabric = { port: 4790, vni: 4790 };

/** The addresses of the host; the first is the one of its default route. */
const addresses = ['203.0.113.1', '198.51.100.1'];

describe('membership', () => {
  let store: Store;
  let records: Records;
  let lines: LogLine[];
  let stop: AbortController;
  let running: Promise<void>[];
  /** Of the host. */
  let links: Set<string>;
  /** What Docker says; undefined: it does not answer. */
  let swarm: Info['Swarm'] | undefined;

  beforeEach(() => {
    store = openEmbedded(':memory:');
    records = openRecords(store);
    stop = new AbortController();
    running = [];
    lines = [];
    swarm = undefined;
    links = new Set();
  });
  afterEach(async () => {
    stop.abort();
    await Promise.all(running);
    await store.close();
  });

  function start(node: string, more: { address?: string; fabric?: typeof fabric } = {}): Membership {
    const captured = captureLog();
    ({ lines } = captured);
    const info = (): Promise<Info> =>
      swarm === undefined ? Promise.reject(new Error('silent')) : Promise.resolve({ Swarm: swarm });
    const membership: Membership = new Membership({
      store,
      records,
      docker: { info } as unknown as Docker,
      node,
      name: `name of ${node}`,
      address: '',
      fabric,
      readUnderlay: () => {
        const wanted = membership.address;
        const address = wanted === '' ? addresses[0] : addresses.find((one) => one === wanted);
        if (address === undefined) return Promise.reject(new Error(`${wanted} is none of this node's`));
        return Promise.resolve({ address, device: 'eth0', mtu: 1500 });
      },
      readLinks: () => Promise.resolve(links),
      log: captured.log,
      ...more,
    });
    running.push(membership.run(stop.signal));
    return membership;
  }

  async function record(node: string, isThere = (_: NodeRecord): boolean => true): Promise<NodeRecord> {
    for (let turn = 0; turn < 400; turn += 1) {
      const found = (await records.nodes.get(node))?.value;
      if (found !== undefined && isThere(found)) return found;
      await sleep(5);
    }
    throw new Error(`no record of ${node}; the log: ${JSON.stringify(lines)}`);
  }

  it('nodes that come at once have different numbers, the smallest ones', async () => {
    const nodes = Array.from({ length: 8 }, (_, index) => `node-${index}`);
    for (const node of nodes) start(node);
    const numbers = await Promise.all(nodes.map(async (node) => (await record(node)).number));
    assert.deepEqual(numbers.sort(), [1, 2, 3, 4, 5, 6, 7, 8]);
  });

  it('a silent Docker: the node’s address is the default route’s, its number and Swarm’s address are kept', async () => {
    start('node-1');
    const before = await record('node-1');
    assert.deepEqual([before.address, before.mtu, before.swarm], ['203.0.113.1', 1500, undefined]);
    stop.abort();
    stop = new AbortController();
    swarm = { NodeID: 'abc', NodeAddr: '198.51.100.1' };
    start('node-1');
    const after = await record('node-1', ({ swarm: id }) => id !== undefined);
    assert.deepEqual([after.address, after.swarm, after.number], ['198.51.100.1', 'abc', before.number]);
    stop.abort();
    stop = new AbortController();
    swarm = undefined;
    const restarted = start('node-1');
    await restarted.recall();
    assert.equal(restarted.address, '198.51.100.1', 'what was known before Docker answers counts');
  });

  it('an address from Swarm that the node does not have is not used, and the one of the setting always', async () => {
    swarm = { NodeID: 'abc', NodeAddr: '192.0.2.77' };
    start('node-1');
    assert.equal((await record('node-1')).address, '203.0.113.1');
    start('node-2', { address: '198.51.100.1' });
    assert.equal((await record('node-2')).address, '198.51.100.1');
  });

  it('a node whose plugin was installed anew takes over its number and its running containers', async () => {
    swarm = { NodeID: 'abc', NodeAddr: '198.51.100.1' };
    start('old');
    await record('old');
    stop.abort();
    const endpoint = { v: 1, network: 'front', node: 'old', mac: '02:42:0a:40:00:05' } as const;
    for (const [id, address] of [
      ['runs', '10.64.0.5'],
      ['ended', '10.64.0.6'],
    ] as const)
      await records.endpoints.put(`front/${id}`, { ...endpoint, id, address });
    for (const network of ['front', 'back'])
      await records.presence.put(`${network}/old`, { v: 1, network, node: 'old' });
    const container = { v: 1 as const, container: 'c', names: ['web'], unhealthy: false };
    await records.names.put('front/runs', { ...container, endpoint: 'runs', network: 'front', node: 'old' });
    // Of another node of the Swarm nothing is taken.
    await records.endpoints.put('front/far', { ...endpoint, id: 'far', address: '10.64.0.7', node: 'far' });
    await records.names.put('front/far', { ...container, endpoint: 'far', network: 'front', node: 'far' });
    links = new Set([vethName('runs')]);
    stop = new AbortController();
    await start('new').settled;
    assert.ok(!(await records.nodes.ids()).includes('old'));
    assert.deepEqual(
      (await records.endpoints.list()).rows.map(({ value: { id, node } }) => [id, node]),
      [
        ['far', 'far'],
        ['runs', 'new'],
      ],
    );
    assert.deepEqual(await records.presence.ids(), ['front/new']);
    assert.deepEqual(await records.names.ids(), ['front/far']);
    assert.deepEqual(await records.numbers.ids(), ['2']);
  });

  it('a node is not settled before Docker has said which one it is', async () => {
    const membership = start('new');
    let settled = false;
    void membership.settled.then(() => (settled = true));
    await record('new');
    await sleep(50);
    assert.equal(settled, false);
    swarm = { NodeID: '', NodeAddr: '' };
    membership.hint();
    await membership.settled;
  });

  it('a takeover that another write interrupted is completed a second later', async () => {
    swarm = { NodeID: 'abc', NodeAddr: '198.51.100.1' };
    start('old');
    await record('old');
    stop.abort();
    const endpoint = { v: 1, network: 'front', node: 'old', mac: '02:42:0a:40:00:05' } as const;
    await records.endpoints.put('front/runs', { ...endpoint, id: 'runs', address: '10.64.0.5' });
    links = new Set([vethName('runs')]);
    stop = new AbortController();
    const commit = store.commit.bind(store);
    const race = { isWritten: false };
    store.commit = async (ops, ...rest) => {
      if (!race.isWritten && ops.some(({ key }) => key.endsWith('front/runs'))) {
        race.isWritten = true;
        await records.endpoints.update('front/runs', (before) => before && { ...before, healthy: true });
      }
      return commit(ops, ...rest);
    };
    const membership = start('new');
    await record('new');
    await membership.settled;
    assert.ok(race.isWritten);
    assert.ok(!(await records.nodes.ids()).includes('old'));
    const [row] = (await records.endpoints.list()).rows;
    assert.deepEqual([row?.value.node, row?.value.healthy], ['new', true]);
    assert.deepEqual(membership.warnings, []);
  });

  it('two plugins on one node: the second does not fight with the first, and says so', async () => {
    swarm = { NodeID: 'abc', NodeAddr: '198.51.100.1' };
    const first = start('one');
    await record('one');
    const second = start('two');
    await record('two');
    await eventually(async () => !(await records.nodes.ids()).includes('one'));
    first.hint();
    await record('one');
    await eventually(async () => !(await records.nodes.ids()).includes('two'));
    second.hint();
    await record('two');
    await eventually(() => second.warnings.length > 0);
    assert.match(
      second.warnings.join(),
      /another plugin of Causeway on this node registers as one.*remove one/,
    );
    assert.deepEqual(await records.nodes.ids(), ['one', 'two']);
  });

  it('a copy of the machine, at another address, is noticed, with both named and the remedy', async () => {
    swarm = { NodeID: 'abc', NodeAddr: '198.51.100.1' };
    const original = start('node-1');
    const { number } = await record('node-1');
    assert.deepEqual(original.warnings, []);
    const copy = { v: 1, id: 'node-1', number, mtu: 1500, fabric } as const;
    await records.nodes.put('node-1', { ...copy, name: 'copy', address: '198.51.100.7', swarm: 'def' });
    original.hint();
    await record('node-1', ({ address }) => address === '198.51.100.1');
    assert.match(
      original.warnings.join(),
      /copy at 198\.51\.100\.7 has the same id.*name of node-1 at 198\.51\.100\.1.*remove the plugin and install it again/,
    );
    assert.equal(lines.filter(({ level }) => level === 'error').length, 1);
    for (let looks = 0; looks < 8; looks += 1) {
      original.hint();
      await sleep(20);
    }
    assert.deepEqual(original.warnings, [], 'the copy has another id by now');
  });

  it('another node with other settings of the fabric is logged', async () => {
    start('node-1');
    await record('node-1');
    start('node-2', { fabric: { port: 4790, vni: 7 } });
    await record('node-2');
    await sleep(20);
    const errors = lines.filter(({ level }) => level === 'error');
    assert.deepEqual(
      errors.map(({ node }) => node),
      ['name of node-1'],
    );
  });
});
