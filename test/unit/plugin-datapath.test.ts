// Owns the tests of the order in which a kernel is brought to what is wanted, and of what it says when it refuses.
// Must not test what is wanted; plugin-wanted.test.ts does.
import assert from 'node:assert/strict';
import { ipvsEngine } from '../../lb/ipvs.ts';
import type { Engine } from '../../lb/model.ts';
import { nftEngine } from '../../lb/nft.ts';
import { createVeth } from '../../net/links.ts';
import type { Runner } from '../../net/run.ts';
import { Datapath } from '../../plugin/datapath.ts';
import { RequestError } from '../../plugin/errors.ts';
import { renderWanted, type Wanted } from '../../plugin/wanted.ts';
import { FakeKernel } from '../fake/kernel.ts';
import { afterwards, example, localEndpoints, node } from '../scenario/example.ts';

const wanted = renderWanted(example, node);
const nothing: Wanted = {
  neighbours: [],
  networks: [],
  endpoints: [],
  routes: [],
  servers: [],
  publishers: [],
  movable: [],
  ended: [],
  timed: [],
};

async function world(
  engine: Engine = nftEngine,
  settings: { nodeAddress?: string; run?: Runner; kernel?: FakeKernel; timeouts?: boolean } = {},
) {
  const { kernel = new FakeKernel() } = settings;
  for (const { id, mac } of localEndpoints)
    await createVeth(kernel.run, kernel.sysctl, { endpointId: id, mac, mtu: 1450 });
  const { run = kernel.run, nodeAddress = '', timeouts = true } = settings;
  const fabric = { port: 4790, vni: 4790 };
  const datapath = new Datapath({
    run,
    sysctl: kernel.sysctl,
    engine,
    fabric,
    nodeAddress: () => nodeAddress,
    timeouts,
  });
  return { kernel, datapath };
}

describe('the data path', () => {
  it('removes what is left of the other engine when its connections have ended, and all with the last network', async () => {
    const { kernel, datapath } = await world(ipvsEngine);
    await datapath.apply(wanted);
    const { ipvs } = kernel;
    const marks = [...(ipvs?.services.keys() ?? [])];
    const [first] = marks;
    assert.ok(ipvs && first !== undefined && marks.length > 1);
    ipvs.connections.set(first, 1);
    const { datapath: other } = await world(nftEngine, { kernel });
    await other.apply(wanted);
    assert.deepEqual([...ipvs.services.keys()], [first]);
    ipvs.connections.clear();
    other.distrust();
    await other.apply(wanted);
    assert.deepEqual([...ipvs.services.keys()], []);

    const { datapath: again } = await world(ipvsEngine, { kernel });
    await again.apply(wanted);
    for (const mark of ipvs.services.keys()) ipvs.connections.set(mark, 1);
    const { datapath: last } = await world(nftEngine, { kernel });
    await last.apply(nothing);
    assert.deepEqual([...ipvs.services.keys()], []);
  });

  it('adds what rules need before them, and removes it behind them', async () => {
    const { kernel, datapath } = await world(ipvsEngine);
    await datapath.apply(wanted);
    const before = kernel.changes.length;
    // Everything at once: a service leaves, and its mark and routes with it; another one comes.
    const [web, db, idle] = example.services;
    assert.ok(web && db && idle);
    const other = { ...db, id: 'other', vips: { [db.networks[0] ?? '']: '10.64.16.9' } };
    await datapath.apply(renderWanted({ ...example, services: [idle, db, other] }, node));
    await datapath.tidied();
    const commands = kernel.changes
      .slice(before)
      .map(({ command, input }) => `${command} ${input.split(' ', 1)[0] ?? ''}`);
    assert.deepEqual(commands.slice(0, 5), [
      'ip -4 -force -batch - route',
      'ipvsadm --restore -A',
      'nft -f - delete',
      'ipvsadm --restore -D',
      'conntrack -R - -D',
    ]);
    assert.deepEqual(commands.slice(5), ['ip -4 -force -batch - route']);
  });

  it('leaves the way to a task until what was begun there is forgotten', async () => {
    const kernel = new FakeKernel();
    const order: string[] = [];
    const slow: Runner = async (tool, args, options) => {
      if (tool === 'conntrack') await new Promise(setImmediate);
      order.push(`${tool} ${options?.input?.split(' ', 2).join(' ') ?? ''}`);
      return kernel.run(tool, args, options);
    };
    const { datapath } = await world(nftEngine, { run: slow, kernel });
    await datapath.apply(wanted);
    order.length = 0;
    await datapath.apply(renderWanted(afterwards, node));
    assert.deepEqual(order.slice(-1), ['nft add chain'], 'nobody waits for it');
    await datapath.tidied();
    assert.deepEqual(order.slice(-2), ['conntrack -D -p', 'ip route del']);
  });

  it('forgets the flows without an end of tasks that take no more, and of no others', async () => {
    const { kernel, datapath } = await world();
    await datapath.apply(wanted);
    await datapath.apply(renderWanted(afterwards, node));
    await datapath.tidied();
    const forgotten = kernel.changes.filter(({ command }) => command.startsWith('conntrack'));
    assert.deepEqual(forgotten, [
      {
        command: 'conntrack -R -',
        input: '-D -p udp --reply-src 10.64.0.4\n-D -p tcp --state SYN_SENT --reply-src 10.64.0.4\n',
      },
    ]);
  });

  it('has taken away what it left to be taken away before it adds that again', async () => {
    const kernel = new FakeKernel();
    const slow: Runner = async (tool, args, options) => {
      if (tool === 'conntrack') await new Promise((resolve) => setTimeout(resolve, 5));
      return kernel.run(tool, args, options);
    };
    const { datapath } = await world(nftEngine, { run: slow, kernel });
    await datapath.apply(wanted);
    const routes = (): string[] => kernel.host.routes.map((route) => JSON.stringify(route)).sort();
    const before = routes();
    await datapath.apply(renderWanted(afterwards, node));
    await datapath.apply(wanted);
    await datapath.tidied();
    assert.deepEqual(routes(), before);
    await datapath.apply(renderWanted(afterwards, node));
    await datapath.apply(nothing);
    await datapath.tidied();
    assert.doesNotMatch(kernel.dump(), /10\.64\./);
  });

  it('tells when that failed, and does it with the next pass', async () => {
    const { kernel, datapath } = await world();
    await datapath.apply(wanted);
    kernel.refuse = (command) => (command.startsWith('conntrack') ? 'conntrack: no\n' : undefined);
    const later = renderWanted(afterwards, node);
    await datapath.apply(later);
    await assert.rejects(datapath.tidied(), /conntrack: no/);
    assert.ok(
      !kernel.host.routes.some((route) => JSON.stringify(route).includes('10.64.0.4')),
      'its route is gone',
    );
    await assert.rejects(datapath.apply(later), /conntrack: no/);
    kernel.refuse = () => undefined;
    const before = kernel.changes.length;
    await datapath.apply(later);
    assert.deepEqual(
      kernel.changes.slice(before).map(({ command, input }) => [command, input.split(' ').at(-1)]),
      [['conntrack -R -', '10.64.0.4\n']],
    );
    await datapath.apply(later);
    assert.equal(kernel.changes.length, before + 1);
  });

  it('puts back what others took out, once it is told to look', async () => {
    const { kernel, datapath } = await world(ipvsEngine);
    await datapath.apply(wanted);
    const before = kernel.dump().split('\n').sort();
    kernel.host.step('route del local 10.64.0.2 dev lo table local');
    kernel.nft.load('delete table inet causeway');
    kernel.ipvs?.services.clear();
    kernel.forward = ['-A FORWARD -j DOCKER-USER'];
    await datapath.apply(wanted);
    assert.equal(kernel.nft.table, undefined, 'it trusts what it wrote until then');
    kernel.host.removeLink('cw-fabric');
    datapath.distrust();
    await datapath.apply(wanted);
    assert.deepEqual(kernel.dump().split('\n').sort(), before);
  });

  for (const engine of [nftEngine, ipvsEngine])
    it(`goes on at once when others took out what it builds on, engine ${engine.name}`, async () => {
      const { kernel, datapath } = await world(engine);
      const { kernel: untouched, datapath: other } = await world(engine);
      await other.apply(renderWanted(afterwards, node));
      await datapath.apply(wanted);
      kernel.nft.load('delete table inet causeway');
      kernel.ipvs?.services.clear();
      kernel.host.removeLink('cw-fabric');
      await datapath.apply(renderWanted(afterwards, node));
      await datapath.tidied();
      const lines = (of: FakeKernel): string[] => of.dump().split('\n').sort();
      assert.deepEqual(lines(kernel), lines(untouched));
    });

  it('looks again also when it is told so in the middle of its work', async () => {
    const kernel = new FakeKernel();
    const meddle: Runner = async (tool, args, options) => {
      const output = await kernel.run(tool, args, options);
      if (tool === 'nft' && args[0] === '-f') {
        kernel.nft.load('delete table inet causeway');
        datapath.distrust();
      }
      return output;
    };
    const { datapath } = await world(nftEngine, { run: meddle, kernel });
    const empty = { ...nothing, networks: wanted.networks, neighbours: wanted.neighbours };
    await datapath.apply(empty);
    const written = kernel.changes.filter(({ command }) => command === 'nft -f -').length;
    await datapath.apply(empty);
    assert.equal(kernel.changes.filter(({ command }) => command === 'nft -f -').length, written + 1);
  });

  it('clears what an earlier life left behind when nothing is wanted', async () => {
    const { kernel, datapath } = await world(ipvsEngine);
    const before = kernel.dump();
    await datapath.apply(wanted);
    const { sysctl, run } = kernel;
    const fabric = { port: 4790, vni: 4790 };
    await new Datapath({ run, sysctl, engine: ipvsEngine, fabric, nodeAddress: () => '' }).apply(nothing);
    assert.equal(kernel.dump(), before);
  });

  it('reads the kernel anew after a failure, because it cannot know how far it came', async () => {
    const { kernel, datapath } = await world();
    kernel.refuse = (command) =>
      command === 'nft -f -' ? 'Error: Could not process rule: Invalid argument\n' : undefined;
    await assert.rejects(datapath.apply(wanted), /Invalid argument/);
    kernel.refuse = () => undefined;
    await datapath.apply(wanted);
    const once = kernel.dump();
    datapath.distrust();
    await datapath.apply(wanted);
    assert.equal(kernel.dump(), once);
  });

  const refusals: Record<string, [string, RegExp]> = {
    'lacks a feature of nftables': [
      'Error: Could not process rule: Operation not supported\n',
      /nf_tables.*inet.*numgen/,
    ],
    'does not let it': ['Error: Could not process rule: Operation not permitted\n', /CAP_NET_ADMIN/],
  };
  for (const [what, [stderr, remedy]] of Object.entries(refusals)) {
    it(`names the remedy when the kernel ${what}`, async () => {
      const { kernel, datapath } = await world();
      kernel.refuse = (command) => (command === 'nft -f -' ? stderr : undefined);
      await assert.rejects(
        datapath.apply(wanted),
        (error: unknown) => error instanceof RequestError && remedy.test(error.message),
      );
    });
  }

  it('names the setting when the node has not the address it is told to have', async () => {
    const { datapath } = await world(nftEngine, { nodeAddress: '198.51.100.1' });
    await assert.rejects(
      datapath.readUnderlay(),
      /CAUSEWAY_NODE_ADDR=198\.51\.100\.1 is no address of this node/,
    );
  });

  it('names the setting when the node has no address at all', async () => {
    const { kernel, datapath } = await world();
    kernel.host.removeLink('eth0');
    await assert.rejects(datapath.readUnderlay(), /no IPv4 address.*CAUSEWAY_NODE_ADDR/);
  });

  it('leaves room for the encapsulation in the MTU of sandboxes', async () => {
    assert.equal(await (await world()).datapath.sandboxMtu(), 1450);
  });

  describe('with a service whose silent connections are remembered for another time', () => {
    const timed = [{ timeout: { tcp: 600_000, udp: 60 }, addresses: ['10.64.0.3', '10.64.0.4'] }];
    const timeouts = (kernel: FakeKernel): number => kernel.nft.table?.timeouts.size ?? 0;

    it('says so in rules, and takes them back', async () => {
      const { kernel, datapath } = await world();
      await datapath.apply(wanted);
      const before = kernel.dump();
      await datapath.apply({ ...wanted, timed });
      assert.equal(timeouts(kernel), 2);
      await datapath.apply({ ...wanted, timed: [{ timeout: { udp: 61 }, addresses: ['10.64.0.3'] }] });
      assert.equal(timeouts(kernel), 1);
      await datapath.apply(wanted);
      assert.equal(kernel.dump(), before);
    });

    it('goes without where the kernel has no such thing', async () => {
      const { kernel, datapath } = await world(nftEngine, { timeouts: false });
      await datapath.apply({ ...wanted, timed });
      assert.equal(timeouts(kernel), 0);
    });

    it('gives IPVS the longest times, and only longer ones', async () => {
      const { kernel, datapath } = await world(ipvsEngine);
      const { ipvs } = kernel;
      await datapath.apply(wanted);
      assert.deepEqual(ipvs?.timeouts, [432_000, 120, 300]);
      await datapath.apply({ ...wanted, timed: [...timed, { timeout: { fin: 500 }, addresses: [] }] });
      assert.deepEqual(ipvs.timeouts, [600_000, 500, 300]);
    });
  });
});
