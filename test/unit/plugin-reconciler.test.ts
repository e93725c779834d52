// Owns the tests of when the kernel is brought to the records, and of what is said about it.
// Must not test what is brought there.
import assert from 'node:assert/strict';
import { EventEmitter, once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { nftEngine } from '../../lb/nft.ts';
import { createVeth } from '../../net/links.ts';
import type { Runner, Tool } from '../../net/run.ts';
import { Datapath } from '../../plugin/datapath.ts';
import { Reconciler } from '../../plugin/reconciler.ts';
import { openEmbedded } from '../../store/embedded.ts';
import { endpointKey, openRecords, type Records } from '../../store/records.ts';
import type { Store } from '../../store/store.ts';
import { FakeKernel } from '../fake/kernel.ts';
import { captureLog, type LogLine } from '../fake/log.ts';
import { example, node } from '../scenario/example.ts';

describe('the reconciler', () => {
  let kernel: FakeKernel;
  let store: Store;
  let records: Records;
  let datapath: Datapath;
  let reconciler: Reconciler;
  let lines: LogLine[];
  /** Called before each command. */
  let onCommand: (tool: Tool) => Promise<void>;

  beforeEach(async () => {
    kernel = new FakeKernel();
    store = openEmbedded(':memory:');
    records = openRecords(store);
    for (const endpoint of example.endpoints) {
      if (endpoint.node === node)
        await createVeth(kernel.run, kernel.sysctl, {
          endpointId: endpoint.id,
          mac: endpoint.mac,
          mtu: 1450,
        });
      await records.endpoints.put(endpointKey(endpoint), endpoint);
    }
    for (const network of example.networks) await records.networks.put(network.id, network);
    for (const service of example.services) await records.services.put(service.id, service);
    onCommand = () => Promise.resolve();
    const run: Runner = async (...command) => {
      await onCommand(command[0]);
      return kernel.run(...command);
    };
    const fabric = { port: 4790, vni: 4790 };
    datapath = new Datapath({ run, sysctl: kernel.sysctl, engine: nftEngine, fabric, nodeAddress: () => '' });
    const captured = captureLog();
    ({ lines } = captured);
    reconciler = new Reconciler({ records, datapath, node, log: captured.log, hidden: () => new Set() });
  });
  afterEach(() => store.close());

  /** Counts how often the data path is asked for something: once per pass. */
  function countPasses(): () => number {
    const apply = datapath.apply.bind(datapath);
    let passes = 0;
    datapath.apply = (wanted) => {
      passes += 1;
      return apply(wanted);
    };
    return () => passes;
  }

  const vips = (): string[] => [...(kernel.nft.table?.sets.get('vips')?.elements.keys() ?? [])].sort();

  it('makes at most one more pass for any number of calls while one is running', async () => {
    const passes = countPasses();
    const calls = Array.from({ length: 50 }, () => reconciler.pass());
    await Promise.all(calls);
    assert.equal(passes(), 2);
    await reconciler.pass();
    assert.equal(passes(), 3, 'and a call afterwards makes its own');
  });

  it('promises every caller a pass that has read what was written before the call', async () => {
    let written = Promise.resolve();
    let started = false;
    onCommand = () => {
      if (!started) {
        started = true;
        // In the middle of the first pass, which has read the records already.
        written = records.services.delete('service-idle').then(() => reconciler.pass());
      }
      return Promise.resolve();
    };
    await reconciler.pass();
    await written;
    assert.deepEqual(vips(), ['10.64.0.2', '10.64.16.2']);
  });

  it('tells every caller of a pass that failed, and starts anew with the next', async () => {
    kernel.refuse = (command) =>
      command === 'nft -f -' ? 'Error: Could not process rule: Invalid argument\n' : undefined;
    const calls = await Promise.allSettled([reconciler.pass(), reconciler.pass(), reconciler.pass()]);
    assert.deepEqual(
      calls.map(({ status }) => status),
      ['rejected', 'rejected', 'rejected'],
    );
    kernel.refuse = () => undefined;
    await reconciler.pass();
    assert.equal(reconciler.report.settled, true);
  });

  it('reports the same trouble once, and its end', async () => {
    kernel.refuse = (command) =>
      command === 'nft -f -' ? 'Error: Could not process rule: Invalid argument\n' : undefined;
    for (let turn = 0; turn < 3; turn += 1) await assert.rejects(reconciler.pass());
    assert.equal(lines.filter(({ level }) => level === 'error').length, 1);
    assert.match(reconciler.report.error ?? '', /Invalid argument/);
    assert.equal(reconciler.report.settled, false);
    kernel.refuse = () => undefined;
    await reconciler.pass();
    await reconciler.pass();
    assert.equal(lines.filter(({ msg }) => msg.endsWith('as it should be again')).length, 1);
  });

  it('is not settled before its first pass', () => {
    assert.equal(reconciler.report.settled, false);
  });

  it('reports a pass when the flows of tasks that left are forgotten, and why they cannot be', async () => {
    await reconciler.pass();
    const before = reconciler.report;
    assert.equal(before.settled, true);
    const told = new EventEmitter();
    onCommand = async (tool) => {
      if (tool === 'conntrack') await once(told, 'told');
    };
    kernel.refuse = (command) => (command.startsWith('conntrack') ? 'conntrack: no\n' : undefined);
    await records.services.delete('service-web');
    await reconciler.pass();
    assert.equal(reconciler.report, before);
    told.emit('told');
    await until(() => /conntrack: no/.test(reconciler.report.error ?? ''));
    kernel.refuse = () => undefined;
    onCommand = () => Promise.resolve();
    await reconciler.pass();
    assert.equal(reconciler.report.settled, true);
    assert.notEqual(reconciler.report.revision, before.revision);
  });

  it('follows the records, until it is told to stop', async () => {
    const stop = new AbortController();
    const running = reconciler.run(stop.signal);
    try {
      await until(() => vips().length === 3);
      await records.services.delete('service-idle');
      await until(() => vips().length === 2);
    } finally {
      stop.abort();
      await running;
    }
    await records.services.delete('service-web');
    await sleep(20);
    assert.equal(vips().length, 2);
  });

  it('leaves out an endpoint whose link went with its sandbox', async () => {
    await reconciler.pass();
    kernel.host.removeLink('cw-e1e1e1e1e1e1');
    datapath.distrust();
    await reconciler.pass();
    const sources = [...(kernel.nft.table?.sets.get('sources')?.elements.keys() ?? [])];
    assert.ok(!sources.some((key) => key.startsWith('cw-e1e1e1e1e1e1')));
    assert.equal(sources.length, 3);
  });

  it('leaves the kernel alone when the store cannot be read', async () => {
    await reconciler.pass();
    const before = kernel.dump();
    await store.close();
    await assert.rejects(reconciler.pass());
    assert.equal(kernel.dump(), before);
  });
});

async function until(condition: () => boolean): Promise<void> {
  const deadline = performance.now() + 5000;
  while (!condition()) {
    assert.ok(performance.now() < deadline, 'it did not come to pass');
    await sleep(5);
  }
}
