// Owns the tests of what labels make of a service, with real packets, for the engine CAUSEWAY_TEST_LB names.
// Must not test how labels are read (unit/swarm/policy.test.ts), nor what takes several nodes (cluster.test.ts).
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { slowness } from '../slowness.ts';
import { askMany, countMany } from './ask.ts';
import type { Peer } from './peer.ts';
import {
  clientAddress,
  nodeAddress,
  secondNodeAddress,
  World,
  type TestEndpoint,
  type TestService,
} from './world.ts';

const engine = process.env['CAUSEWAY_TEST_LB'] ?? 'nft';

/** Enough for an answer, in milliseconds. */
const briefly = 700 * slowness;

describe(`labels of a service, engine ${engine}`, function () {
  this.timeout(120_000 * slowness);
  let world: World;
  let untouched: string;
  let client: Peer;
  let node: Peer;
  let service: TestService;
  const web: TestEndpoint[] = [];
  const all = ['web0', 'web1', 'web2'];

  before(async () => {
    world = await World.up({ env: () => ({ CAUSEWAY_LB: engine }) });
    untouched = await world.kernelState();
    const front = await world.network('front', { subnet: '10.77.0.0/16' });
    for (const name of all) {
      const endpoint = await world.attach(front);
      await world.peer(endpoint.sandbox).serve({ name, tcp: 80, udp: 80 });
      web.push(endpoint);
    }
    client = world.peer(world.client);
    node = world.peer(world.node);
    service = await world.service('web', front, ['8080:80', '8081:80/udp'], web);
  });
  after(() => world.down());

  const refused = async (peer: Peer, address: string): Promise<void> => {
    await assert.rejects(peer.ask(address, 8080), /ECONNREFUSED/);
    await assert.rejects(peer.ask(address, 8081, { protocol: 'udp' }), /ECONNREFUSED/);
  };
  const served = async (peer: Peer, address: string): Promise<void> => {
    assert.deepEqual((await askMany(peer, address, 8080, 6)).servers, all, address);
    assert.deepEqual((await askMany(peer, address, 8081, 6, 'udp')).servers, all, address);
  };

  it('causeway.lb.weight: tasks take connections in proportion, unless the scheduler does not count it', async () => {
    const [light, , heavy] = web;
    assert.ok(light && heavy);
    await world.scale(service, [light, heavy], [1, 3]);
    assert.deepEqual(await countMany(client, nodeAddress, 8080, 16), { web0: 4, web2: 12 });
    await world.label(service, { 'causeway.lb.scheduler': 'rr' });
    assert.deepEqual(await countMany(client, nodeAddress, 8080, 16), { web0: 8, web2: 8 });
    await world.scale(service, web);
  });

  it('causeway.lb.slow-start: a new task takes few connections at first, and its whole share in the end', async () => {
    await world.label(service, { 'causeway.lb.slow-start': slowness > 1 ? '60' : '10' });
    const late = await world.attach(service.network);
    await world.peer(late.sandbox).serve({ name: 'late', tcp: 80, udp: 80 });
    await world.scale(service, [...web, late]);
    // Three that have ten parts each, and one that has one.
    for (const [asker, address, port] of [
      [client, nodeAddress, 8080],
      [node, service.vip, 80],
    ] as const) {
      const { late: few = 0 } = await countMany(asker, address, port, 62);
      assert.ok(few < 62 / 4 / 2, `${few} of 62 at ${address}`);
    }
    await world.until(async () => (await countMany(client, nodeAddress, 8080, 16))['late'] === 4);
    await world.scale(service, web);
    await world.detach(late);
    await world.label(service, {});
  });

  for (const [label, value] of [
    ['causeway.lb.affinity', '60'],
    ['causeway.lb.scheduler', 'sh'],
  ] as const)
    it(`${label}=${value}: a client stays with its task, and gets another when that leaves`, async () => {
      await world.label(service, { [label]: value });
      const { servers } = await askMany(client, nodeAddress, 8080, 8);
      assert.equal(servers.length, 1);
      const left = web.filter((_, at) => `web${at}` !== servers[0]);
      await world.scale(service, left);
      const after = await askMany(client, nodeAddress, 8080, 8);
      assert.equal(after.servers.length, 1);
      assert.notDeepEqual(after.servers, servers);
      await world.scale(service, web);
    });

  it('causeway.lb.scheduler=mh: the same client and port come to the same task, whatever else comes', async () => {
    await world.label(service, { 'causeway.lb.scheduler': 'mh' });
    // Which task a port comes to is chance: of so many each has one. None that the kernel chooses by itself.
    const ports = Array.from({ length: 48 }, (_, at) => 24_000 + 7 * at);
    const round = async (): Promise<string[]> => {
      const servers: string[] = [];
      for (const localPort of ports)
        servers.push((await client.ask(nodeAddress, 8081, { protocol: 'udp', localPort })).server);
      return servers;
    };
    const first = await round();
    assert.deepEqual([...new Set(first)].sort(), all);
    await askMany(client, nodeAddress, 8080, 5);
    assert.deepEqual(await round(), first);
  });

  it('causeway.lb.scheduler=lc is honoured, or reported as what the engine cannot do', async () => {
    await world.label(service, { 'causeway.lb.scheduler': 'lc' });
    // Who answers depends on the connections that ended a moment ago, which the kernel counts too.
    const { servers } = await askMany(client, nodeAddress, 8080, 6);
    assert.ok(
      servers.every((name) => all.includes(name)),
      servers.join(),
    );
    const { virtualServers } = await world.status();
    const texts = virtualServers.flatMap(({ unsupported }) => unsupported);
    assert.equal(
      texts.some((text) => text.includes('lc')),
      engine === 'nft',
    );
  });

  it('causeway.publish.bind: served at the addresses and devices that are named, refused at others', async () => {
    await world.label(service, { 'causeway.publish.bind': secondNodeAddress });
    await served(client, secondNodeAddress);
    await refused(client, nodeAddress);
    await refused(node, '127.0.0.1');
    await world.label(service, { 'causeway.publish.bind': `127.0.0.1` });
    await refused(client, nodeAddress);
    await served(node, '127.0.0.1');
    await world.label(service, { 'causeway.publish.bind': `${nodeAddress},wg0` });
    await served(client, nodeAddress);
    await refused(client, secondNodeAddress);
    await world.label(service, { 'causeway.publish.bind': 'eth0' });
    await served(client, nodeAddress);
    await served(client, secondNodeAddress);
  });

  it('causeway.publish.deny and .allow: others are refused at once, the node itself is not', async () => {
    await world.label(service, { 'causeway.publish.deny': '192.0.2.0/24,203.0.113.2' });
    await refused(client, nodeAddress);
    await served(node, nodeAddress);
    await served(node, '127.0.0.1');
    await world.label(service, { 'causeway.publish.allow': '192.0.2.0/24,198.51.100.0/24' });
    await refused(client, nodeAddress);
    await served(node, nodeAddress);
    await world.label(service, { 'causeway.publish.allow': `${clientAddress}/24,203.0.113.0/28` });
    await served(client, nodeAddress);
    await world.label(service, {
      'causeway.publish.allow': '203.0.113.0/24',
      'causeway.publish.deny': clientAddress,
    });
    await refused(client, nodeAddress);
  });

  it('causeway.lb.drain: connections of a task that drains are ended after so long, and go on without it', async () => {
    for (const [key, labels] of [
      ['plain', {}],
      ['ended', { 'causeway.lb.drain': '1' }],
    ] as const) {
      await world.label(service, { 'causeway.lb.scheduler': 'wrr', ...labels });
      await client.open(key, nodeAddress, 8080);
      const { server } = await client.use(key);
      await world.scale(
        service,
        web.filter((_, at) => `web${at}` !== server),
      );
      await sleep(2_000 * slowness);
      if (key === 'plain') assert.equal((await client.use(key)).server, server);
      else
        await world.until(() =>
          client.use(key).then(
            () => false,
            () => true,
          ),
        );
      await world.scale(service, web);
    }
  });

  const serving = async (...expected: string[]): Promise<void> => {
    await world.until(async () => {
      const { servers } = await askMany(client, nodeAddress, 8080, 6).catch(() => ({ servers: [] }));
      return isDeepStrictEqual(servers, expected);
    });
    // And goes on like that.
    assert.deepEqual((await askMany(client, nodeAddress, 8080, 6)).servers, expected);
    assert.deepEqual((await askMany(node, service.vip, 80, 6)).servers, expected);
  };

  it('a task whose container Docker calls unhealthy gets no connections until it is healthy again', async () => {
    const [first] = web;
    assert.ok(first);
    world.listContainer(first, {}, 'unhealthy');
    await serving('web1', 'web2');
    world.listContainer(first, {}, 'healthy');
    await serving(...all);
  });

  it('causeway.health: a task that does not answer gets no connections, a new one not before it answers', async () => {
    for (const endpoint of web.slice(0, 2))
      await world.peer(endpoint.sandbox).serve({ name: 'ready', tcp: 9000 });
    await world.label(service, {
      'causeway.health': 'tcp:9000',
      'causeway.health.interval': '1',
      'causeway.health.fall': '2',
    });
    await serving('web0', 'web1');
    await world.peer(web[2]!.sandbox).serve({ name: 'ready', tcp: 9000 });
    await serving('web0', 'web1', 'web2');

    const late = await world.attach(service.network);
    await world.peer(late.sandbox).serve({ name: 'web3', tcp: 80 });
    await world.scale(service, [...web, late]);
    await serving('web0', 'web1', 'web2');
    await world.peer(late.sandbox).serve({ name: 'ready', tcp: 9000 });
    await serving('web0', 'web1', 'web2', 'web3');
    await world.scale(service, web);
    await world.detach(late);
  });

  it('connections may be idle for days, not for a quarter of an hour', async () => {
    await world.label(service, { 'causeway.lb.scheduler': 'wrr' });
    await client.open('idle', nodeAddress, 8080);
    await client.use('idle');
    // What is left until the kernel forgets it, in seconds.
    const left =
      engine === 'ipvs'
        ? /^TCP .* ESTABLISHED +(\d+)/m.exec(await world.node.run('cat', '/proc/net/ip_vs_conn'))
        : /tcp +6 (\d+) ESTABLISHED/.exec(await world.plugin.tool('conntrack', ['-L', '-p', 'tcp']));
    assert.ok(Number(left?.[1]) > 3 * 24 * 3600, left?.[0]);
  });

  it('causeway.lb.timeout: connections that are silent are forgotten after so long, and not before', async () => {
    // Conntrack's own time for UDP that was answered, in place of 30 s.
    await world.node.run('sysctl', '-q', '-w', 'net.netfilter.nf_conntrack_udp_timeout=1');
    const askAfter = async (milliseconds: number, localPort: number): Promise<boolean> => {
      const ask = () => client.ask(nodeAddress, 8081, { protocol: 'udp', localPort });
      const { server } = await ask();
      await sleep(milliseconds);
      return (await ask()).server === server;
    };
    const longer = 3_000 * slowness;
    await world.label(service, { 'causeway.lb.timeout': `udp:${600 * slowness}` });
    assert.equal(await askAfter(longer, 43_001), true, 'as long as the label says');
    await world.label(service, { 'causeway.lb.timeout': 'tcp:2,udp:2' });
    await client.open('silent', nodeAddress, 8080);
    await client.use('silent');
    const texts = (await world.status()).virtualServers.flatMap(({ unsupported }) => unsupported);
    if (engine === 'ipvs') {
      assert.ok(texts.some((text) => text.includes('one set of times')));
      const connections = await world.node.run('cat', '/proc/net/ip_vs_conn');
      // Flows of before the label have less left.
      const left = [...connections.matchAll(/^UDP .* (\d+)$/gm)].map(([, seconds]) => Number(seconds));
      assert.ok(Math.max(...left) > 300, connections);
      await sleep(3_000);
      await client.use('silent');
      return;
    }
    assert.deepEqual(texts, []);
    assert.equal(await askAfter(3_500, 43_002), false, 'no longer than the label says');
    await assert.rejects(client.use('silent'));
    await world.label(service, {});
    assert.equal(await askAfter(longer, 43_003), false, 'as the node has it, without the label');
  });

  it('a label that cannot be read is reported, and the others count', async () => {
    await world.label(service, { 'causeway.lb.scheduler': 'fastest', 'causeway.publish.deny': '192.0.2.1' });
    await served(client, nodeAddress);
    const [record] = (await world.status()).services;
    assert.deepEqual(record?.problems, [
      'causeway.lb.scheduler=fastest: must be one of rr, wrr, lc, wlc, sh, mh',
    ]);
  });

  it('a label that was to say who may connect, and cannot be read, closes the port, and tells', async () => {
    for (const labels of [
      { 'causeway.publish.allow': `203.0.113.0/24;198.51.100.0/24` },
      { 'causeway.publish.alow': '203.0.113.0/24' },
      { 'causeway.publish.deny': '192.0.2.0/24,2001:db8::/32', 'causeway.publish.allow': '203.0.113.0/24' },
    ]) {
      await world.label(service, labels);
      await refused(client, nodeAddress);
      await refused(client, secondNodeAddress);
      await refused(node, '127.0.0.1');
      assert.deepEqual((await askMany(node, service.vip, 80, 6)).servers, all, 'a VIP is no published port');
      const [record] = (await world.status()).services;
      assert.match(record?.problems?.join() ?? '', /closed to everybody until it is put right/);
    }
    await world.label(service, { 'causeway.publish.allow': '0.0.0.0/0' });
    await served(client, nodeAddress);
  });

  it('causeway.publish and timeout on a single container: who may use its ports, and nobody before that is known', async () => {
    const single = await world.attach(service.network);
    await world.peer(single.sandbox).serve({ name: 'single', tcp: 80, udp: 80 });
    await world.publish(single, ['8090:80', `${secondNodeAddress}:8091:80/udp`]);
    const asking = [
      () => client.ask(nodeAddress, 8090, { timeout: briefly }),
      () => client.ask(secondNodeAddress, 8091, { protocol: 'udp', timeout: briefly }),
    ];
    // The kernel sends a client so many ICMP messages a second and no more, and some refusals go without one.
    const askTwice = (ask: () => Promise<unknown>): Promise<unknown> =>
      ask().catch(async (error: unknown) => {
        if (!String(error).includes('timeout')) throw error;
        await sleep(1_000);
        return ask();
      });
    const each = async (outcome: RegExp): Promise<void> => {
      for (const ask of asking) await assert.rejects(askTwice(ask), outcome);
    };
    await each(/timeout/);
    await world.startContainer(single, { 'causeway.publish.allow': '203.0.113.0/24 192.0.2.0/24' });
    await each(/ECONNREFUSED/);
    await assert.rejects(node.ask('127.0.0.1', 8090), /ECONNREFUSED/);
    await world.startContainer(single, { 'causeway.publish.allow': '192.0.2.0/24' });
    await each(/ECONNREFUSED/);
    assert.equal((await node.ask('127.0.0.1', 8090)).server, 'single', 'the node itself needs no allowance');
    await world.startContainer(single, { 'causeway.publish.bind': '127.0.0.1' });
    await each(/ECONNREFUSED/);
    assert.equal((await node.ask('127.0.0.1', 8090)).server, 'single');
    await world.startContainer(single, { 'com.docker.swarm.service.id': service.id });
    await world.label(service, { 'causeway.publish.deny': clientAddress });
    await each(/ECONNREFUSED/);
    await world.label(service, {});
    for (const ask of asking) assert.equal((await ask()).server, 'single');
    await world.startContainer(single, { 'causeway.lb.timeout': 'udp:700', 'causeway.lb.drain': '5' });
    for (const ask of asking) assert.equal((await ask()).server, 'single');
    const flows = await world.plugin.tool('conntrack', ['-L', '-p', 'udp', '--orig-port-dst', '8091']);
    assert.match(flows, /^udp +17 (69\d|700) /m);
    const access = (await world.status()).endpoints.find(({ id }) => id === single.id)?.access;
    assert.match(JSON.stringify(access), /causeway\.lb\.drain=5: a label of services/);
    await world.detach(single);
  });

  it('the kernel has what was written there', async () => {
    await world.label(service, {
      'causeway.lb.scheduler': 'mh',
      'causeway.lb.affinity': '60',
      'causeway.publish.bind': `${nodeAddress},eth0`,
      'causeway.publish.allow': '203.0.113.0/24',
      'causeway.lb.timeout': 'tcp:3600,udp:60',
    });
    const before = world.plugin.output.length;
    // Two looks at the kernel at least.
    await new Promise((resolve) => setTimeout(resolve, 12_000));
    const commands = world.plugin.output.slice(before);
    assert.doesNotMatch(commands, /"command":"(nft -f|ipvsadm --restore|ip -4 -force)/);
  });

  it('all labels are gone: the kernel is as it was', async () => {
    await world.removeService(service);
    const { network } = service;
    for (const endpoint of [...world.endpoints]) await world.detach(endpoint);
    await world.removeNetwork(network);
    await world.until(async () => (await world.kernelState()) === untouched);
  });
});
