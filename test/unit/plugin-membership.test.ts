// Owns the tests of what a node tells the others of itself.
// Must not test what they make of it.
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { Membership } from '../../plugin/membership.ts';
import { openEmbedded } from '../../store/embedded.ts';
import { openRecords, type NodeRecord, type Records } from '../../store/records.ts';
import type { Store } from '../../store/store.ts';
import type { Docker, Info } from '../../swarm/docker.ts';
import { captureLog, type LogLine } from '../fake/log.ts';

const fabric = { port: 4790, vni: 4790 };

/** The addresses of the host; the first is the one of its default route. */
const addresses = ['203.0.113.1', '198.51.100.1'];

describe('membership', () => {
  let store: Store;
  let records: Records;
  let lines: LogLine[];
  let stop: AbortController;
  let running: Promise<void>[];
  /** What Docker says; undefined: it does not answer. */
  let swarm: Info['Swarm'] | undefined;

  beforeEach(() => {
    store = openEmbedded(':memory:');
    records = openRecords(store);
    stop = new AbortController();
    running = [];
    lines = [];
    swarm = undefined;
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

  it('gives nodes that come at once different numbers, and the smallest', async () => {
    const nodes = Array.from({ length: 8 }, (_, index) => `node-${index}`);
    for (const node of nodes) start(node);
    const numbers = await Promise.all(nodes.map(async (node) => (await record(node)).number));
    assert.deepEqual(numbers.sort(), [1, 2, 3, 4, 5, 6, 7, 8]);
  });

  it('takes the address of the default route while Docker is silent, and keeps its number and Swarm’s address', async () => {
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

  it('does not take an address from Swarm that the node does not have, and always the one that is set', async () => {
    swarm = { NodeID: 'abc', NodeAddr: '192.0.2.77' };
    start('node-1');
    assert.equal((await record('node-1')).address, '203.0.113.1');
    start('node-2', { address: '198.51.100.1' });
    assert.equal((await record('node-2')).address, '198.51.100.1');
  });

  it('says in the log when another node has other settings of the fabric', async () => {
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
