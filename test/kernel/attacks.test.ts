// Owns the attacks: who sends what to whom from which place, with real packets, and beside every wall the neighbour that
// must go on passing it. docs/security.md says which test stands for what.
// Must not test what is balanced where (datapath.test.ts, cluster.test.ts). The cases marked #main are those for which
// there is time on an emulated processor.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fabricMac } from '../../net/names.ts';
import { consulPort, consulServer, prepareConsul } from '../lab/consul.ts';
import { startCommand, type Running } from '../lab/node.ts';
import { slowness } from '../slowness.ts';
import type { Peer } from './peer.ts';
import {
  clientAddress,
  nodeAddress as a,
  secondNodeAddress as a2,
  wireAddress,
  World,
  type Namespace,
  type TestEndpoint,
  type TestNetwork,
  type TestService,
} from './world.ts';

const engine = process.env['CAUSEWAY_TEST_LB'] ?? 'nft';
/** Milliseconds after which what should be kept out counts as kept out. */
const briefly = 700 * slowness;
/** The second node's and the third's. */
const [b, c] = ['203.0.113.11', '203.0.113.12'];
const fabric = { port: 4790, vni: 4790 };
/** Of Docker's own bridges; one container on each. */
const bridged = { docker0: '172.17.0.2', docker_gwbridge: '172.18.0.2' };

interface Link {
  ifname: string;
  ifindex: number;
  address: string;
}

describe(`attacks, engine ${engine}`, function () {
  this.timeout(240_000 * slowness);
  let directory: string;
  let consul: Running;
  let world: World;
  let front: TestNetwork;
  let inner: TestNetwork;
  let tenant: TestNetwork;
  let web: TestEndpoint;
  let db: TestEndpoint;
  let member: TestEndpoint;
  let insider: TestEndpoint;
  let lodger: TestEndpoint;
  let webService: TestService;
  let dbService: TestService;

  /** The attackers, by where they are. */
  const at = {} as Record<
    | 'lan'
    | 'docker0 of A'
    | 'tenant on A'
    | 'tenant on A, without privileges'
    | 'inner on A'
    | 'front on C'
    | 'host A'
    | 'host A, without privileges'
    | 'host B'
    | 'host C'
    | 'web on B'
    | 'db on B',
    Peer
  >;
  type Position = keyof typeof at;

  /** A container on a bridge that is not ours, as Docker makes them. */
  async function bridge(node: Namespace, name: keyof typeof bridged): Promise<Namespace> {
    const address = bridged[name];
    const gateway = address.replace(/\d+$/, '1');
    const sandbox = await world.sandbox();
    const port = `br${sandbox.name.slice(-8)}`;
    await node.ip('link', 'add', name, 'type', 'bridge');
    await node.ip('address', 'add', `${gateway}/16`, 'dev', name);
    await node.ip('link', 'set', name, 'up');
    await node.ip('link', 'add', port, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', sandbox.name);
    await node.ip('link', 'set', port, 'master', name, 'up');
    await sandbox.ip('address', 'add', `${address}/16`, 'dev', 'eth0');
    await sandbox.ip('link', 'set', 'eth0', 'up');
    await sandbox.ip('route', 'add', 'default', 'via', gateway);
    return sandbox;
  }

  before(async () => {
    await prepareConsul();
    directory = await mkdtemp(join(tmpdir(), 'causeway-attacks-'));
    world = await World.up({
      nodes: 3,
      env: (wire) => {
        const [file, ...args] = consulServer({
          name: 'wire',
          address: wireAddress,
          dataDir: join(directory, 'consul'),
        });
        const where = ['--pdeathsig', 'KILL', '--', 'nsenter', `--net=${wire.path}`];
        consul = startCommand(['setpriv', ...where, file, ...args]);
        return { CAUSEWAY_LB: engine, CAUSEWAY_STORE: `consul://${wireAddress}:${consulPort}` };
      },
    });
    const [nodeA, nodeB, nodeC] = world.nodes;
    assert.ok(nodeA && nodeB && nodeC);
    assert.deepEqual([nodeA.address, nodeB.address, nodeC.address], [a, b, c]);
    await world.everywhere(({ nodes }) => nodes.length === 3);
    // As Docker up to 27 has it: what nobody has published is kept by the policy alone.
    await nodeA.plugin.tool('iptables-nft', ['-P', 'FORWARD', 'DROP']);
    const docker0 = await bridge(nodeA.namespace, 'docker0');
    const docker = async (...rule: string[]): Promise<string> => nodeA.plugin.tool('iptables-nft', rule);
    await docker('-A', 'FORWARD', '-m', 'conntrack', '--ctstate', 'RELATED,ESTABLISHED', '-j', 'ACCEPT');
    await docker('-A', 'FORWARD', '-i', 'docker0', '!', '-o', 'docker0', '-j', 'ACCEPT');
    await docker(
      '-A',
      'FORWARD',
      '-o',
      'docker0',
      '-p',
      'tcp',
      '--dport',
      '5432',
      '-m',
      'conntrack',
      '--ctstate',
      'DNAT',
      '-j',
      'ACCEPT',
    );
    await docker(
      '-t',
      'nat',
      '-A',
      'POSTROUTING',
      '-s',
      '172.17.0.0/16',
      '!',
      '-o',
      'docker0',
      '-j',
      'MASQUERADE',
    );
    await docker(
      '-t',
      'nat',
      '-A',
      'PREROUTING',
      '-p',
      'tcp',
      '--dport',
      '9432',
      '-m',
      'addrtype',
      '--dst-type',
      'LOCAL',
      '-j',
      'DNAT',
      '--to-destination',
      `${bridged.docker0}:5432`,
    );
    const mesh = await bridge(nodeB.namespace, 'docker_gwbridge');

    tenant = await world.network('tenant', { subnet: '10.72.0.0/16' });
    inner = await world.network('inner', { subnet: '10.73.0.0/16', internal: true });
    front = await world.allocateNetwork('front', { subnet: '10.71.0.0/16' });
    lodger = await world.attach(tenant);
    insider = await world.attach(inner);
    await world.createNetwork(inner, nodeB);
    db = await world.attach(inner, nodeB);
    await world.createNetwork(front, nodeC);
    member = await world.attach(front, nodeC);
    await world.createNetwork(front, nodeB);
    web = await world.attach(front, nodeB);

    for (const [position, space, privileged] of [
      ['lan', world.client, true],
      ['docker0 of A', docker0, true],
      ['tenant on A', lodger.sandbox, true],
      ['tenant on A, without privileges', lodger.sandbox, false],
      ['inner on A', insider.sandbox, true],
      ['front on C', member.sandbox, true],
      ['host A', nodeA.namespace, true],
      ['host A, without privileges', nodeA.namespace, false],
      ['host B', nodeB.namespace, true],
      ['host C', nodeC.namespace, true],
      ['web on B', web.sandbox, true],
      ['db on B', db.sandbox, true],
    ] as const)
      at[position] = world.peer(space, { privileged });
    await at['web on B'].serve({ name: 'web', tcp: 80, udp: 80 });
    await at['web on B'].serve({ name: 'web unpublished', tcp: 6379, udp: 6379 });
    await at['db on B'].serve({ name: 'db', tcp: 5432, udp: 5432 });
    await at['docker0 of A'].serve({ name: 'docker0', tcp: 5432, udp: 5432 });
    await at['lan'].serve({ name: 'lan', tcp: 7000, udp: 7000 });
    await world.peer(mesh).serve({ name: 'mesh', tcp: 8080, udp: 8080 });
    for (const [host, name] of [
      ['host A', 'A'],
      ['host B', 'B'],
      ['host C', 'C'],
    ] as const) {
      await at[host].serve({ name, tcp: 22, udp: 2222 });
      await at[host].serve({ name: `${name} control`, tcp: consulPort });
      await at[host].serve({ name: `${name} control`, tcp: 2377 });
    }
    webService = await world.service('web', front, ['8080:80', '8080:80/udp'], [web]);
    dbService = await world.service('db', inner, [], [db]);
    // Whoever is on the wire can write down such a route.
    await world.client.ip('route', 'add', '10.71.0.0/16', 'via', b);
    await world.client.ip('route', 'add', '10.73.0.0/16', 'via', b);
    await world.client.ip('route', 'add', '172.17.0.0/16', 'via', a);
    await world.client.ip('route', 'add', '172.18.0.0/16', 'via', b);
  });
  after(async () => {
    await world.down();
    consul.kill('SIGKILL');
    await consul;
    await rm(directory, { recursive: true });
  });

  type Place = string | (() => string);
  interface Case {
    from: Position;
    to: Place;
    port: number;
    protocol?: 'tcp' | 'udp';
    /** What the target is, for the title. */
    what: string;
    /** Who answers; absent: nobody may. */
    answers?: string;
    main?: true;
  }

  const vip = (service: () => TestService) => (): string => service().vip;
  const web_ = (): string => web.address;
  const db_ = (): string => db.address;
  const webVip = vip(() => webService);
  const dbVip = vip(() => dbService);
  const gateway = (): string => tenant.gateway;

  const walls: Record<string, Case[]> = {
    'VIPs are their own network’s and the node’s': [
      { from: 'lan', to: webVip, port: 80, what: 'the VIP', main: true },
      { from: 'lan', to: webVip, port: 80, protocol: 'udp', what: 'the VIP, UDP' },
      { from: 'lan', to: webVip, port: 6379, what: 'an unpublished port by the VIP' },
      { from: 'lan', to: dbVip, port: 5432, what: 'the VIP of an internal network', main: true },
      { from: 'lan', to: dbVip, port: 5432, protocol: 'udp', what: 'the VIP of an internal network, UDP' },
      { from: 'docker0 of A', to: dbVip, port: 5432, what: 'the VIP of an internal network', main: true },
      { from: 'tenant on A', to: dbVip, port: 5432, what: 'the VIP of another network here' },
      { from: 'tenant on A', to: webVip, port: 80, what: 'the VIP of a network that is not here' },
      { from: 'inner on A', to: webVip, port: 80, what: 'the VIP of a network that is not here' },
      { from: 'front on C', to: webVip, port: 80, what: 'the VIP', answers: 'web', main: true },
      { from: 'front on C', to: webVip, port: 80, protocol: 'udp', what: 'the VIP, UDP', answers: 'web' },
      { from: 'inner on A', to: dbVip, port: 5432, what: 'the VIP', answers: 'db', main: true },
      { from: 'host B', to: webVip, port: 80, what: 'the VIP', answers: 'web', main: true },
      { from: 'host C', to: webVip, port: 80, what: 'the VIP, its task elsewhere', answers: 'web' },
    ],
    'what a task has not published is its network’s alone': [
      { from: 'lan', to: web_, port: 6379, what: 'a task' },
      { from: 'docker0 of A', to: web_, port: 6379, what: 'a task elsewhere' },
      { from: 'tenant on A', to: web_, port: 6379, what: 'a task of a network that is not here', main: true },
      { from: 'tenant on A', to: web_, port: 6379, protocol: 'udp', what: 'the same, UDP' },
      { from: 'tenant on A', to: web_, port: 80, what: 'its published port’s target', main: true },
      { from: 'inner on A', to: web_, port: 80, what: 'a task of a network that is not here' },
      { from: 'tenant on A', to: db_, port: 5432, what: 'a task of another network here' },
      { from: 'front on C', to: web_, port: 6379, what: 'a task', answers: 'web unpublished', main: true },
      { from: 'inner on A', to: db_, port: 5432, what: 'a task', answers: 'db' },
      { from: 'lan', to: a, port: 8080, what: 'the published port', answers: 'web', main: true },
      { from: 'docker0 of A', to: a, port: 8080, what: 'the published port', answers: 'web' },
      { from: 'tenant on A', to: a, port: 8080, what: 'the published port', answers: 'web', main: true },
      {
        from: 'tenant on A',
        to: gateway,
        port: 8080,
        what: 'the published port by the gateway',
        answers: 'web',
      },
      {
        from: 'tenant on A',
        to: b,
        port: 8080,
        what: 'the published port elsewhere',
        answers: 'web',
        main: true,
      },
      { from: 'host A', to: '127.0.0.1', port: 8080, what: 'the published port', answers: 'web', main: true },
      {
        from: 'host A, without privileges',
        to: a,
        port: 8080,
        what: 'the published port',
        answers: 'web',
        main: true,
      },
    ],
    'a node’s own ports are not its containers’': [
      { from: 'tenant on A', to: gateway, port: 22, what: 'sshd by the gateway', main: true },
      { from: 'tenant on A', to: a, port: 22, what: 'sshd by the node’s address' },
      { from: 'tenant on A', to: a2, port: 22, what: 'sshd by the node’s second address' },
      {
        from: 'tenant on A',
        to: gateway,
        port: 2222,
        protocol: 'udp',
        what: 'a program by the gateway, UDP',
      },
      {
        from: 'inner on A',
        to: () => inner.gateway,
        port: 22,
        what: 'sshd by the gateway of an internal network',
        main: true,
      },
      { from: 'inner on A', to: a, port: 22, what: 'sshd by the node’s address' },
      { from: 'tenant on A', to: gateway, port: consulPort, what: 'Consul by the gateway', main: true },
      { from: 'inner on A', to: () => inner.gateway, port: consulPort, what: 'Consul by the gateway' },
      { from: 'tenant on A', to: a, port: consulPort, what: 'Consul of its node' },
      { from: 'tenant on A', to: b, port: consulPort, what: 'Consul of another node', main: true },
      { from: 'docker0 of A', to: b, port: consulPort, what: 'Consul of another node' },
      { from: 'tenant on A', to: wireAddress, port: consulPort, what: 'Consul itself' },
      { from: 'tenant on A', to: b, port: 2377, what: 'Swarm of another node' },
      { from: 'docker0 of A', to: b, port: 2377, what: 'Swarm of another node' },
      { from: 'tenant on A', to: clientAddress, port: 7000, what: 'the world', answers: 'lan', main: true },
      { from: 'lan', to: a, port: 22, what: 'sshd', answers: 'A', main: true },
      { from: 'docker0 of A', to: a, port: 22, what: 'sshd', answers: 'A' },
      { from: 'host A', to: b, port: consulPort, what: 'Consul of another node', answers: 'B control' },
    ],
    'Docker’s own bridges stay closed': [
      {
        from: 'tenant on A',
        to: bridged.docker0,
        port: 5432,
        what: 'an unpublished port on docker0',
        main: true,
      },
      { from: 'tenant on A', to: bridged.docker0, port: 5432, protocol: 'udp', what: 'the same, UDP' },
      {
        from: 'lan',
        to: bridged.docker_gwbridge,
        port: 8080,
        what: 'Docker’s mesh past Causeway’s labels',
        main: true,
      },
      {
        from: 'tenant on A',
        to: a,
        port: 9432,
        what: 'a port that Docker publishes',
        answers: 'docker0',
        main: true,
      },
      { from: 'lan', to: a, port: 9432, what: 'a port that Docker publishes', answers: 'docker0' },
    ],
  };

  const outcome = ({ from, to, port, protocol = 'tcp' }: Case): Promise<string> =>
    at[from].ask(typeof to === 'string' ? to : to(), port, { protocol, timeout: briefly }).then(
      ({ server }) => server,
      () => 'nobody',
    );

  for (const [wall, cases] of Object.entries(walls))
    describe(wall, () => {
      for (const one of cases) {
        const { from, what, answers, port, protocol = 'tcp', main } = one;
        it(`${from} ${answers === undefined ? 'does not reach' : 'reaches'} ${what} (${port}/${protocol})${main ? ' #main' : ''}`, async () => {
          assert.equal(await outcome(one), answers ?? 'nobody');
        });
      }
    });

  describe('the programs of Causeway itself', () => {
    const connects = (peer: Peer, host: string, port: number): Promise<boolean> =>
      peer.open(`${host} ${port}`, host, port).then(
        () => true,
        () => false,
      );

    it('peers’ port: open to nodes, to no container and nobody on the LAN #main', async () => {
      const port = 4793;
      assert.equal(await connects(at['host A'], b, port), true, 'a node');
      assert.equal(await connects(at['tenant on A'], b, port), false, 'a container, another node');
      assert.equal(await connects(at['tenant on A'], a, port), false, 'a container, its node');
      assert.equal(
        await connects(at['tenant on A'], tenant.gateway, port),
        false,
        'a container, the gateway',
      );
      assert.equal(await connects(at['docker0 of A'], b, port), false, 'docker0');
      assert.equal(await connects(at['lan'], b, port), false, 'LAN');
    });

    it('the gateway answers a ping from a container #main', async () => {
      await lodger.sandbox.run('perl', '-e', ping, tenant.gateway);
    });
  });

  describe('labels', () => {
    it('deny and allow count for containers by every node, which see their own address #main', async () => {
      const ask = (host: string) => at['tenant on A'].ask(host, 8080, { timeout: briefly });
      for (const host of [a, b, c]) assert.equal((await ask(host)).client, lodger.address, host);
      for (const labels of [
        { 'causeway.publish.deny': tenant.subnet },
        { 'causeway.publish.allow': '203.0.113.0/24' },
      ]) {
        await world.label(webService, labels);
        for (const host of [a, b, c]) await assert.rejects(ask(host), /ECONNREFUSED/, host);
        for (const host of [a, b, c]) assert.equal((await at['lan'].ask(host, 8080)).server, 'web', host);
      }
      await world.label(webService, {});
    });

    it('labels that shut a client out end its connections, and no others', async () => {
      await at['lan'].open('lan', a, 8080);
      await at['docker0 of A'].open('docker0', a, 8080);
      for (const key of ['lan', 'docker0'] as const)
        await (key === 'lan' ? at['lan'] : at['docker0 of A']).use(key);
      await world.label(webService, { 'causeway.publish.deny': '172.16.0.0/12' });
      await world.until(() =>
        at['docker0 of A'].use('docker0').then(
          () => false,
          () => true,
        ),
      );
      assert.equal((await at['lan'].use('lan')).server, 'web');
      await world.label(webService, {});
    });
  });

  it('no service takes a port of the nodes themselves, nor the node’s resolver at 127.0.0.53 #main', async () => {
    const published = [`${consulPort}:80`, '4793:80', '4790:80/udp', '2377:80', '53:80/udp'];
    await at['host A'].serve({ name: 'resolver', udp: 53, address: '127.0.0.53' });
    const greedy = await world.service('greedy', front, published, [web]);
    const record = (await world.status()).services.find(({ id }) => id === greedy.id);
    const texts = record?.problems?.join() ?? '';
    for (const port of [`${consulPort}/tcp`, '4793/tcp', '4790/udp', '2377/tcp'])
      assert.ok(texts.includes(`port ${port} is not published`), `${port}: ${texts}`);
    assert.equal((await at['lan'].ask(a, consulPort)).server, 'A control');
    assert.equal((await at['host A'].ask(b, 2377)).server, 'B control');
    const resolve = (host: string) => at['host A'].ask(host, 53, { protocol: 'udp', timeout: briefly });
    assert.equal((await resolve('127.0.0.53')).server, 'resolver');
    assert.equal((await resolve('127.0.0.1')).server, 'web');
    await world.removeService(greedy);
  });

  describe('the fabric’s port', () => {
    let sourcePort = 40_000;
    /** @returns whether the target heard of it */
    async function arrives(
      from: Peer,
      by: { to: string; mac?: string; source?: string },
      source: string,
      [target, destination, destinationPort]: [Peer, string, number],
    ): Promise<boolean> {
      sourcePort += 1;
      await from.inject({
        outer: { ...fabric, address: by.to, ...(by.source && { source: by.source }) },
        macs: { destination: fabricMac(by.to), source: fabricMac(by.mac ?? a) },
        inner: { source, sourcePort, destination, destinationPort },
      });
      await sleep(briefly / 2);
      return (await target.heard()).some((sender) => sender.endsWith(`:${sourcePort}`));
    }
    const onDb = (): [Peer, string, number] => [at['db on B'], db.address, 5432];

    for (const position of [
      'tenant on A',
      'tenant on A, without privileges',
      'docker0 of A',
      'host A, without privileges',
      'inner on A',
      'lan',
    ] as const)
      it(`the fabric’s port takes nothing from ${position} #main`, async () => {
        for (const source of [lodger.address, '10.73.0.99', insider.address, '192.0.2.8'])
          assert.equal(await arrives(at[position], { to: b }, source, onDb()), false, source);
      });

    describe('of whom has a node’s address', () => {
      before(async () => {
        // Beside the node itself, which goes on answering for it.
        await world.client.run('sysctl', '-q', '-w', 'net.ipv4.conf.all.arp_ignore=1');
        await world.client.ip('address', 'add', `${c}/32`, 'dev', 'lo');
      });
      after(() => world.client.ip('address', 'del', `${c}/32`, 'dev', 'lo'));

      const spoofing = { to: b, mac: c, source: c };

      it('a packet from a node’s address by the fabric, for the world, Docker’s bridges or the node itself, is dropped #main', async () => {
        const out: [Peer, string, number] = [at['lan'], clientAddress, 7000];
        assert.equal(await arrives(at['lan'], spoofing, web.address, out), false, 'the world');
        assert.equal(
          await arrives(at['lan'], spoofing, '192.0.2.8', out),
          false,
          'the world, from elsewhere',
        );
        assert.equal(
          await arrives(at['lan'], spoofing, '192.0.2.8', [at['host B'], b, 2222]),
          false,
          'the node itself',
        );
        assert.equal(
          await arrives(at['lan'], { ...spoofing, to: a }, '192.0.2.8', [
            at['docker0 of A'],
            bridged.docker0,
            5432,
          ]),
          false,
          'docker0',
        );
      });

      it('a packet by the fabric from a sender whose place is here is dropped', async () => {
        for (const source of [web.address, front.gateway])
          assert.equal(
            await arrives(at['lan'], spoofing, source, [at['web on B'], web.address, 80]),
            false,
            source,
          );
      });
    });
  });

  describe('IPv6', () => {
    const hostAddress = '2001:db8:1::1';
    before(async () => {
      await world.node.run('sysctl', '-q', '-w', 'net.ipv6.conf.all.disable_ipv6=0');
      await world.node.ip('-6', 'address', 'add', `${hostAddress}/64`, 'dev', 'eth0', 'nodad');
      await at['host A'].serve({ name: 'A by IPv6', udp: 7777, address: '::' });
    });

    for (const [position, endpoint] of [
      ['a container', () => lodger],
      ['a container of an internal network', () => insider],
    ] as const)
      it(`IPv6 brings nothing from ${position} to the node #main`, async () => {
        const { sandbox, id } = endpoint();
        await sandbox.run('sysctl', '-q', '-w', 'net.ipv6.conf.all.disable_ipv6=0');
        const [own] = JSON.parse(await sandbox.ip('-j', 'link', 'show', 'type', 'veth')) as Link[];
        assert.ok(own);
        const device = own.ifname;
        const [link] = JSON.parse(
          await world.node.ip('-j', 'link', 'show', `cw-${id.slice(0, 12)}`),
        ) as Link[];
        assert.ok(link);
        await sandbox.ip('-6', 'address', 'add', 'fe80::bad/64', 'dev', device, 'nodad');
        await sandbox.ip('-6', 'address', 'add', '2001:db8:dead::1/64', 'dev', device, 'nodad');
        await sandbox.ip('-6', 'route', 'add', '2001:db8::/32', 'dev', device);
        await sandbox.ip('-6', 'neigh', 'add', hostAddress, 'lladdr', link.address, 'dev', device);
        const peer = world.peer(sandbox);
        const before = await at['host A'].heard();
        await assert.rejects(peer.ask(hostAddress, 7777, { protocol: 'udp', timeout: briefly }));
        assert.deepEqual(await at['host A'].heard(), before);
        // Docker's default capabilities are enough for this.
        await sandbox.run('perl', '-e', advertise, String(own.ifindex));
        await sleep(briefly);
        const routes = await world.node.ip('-6', 'route', 'show', 'default');
        assert.doesNotMatch(routes, /cw-/);
        assert.doesNotMatch(await world.node.ip('-6', 'address'), /2001:db8:666:/);
      });

    it('a published port refuses IPv6 at once, so that a client tries IPv4 #main', async () => {
      // Docker listens there, and never accepts.
      await at['host A'].serve({ name: 'placeholder', tcp: 8080, address: '::' });
      for (const address of ['::1', hostAddress])
        await assert.rejects(at['host A'].ask(address, 8080, { timeout: briefly }), /ECONNREFUSED/);
    });
  });
});

/** Sends one echo request, and fails without a reply. */
const ping = `
  use Socket; socket(my $s, PF_INET, SOCK_RAW, 1) or die "socket: $!";
  send($s, pack("n4", 0x0800, 0xf7f7, 7, 1), 0, pack_sockaddr_in(0, inet_aton($ARGV[0]))) or die "send: $!";
  alarm ${2 * slowness}; recv($s, my $reply, 200, 0);
  die "no reply" unless unpack("x20 C", $reply) == 0;
`;

/** Sends a Router Advertisement of high preference by the link with this number, with a prefix to make addresses of. */
const advertise = `
  use Socket qw(:all); socket(my $s, PF_INET6, SOCK_RAW, 58) or die "socket: $!";
  setsockopt($s, 41, 18, pack("i", 255)) or die "hops: $!";
  bind($s, pack_sockaddr_in6(0, inet_pton(AF_INET6, "fe80::bad"), $ARGV[0])) or die "bind: $!";
  my $prefix = pack("CCCCNNN a16", 3, 4, 64, 0xc0, 86400, 14400, 0, inet_pton(AF_INET6, "2001:db8:666::"));
  my $advertisement = pack("CCn CCn NN", 134, 0, 0, 64, 8, 1800, 0, 0) . $prefix;
  send($s, $advertisement, 0, pack_sockaddr_in6(0, inet_pton(AF_INET6, "ff02::1"), $ARGV[0])) or die "send: $!";
`;
