// Owns the tests of what a node's kernel knows of the other nodes: read, compared and written.
// Must not test that packets find their way; test/kernel/ does.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  expectedNeighbours,
  noNeighbours,
  observeNeighbours,
  planNeighbours,
  runBridgeBatch,
} from '../../net/neighbours.ts';
import { runIpBatch } from '../../net/routes.ts';
import type { Runner } from '../../net/run.ts';
import { FakeKernel } from '../fake/kernel.ts';

const two = { address: '203.0.113.2', number: 2 };
const three = { address: '203.0.113.3', number: 300 };
const nothing = { add: { ip: [], bridge: [] }, remove: { ip: [], bridge: [] } };

/** What the real tools printed on a node with one neighbour, {@link two}. */
const recorded: Runner = (tool, args) => {
  const file =
    tool === 'bridge' ? 'bridge-fdb.json' : args.includes('rule') ? 'ip-rule.json' : 'ip-neigh.json';
  return readFile(join(import.meta.dirname, '../recorded', file), 'utf8');
};

async function node(): Promise<FakeKernel> {
  const kernel = new FakeKernel();
  await kernel.run('ip', ['-batch', '-'], {
    input: 'link add cw-fabric mtu 1450 type vxlan id 4790 dstport 4790 local 203.0.113.1 nolearning\n',
  });
  return kernel;
}

async function bring(kernel: FakeKernel, wanted: (typeof two)[]): Promise<void> {
  const plan = planNeighbours(await observeNeighbours(kernel.run), expectedNeighbours(wanted));
  await runBridgeBatch(kernel.run, plan.add.bridge);
  await runIpBatch(kernel.run, plan.add.ip);
  await runIpBatch(kernel.run, plan.remove.ip);
  await runBridgeBatch(kernel.run, plan.remove.bridge);
}

describe('neighbours', () => {
  it('reads what the real tools print for what it is, and plans nothing for it', async () => {
    const actual = await observeNeighbours(recorded);
    assert.deepEqual(actual, expectedNeighbours([two]));
    assert.deepEqual(planNeighbours(actual, expectedNeighbours([two])), nothing);
  });

  it('comes from none to two to one to none, and leaves nothing', async () => {
    const kernel = await node();
    const before = kernel.dump();
    for (const wanted of [[two, three], [three], []]) {
      await bring(kernel, wanted);
      assert.deepEqual(await observeNeighbours(kernel.run), expectedNeighbours(wanted));
    }
    assert.equal(kernel.dump(), before);
  });

  it('replaces what is known of a node that has another address, and never takes away the new', async () => {
    const kernel = await node();
    await bring(kernel, [two]);
    const moved = { address: '203.0.113.9', number: 2 };
    await bring(kernel, [moved]);
    assert.deepEqual(await observeNeighbours(kernel.run), expectedNeighbours([moved]));
  });

  it('finds nothing where there is no fabric', async () => {
    assert.deepEqual(await observeNeighbours(new FakeKernel().run), noNeighbours);
  });

  it('removes a rule of its own that it does not want, and leaves those of others alone', async () => {
    const kernel = await node();
    await kernel.run('ip', ['-4', '-force', '-batch', '-'], {
      input:
        'rule add pref 19701 fwmark 0x0d000009 lookup 218103817 protocol 197\nrule add pref 5 fwmark 0x1 lookup 7 protocol 3\n',
    });
    await bring(kernel, [two]);
    assert.deepEqual(
      kernel.host.rules.map(({ priority }) => priority).sort((a, b) => a - b),
      [5, 19700, 19701, 19799],
    );
  });
});
