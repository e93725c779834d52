// Owns the tests of the order in which a kernel is brought to what is desired, and of what it says when it refuses.
// Must not test what is desired; test/unit/plugin/desired-state.test.ts does.
import assert from 'node:assert/strict';
import { ipvsEngine } from '../../../lb/ipvs.ts';
import type { Engine } from '../../../lb/model.ts';
import { nftEngine } from '../../../lb/nft.ts';
import { createVeth } from '../../../net/links.ts';
import { formatRoute } from '../../../net/routes.ts';
import type { Runner } from '../../../net/run.ts';
import { Datapath } from '../../../plugin/datapath.ts';
import { RequestError } from '../../../plugin/errors.ts';
import { planDesiredState } from '../../../plugin/desired-state.ts';
import { FakeKernel } from '../../fake/kernel.ts';
import { afterwards, example, localEndpoints, node } from '../../scenario/example.ts';
import { nothing } from '../../support/nothing.ts';

const desired = planDesiredState(example, node);

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
    conntrack: kernel.conntrack,
    sysctl: kernel.sysctl,
    engine,
    fabric,
    nodeAddress: () => nodeAddress,
    timeouts,
  });
  return { kernel, datapath };
}

describe('the data path', () => {
  it('what is left of the other engine goes when its connections have ended, and all with the last network', async () => {
    const { kernel, datapath } = await world(ipvsEngine);
    await datapath.apply(desired);
    const { ipvs } = kernel;
    const marks = [...(ipvs?.services.keys() ?? [])];
    const [first] = marks;
    assert.ok(ipvs && first !== undefined && marks.length > 1);
    ipvs.connections.set(first, 1);
    const { datapath: other } = await world(nftEngine, { kernel });
    await other.apply(desired);
    assert.deepEqual([...ipvs.services.keys()], [first]);
    ipvs.connections.clear();
    other.invalidate();
    await other.apply(desired);
    assert.deepEqual([...ipvs.services.keys()], []);

    const { datapath: again } = await world(ipvsEngine, { kernel });
    await again.apply(desired);
    for (const mark of ipvs.services.keys()) ipvs.connections.set(mark, 1);
    const { datapath: last } = await world(nftEngine, { kernel });
    await last.apply(nothing);
    assert.deepEqual([...ipvs.services.keys()], []);
  });

  it('the sysctls that IPVS balancing builds on are kept', async () => {
    const { kernel, datapath } = await world(ipvsEngine);
    await datapath.apply(desired);
    const names = ['conntrack', 'expire_nodest_conn', 'expire_quiescent_template', 'sloppy_tcp'];
    const values = (): (string | undefined)[] => names.map((name) => kernel.settings.get(`ipv4/vs/${name}`));
    assert.deepEqual(values(), ['1', '1', '1', '1']);
    for (const name of names) kernel.settings.set(`ipv4/vs/${name}`, '0');
    datapath.invalidate();
    await datapath.apply(desired);
    assert.deepEqual(values(), ['1', '1', '1', '1']);
  });

  it('what rules need is added before them, and removed after them', async () => {
    const { kernel, datapath } = await world(ipvsEngine);
    await datapath.apply(desired);
    const before = kernel.changes.length;
    // Everything at once: a service leaves, and its mark and routes with it; another one comes.
    const [web, db, idle] = example.services;
    assert.ok(web && db && idle);
    const other = { ...db, id: 'other', vips: { [db.networks[0] ?? '']: '10.64.16.9' } };
    await datapath.apply(planDesiredState({ ...example, services: [idle, db, other] }, node));
    await datapath.cleanedUp();
    const commands = kernel.changes
      .slice(before)
      .map(({ command, input }) => `${command} ${input.split(' ', 1)[0] ?? ''}`);
    assert.deepEqual(commands.slice(0, 5), [
      'ip -4 -force -batch - route',
      'ipvsadm --restore -A',
      'nft -f - delete',
      'ipvsadm --restore -D',
      'forget flows endless',
    ]);
    assert.deepEqual(commands.slice(5), ['ip -4 -force -batch - route']);
  });

  it('the route to a task stays until its flows are forgotten', async () => {
    const kernel = new FakeKernel();
    const order: string[] = [];
    kernel.onForget = async () => {
      await new Promise(setImmediate);
      order.push('flows forgotten');
    };
    const slow: Runner = async (tool, args, options) => {
      order.push(`${tool} ${options?.input?.split(' ', 2).join(' ') ?? ''}`);
      return kernel.run(tool, args, options);
    };
    const { datapath } = await world(nftEngine, { run: slow, kernel });
    await datapath.apply(desired);
    order.length = 0;
    await datapath.apply(planDesiredState(afterwards, node));
    assert.deepEqual(order.slice(-1), ['nft flush chain'], 'nobody waits for it');
    await datapath.cleanedUp();
    assert.deepEqual(order.slice(-2), ['flows forgotten', 'ip route del']);
  });

  it('flows without an end of tasks that take no more are forgotten, and no others', async () => {
    const { kernel, datapath } = await world();
    await datapath.apply(desired);
    await datapath.apply(planDesiredState(afterwards, node));
    await datapath.cleanedUp();
    const forgotten = kernel.changes.filter(({ command }) => command === 'forget flows');
    assert.deepEqual(forgotten, [{ command: 'forget flows', input: 'endless to 10.64.0.4\n' }]);
  });

  it('at the start, flows of tasks that left meanwhile are forgotten', async () => {
    const { kernel, datapath } = await world();
    for (const to of ['10.64.0.99', '192.0.2.1'])
      kernel.flows.push({ address: '203.0.113.1', port: 8080, to, targetPort: 80 });
    await datapath.apply(desired);
    await datapath.cleanedUp();
    assert.deepEqual(
      kernel.changes.flatMap(({ command, input }) => (command === 'forget flows' ? [input] : [])),
      ['endless to 10.64.0.99\n'],
    );
  });

  it('each link is the gateway of its sandbox, and is kept so with its settings', async () => {
    const { kernel, datapath } = await world();
    await datapath.apply(desired);
    const veth = kernel.host.links.get('cw-e1e1e1e1e1e1');
    assert.ok(veth);
    const gateway = { local: '10.64.0.1', prefixlen: 20, scope: 'link' as const };
    assert.deepEqual(veth.addresses, [gateway]);
    assert.deepEqual([...(veth.neighbours ?? [])], [['10.64.0.3', '02:42:0a:40:00:00']]);
    veth.addresses.length = 0;
    veth.neighbours?.clear();
    const set = { 'ipv4/conf/cw-fabric/src_valid_mark': '0', 'ipv4/conf/cw-e1e1e1e1e1e1/forwarding': '0' };
    for (const [path, value] of Object.entries(set)) kernel.settings.set(path, value);
    datapath.invalidate();
    await datapath.apply(desired);
    assert.deepEqual(veth.addresses, [gateway]);
    veth.neighbours?.clear();
    datapath.invalidate();
    await datapath.apply(desired);
    assert.deepEqual([...(veth.neighbours ?? [])], [['10.64.0.3', '02:42:0a:40:00:00']]);
    for (const path of Object.keys(set)) assert.equal(kernel.settings.get(path), '1', path);
  });

  it('the next state is applied while flows of the one before are still being forgotten', async () => {
    const kernel = new FakeKernel();
    const { promise, resolve } = Promise.withResolvers<undefined>();
    let forgotten = 0;
    kernel.onForget = async () => {
      await promise;
      forgotten += 1;
    };
    const { datapath } = await world(nftEngine, { kernel });
    await datapath.apply(desired);
    await datapath.apply(planDesiredState(afterwards, node));
    const empty = { ...nothing, networks: desired.networks, neighbours: desired.neighbours };
    await datapath.apply(empty);
    assert.equal(kernel.nft.table?.sets.get('sources')?.elements.size, 0);
    assert.equal(forgotten, 0);
    resolve(undefined);
    await datapath.cleanedUp();
    assert.equal(forgotten, 2);
    assert.ok(!kernel.host.routes.some((route) => JSON.stringify(route).includes('10.64.0.4')));
  });

  it('what was to be removed later is removed before it is added again', async () => {
    const kernel = new FakeKernel();
    kernel.onForget = () => new Promise((resolve) => setTimeout(resolve, 5));
    const { datapath } = await world(nftEngine, { kernel });
    await datapath.apply(desired);
    const routes = (): string[] => kernel.host.routes.map((route) => JSON.stringify(route)).sort();
    const before = routes();
    await datapath.apply(planDesiredState(afterwards, node));
    await datapath.apply(desired);
    await datapath.cleanedUp();
    assert.deepEqual(routes(), before);
    await datapath.apply(planDesiredState(afterwards, node));
    await datapath.apply(nothing);
    await datapath.cleanedUp();
    assert.doesNotMatch(kernel.dump(), /10\.64\./);
  });

  it('a late removal that fails is reported, and repeated in the next pass', async () => {
    const { kernel, datapath } = await world();
    await datapath.apply(desired);
    kernel.refuse = (command) => (command === 'forget flows' ? 'conntrack: no' : undefined);
    const later = planDesiredState(afterwards, node);
    await datapath.apply(later);
    await assert.rejects(datapath.cleanedUp(), /conntrack: no/);
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
      [['forget flows', '10.64.0.4\n']],
    );
    await datapath.apply(later);
    assert.equal(kernel.changes.length, before + 1);
  });

  it('what others took out is put back, once a look is asked for', async () => {
    const { kernel, datapath } = await world(ipvsEngine);
    await datapath.apply(desired);
    const before = kernel.dump().split('\n').sort();
    kernel.host.step('route del local 10.64.0.2 dev lo table local');
    kernel.nft.load('delete table inet causeway');
    kernel.ipvs?.services.clear();
    kernel.forward = ['-A FORWARD -j DOCKER-USER'];
    await datapath.apply(desired);
    assert.equal(kernel.nft.table, undefined, 'it trusts what it wrote until then');
    kernel.host.removeLink('cw-fabric');
    datapath.invalidate();
    await datapath.apply(desired);
    assert.deepEqual(kernel.dump().split('\n').sort(), before);
  });

  it('a change is made while the kernel is being read, which is read again then', async () => {
    const kernel = new FakeKernel();
    let reading: Promise<unknown> = Promise.resolve();
    let begun = (): void => undefined;
    const slow: Runner = async (tool, args, options) => {
      const output = await kernel.run(tool, args, options);
      if (tool === 'nft' && args.includes('list')) {
        begun();
        await reading;
      }
      return output;
    };
    const { datapath } = await world(nftEngine, { run: slow, kernel });
    await datapath.apply(desired);
    await datapath.cleanedUp();
    const readAt = datapath.readAt;
    const { promise, resolve } = Promise.withResolvers<undefined>();
    reading = promise;
    const reads = new Promise<void>((tell) => (begun = tell));
    const look = datapath.look();
    await reads;
    await datapath.apply(planDesiredState(afterwards, node));
    resolve(undefined);
    await look;
    await datapath.apply(planDesiredState(afterwards, node));
    assert.equal(datapath.readAt, readAt, 'what it read was half of that and half of this');
    kernel.nft.load('delete table inet causeway');
    kernel.host.removeLink('cw-fabric');
    await datapath.look();
    await datapath.apply(planDesiredState(afterwards, node));
    assert.ok(datapath.readAt > readAt);
    assert.ok(kernel.nft.table !== undefined && kernel.host.links.has('cw-fabric'), 'it is put back');
  });

  it('what was opened on the host just before the last network went is closed again', async () => {
    const kernel = new FakeKernel();
    let opening: Promise<unknown> = Promise.resolve();
    const slow: Runner = async (tool, args, options) => {
      if (tool === 'iptables-nft' && args.includes('-S')) await opening;
      return kernel.run(tool, args, options);
    };
    const { datapath } = await world(nftEngine, { run: slow, kernel });
    const untouched = kernel.dump();
    await datapath.apply(desired);
    await datapath.cleanedUp();
    const { promise, resolve } = Promise.withResolvers<undefined>();
    opening = promise;
    const look = datapath.look();
    const cleared = datapath.apply(nothing);
    resolve(undefined);
    await Promise.all([look, cleared]);
    assert.equal(kernel.dump(), untouched);
  });

  for (const engine of [nftEngine, ipvsEngine])
    it(`others took out what a change builds on: the pass succeeds at once, engine ${engine.name}`, async () => {
      const { kernel, datapath } = await world(engine);
      const { kernel: untouched, datapath: other } = await world(engine);
      await other.apply(planDesiredState(afterwards, node));
      await datapath.apply(desired);
      kernel.nft.load('delete table inet causeway');
      kernel.ipvs?.services.clear();
      kernel.host.removeLink('cw-fabric');
      await datapath.apply(planDesiredState(afterwards, node));
      await datapath.cleanedUp();
      const lines = (of: FakeKernel): string[] => of.dump().split('\n').sort();
      assert.deepEqual(lines(kernel), lines(untouched));
    });

  it('a look that is asked for in the middle of a pass is made', async () => {
    const kernel = new FakeKernel();
    const meddle: Runner = async (tool, args, options) => {
      const output = await kernel.run(tool, args, options);
      if (tool === 'nft' && args[0] === '-f') {
        kernel.nft.load('delete table inet causeway');
        datapath.invalidate();
      }
      return output;
    };
    const { datapath } = await world(nftEngine, { run: meddle, kernel });
    const empty = { ...nothing, networks: desired.networks, neighbours: desired.neighbours };
    await datapath.apply(empty);
    const written = kernel.changes.filter(({ command }) => command === 'nft -f -').length;
    await datapath.apply(empty);
    assert.equal(kernel.changes.filter(({ command }) => command === 'nft -f -').length, written + 1);
  });

  it('nothing is desired: what an earlier life left is removed', async () => {
    const { kernel, datapath } = await world(ipvsEngine);
    const before = kernel.dump();
    await datapath.apply(desired);
    const { sysctl, run, conntrack } = kernel;
    const fabric = { port: 4790, vni: 4790 };
    await new Datapath({ run, conntrack, sysctl, engine: ipvsEngine, fabric, nodeAddress: () => '' }).apply(
      nothing,
    );
    assert.equal(kernel.dump(), before);
  });

  it('after a failure the kernel is read anew, because the state is not known', async () => {
    const { kernel, datapath } = await world();
    kernel.refuse = (command) =>
      command === 'nft -f -' ? 'Error: Could not process rule: Invalid argument\n' : undefined;
    await assert.rejects(datapath.apply(desired), /Invalid argument/);
    kernel.refuse = () => undefined;
    await datapath.apply(desired);
    const once = kernel.dump();
    datapath.invalidate();
    await datapath.apply(desired);
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
    it(`the kernel ${what}: the error names the remedy`, async () => {
      const { kernel, datapath } = await world();
      kernel.refuse = (command) => (command === 'nft -f -' ? stderr : undefined);
      await assert.rejects(
        datapath.apply(desired),
        (error: unknown) => error instanceof RequestError && remedy.test(error.message),
      );
    });
  }

  it('the node does not have the address of the setting: the error names the setting', async () => {
    const { datapath } = await world(nftEngine, { nodeAddress: '198.51.100.1' });
    await assert.rejects(
      datapath.readUnderlay(),
      /CAUSEWAY_NODE_ADDR=198\.51\.100\.1 is no address of this node/,
    );
  });

  it('the node has no address at all: the error names the setting', async () => {
    const { kernel, datapath } = await world();
    kernel.host.removeLink('eth0');
    await assert.rejects(datapath.readUnderlay(), /no IPv4 address.*CAUSEWAY_NODE_ADDR/);
  });

  it('the MTU of sandboxes leaves room for the encapsulation', async () => {
    assert.equal(await (await world()).datapath.sandboxMtu(), 1450);
  });

  describe('with a service whose silent connections are remembered for another time', () => {
    const timed = [{ timeout: { tcp: 600_000, udp: 60 }, addresses: ['10.64.0.3', '10.64.0.4'] }];
    const timeouts = (kernel: FakeKernel): number => kernel.nft.table?.timeouts.size ?? 0;

    it('a service with flow timeouts: rules say so, and are removed with it', async () => {
      const { kernel, datapath } = await world();
      await datapath.apply(desired);
      const before = kernel.dump();
      await datapath.apply({ ...desired, flowTimeouts: timed });
      assert.equal(timeouts(kernel), 2);
      await datapath.apply({
        ...desired,
        flowTimeouts: [{ timeout: { udp: 61 }, addresses: ['10.64.0.3'] }],
      });
      assert.equal(timeouts(kernel), 1);
      await datapath.apply(desired);
      assert.equal(kernel.dump(), before);
    });

    it('flow timeouts on a kernel that has none: left out', async () => {
      const { kernel, datapath } = await world(nftEngine, { timeouts: false });
      await datapath.apply({ ...desired, flowTimeouts: timed });
      assert.equal(timeouts(kernel), 0);
    });

    it('IPVS has the longest flow timeouts, and only longer ones than the node’s', async () => {
      const { kernel, datapath } = await world(ipvsEngine);
      const { ipvs } = kernel;
      await datapath.apply(desired);
      assert.deepEqual(ipvs?.timeouts, [432_000, 120, 300]);
      await datapath.apply({
        ...desired,
        flowTimeouts: [...timed, { timeout: { fin: 500 }, addresses: [] }],
      });
      assert.deepEqual(ipvs.timeouts, [600_000, 500, 300]);
    });
  });

  describe('where the kernel refuses one part', () => {
    /** Virtual servers, and what leads to their chains or marks. */
    const bad = '8080';
    const refuseNft = (kernel: FakeKernel, what: RegExp) => {
      kernel.refuse = (command, input) =>
        /^nft (--check )?-f/.test(command) && what.test(input) ? 'Error: conflicting intervals' : undefined;
    };
    const known = (kernel: FakeKernel, set: string) => [
      ...(kernel.nft.table?.sets.get(set)?.elements.keys() ?? []),
    ];

    for (const engine of [nftEngine, ipvsEngine])
      it(`the kernel refuses one port: its connections are refused, all others work: ${engine.name}`, async () => {
        const { kernel, datapath } = await world(engine);
        const before = await world(engine);
        await before.datapath.apply(desired);
        const published = known(before.kernel, 'published');
        assert.ok(published.length > 1);
        // What translates to a server of this port.
        refuseNft(
          kernel,
          /add rule \S+ \S+ port-tcp-8080\S* .*: 8080|add rule \S+ \S+ port-tcp-8080\S* .*dnat ip to (\d|numgen)/,
        );
        await datapath.apply(desired);
        await datapath.cleanedUp();
        assert.deepEqual(
          datapath.refusals.map(({ what, why }) => [what, why]),
          [[`the virtual server port-tcp-${bad}`, 'Error: conflicting intervals']],
        );
        assert.deepEqual(known(kernel, 'published').sort(), published.sort());
        assert.deepEqual(known(kernel, 'vips').sort(), known(before.kernel, 'vips').sort());
        const questions = kernel.changes.length;
        await datapath.apply(desired);
        assert.equal(kernel.changes.length, questions, 'it is not looked for again with each pass');
      });

    it('the kernel refuses one network: it is left out with all that is on it', async () => {
      const { kernel, datapath } = await world();
      const [network] = desired.networks;
      assert.ok(network);
      refuseNft(
        kernel,
        new RegExp(`element inet causeway subnets .*${network.subnet.replaceAll('.', '\\.')}`),
      );
      await datapath.apply(desired);
      assert.deepEqual(
        datapath.refusals.map(({ what }) => what),
        [`the network ${network.subnet}`],
      );
      const sources = known(kernel, 'sources');
      const left = desired.endpoints.filter(({ address }) =>
        sources.some((key) => key.endsWith(` ${address}`)),
      );
      assert.ok(left.length > 0 && left.length < desired.endpoints.length);
    });

    it('the kernel refuses everything: the error says so', async () => {
      const { kernel, datapath } = await world();
      refuseNft(kernel, /./);
      await assert.rejects(datapath.apply(desired), /conflicting intervals/);
      assert.deepEqual(datapath.refusals, []);
    });

    it('the kernel refuses one route: those behind it are made, and the error is reported', async () => {
      const { kernel, datapath } = await world();
      const [route] = desired.routes;
      assert.ok(route);
      kernel.refuse = (command, input) => {
        const at = input.split('\n').indexOf(`route replace ${formatRoute(route)}`);
        return command === 'ip -4 -force -batch -' && at >= 0
          ? `RTNETLINK answers: Invalid argument\nCommand failed -:${at + 1}\n`
          : undefined;
      };
      await datapath.apply(desired);
      assert.deepEqual(datapath.refusals, [
        { what: `"route replace ${formatRoute(route)}"`, why: 'RTNETLINK answers: Invalid argument' },
      ]);
      assert.ok(kernel.nft.table);
    });
  });
});
