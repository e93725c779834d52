// Owns the tests of the data path between nodes with real packets: three nodes, a real Consul, the client beside them.
// Must not test what one node shows (datapath.test.ts), nor Docker's part. The tests marked #main are those for which
// there is time on an emulated processor.
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { execa } from 'execa';
import { consulPort, consulServer, prepareConsul } from '../lab/consul.ts';
import { startCommand, type Running } from '../lab/node.ts';
import { runTool } from '../lab/plugin-process.ts';
import { slowness } from '../slowness.ts';
import { askMany, startLoad } from './ask.ts';
import { all, endsInChain, off } from './host-settings.ts';
import type { Peer } from './peer.ts';
import { rollingUpdate, startTask, type ServedTask } from './rolling-update.ts';
import {
  clientAddress,
  nodeAddress,
  wireAddress,
  World,
  type Namespace,
  type Status,
  type TestEndpoint,
  type TestNetwork,
  type TestService,
} from './world.ts';

const engine = process.env['CAUSEWAY_TEST_LB'] ?? 'nft';
/** Milliseconds after which what should be dropped counts as dropped. */
const briefly = 700 * slowness;
/** How long a request takes that is long, in milliseconds. */
const longMs = 3_000 * slowness;
/** Milliseconds from one to the next. An emulated processor, which has three nodes to carry, can do no more beside. */
const every = slowness > 1 ? { brief: 500, long: 4_000 } : { brief: 10, long: 200 };
/** Rolling updates of each kind. On an emulated processor each takes five minutes. */
const updates = Number(process.env['CAUSEWAY_TEST_UPDATES'] ?? 1);

describe(`data path between nodes, engine ${engine}`, function () {
  this.timeout(240_000 * slowness);
  let directory: string;
  let consul: Running;
  let world: World;
  let untouched: string[];
  let front: TestNetwork;
  let back: TestNetwork;
  let service: TestService;
  const web: TestEndpoint[] = [];
  /** One on each node, on `front`. */
  const askers: Peer[] = [];
  let stranger: Peer;
  let client: Peer;
  const hosts: Peer[] = [];
  const names = ['web0', 'web1', 'web2'];

  function startConsul(wire: Namespace): Running {
    const server = consulServer({ name: 'wire', address: wireAddress, dataDir: join(directory, 'consul') });
    return startCommand(['setpriv', '--pdeathsig', 'KILL', '--', 'nsenter', `--net=${wire.path}`, ...server]);
  }

  before(async () => {
    await prepareConsul();
    directory = await mkdtemp(join(tmpdir(), 'causeway-cluster-'));
    world = await World.up({
      nodes: 3,
      env: (wire) => {
        consul = startConsul(wire);
        return { CAUSEWAY_LB: engine, CAUSEWAY_STORE: `consul://${wireAddress}:${consulPort}` };
      },
    });
    await world.everywhere(({ nodes }) => nodes.length === 3);
    untouched = await Promise.all(world.nodes.map((node) => node.kernelState()));
    front = await world.allocateNetwork('front', { subnet: '10.77.0.0/16' });
    back = await world.network('back');
    client = world.peer(world.client);
    await client.serve({ name: 'outside', tcp: 7000, udp: 7000 });
    for (const [index, node] of world.nodes.entries()) {
      await world.createNetwork(front, node);
      const endpoint = await world.attach(front, node);
      await world.peer(endpoint.sandbox).serve({ name: `web${index}`, tcp: 80, udp: 80 });
      web.push(endpoint);
      askers.push(world.peer((await world.attach(front, node)).sandbox));
      const host = world.peer(node.namespace);
      await host.serve({ name: `node${index}`, tcp: 22 });
      hosts.push(host);
    }
    stranger = world.peer((await world.attach(back)).sandbox);
    service = await world.service('web', front, ['8080:80', '8081:80/udp'], web);
  });
  after(async () => {
    await world.down();
    consul.kill('SIGKILL');
    await consul;
    await rm(directory, { recursive: true });
  });

  it('the published port of each node answers from every task, which sees the client’s address #main', async () => {
    for (const { address } of world.nodes) {
      assert.deepEqual(await askMany(client, address, 8080, 6), { servers: names, clients: [clientAddress] });
      assert.deepEqual(await askMany(client, address, 8081, 6, 'udp'), {
        servers: names,
        clients: [clientAddress],
      });
    }
  });

  it('the VIP answers a task of each node, which the server sees #main', async () => {
    for (const [index, asker] of askers.entries())
      for (const protocol of ['tcp', 'udp'] as const) {
        const { servers, clients } = await askMany(asker, service.vip, 80, 6, protocol);
        assert.deepEqual([servers, clients.length], [names, 1], `node ${index}, ${protocol}`);
      }
  });

  it('hosts with all settings of host-matrix.test.ts at once: ports and VIPs answer all the same #main', async () => {
    const parts = [
      ...[all('rp_filter', 1), all('src_valid_mark', 1)],
      ...[all('arp_ignore', 2), all('arp_announce', 2), all('arp_filter', 1)],
      ...[off('ipv4/ip_forward'), endsInChain],
    ];
    const answersAll = async (): Promise<void> => {
      for (const [index, { address }] of world.nodes.entries()) {
        const asked = await askMany(client, address, 8080, 3);
        assert.deepEqual(asked, { servers: names, clients: [clientAddress] }, `port of node ${index}`);
        assert.deepEqual((await askMany(askers[index]!, service.vip, 80, 3)).servers, names, `node ${index}`);
        assert.equal((await askers[index]!.ask(clientAddress, 7000)).client, address);
      }
    };
    for (const node of world.nodes) for (const part of parts) await part.apply(node);
    try {
      await world.pass();
      // What the first pass put right may be the next one's work on a slow processor.
      await answersAll().catch(() => world.pass().then(answersAll));
      await assert.rejects(stranger.ask(service.vip, 80, { timeout: briefly }), /timeout/);
    } finally {
      for (const node of world.nodes) for (const part of parts.toReversed()) await part.undo(node);
    }
  });

  it('a task reaches itself behind its own VIP, and the published port by every node', async () => {
    const [first] = web;
    assert.ok(first);
    const peer = world.peer(first.sandbox);
    assert.deepEqual((await askMany(peer, service.vip, 80, 6)).servers, names);
    for (const { address } of world.nodes) {
      assert.deepEqual((await askMany(peer, address, 8080, 6)).servers, names, address);
      assert.deepEqual(
        (await askMany(stranger, address, 8080, 6)).servers,
        names,
        `${address}, another network`,
      );
    }
  });

  it('each node itself is answered, by every address it has and by the VIP', async () => {
    for (const [index, host] of hosts.entries()) {
      for (const address of [world.nodes[index]?.address ?? '', '127.0.0.1'])
        assert.deepEqual(
          (await askMany(host, address, 8080, 6)).servers,
          names,
          `node ${index} at ${address}`,
        );
      assert.deepEqual((await askMany(host, service.vip, 80, 6)).servers, names, `node ${index} at the VIP`);
    }
  });

  it('tasks of one network reach each other by address, and the outside with the address of their node', async () => {
    for (const [index, asker] of askers.entries()) {
      for (const [at, { address }] of web.entries())
        assert.equal((await asker.ask(address, 80)).server, `web${at}`, `node ${index}`);
      assert.equal((await asker.ask(clientAddress, 7000)).client, world.nodes[index]?.address);
    }
  });

  it('networks are kept apart, on every node', async () => {
    for (const { address } of web)
      await assert.rejects(stranger.ask(address, 80, { timeout: briefly }), /timeout/);
    await assert.rejects(stranger.ask(service.vip, 80, { timeout: briefly }), /timeout/);
  });

  it('packets from the wire that are not a node’s are dropped', async () => {
    const [, second] = web;
    assert.ok(second);
    await world.client.ip(
      ...`link add forged type vxlan id 4790 dstport 4790 remote ${second.node.address} nolearning`.split(
        ' ',
      ),
    );
    await world.client.ip(...'address add 10.77.200.1/16 dev forged'.split(' '));
    await world.client.ip('link', 'set', 'forged', 'up');
    await assert.rejects(client.ask(second.address, 80, { timeout: briefly }), /timeout|EHOSTUNREACH/);
    await world.client.ip('link', 'del', 'forged');
  });

  it('causeway.lb.locality: tasks of the node that balances come first, or are all there is #main', async () => {
    await world.label(service, { 'causeway.lb.locality': 'prefer-local' });
    for (const [index, { address }] of world.nodes.entries()) {
      assert.deepEqual((await askMany(client, address, 8080, 4)).servers, [`web${index}`]);
      assert.deepEqual((await askMany(askers[index]!, service.vip, 80, 4)).servers, [`web${index}`]);
    }
    await world.scale(service, web.slice(0, 2));
    assert.deepEqual((await askMany(client, world.nodes[2]!.address, 8080, 4)).servers, ['web0', 'web1']);
    await world.label(service, { 'causeway.lb.locality': 'local' });
    assert.deepEqual((await askMany(client, world.nodes[1]!.address, 8080, 4)).servers, ['web1']);
    await assert.rejects(client.ask(world.nodes[2]!.address, 8080), /ECONNREFUSED/);
    await world.scale(service, web);
    await world.label(service, {});
  });

  it('causeway.lb.scheduler=mh: a connection goes on when its packets come in by another node #main', async () => {
    await world.label(service, { 'causeway.lb.scheduler': 'mh' });
    // An address that both have, and a balancer before them, which sends the client's packets to one or the other.
    const [first, , third] = world.nodes;
    assert.ok(first && third);
    const shared = '203.0.113.100';
    for (const { namespace } of [first, third])
      await namespace.ip('address', 'add', `${shared}/32`, 'dev', 'lo');
    const by = (node: typeof first): Promise<string> =>
      world.client.ip('route', 'replace', shared, 'via', node.address);
    await by(first);
    const held = new Map<string, string>();
    // Which task a connection comes to is chance: of so many each has one.
    for (let at = 0; at < 48; at += 1) {
      await client.open(`held${at}`, shared, 8080);
      held.set(`held${at}`, (await client.use(`held${at}`)).server);
    }
    assert.deepEqual([...new Set(held.values())].sort(), names);
    await by(third);
    // The first node's own task would be lost with the node, and the third one's kernel knows the connections to its own
    // already, as those of the first node's clients (docs/policy.md).
    for (const [key, server] of held)
      if (server === 'web1') assert.equal((await client.use(key)).server, server, key);
    await world.client.ip('route', 'del', shared);
    for (const { namespace } of [first, third])
      await namespace.ip('address', 'del', `${shared}/32`, 'dev', 'lo');
    await world.label(service, {});
  });

  it('connections of a client from one port of its own, by different nodes, are kept apart #main', async () => {
    const [, second] = web;
    assert.ok(second);
    await world.scale(service, [second]);
    // As a proxy before the nodes does, and any client's kernel: such ports are chosen for each destination by itself.
    // None that the kernel chooses by itself.
    const localPort = 23_404;
    for (const turn of [1, 2]) {
      for (const { address } of world.nodes)
        await client.open(`${turn} by ${address}`, address, 8080, { localPort: localPort + turn });
      for (const { address } of [...world.nodes, ...world.nodes])
        assert.deepEqual(
          (({ server, client: from }) => [server, from])(await client.use(`${turn} by ${address}`)),
          ['web1', clientAddress],
          address,
        );
    }
    await world.scale(service, web);
  });

  it('a client may use its port again, by another node, at a task that remembers it', async () => {
    const [first = '', , third = ''] = world.nodes.map(({ address }) => address);
    const task = await world.attach(front, world.nodes[2]);
    await world.peer(task.sandbox).serve({ name: 'ending', tcp: 80, ends: true });
    const used = await world.service('used', front, ['8095:80'], [task]);
    await world.until(() =>
      runTool(task.sandbox.path, 'nft', ['list', 'table', 'ip', 'causeway-reopen']).then(
        (rules) => rules.includes(task.address),
        () => false,
      ),
    );
    // The task has ended its side of each: it is left in TIME_WAIT, or in FIN-WAIT-2 while the client keeps its own.
    for (const [how, from] of [
      ['closed', '21000'],
      ['held', '22000'],
    ] as const) {
      const program = join(import.meta.dirname, 'reopen-program.ts');
      const asking = execa(
        'nsenter',
        [`--net=${world.client.path}`, process.execPath, program, how, first, third, '8095', from, '30'],
        { stdin: 'pipe', stdout: 'pipe' },
      );
      const lines = asking.iterable();
      assert.equal((await lines.next()).value, 'ready');
      // Otherwise the kernel would give the later one another port, which is free at the task, mostly.
      const { plugin } = task.node;
      await plugin.tool('conntrack', ['-D', '-p', 'tcp', '-s', clientAddress, '--dport', '80']);
      // A client that keeps its side lets the task wait for its word that it has heard of the end, for 40 ms.
      const unheard = (): Promise<string> => task.sandbox.run('ss', '-Htn', 'state', 'fin-wait-1');
      await world.until(async () => (await unheard()) === '');
      asking.stdin.write('\n');
      assert.equal((await lines.next()).value, '0', `SYNs sent again where the old connection is ${how}`);
      await asking;
    }
    await world.removeService(used);
    await world.detach(task);
  });

  // IPVS keeps a connection with the task that has refused it.
  if (engine === 'nft')
    it('a task that has closed its port: another is asked, on whichever node it is', async () => {
      const [first, second] = world.nodes;
      assert.ok(first && second);
      const ends = [await world.attach(front, first), await world.attach(front, second)];
      const [gone, stays] = ends.map(({ sandbox }) => world.peer(sandbox)) as [Peer, Peer];
      await gone.serve({ name: 'gone', tcp: 80 });
      await stays.serve({ name: 'stays', tcp: 80 });
      const closing = await world.service('closing', front, ['8101:80'], ends);
      for (const { address } of world.nodes)
        assert.deepEqual((await askMany(client, address, 8101, 6)).servers, ['gone', 'stays'], address);
      await gone.retire();
      const ways = [
        ...world.nodes.map(({ address }) => [client, address, 8101] as const),
        ...askers.map((asker) => [asker, closing.vip, 80] as const),
        ...hosts.map((host) => [host, '127.0.0.1', 8101] as const),
      ];
      for (const [index, [from, address, port]] of ways.entries())
        for (let turn = 0; turn < 2; turn += 1)
          assert.equal((await from.ask(address, port)).server, 'stays', `way ${index}, turn ${turn}`);
      await world.removeService(closing);
      for (const endpoint of ends) await world.detach(endpoint);
    });

  it('the tasks of a node that is cut off are hidden, and shown again when it is back #main', async () => {
    const [first, second, third] = world.nodes;
    assert.ok(first && second && third);
    await second.namespace.ip('link', 'set', 'eth0', 'down');
    // Some of these are sent to the lost node. Their clients try again by themselves, and are to find another task.
    const begun = [first, third].flatMap(({ address }) =>
      Array.from({ length: 6 }, () => client.ask(address, 8080, { timeout: 15_000 * slowness })),
    );
    const lost = (status: { nodes: { address: string; unreachable: boolean }[] }): boolean =>
      status.nodes.some(({ address, unreachable }) => unreachable && address === second.address);
    await world.everywhere((status) => lost(status) && status.kernel.settled, [first, third]);
    const answers = await Promise.all(begun);
    assert.deepEqual([...new Set(answers.map(({ server }) => server))].sort(), ['web0', 'web2']);
    for (const { address } of [first, third])
      assert.deepEqual((await askMany(client, address, 8080, 6)).servers, ['web0', 'web2']);
    assert.equal((await first.status()).endpoints.length, 7, 'it is unreachable, not deleted');
    await second.namespace.ip('link', 'set', 'eth0', 'up');
    await second.namespace.ip('route', 'add', 'default', 'via', clientAddress);
    await world.everywhere((status) => !lost(status), [first, third]);
    for (const { address } of world.nodes)
      await world.until(async () =>
        isDeepStrictEqual((await askMany(client, address, 8080, 6)).servers, names),
      );
  });

  it('one node’s plugin is away: its tasks go on serving', async () => {
    const [first, second] = world.nodes;
    assert.ok(first && second);
    await second.plugin.kill('SIGKILL');
    for (let turn = 0; turn < 5; turn += 1)
      for (const { address } of world.nodes)
        assert.deepEqual((await askMany(client, address, 8080, 6)).servers, names, address);
    assert.ok((await first.status()).nodes.every(({ unreachable }) => !unreachable));
    await second.plugin.start();
  });

  it('a plugin is installed anew: connections that would lead elsewhere now end, and no others', async () => {
    const [first, , third] = world.nodes;
    const asker = askers[2];
    assert.ok(first && third && asker);
    const ask = async (localPort: number): Promise<string> =>
      (await client.ask(third.address, 8081, { protocol: 'udp', localPort, timeout: briefly })).server;
    const flows = new Map<number, string>();
    for (let port = 20_000; port < 20_006; port += 1) flows.set(port, await ask(port));
    assert.ok([...flows.values()].includes('web1'));
    await asker.open('asker', third.address, 8080);
    await asker.use('asker');
    await third.plugin.kill('SIGKILL');
    const data = join(third.plugin.directory, 'data');
    await rm(data, { recursive: true });
    await mkdir(data);
    const listed = world.docker.services.find(({ ID }) => ID === service.id);
    assert.ok(listed);
    listed.Spec.Labels = { 'causeway.publish.allow': clientAddress };
    const stay = web.filter((_, at) => at !== 1);
    const scaled = world.scale(service, stay);
    const isKnown = ({ services }: Status): boolean => {
      const record = services.find(({ id }) => id === service.id);
      return record?.policy?.allow !== undefined && record.tasks.some(({ draining }) => draining);
    };
    await world.everywhere(isKnown, [first]);
    // A table that is deleted and made anew has another handle, and between the two nobody is answered.
    const table = async (): Promise<number | undefined> => {
      const { nftables } = JSON.parse(await third.plugin.tool('nft', ['-j', 'list', 'tables'])) as {
        nftables: { table?: { name: string; handle: number } }[];
      };
      return nftables.find((one) => one.table?.name === 'causeway')?.table?.handle;
    };
    const before = await table();
    await third.plugin.start();
    await scaled;
    assert.ok(before);
    assert.equal(await table(), before, 'the rules of the one before were taken over');
    await world.until(() =>
      asker.use('asker').then(
        () => false,
        () => true,
      ),
    );
    for (const [port, server] of flows)
      if (server !== 'web1') assert.equal(await ask(port), server, `${port} stays`);
      else
        await world.until(() =>
          ask(port).then(
            (now) => now !== 'web1',
            () => false,
          ),
        );
    await world.label(service, {});
    await world.scale(service, web);
  });

  it('Consul has lost everything: the nodes go on, and fill it again', async () => {
    consul.kill('SIGKILL');
    await consul;
    await rm(join(directory, 'consul'), { recursive: true });
    consul = startConsul(world.wire);
    const agreed = { missing: [], extra: [], different: [] };
    const unreachable = async (): Promise<string[]> => {
      const seen = await Promise.all(world.nodes.map((node) => node.status()));
      return seen.flatMap(({ nodes }) => nodes.flatMap((one) => (one.unreachable ? one.address : [])));
    };
    for (const node of world.nodes)
      await world.until(async () => {
        for (const { address } of world.nodes) {
          const before = await unreachable();
          // Two turns: one that has to try again, as on a busy machine, is another one's turn.
          const { servers } = await askMany(client, address, 8080, 6);
          // A node that got no processor for half a second is no loss of Consul's.
          if (before.concat(await unreachable()).length === 0) assert.deepEqual(servers, names);
        }
        const diff = await node.admin('/diff').catch(() => undefined);
        const { kernel, endpoints } = await node.status();
        return (
          isDeepStrictEqual(diff, agreed) &&
          kernel.settled &&
          endpoints.length === 7 &&
          (await unreachable()).length === 0
        );
      });
    const late = await world.attach(front);
    await world.peer(late.sandbox).serve({ name: 'late', tcp: 80 });
    await world.scale(service, [...web, late]);
    for (const { address } of world.nodes)
      assert.equal((await askMany(client, address, 8080, 8)).servers.length, 4);
  });

  /** A service of two tasks on each node, for rolling updates. */
  let rolled: TestService | undefined;
  let tasks: ServedTask[] = [];
  const allServe = (): Promise<void> =>
    world.until(async () => (await askMany(client, nodeAddress, 8090, 12)).servers.length === 6);

  for (const order of ['stop-first', 'start-first'] as const)
    it(`no request is lost in rolling updates, ${order}, long ones among them`, async function () {
      this.timeout(240_000 * slowness * updates);
      if (rolled === undefined) {
        const service = (rolled = await world.service('rolled', front, ['8090:80'], []));
        const places = [...world.nodes, ...world.nodes];
        tasks = await Promise.all(places.map((node) => startTask(world, service, node)));
        world.docker.hint();
      }
      await allServe();
      const at = { addresses: world.nodes.map(({ address }) => address), port: 8090 };
      const loads = [
        startLoad(client, { ...at, everyMs: every.brief, pauseMs: 0 }),
        startLoad(client, { ...at, everyMs: every.long, pauseMs: longMs }),
      ];
      const names: string[] = [];
      for (let turn = 0; turn < updates; turn += 1) {
        tasks = await rollingUpdate(world, rolled, tasks, order);
        names.push(...tasks.map(({ listed }) => listed.ID));
      }
      await allServe();
      // Enough for each new task to have its share.
      await sleep(1_000 * slowness);
      const [brief = [], long = []] = await Promise.all(loads.map((load) => load.stop()));
      this.test!.title += `: ${brief.length} short, ${long.length} of ${longMs / 1000} s, in ${updates} updates`;
      assert.deepEqual(
        [...brief, ...long].flatMap(({ failure }) => failure ?? []),
        [],
      );
      const answered = new Set(brief.map(({ server }) => server));
      assert.deepEqual(
        names.filter((name) => !answered.has(name)),
        [],
        'each new task had its share',
      );
    });

  it('everything is removed: the kernel of each node is as it was #main', async () => {
    for (const one of [service, rolled]) if (one !== undefined) await world.removeService(one);
    for (const endpoint of [...world.endpoints]) await world.detach(endpoint);
    await world.removeNetwork(front, world.nodes);
    await world.removeNetwork(back);
    await world.until(async () => {
      const states = await Promise.all(world.nodes.map((node) => node.kernelState()));
      return states.every((state, index) => state === untouched[index]);
    });
  });
});
