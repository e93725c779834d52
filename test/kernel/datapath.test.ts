// Owns the tests of the data path and the balancer with real packets, for the engine CAUSEWAY_TEST_LB names.
import assert from 'node:assert/strict';
import {
  clientAddress,
  nodeAddress,
  secondNodeAddress,
  World,
  type TestEndpoint,
  type TestNetwork,
} from './world.ts';
import { slowness } from '../slowness.ts';
import type { Peer } from './peer.ts';
import { askMany } from './ask.ts';

/** Milliseconds after which what should be dropped counts as dropped. */
const briefly = 700 * slowness;

const engine = process.env['CAUSEWAY_TEST_LB'] ?? 'nft';

describe(`data path, engine ${engine}`, function () {
  this.timeout(120_000 * slowness);
  let world: World;
  let untouched: string;
  let front: TestNetwork;
  let back: TestNetwork;
  const web: TestEndpoint[] = [];
  let other: TestEndpoint;
  let client: Peer;
  let asker: Peer;
  let node: Peer;
  let web0: Peer;
  let vip: string;

  before(async () => {
    world = await World.up({ env: () => ({ CAUSEWAY_LB: engine }) });
    untouched = await world.kernelState();
    front = await world.network('front', { subnet: '10.77.0.0/16' });
    back = await world.network('back');
    for (const name of ['web0', 'web1', 'web2']) {
      const endpoint = await world.attach(front);
      const peer = world.peer(endpoint.sandbox);
      await peer.serve({ name, tcp: 80, udp: 80 });
      if (name === 'web0') web0 = peer;
      web.push(endpoint);
    }
    const asking = await world.attach(front);
    asker = world.peer(asking.sandbox);
    other = await world.attach(back);
    client = world.peer(world.client);
    node = world.peer(world.node);
    await client.serve({ name: 'outside', tcp: 7000, udp: 7000 });
    await node.serve({ name: 'node', tcp: 22 });
    ({ vip } = await world.service('web', front, ['8080:80', '8081:80/udp', '8082:81'], web));
  });
  after(() => world.down());

  it('the engine is the one that was asked for', async () => {
    assert.equal((await world.status()).engine.name, engine);
  });

  for (const address of [nodeAddress, secondNodeAddress]) {
    it(`the published port at ${address} answers from every task, which sees the client’s address`, async () => {
      assert.deepEqual(await askMany(client, address, 8080, 6), {
        servers: ['web0', 'web1', 'web2'],
        clients: [clientAddress],
      });
    });
  }

  it('a published UDP port answers', async () => {
    assert.deepEqual(await askMany(client, nodeAddress, 8081, 6, 'udp'), {
      servers: ['web0', 'web1', 'web2'],
      clients: [clientAddress],
    });
  });

  for (const protocol of ['tcp', 'udp'] as const) {
    it(`the VIP answers over ${protocol}, and the task sees the asking task`, async () => {
      const { servers, clients } = await askMany(asker, vip, 80, 6, protocol);
      assert.deepEqual(servers, ['web0', 'web1', 'web2']);
      assert.equal(clients.length, 1);
      assert.match(clients[0] ?? '', /^10\.77\./);
    });
  }

  it('a task reaches itself behind its own VIP', async () => {
    const { servers } = await askMany(web0, vip, 80, 6);
    assert.deepEqual(servers, ['web0', 'web1', 'web2']);
  });

  it('a task reaches the published port of its own service', async () => {
    assert.deepEqual((await askMany(web0, nodeAddress, 8080, 6)).servers, ['web0', 'web1', 'web2']);
  });

  it('tasks of one network reach each other by address', async () => {
    assert.equal((await asker.ask(web[1]?.address ?? '', 80)).server, 'web1');
  });

  for (const address of [nodeAddress, secondNodeAddress, '127.0.0.1']) {
    it(`the node itself is answered on the published port at ${address}`, async () => {
      assert.deepEqual((await askMany(node, address, 8080, 6)).servers, ['web0', 'web1', 'web2']);
      assert.deepEqual((await askMany(node, address, 8081, 6, 'udp')).servers, ['web0', 'web1', 'web2']);
    });
  }

  it('the node itself is answered on the VIP', async () => {
    const { servers, clients } = await askMany(node, vip, 80, 6);
    assert.deepEqual(servers, ['web0', 'web1', 'web2']);
    assert.deepEqual(clients, [front.gateway]);
  });

  it('all tasks refuse: the client is refused', async () => {
    await assert.rejects(client.ask(nodeAddress, 8082), /ECONNREFUSED/);
    await assert.rejects(asker.ask(vip, 81), /ECONNREFUSED/);
  });

  // IPVS keeps a connection with the task that has refused it.
  if (engine === 'nft')
    it('a task that has closed its port and still gets connections: another one is asked', async () => {
      const [closing, other] = [await world.attach(front), await world.attach(front)];
      const [gone, stays] = [world.peer(closing.sandbox), world.peer(other.sandbox)];
      await gone.serve({ name: 'gone', tcp: 80 });
      await stays.serve({ name: 'stays', tcp: 80 });
      const both = [closing, other];
      const service = await world.service('closing', front, ['8101:80'], both);
      assert.deepEqual((await askMany(client, nodeAddress, 8101, 4)).servers, ['gone', 'stays']);
      await gone.retire();
      for (const [from, address, port] of [
        [client, nodeAddress, 8101],
        [node, '127.0.0.1', 8101],
        [asker, service.vip, 80],
      ] as const)
        for (let turn = 0; turn < 2; turn += 1)
          assert.equal((await from.ask(address, port)).server, 'stays', `${address}, turn ${turn}`);
      await world.scale(service, [closing]);
      await assert.rejects(client.ask(nodeAddress, 8101), /ECONNREFUSED/, 'there is no other');
      await world.removeService(service);
      for (const endpoint of both) await world.detach(endpoint);
    });

  it('ports of a single container (mode=host) answer, at the node’s addresses and by the protocols asked for', async () => {
    const endpoint = await world.attach(front);
    const single = world.peer(endpoint.sandbox);
    await single.serve({ name: 'single', tcp: 80, udp: 80 });
    await world.publish(endpoint, ['8090:80', '8091:80/udp', `${secondNodeAddress}:8092:80`]);
    await world.startContainer(endpoint);
    for (const [address, port, protocol] of [
      [nodeAddress, 8090, 'tcp'],
      [nodeAddress, 8091, 'udp'],
      [secondNodeAddress, 8092, 'tcp'],
    ] as const)
      assert.deepEqual(await askMany(client, address, port, 2, protocol), {
        servers: ['single'],
        clients: [clientAddress],
      });
    for (const [address, port] of [
      [nodeAddress, 8091],
      [nodeAddress, 8092],
    ] as const)
      await assert.rejects(client.ask(address, port), /ECONNREFUSED/);
    for (const peer of [node, single, asker])
      assert.equal((await peer.ask(nodeAddress, 8090)).server, 'single');
    assert.equal((await node.ask('127.0.0.1', 8090)).server, 'single');
    await assert.rejects(world.publish(endpoint, ['22:80']), /port 22\/tcp cannot be published/);
    assert.equal((await client.ask(nodeAddress, 8090)).server, 'single', 'what it had is as it was');
    await world.publish(endpoint, []);
    await assert.rejects(client.ask(nodeAddress, 8090), /ECONNREFUSED/);
    await world.detach(endpoint);
  });

  it('networks are kept apart, by address, VIP and gateway', async () => {
    const stranger = world.peer(other.sandbox);
    await assert.rejects(stranger.ask(web[0]?.address ?? '', 80, { timeout: briefly }), /timeout/);
    await assert.rejects(stranger.ask(vip, 80, { timeout: briefly }), /timeout/);
    await assert.rejects(stranger.ask(front.gateway, 22, { timeout: briefly }), /timeout/);
    assert.equal(
      (await askMany(stranger, nodeAddress, 8080, 3)).servers.length,
      3,
      'the published port is for everybody',
    );
  });

  it('ports that are not published are closed to the world', async () => {
    await world.client.ip('route', 'add', front.subnet, 'via', nodeAddress);
    await assert.rejects(client.ask(web[0]?.address ?? '', 80, { timeout: briefly }), /timeout/);
    await world.client.ip('route', 'del', front.subnet);
  });

  it('a sandbox cannot speak with an address that is not its own', async () => {
    const { sandbox } = other;
    await sandbox.ip('address', 'add', '10.77.0.250/32', 'dev', 'eth0');
    await sandbox.ip(
      'route',
      'add',
      `${web[0]?.address ?? ''}/32`,
      'via',
      back.gateway,
      'src',
      '10.77.0.250',
    );
    const stranger = world.peer(sandbox);
    await assert.rejects(stranger.ask(web[0]?.address ?? '', 80, { timeout: briefly }), /timeout/);
    await sandbox.ip('address', 'del', '10.77.0.250/32', 'dev', 'eth0');
  });

  it('tasks reach the outside with the address of the node, unless the network is internal', async () => {
    for (const protocol of ['tcp', 'udp'] as const) {
      const { server, client: seen } = await asker.ask(clientAddress, 7000, { protocol });
      assert.deepEqual([server, seen], ['outside', nodeAddress]);
    }
    const closed = await world.network('closed', { internal: true });
    const inside = await world.attach(closed);
    const peer = world.peer(inside.sandbox);
    await peer.serve({ name: 'inside', tcp: 80 });
    await assert.rejects(peer.ask(clientAddress, 7000, { timeout: briefly }), /timeout|ENETUNREACH/);
    await assert.rejects(peer.ask(nodeAddress, 22, { timeout: briefly }), /timeout|ENETUNREACH/);
    const service = await world.service('inside', closed, ['8090:80'], [inside]);
    assert.equal(
      (await client.ask(nodeAddress, 8090)).client,
      clientAddress,
      'published ports are the one way in',
    );
    await world.removeService(service);
    await world.detach(inside);
    await world.removeNetwork(closed);
  });

  it('an address of the subnet that nobody has is refused at once', async () => {
    await assert.rejects(asker.ask('10.77.200.200', 80, { timeout: 10_000 * slowness }), /EHOSTUNREACH/);
  });

  /** What an administrator, or a firewall's service that starts, does to the kernel. */
  async function flushAll(): Promise<void> {
    await world.plugin.tool('nft', ['flush', 'ruleset']);
    await world.node.ip('route', 'flush', 'table', 'all', 'proto', '197');
    if (engine === 'ipvs') await world.plugin.tool('ipvsadm', ['--clear']);
  }

  /** It is taken out by several commands: what is put back after the first is taken out again by the next. */
  async function restored(): Promise<void> {
    for (const [peer, address, port] of [
      [client, nodeAddress, 8080],
      [asker, vip, 80],
    ] as const)
      await world.until(() =>
        askMany(peer, address, port, 6).then(
          ({ servers }) => servers.length === 3,
          () => false,
        ),
      );
  }

  it('what somebody takes out of the kernel is put back', async () => {
    await flushAll();
    await restored();
  });

  // A flush of all rules opens what they keep closed: the pass that reads the kernel every 5 s would be too late.
  const losses: Record<string, () => Promise<unknown>> = {
    'all rules of nft': () => world.plugin.tool('nft', ['flush', 'ruleset']),
    'its routes, as networkd does': () => world.node.ip('route', 'flush', 'table', 'all', 'proto', '197'),
    'elements of its sets': () => world.plugin.tool('nft', ['flush', 'set', 'inet', 'causeway', 'sources']),
  };
  for (const [what, take] of Object.entries(losses))
    it(`what somebody takes is put back at once: ${what}`, async () => {
      // By chance the pass that comes anyway could be the next thing to happen, but not each time.
      for (let turn = 0; turn < 3; turn += 1) {
        await world.pass();
        // Elements may be listed in another order afterwards, and routes of links that equal one of ours be taken for it.
        const held = async (): Promise<string> => {
          const rules = await world.plugin.tool('nft', ['list', 'ruleset']);
          const routes = await world.node.ip('route', 'show', 'table', 'all', 'proto', '197');
          return `${rules.length} ${routes.split('\n').sort().join('\n')}`;
        };
        const whole = await held();
        await take();
        const began = performance.now();
        await world.until(async () => (await held()) === whole);
        assert.ok(performance.now() - began < 3_000 * slowness, `${performance.now() - began} ms`);
      }
    });

  it('somebody took everything out of the kernel: a sandbox is attached, and the rest put back', async () => {
    await flushAll();
    const late = await world.attach(front);
    await restored();
    await flushAll();
    await world.detach(late);
    await restored();
  });

  it('rules of the user’s own, ahead of Causeway’s, have the last word about who comes in', async () => {
    const rules = `table inet mine {
      chain published {
        type filter hook prerouting priority -160; policy accept;
        ip saddr ${clientAddress} tcp dport 8080 drop
        ip saddr ${clientAddress} ct state new udp dport 8081 counter drop
      }
    }`;
    await world.plugin.tool('nft', [rules]);
    await assert.rejects(client.ask(nodeAddress, 8080, { timeout: briefly }), /timeout/);
    await assert.rejects(client.ask(nodeAddress, 8081, { protocol: 'udp', timeout: briefly }), /timeout/);
    assert.equal((await askMany(node, nodeAddress, 8080, 6)).servers.length, 3);
    await world.plugin.tool('nft', ['delete', 'table', 'inet', 'mine']);
    assert.equal((await askMany(client, nodeAddress, 8080, 6)).servers.length, 3);
  });

  it('a FORWARD policy of DROP is passed, and the accept rules are put back', async () => {
    await world.plugin.tool('iptables-nft', ['-P', 'FORWARD', 'DROP']);
    const reaches = (): Promise<boolean> =>
      asker.ask(clientAddress, 7000, { timeout: briefly }).then(
        () => true,
        () => false,
      );
    await world.until(reaches);
    await world.plugin.tool('iptables-nft', ['-F', 'FORWARD']);
    await world.until(async () => !(await reaches()));
    await world.until(reaches);
    assert.equal((await askMany(client, nodeAddress, 8080, 6)).servers.length, 3);
    await world.plugin.tool('nft', ['delete', 'table', 'ip', 'filter']);
  });

  it('the data path goes on without the plugin, which takes over again from the kernel', async () => {
    await client.open('held', nodeAddress, 8080);
    const { server } = await client.use('held');
    await world.plugin.kill('SIGKILL');
    assert.equal((await client.use('held')).server, server);
    assert.equal((await askMany(client, nodeAddress, 8080, 6)).servers.length, 3);
    assert.equal((await askMany(asker, vip, 80, 6)).servers.length, 3);
    await world.plugin.start();
    assert.equal((await client.use('held')).server, server, 'the established connection lives on');
    const late = await world.attach(front);
    await world.peer(late.sandbox).serve({ name: 'late', tcp: 80 });
    const service = await world.service('late', front, ['8100:80'], [late]);
    assert.equal((await client.ask(nodeAddress, 8100)).server, 'late');
    await world.removeService(service);
    await world.detach(late);
  });

  // Only where there is another one.
  if (engine === 'ipvs')
    it('a change of the engine, and back: connections go on', async () => {
      const use = async (engineNow: string): Promise<void> => {
        await world.plugin.kill('SIGTERM');
        await world.plugin.start({ CAUSEWAY_LB: engineNow });
        await world.everywhere((status) => status.engine.name === engineNow && status.kernel.settled);
        assert.equal((await askMany(client, nodeAddress, 8080, 6)).servers.length, 3);
        assert.equal((await askMany(asker, vip, 80, 6)).servers.length, 3);
      };
      const held = new Map<string, string>();
      const hold = async (key: string): Promise<void> => {
        await client.open(key, nodeAddress, 8080);
        held.set(key, (await client.use(key)).server);
      };
      const allGoOn = async (): Promise<void> => {
        for (const [key, server] of held) assert.equal((await client.use(key)).server, server, key);
      };
      await hold('begun with ipvs');
      await use('nft');
      await allGoOn();
      await hold('begun with nft');
      await use('ipvs');
      await allGoOn();
    });

  it('the data path follows the tasks: drains, goes to none and refuses, and comes back', async () => {
    const service = (await world.status()).services[0];
    assert.ok(service);
    const record = { id: service.id, name: 'web', vip, network: front };
    await client.open('drained', nodeAddress, 8080);
    const { server } = await client.use('drained');
    const stays = web.filter((_, index) => `web${index}` !== server);
    await world.scale(record, stays);
    assert.equal((await client.use('drained')).server, server, 'a draining task keeps its connections');
    assert.ok(
      !(await askMany(client, nodeAddress, 8080, 8)).servers.includes(server),
      'and gets no new ones',
    );
    await world.scale(record, []);
    await assert.rejects(client.ask(nodeAddress, 8080), /ECONNREFUSED/);
    await assert.rejects(client.ask(nodeAddress, 8081, { protocol: 'udp' }), /ECONNREFUSED/);
    await assert.rejects(asker.ask(vip, 80), /ECONNREFUSED/);
    await assert.rejects(asker.ask(vip, 22), /ECONNREFUSED/, "the node's own daemons do not answer on a VIP");
    await assert.rejects(node.ask('127.0.0.1', 8080), /ECONNREFUSED/);
    await world.scale(record, web);
    assert.deepEqual((await askMany(client, nodeAddress, 8080, 6)).servers, ['web0', 'web1', 'web2']);
  });

  it('a UDP client with a fixed port moves away from a task that leaves', async () => {
    const service = (await world.status()).services[0];
    assert.ok(service);
    const record = { id: service.id, name: 'web', vip, network: front };
    const fixed = { protocol: 'udp', localPort: 40_000 } as const;
    const { server } = await client.ask(nodeAddress, 8081, fixed);
    assert.equal((await client.ask(nodeAddress, 8081, fixed)).server, server, 'a flow stays with its task');
    await world.scale(
      record,
      web.filter((_, index) => `web${index}` !== server),
    );
    // With IPVS the packet that finds the flow's real server gone ends the flow; the next one starts another. With nft the
    // flow is forgotten a moment after the balancer is right.
    await world.until(() =>
      client.ask(nodeAddress, 8081, { ...fixed, timeout: briefly }).then(
        (seen) => seen.server !== server,
        () => false,
      ),
    );
    await world.scale(record, web);
  });

  it('a container’s neighbour entry is put back when its link was down', async () => {
    const [endpoint] = web;
    const held = (): Promise<string> =>
      world.node.ip('neigh', 'show', 'to', endpoint?.address ?? '', 'nud', 'permanent');
    const before = await held();
    assert.match(before, /PERMANENT/);
    const [, link = ''] = / ?dev (\S+)/.exec(before) ?? [];
    await world.node.ip('link', 'set', link, 'down');
    await world.node.ip('link', 'set', link, 'up');
    await world.until(async () => (await held()) === before);
    assert.equal((await askMany(client, nodeAddress, 8080, 6)).servers.length, 3);
  });

  it('everything is removed: the kernel is as it was', async () => {
    const [service] = world.docker.services;
    assert.ok(service);
    await world.removeService({ id: service.ID, name: 'web', vip, network: front });
    for (const endpoint of [...world.endpoints]) await world.detach(endpoint);
    await world.removeNetwork(front);
    await world.removeNetwork(back);
    assert.equal(await world.kernelState(), untouched);
  });
});
