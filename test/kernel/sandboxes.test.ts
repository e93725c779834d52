// Owns the tests of sandboxes that have several ways out, with real packets, for the engine CAUSEWAY_TEST_LB names.
// Must not test connections of one port: cluster.test.ts does.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readdirSync } from 'node:fs';
import { isDeepStrictEqual } from 'node:util';
import { iproute } from '../../net/iproute.ts';
import { NamespaceError } from '../../net/namespace.ts';
import { createRunner } from '../../net/run.ts';
import { leadOut } from '../../net/sandbox-routes.ts';
import type { Namespace } from './world.ts';
import { clientAddress, nodeAddress, World, type TestEndpoint, type TestNetwork } from './world.ts';
import { slowness } from '../slowness.ts';
import type { Peer } from './peer.ts';
import { askMany } from './ask.ts';

const engine = process.env['CAUSEWAY_TEST_LB'] ?? 'nft';

/** A task: its endpoints, all in one sandbox. */
type Task = TestEndpoint[];

describe(`sandboxes with several ways out, engine ${engine}`, function () {
  this.timeout(120_000 * slowness);
  let world: World;
  let client: Peer;
  let alpha: TestNetwork;
  let front: TestNetwork;
  let zulu: TestNetwork;
  let inner: TestNetwork;

  before(async () => {
    world = await World.up({ env: () => ({ CAUSEWAY_LB: engine }) });
    client = world.peer(world.client);
    await client.serve({ name: 'outside', tcp: 7000 });
    alpha = await world.network('alpha');
    front = await world.network('front');
    zulu = await world.network('zulu');
    inner = await world.network('inner', { internal: true });
  });
  after(() => world.down());

  /** A container on these networks, in the order in which Docker attaches them. */
  async function task(name: string, ...networks: TestNetwork[]): Promise<Task> {
    const endpoints: Task = [];
    for (const network of networks)
      endpoints.push(await world.attach(network, world.first, undefined, endpoints[0]?.sandbox));
    const [first] = endpoints;
    assert.ok(first);
    await world.peer(first.sandbox).serve({ name, tcp: 80, udp: 80 });
    if (networks.length > 1 || networks.some(({ internal }) => internal)) await led(first.sandbox, endpoints);
    return endpoints;
  }

  /** Waits until answers from all these leave by their own links. */
  async function led(sandbox: Namespace, endpoints: readonly TestEndpoint[]): Promise<void> {
    await world.until(async () => {
      const rules = await sandbox.ip('-4', 'rule', 'show');
      return endpoints.every(({ address }) => rules.includes(`from ${address} lookup`));
    });
  }

  /** What Swarm tells of a service: the networks that its tasks shall have, and what those that run have. */
  async function tell(
    id: string,
    { port, networks, tasks }: { port: number; networks: TestNetwork[]; tasks: Task[] },
  ): Promise<void> {
    const { docker } = world;
    docker.services = docker.services.filter(({ ID }) => ID !== id);
    docker.tasks = docker.tasks.filter(({ ServiceID }) => ServiceID !== id);
    const published = (['tcp', 'udp'] as const).map((Protocol) => ({
      ...{ Protocol, PublishedPort: port, TargetPort: 80, PublishMode: 'ingress' as const },
    }));
    docker.services.push({
      ID: id,
      Spec: {
        Name: `service${port}`,
        Labels: {},
        TaskTemplate: { Networks: networks.map((network) => ({ Target: network.id })) },
      },
      Endpoint: { Ports: published, VirtualIPs: [] },
    });
    for (const endpoints of tasks)
      docker.tasks.push({
        ID: endpoints[0]?.id.slice(0, 25) ?? '',
        ServiceID: id,
        NodeID: 'node',
        DesiredState: 'running',
        Status: { State: 'running' },
        NetworksAttachments: endpoints.map(({ network, address }) => ({
          ...{ Network: { ID: network.id }, Addresses: [`${address}/16`] },
        })),
      });
    docker.hint();
    const wanted = tasks.flatMap((endpoints) => endpoints.map(({ address }) => address)).sort();
    const on = networks.map((network) => network.id).sort();
    await world.everywhere(({ services, kernel }) => {
      const record = services.find((service) => service.id === id);
      const serving = record?.tasks
        .filter(({ draining }) => !draining)
        .flatMap(({ addresses }) => Object.values(addresses));
      return (
        kernel.settled &&
        isDeepStrictEqual(serving?.sort(), wanted) &&
        isDeepStrictEqual(record?.networks, on)
      );
    });
  }

  const newId = (): string => randomBytes(12).toString('hex');

  async function servers(port: number, protocol: 'tcp' | 'udp' = 'tcp'): Promise<string[]> {
    const seen = await askMany(client, nodeAddress, port, 8, protocol);
    assert.deepEqual(seen.clients, [clientAddress]);
    return seen.servers;
  }

  it('sandboxes answer clients while the networks of their service change, each by what it has', async () => {
    const id = newId();
    const old = [await task('old1', front), await task('old2', front)];
    await tell(id, { port: 8101, networks: [front], tasks: old });
    assert.deepEqual(await servers(8101), ['old1', 'old2']);
    // --network-add: `alpha` comes before `front`, but those that run are not on it.
    await tell(id, { port: 8101, networks: [alpha, front], tasks: old });
    assert.deepEqual(await servers(8101), ['old1', 'old2']);
    const both = await task('new1', front, alpha);
    const mixed = [both, ...old.slice(1)];
    await tell(id, { port: 8101, networks: [alpha, front], tasks: mixed });
    for (const protocol of ['tcp', 'udp'] as const)
      assert.deepEqual(await servers(8101, protocol), ['new1', 'old2'], protocol);
    // --network-rm: what runs still has it, and its default route there.
    await tell(id, { port: 8101, networks: [front], tasks: mixed });
    for (const protocol of ['tcp', 'udp'] as const)
      assert.deepEqual(await servers(8101, protocol), ['new1', 'old2'], protocol);
    // All of what the service is on by its spec, and none of its tasks.
    await tell(id, { port: 8101, networks: [zulu], tasks: mixed });
    assert.deepEqual(await servers(8101), ['new1', 'old2']);
  });

  for (const filter of [0, 1, 2])
    it(`sandboxes answer by the link that was asked, wherever Docker’s default route leads, with rp_filter=${filter}`, async () => {
      const port = 8110 + filter;
      const endpoints = await task('torn', front);
      const [{ sandbox } = assert.fail()] = endpoints;
      await sandbox.run('sh', '-c', `echo ${filter} > /proc/sys/net/ipv4/conf/all/rp_filter`);
      await tell(newId(), { port, networks: [front], tasks: [endpoints] });
      assert.deepEqual(await servers(port), ['torn']);
      // `docker network connect`, of a network that comes first.
      const second = await world.attach(alpha, world.first, undefined, sandbox);
      await led(sandbox, [...endpoints, second]);
      assert.match(await sandbox.ip('route', 'show', 'default'), new RegExp(`via ${alpha.gateway} `));
      assert.deepEqual(await servers(port), ['torn']);
      // `docker network disconnect`.
      await world.detach(second);
      await world.until(async () => !(await sandbox.ip('rule')).includes(second.address));
      assert.deepEqual(await servers(port), ['torn']);
    });

  it('a published service answers a container on a network that they share, by the name it has for the world', async () => {
    // By name `alpha` is the way in.
    const proxy = await task('proxy', alpha, zulu);
    await tell(newId(), { port: 8121, networks: [alpha, zulu], tasks: [proxy] });
    const [way = assert.fail()] = proxy;
    await world.publish(way, ['8122:80']);
    await world.startContainer(way);
    const app = await world.attach(zulu);
    const asker = world.peer(app.sandbox);
    for (const address of [nodeAddress, zulu.gateway])
      for (const port of [8121, 8122])
        assert.deepEqual(
          await askMany(asker, address, port, 3),
          { servers: ['proxy'], clients: [app.address] },
          `${address}:${port}`,
        );
    assert.deepEqual(await servers(8121), ['proxy']);
    assert.equal((await client.ask(nodeAddress, 8122)).server, 'proxy');
  });

  // There is no program at this place.
  const run = createRunner({ root: '/nowhere', inProcess: [iproute()] });

  it('taking back routes that a failed try never made succeeds', async () => {
    const { sandbox } = await world.attach(front);
    await leadOut(run, sandbox.path, { ways: [], closed: false }, [
      { address: '10.99.0.9', gateway: '10.99.0.1' },
    ]);
  });

  it('get their ways without a process, and are not kept alive by it', async () => {
    const { sandbox, address } = await world.attach(front);
    const open = (): number => readdirSync('/proc/self/fd').length;
    const before = open();
    const way = { address, gateway: front.gateway };
    await leadOut(run, sandbox.path, { ways: [way], closed: true });
    assert.match(await sandbox.ip('rule'), new RegExp(`from ${address} lookup .*unreachable`, 's'));
    assert.match(await sandbox.ip('route', 'show', 'table', 'all'), /^default via .* proto 197 $/m);
    await leadOut(run, sandbox.path, { ways: [], closed: false }, [way]);
    assert.equal((await sandbox.ip('rule')).split('\n').length, 3);
    await assert.rejects(leadOut(run, `${sandbox.path}-gone`, { ways: [way], closed: true }), NamespaceError);
    assert.equal(open(), before);
  });

  /** A link as of docker_gwbridge, with a default route of its own. */
  async function bridge({ sandbox }: TestEndpoint): Promise<void> {
    await world.client.ip(...'link add gw type veth peer name eth9 netns'.split(' '), sandbox.name);
    await world.client.ip('address', 'add', '192.0.2.1/24', 'dev', 'gw');
    await world.client.ip('link', 'set', 'gw', 'up');
    await sandbox.ip('address', 'add', '192.0.2.2/24', 'dev', 'eth9');
    await sandbox.ip('link', 'set', 'eth9', 'up');
    await sandbox.ip('route', 'add', 'default', 'via', '192.0.2.1');
  }

  it('sandboxes of an internal network answer clients, and have no way out, not by one that Docker gave them either', async () => {
    const closed = await task('closed', inner);
    await tell(newId(), { port: 8131, networks: [inner], tasks: [closed] });
    const [endpoint = assert.fail()] = closed;
    const { sandbox } = endpoint;
    assert.equal(await sandbox.ip('route', 'show', 'default'), '');
    // Docker’s own ingress network brings it along.
    await bridge(endpoint);
    for (const protocol of ['tcp', 'udp'] as const)
      assert.deepEqual(await servers(8131, protocol), ['closed'], protocol);
    await assert.rejects(world.peer(sandbox).ask(clientAddress, 7000), /ENETUNREACH/);
    await sandbox.ip('link', 'del', 'eth9');
  });

  it('a sandbox that leaves an internal network goes out again, by another of ours or of another driver’s', async () => {
    const [endpoint = assert.fail()] = await task('leaving', inner);
    const { sandbox } = endpoint;
    const peer = world.peer(sandbox);
    const isOpen = (): Promise<boolean> => sandbox.ip('rule').then((rules) => !rules.includes('unreachable'));
    await world.until(() => isOpen().then((open) => !open));
    await world.detach(endpoint, { goesOn: true });
    const other = await world.attach(front, world.first, undefined, sandbox);
    await world.until(isOpen);
    assert.equal((await peer.ask(clientAddress, 7000)).client, nodeAddress);
    const again = await world.attach(inner, world.first, undefined, sandbox);
    await led(sandbox, [other, again]);
    await world.detach(other);
    await world.until(() => isOpen().then((open) => !open));
    await world.detach(again, { goesOn: true });
    await bridge(endpoint);
    await world.until(async () => !(await sandbox.ip('rule')).includes('lookup 1'));
    assert.equal((await peer.ask(clientAddress, 7000)).client, '192.0.2.2');
    await sandbox.ip('link', 'del', 'eth9');
  });

  it('a sandbox of an internal network goes out by another driver’s network', async () => {
    const mixed = await task('mixed', inner);
    const [endpoint = assert.fail()] = mixed;
    await tell(newId(), { port: 8132, networks: [inner], tasks: [mixed] });
    await bridge(endpoint);
    world.docker.containers.push({
      ...{ Id: 'mixed', Name: '/mixed', Config: { Hostname: 'mixed', Labels: {} }, State: { Running: true } },
      NetworkSettings: {
        Networks: {
          inner: { NetworkID: inner.id, EndpointID: endpoint.id },
          public: { NetworkID: 'public', EndpointID: 'public' },
        },
      },
    });
    world.docker.hint({ Type: 'container', Action: 'start' });
    await world.until(async () => !(await endpoint.sandbox.ip('rule')).includes('unreachable'));
    assert.equal((await world.peer(endpoint.sandbox).ask(clientAddress, 7000)).client, '192.0.2.2');
    assert.deepEqual(await servers(8132), ['mixed']);
  });
});
