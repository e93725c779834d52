// Owns the tests of when the kernel is brought to the records, and of what is said about it.
// Must not test what is brought there.
import assert from 'node:assert/strict';
import { EventEmitter, once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { nftEngine } from '../../../lb/nft.ts';
import { createVeth } from '../../../net/links.ts';
import type { Runner, Tool } from '../../../net/run.ts';
import type { Loss } from '../../../net/watch.ts';
import { Datapath } from '../../../plugin/datapath.ts';
import { Reconciler } from '../../../plugin/reconciler.ts';
import { openEmbedded } from '../../../store/embedded.ts';
import { endpointKey, openRecords, type Records } from '../../../store/records.ts';
import type { Store } from '../../../store/store.ts';
import { FakeKernel } from '../../fake/kernel.ts';
import { captureLog, type LogLine } from '../../fake/log.ts';
import { example, node } from '../../scenario/example.ts';
import { eventually } from '../../support/until.ts';

describe('the reconciler', () => {
  let kernel: FakeKernel;
  let store: Store;
  let records: Records;
  let datapath: Datapath;
  let reconciler: Reconciler;
  let lines: LogLine[];
  /** Called before each command. */
  let onCommand: (tool: Tool, args: readonly string[]) => Promise<void>;

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
      await onCommand(command[0], command[1]);
      return kernel.run(...command);
    };
    const fabric = { port: 4790, vni: 4790 };
    const { conntrack, sysctl } = kernel;
    datapath = new Datapath({ run, conntrack, sysctl, engine: nftEngine, fabric, nodeAddress: () => '' });
    const captured = captureLog();
    ({ lines } = captured);
    reconciler = new Reconciler({ records, datapath, node, log: captured.log, unreachable: () => new Set() });
  });
  afterEach(() => store.close());

  /** Counts how often the data path is asked for something: once per pass. */
  function countPasses(): () => number {
    const apply = datapath.apply.bind(datapath);
    let passes = 0;
    datapath.apply = (desired) => {
      passes += 1;
      return apply(desired);
    };
    return () => passes;
  }

  const vips = (): string[] => [...(kernel.nft.table?.sets.get('vips')?.elements.keys() ?? [])].sort();

  it('any number of calls during a pass lead to at most one more pass', async () => {
    const passes = countPasses();
    const calls = Array.from({ length: 50 }, () => reconciler.pass());
    await Promise.all(calls);
    assert.equal(passes(), 2);
    await reconciler.pass();
    assert.equal(passes(), 3, 'and a call afterwards makes its own');
  });

  it('every caller is promised a pass that has read what was written before the call', async () => {
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

  it('a pass that fails: every caller is told, and the next one starts anew', async () => {
    kernel.refuse = (command) =>
      command === 'nft -f -' ? 'Error: Could not process rule: Invalid argument\n' : undefined;
    const calls = await Promise.allSettled([reconciler.pass(), reconciler.pass(), reconciler.pass()]);
    assert.deepEqual(
      calls.map(({ status }) => status),
      ['rejected', 'rejected', 'rejected'],
    );
    kernel.refuse = () => undefined;
    await reconciler.pass();
    await eventually(() => reconciler.report.settled);
  });

  it('the same trouble is reported once, and its end', async () => {
    kernel.refuse = (command) =>
      command === 'nft -f -' ? 'Error: Could not process rule: Invalid argument\n' : undefined;
    for (let turn = 0; turn < 3; turn += 1) await assert.rejects(reconciler.pass());
    assert.equal(lines.filter(({ level }) => level === 'error').length, 1);
    assert.match(reconciler.report.error ?? '', /Invalid argument/);
    assert.equal(reconciler.report.settled, false);
    kernel.refuse = () => undefined;
    await reconciler.pass();
    await reconciler.pass();
    assert.equal(lines.filter(({ msg }) => msg.endsWith('reconcile recovered')).length, 1);
  });

  it('the first pass waits until the node is ready, and takes nothing away before', async () => {
    await reconciler.pass();
    const { promise: ready, resolve } = Promise.withResolvers<undefined>();
    const { log } = captureLog();
    const [kept, other] = [kernel.dump(), openRecords(openEmbedded(':memory:'))];
    const anew = new Reconciler({ records: other, datapath, node, log, unreachable: () => new Set(), ready });
    const passed = anew.pass();
    await sleep(20);
    assert.equal(kernel.dump(), kept);
    resolve(undefined);
    await passed;
    assert.equal(kernel.nft.table, undefined);
  });

  it('the reconciler is not settled before its first pass', () => {
    assert.equal(reconciler.report.settled, false);
  });

  it('a pass is reported when the flows of tasks that left are forgotten, or why they cannot be', async () => {
    await reconciler.pass();
    await eventually(() => reconciler.report.settled);
    const before = reconciler.report;
    const told = new EventEmitter();
    kernel.onForget = async () => {
      await once(told, 'told');
    };
    kernel.refuse = (command) => (command === 'forget flows' ? 'conntrack: no' : undefined);
    await records.services.delete('service-web');
    await reconciler.pass();
    assert.equal(reconciler.report, before);
    told.emit('told');
    await eventually(() => /conntrack: no/.test(reconciler.report.error ?? ''));
    kernel.refuse = () => undefined;
    kernel.onForget = () => Promise.resolve();
    await reconciler.pass();
    await eventually(() => reconciler.report.settled);
    assert.notEqual(reconciler.report.revision, before.revision);
  });

  it('the reconciler follows the records until it is told to stop', async () => {
    const stop = new AbortController();
    const running = reconciler.run(stop.signal);
    try {
      await eventually(() => vips().length === 3);
      await records.services.delete('service-idle');
      await eventually(() => vips().length === 2);
    } finally {
      stop.abort();
      await running;
    }
    await records.services.delete('service-web');
    await sleep(20);
    assert.equal(vips().length, 2);
  });

  it('records that go on changing: passes take a quarter of the time; who asks has one at once', async () => {
    const stop = new AbortController();
    const running = reconciler.run(stop.signal);
    await eventually(() => vips().length === 3);
    const passes = countPasses();
    onCommand = async (tool) => {
      if (tool === 'nft') await sleep(40);
    };
    try {
      const ends = performance.now() + 1_000;
      for (let turn = 0; performance.now() < ends; turn += 1) {
        const [service] = example.services;
        await records.services.put('service-more', {
          ...service!,
          id: 'service-more',
          vips: Object.fromEntries(
            Object.keys(service!.vips).map((id) => [id, `10.64.0.${100 + (turn % 100)}`]),
          ),
          ports: [],
        });
        await sleep(5);
      }
      assert.ok(passes() <= 9, `${passes()} passes`);
      await records.services.delete('service-more');
      await reconciler.pass();
      assert.equal(vips().length, 3);
    } finally {
      stop.abort();
      await running;
    }
  });

  it('what others take is put back at once, and the node’s own changes are not taken for others’', async () => {
    // As netlink has it: what was taken away is told, and not by whom.
    const taken = new Set<Loss>();
    const log = captureLog();
    const lost = (): Set<Loss> => {
      const since = new Set(taken);
      taken.clear();
      return since;
    };
    reconciler = new Reconciler({
      records,
      datapath,
      node,
      log: log.log,
      unreachable: () => new Set(),
      removals: lost,
    });
    // The flows of tasks that left are forgotten, and their routes taken away, after the pass.
    kernel.onForget = () => sleep(300);
    kernel.refuse = (command, input) => {
      if (command.startsWith('nft -f')) taken.add('nft');
      if (/^(route|rule) del/m.test(input)) taken.add('routes');
      return undefined;
    };
    const stop = new AbortController();
    const running = reconciler.run(stop.signal);
    const putBack = (): number => log.lines.filter(({ msg }) => msg.includes('restoring')).length;
    try {
      await eventually(() => vips().length === 3);
      await records.services.delete('service-web');
      await sleep(1_000);
      assert.equal(putBack(), 0);
      taken.add('routes');
      await eventually(() => putBack() === 1);
      await sleep(500);
      kernel.nft.load('delete table inet causeway');
      taken.add('nft');
      await eventually(() => putBack() === 2 && vips().length > 0);
    } finally {
      stop.abort();
      await running;
    }
  });

  it('no change waits for a look at the kernel', async () => {
    const stop = new AbortController();
    const running = reconciler.run(stop.signal);
    try {
      await eventually(() => reconciler.report.settled);
      const { promise, resolve } = Promise.withResolvers<undefined>();
      let looking = false;
      onCommand = async (tool, args) => {
        if (tool !== 'nft' || !args.includes('list')) return;
        looking = true;
        await promise;
      };
      await eventually(() => looking, { timeoutMs: 10_000 });
      await records.services.delete('service-idle');
      await eventually(() => vips().length === 2);
      resolve(undefined);
    } finally {
      stop.abort();
      await running;
    }
  }).timeout(20_000);

  it('an endpoint whose link went with its sandbox is left out', async () => {
    await reconciler.pass();
    kernel.host.removeLink('cw-e1e1e1e1e1e1');
    datapath.invalidate();
    await reconciler.pass();
    const sources = [...(kernel.nft.table?.sets.get('sources')?.elements.keys() ?? [])];
    assert.ok(!sources.some((key) => key.startsWith('cw-e1e1e1e1e1e1')));
    assert.equal(sources.length, 3);
  });

  it('a store that cannot be read: the kernel is left alone', async () => {
    await reconciler.pass();
    const before = kernel.dump();
    await store.close();
    await assert.rejects(reconciler.pass());
    assert.equal(kernel.dump(), before);
  });
});
