// Owns the tests of names in sandboxes, with real packets: whose answer comes, whatever else is in the way of it.
// Must not test what is answered (test/unit), nor need Docker: its resolver is played.
import assert from 'node:assert/strict';
import { closeSync } from 'node:fs';
import { readdir, readlink } from 'node:fs/promises';
import { inNamespace, openSocket } from '../../net/namespace.ts';
import { until } from '../support/until.ts';
import { runTool } from '../lab/plugin-process.ts';
import { slowness } from '../slowness.ts';
import { dockersAnswer, keepLookingUp, lookUp, Resolver, type Form } from './resolver.ts';
import { World, type TestEndpoint, type TestNetwork } from './world.ts';

const patience = { timeoutMs: 20_000 * slowness, everyMs: 20 };
const foreign = 'www.example';

describe('names in sandboxes', function () {
  this.timeout(120_000 * slowness);
  let world: World;
  let network: TestNetwork;
  /** Their resolvers, which are stopped after each test. */
  let resolvers: Resolver[];

  before(async () => {
    world = await World.up({ env: () => ({ CAUSEWAY_LB: 'nft' }) });
    network = await world.network('front');
  });
  after(() => world.down());
  beforeEach(() => (resolvers = []));
  afterEach(async () => {
    for (const resolver of resolvers) resolver.close();
    for (const endpoint of [...world.endpoints]) await world.detach(endpoint);
  });

  const ownName = (endpoint: TestEndpoint): string => `${endpoint.id.slice(0, 12)}.front.causeway.internal`;

  /** A container that runs. It is known by its host name. */
  async function container(form: Form = 'iptables'): Promise<TestEndpoint & { resolver: Resolver }> {
    const endpoint = await world.attach(network);
    const resolver = await Resolver.start(endpoint.sandbox.path, form);
    resolvers.push(resolver);
    world.listContainer(endpoint);
    await isAnswered(endpoint);
    return { ...endpoint, resolver };
  }

  const isAnswered = (endpoint: TestEndpoint): Promise<unknown> =>
    until(
      'the name server answers',
      async () => (await lookUp(endpoint.sandbox.path, ownName(endpoint))) === endpoint.address,
      patience,
    );

  for (const form of ['iptables', 'nft'] as const)
    it(`names are answered by Causeway, and others by Docker’s resolver (rules by ${form})`, async () => {
      const asker = await container(form);
      const { path } = asker.sandbox;
      for (const protocol of ['udp', 'tcp'] as const)
        for (const from of ['0.0.0.0', '127.0.0.1', asker.address]) {
          const found = await lookUp(path, ownName(asker), { protocol, from });
          assert.equal(found, asker.address, `${protocol} from ${from}`);
          const before = asker.resolver.asked;
          assert.equal(await lookUp(path, `${protocol}.${from}.example`, { protocol, from }), dockersAnswer);
          assert.equal(asker.resolver.asked, before + 1, 'once, and not in a circle');
        }
    });

  for (const kill of ['SIGTERM', 'SIGKILL'] as const)
    it(`names are answered by Docker while the plugin is away after ${kill}, from the first moment on`, async () => {
      const asker = await container();
      const { path } = asker.sandbox;
      const looking = [ownName(asker), foreign, asker.id.slice(0, 12)].map((name) =>
        keepLookingUp(path, name, 5),
      );
      await world.plugin.kill(kill);
      for (const protocol of ['udp', 'tcp'] as const)
        assert.equal(await lookUp(path, ownName(asker), { protocol }), dockersAnswer);
      await world.plugin.start();
      await isAnswered(asker);
      for (const [at, { stop }] of looking.entries()) {
        const given = await stop();
        assert.ok(given.length > 50);
        const lost = given.flatMap((answer, place) =>
          answer === dockersAnswer || answer === asker.address ? [] : [place],
        );
        // What a process has not read when its sockets are closed is lost; the busier the machine, the more. One that is
        // told to end lets go of the sockets first, and answers what they have.
        assert.ok(
          lost.length <= (kill === 'SIGTERM' ? 0 : 60 * slowness),
          `${at}: ${lost.length} of ${given.length}: ${lost.map((place) => `${place} ${given[place] ?? ''}`).join(', ')}`,
        );
      }
    });

  it('Docker’s resolver moves to another port: names are answered all the same', async () => {
    const asker = await container();
    for (let turn = 0; turn < 3; turn += 1) {
      await asker.resolver.stop();
      assert.equal(await lookUp(asker.sandbox.path, ownName(asker)), asker.address);
      await asker.resolver.start();
      assert.equal(await lookUp(asker.sandbox.path, `turn${turn}.example`), dockersAnswer);
      assert.equal(await lookUp(asker.sandbox.path, ownName(asker)), asker.address);
    }
  });

  describe('behind a kill switch of the container’s own', () => {
    const lo = ['-A INPUT -i lo -j ACCEPT', '-A OUTPUT -o lo -j ACCEPT'];
    const drop = ['-P INPUT DROP', '-P OUTPUT DROP', '-P FORWARD DROP'];
    const established = ['INPUT', 'OUTPUT'].map(
      (chain) => `-A ${chain} -m state --state ESTABLISHED -j ACCEPT`,
    );
    const invalid = ['INPUT', 'OUTPUT'].map((chain) => `-A ${chain} -m state --state INVALID -j DROP`);
    const switches: Record<string, string[]> = {
      'that lets loopback through': [...lo, ...drop],
      'that lets loopback and answers through': [...established, ...lo, ...drop],
      'that drops what is invalid': [...invalid, ...lo, ...drop],
      'that rejects what leaves but by the tunnel': [
        '-A OUTPUT ! -o wg0 -m mark ! --mark 51820 -m addrtype ! --dst-type LOCAL -j REJECT',
      ],
    };
    for (const [name, rules] of Object.entries(switches))
      it(`a container’s own kill switch: names are answered: one ${name}`, async () => {
        const asker = await container();
        for (const rule of rules) await runTool(asker.sandbox.path, 'iptables-nft', rule.split(' '));
        for (const protocol of ['udp', 'tcp'] as const) {
          assert.equal(await lookUp(asker.sandbox.path, ownName(asker), { protocol }), asker.address);
          const found = await lookUp(asker.sandbox.path, `${protocol}.example`, { protocol });
          assert.equal(found, dockersAnswer, protocol);
        }
      });
  });

  it('names need nothing of the node’s firewall', async () => {
    const asker = await container();
    const chains = ['INPUT', 'FORWARD', 'OUTPUT'];
    const iptables = (...args: string[]): Promise<string> => world.plugin.tool('iptables-nft', args);
    for (const chain of chains) await iptables('--policy', chain, 'DROP');
    try {
      for (const protocol of ['udp', 'tcp'] as const) {
        assert.equal(await lookUp(asker.sandbox.path, ownName(asker), { protocol }), asker.address);
        assert.equal(await lookUp(asker.sandbox.path, `${protocol}.example`, { protocol }), dockersAnswer);
      }
    } finally {
      for (const chain of chains) await iptables('--policy', chain, 'ACCEPT');
    }
  });

  it('names open no way to what a container has at 127.0.0.1', async () => {
    const victim = await container();
    const settings = await victim.sandbox.run('sh', '-c', 'cat /proc/sys/net/ipv4/conf/*/route_localnet');
    assert.match(settings, /^[0\s]+$/);
    // Another network of its, with an attacker on it who sends to 127.0.0.1 by it.
    const attacker = await world.sandbox();
    await victim.sandbox.ip(...'link add user0 type veth peer name eth0 netns'.split(' '), attacker.name);
    await victim.sandbox.ip('address', 'add', '172.20.0.2/16', 'dev', 'user0');
    await victim.sandbox.ip('link', 'set', 'user0', 'up');
    await attacker.ip('address', 'add', '172.20.0.3/16', 'dev', 'eth0');
    await attacker.ip('link', 'set', 'eth0', 'up');
    await attacker.run('sh', '-c', 'echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet');
    await attacker.ip('address', 'del', '127.0.0.1/8', 'dev', 'lo');
    await attacker.ip(...'route add 127.0.0.0/8 via 172.20.0.2 src 172.20.0.3 onlink dev eth0'.split(' '));
    const [server, asking] = [world.peer(victim.sandbox), world.peer(attacker)];
    await server.serve({ name: 'private', tcp: 6379, udp: 6379, address: '127.0.0.1' });
    assert.equal((await world.peer(victim.sandbox).ask('127.0.0.1', 6379)).server, 'private');
    for (const protocol of ['tcp', 'udp'] as const)
      await assert.rejects(asking.ask('127.0.0.1', 6379, { protocol, timeout: 500 }), protocol);
    // Nor to the name server in it, nor to Docker's.
    for (const address of ['127.0.0.11', '127.0.0.12'])
      assert.equal(await lookUp(attacker.path, foreign, { timeout: 500 }), 'timeout', address);
  });

  it('names are not answered to the outside', async () => {
    const asker = await container();
    const elsewhere = world.peer(world.client);
    for (const address of [world.first.address, network.gateway])
      for (const protocol of ['tcp', 'udp'] as const)
        await assert.rejects(elsewhere.ask(address, 4795, { protocol, timeout: 300 }), address);
    const inside = world.peer(asker.sandbox);
    await assert.rejects(inside.ask(network.gateway, 4795, { timeout: 300 }));
  });

  it('names are answered to one container while another one keeps all connections it can get', async () => {
    const [greedy, other] = [await container(), await container()];
    const held = inNamespace(greedy.sandbox.path, () =>
      Array.from({ length: 400 }, () =>
        openSocket({
          protocol: 'tcp',
          local: { address: '0.0.0.0', port: 0 },
          remote: { address: '127.0.0.11', port: 53 },
        }),
      ),
    );
    try {
      for (let turn = 0; turn < 20; turn += 1)
        assert.equal(await lookUp(other.sandbox.path, ownName(other), { protocol: 'tcp' }), other.address);
    } finally {
      for (const descriptor of held) closeSync(descriptor);
    }
  });

  it('names leave nothing behind: neither in a sandbox that is left, nor of one that is gone', async () => {
    const [stays, goes] = [await container(), await container()];
    const namespaces = async (): Promise<number> => (await socketsOf(world.plugin.pid)).length;
    const before = await namespaces();
    const { path } = stays.sandbox;
    await world.detach(goes);
    await until('its sockets are closed', async () => (await namespaces()) <= before - 2, patience);
    // The container stays, without this network.
    const ids = { NetworkID: network.id, EndpointID: stays.id };
    await world.plugin.client.call('NetworkDriver.Leave', ids);
    const tables = (): Promise<string> => runTool(path, 'nft', ['list', 'tables']);
    await until('its rules are gone', async () => !(await tables()).includes('causeway'), patience);
    assert.equal(await lookUp(path, ownName(stays)), dockersAnswer);
  });

  it('names switched off are left to Docker’s resolver, also where they were on before', async () => {
    const asker = await container();
    await world.plugin.kill('SIGTERM');
    await world.plugin.start({ CAUSEWAY_DNS: 'off' });
    const tables = (): Promise<string> => runTool(asker.sandbox.path, 'nft', ['list', 'tables']);
    await until('the rules are gone', async () => !(await tables()).includes('causeway'), patience);
    assert.equal(await lookUp(asker.sandbox.path, ownName(asker)), dockersAnswer);
    await world.plugin.kill('SIGTERM');
    await world.plugin.start({ CAUSEWAY_DNS: 'on' });
    await isAnswered(asker);
  });

  it('names are answered in very many sandboxes, and in all of them again after a restart', async function () {
    this.timeout(300_000 * slowness);
    const endpoints: TestEndpoint[] = [];
    for (let at = 0; at < 60; at += 1) {
      const endpoint = await world.attach(network);
      endpoints.push(endpoint);
      resolvers.push(await Resolver.start(endpoint.sandbox.path, 'nft'));
    }
    const [last] = endpoints.slice(-1);
    assert.ok(last);
    for (const endpoint of endpoints) world.listContainer(endpoint);
    const all = async (): Promise<boolean> => {
      for (const { sandbox } of endpoints)
        if ((await lookUp(sandbox.path, ownName(last))) !== last.address) return false;
      return true;
    };
    await until('all are answered', all, patience);
    const sockets = await socketsOf(world.plugin.pid);
    assert.ok(sockets.length < 2 * endpoints.length + 40, `${sockets.length} sockets`);
    await world.plugin.kill('SIGKILL');
    for (const { sandbox } of endpoints)
      assert.equal(await lookUp(sandbox.path, ownName(last)), dockersAnswer);
    await world.plugin.start();
    await until('all are answered again', all, patience);
  });
});

/** @returns its sockets, each once, however many descriptors lead to it */
async function socketsOf(pid: number): Promise<string[]> {
  const directory = `/proc/${pid}/fd`;
  const links = await Promise.all(
    (await readdir(directory)).map((name) => readlink(`${directory}/${name}`).catch(() => '')),
  );
  return [...new Set(links.filter((link) => link.startsWith('socket:')))];
}
