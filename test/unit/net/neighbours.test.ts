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
} from '../../../net/neighbours.ts';
import { runIpBatch } from '../../../net/routes.ts';
import type { SourceRoute } from '../../../net/source-routing.ts';
import type { Runner } from '../../../net/run.ts';
import { FakeKernel } from '../../fake/kernel.ts';

const two = { address: '203.0.113.2', number: 2 };
const three = { address: '203.0.113.3', number: 300 };
const nothing = { add: { ip: [], bridge: [] }, remove: { ip: [], bridge: [] } };

/** What the real tools printed on a node with one neighbour, {@link two}. */
const recorded: Runner = (tool, args) => {
  const file =
    tool === 'bridge' ? 'bridge-fdb.json' : args.includes('rule') ? 'ip-rule.json' : 'ip-neigh.json';
  return readFile(join(import.meta.dirname, '../../recorded', file), 'utf8');
};

async function node(): Promise<FakeKernel> {
  const kernel = new FakeKernel();
  await kernel.run('ip', ['-batch', '-'], {
    input: 'link add cw-fabric mtu 1450 type vxlan id 4790 dstport 4790 local 203.0.113.1 nolearning\n',
  });
  return kernel;
}

async function bring(
  kernel: FakeKernel,
  desired: (typeof two)[],
  routes: readonly SourceRoute[] = [],
  networks: readonly { subnet: string }[] = [],
): Promise<void> {
  const expected = expectedNeighbours(desired, routes, networks);
  const plan = planNeighbours(await observeNeighbours(kernel.run), expected);
  await runBridgeBatch(kernel.run, plan.add.bridge);
  await runIpBatch(kernel.run, plan.add.ip);
  await runIpBatch(kernel.run, plan.remove.ip);
  await runBridgeBatch(kernel.run, plan.remove.bridge);
}

describe('neighbours', () => {
  it('neighbours: the recorded output of the tools is read, and nothing is planned for it', async () => {
    const actual = await observeNeighbours(recorded);
    assert.deepEqual(actual, expectedNeighbours([two]));
    assert.deepEqual(planNeighbours(actual, expectedNeighbours([two])), nothing);
  });

  it('neighbours: a host’s source routing has its rules beside ours, also without another node', async () => {
    const kernel = await node();
    const before = kernel.dump();
    const [first, second] = [
      { address: '203.0.113.1', device: 'eth0', table: 101, priority: 32765 },
      { address: '198.51.100.1', device: 'eth1', table: 102, priority: 100 },
    ];
    const [one, other] = [{ subnet: '10.64.0.0/20' }, { subnet: '10.64.16.0/20' }];
    for (const [desired, routes, networks] of [
      [[two], [first, second], [one]],
      [[], [second], [one, other]],
      [[], [], [other]],
    ] as const) {
      await bring(kernel, [...desired], routes, networks);
      const expected = expectedNeighbours([...desired], routes, networks);
      assert.deepEqual(await observeNeighbours(kernel.run), expected);
    }
    assert.equal(kernel.dump(), before);
  });

  it('neighbours: rules are removed in an order in which none is missed by another', () => {
    const routes = [{ address: '198.51.100.1', device: 'eth1', table: 102, priority: 100 }];
    const networks = [{ subnet: '10.64.0.0/20' }];
    const expected = expectedNeighbours([two], routes, networks);
    const { remove } = planNeighbours(expected, expectedNeighbours([]));
    const removed = remove.ip.flatMap((line) => /^rule del pref (\d+)/.exec(line)?.[1] ?? []).map(Number);
    const ends = removed.splice(-2);
    assert.deepEqual(ends.sort(), [18689, 19799]);
    assert.deepEqual(
      removed,
      removed.toSorted((a, b) => b - a),
    );
  });

  it('neighbours: none, two, one, none: nothing is left', async () => {
    const kernel = await node();
    const before = kernel.dump();
    for (const desired of [[two, three], [three], []]) {
      await bring(kernel, desired);
      assert.deepEqual(await observeNeighbours(kernel.run), expectedNeighbours(desired));
    }
    assert.equal(kernel.dump(), before);
  });

  it('neighbours: a node with another address is replaced, and the new entry is never removed', async () => {
    const kernel = await node();
    await bring(kernel, [two]);
    const moved = { address: '203.0.113.9', number: 2 };
    await bring(kernel, [moved]);
    assert.deepEqual(await observeNeighbours(kernel.run), expectedNeighbours([moved]));
  });

  it('neighbours: without a fabric there is nothing to observe', async () => {
    assert.deepEqual(await observeNeighbours(new FakeKernel().run), noNeighbours);
  });

  it('neighbours: our own rule that is not desired is removed, others’ are left alone', async () => {
    const kernel = await node();
    await kernel.run('ip', ['-4', '-force', '-batch', '-'], {
      input:
        'rule add pref 19701 fwmark 0x0d000009 lookup 218103817 protocol 197\nrule add pref 5 fwmark 0x1 lookup 7 protocol 3\n',
    });
    await bring(kernel, [two]);
    assert.deepEqual(
      kernel.host.rules.map(({ priority }) => priority).sort((a, b) => a - b),
      [5, 19690, 19700, 19701, 19702, 19799],
    );
  });
});
