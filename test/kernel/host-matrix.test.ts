// Owns the host matrix: the data path between three nodes under each setting that hosts are found with, alone and together.
// Must not test what does not depend on the host (datapath.test.ts, cluster.test.ts). Tests marked #main run in the VM, too.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { consulPort, consulServer, prepareConsul } from '../lab/consul.ts';
import { startCommand, type Running } from '../lab/node.ts';
import { slowness } from '../slowness.ts';
import { askMany } from './ask.ts';
import type { Peer } from './peer.ts';
import {
  all,
  bridgedUplink,
  endsInChain,
  endsInReject,
  firewalld,
  off,
  perDevice,
  policiesDrop,
  secondAddress,
  secondUplink,
  twoUplinks,
  ufw,
  type FirewallPart,
  type HostSetting,
  type Part,
} from './host-settings.ts';
import {
  bridgeMac,
  clientAddress,
  wireAddress,
  World,
  type Namespace,
  type TestEndpoint,
  type TestNode,
  type TestNetwork,
  type TestService,
} from './world.ts';

const engine = process.env['CAUSEWAY_TEST_LB'] ?? 'nft';
/** Milliseconds after which what should be dropped counts as dropped. */
const briefly = 700 * slowness;

/** The programs themselves, where the machine's own would be. */
const firewalls: { name: string; part: FirewallPart }[] = [
  { name: 'ufw as it is installed', part: ufw },
  // With IPVS it takes the other engine.
  ...(engine === 'nft'
    ? [{ name: 'firewalld as it is installed, with Causeway’s links in the zone trusted', part: firewalld }]
    : []),
];

/** Behind the second uplink of all nodes; nothing is plugged in but where the setting is that. */
let far: Namespace;
const farBridge = 'far';
const secondUplinkToo = twoUplinks(() => far, farBridge);

const settings: HostSetting[] = [
  { name: 'as it comes', parts: [], tags: '#main' },
  { name: 'rp_filter=2 for all, as Ubuntu has it', parts: [all('rp_filter', 2)] },
  { name: 'rp_filter=1 for all, as hardened hosts have it', parts: [all('rp_filter', 1)], tags: '#main' },
  {
    name: 'rp_filter=1 by default and on each device, as udev sets it',
    parts: [all('rp_filter', 1, 'default'), perDevice('rp_filter', 1)],
  },
  {
    name: 'rp_filter=1 with src_valid_mark=1, as a VPN sets it',
    parts: [all('rp_filter', 1), all('src_valid_mark', 1)],
  },
  {
    name: 'arp_ignore=1 and arp_announce=2, as keepalived wants them',
    parts: [all('arp_ignore', 1), all('arp_announce', 2)],
    tags: '#main',
  },
  { name: 'arp_ignore=2', parts: [all('arp_ignore', 2)] },
  { name: 'arp_filter=1', parts: [all('arp_filter', 1)] },
  { name: 'INPUT and FORWARD with policy DROP', closes: true, parts: [policiesDrop], tags: '#main' },
  { name: 'INPUT and FORWARD that end in REJECT', closes: true, parts: [endsInReject] },
  {
    name: 'INPUT and FORWARD that end in a chain that drops',
    closes: true,
    parts: [endsInChain],
    tags: '#main',
  },
  { name: 'ip_forward switched off', closes: true, parts: [off('ipv4/ip_forward')] },
  {
    name: 'forwarding of Causeway’s devices switched off',
    closes: true,
    parts: [off('ipv4/conf/cw-*/forwarding')],
  },
  {
    name: 'an uplink that is a bridge, with bridge-nf-call-iptables=1',
    closes: true,
    parts: [bridgedUplink],
  },
  {
    name: 'the same beside INPUT and FORWARD with policy DROP',
    closes: true,
    parts: [bridgedUplink, policiesDrop],
  },
  {
    name: 'two uplinks, each of which answers by its own router',
    closes: true,
    parts: [secondUplinkToo],
    tags: '#main',
  },
  {
    name: 'two uplinks, with rp_filter=2 and arp_ignore=1',
    closes: true,
    parts: [all('rp_filter', 2), all('arp_ignore', 1), secondUplinkToo],
  },
  {
    name: 'all of them together',
    closes: true,
    parts: [
      all('rp_filter', 1),
      all('src_valid_mark', 1),
      all('arp_ignore', 2),
      all('arp_announce', 2),
      all('arp_filter', 1),
      off('ipv4/ip_forward'),
      endsInChain,
    ],
    tags: '#main',
  },
  ...firewalls.map(({ name, part }): HostSetting => ({ name, closes: true, parts: [part] })),
];

function hosts(this: Mocha.Suite, cases: readonly HostSetting[], found?: FirewallPart): void {
  this.timeout(240_000 * slowness);
  let directory: string;
  let consul: Running;
  let world: World;
  let front: TestNetwork;
  let back: TestNetwork;
  /** Served by a task on each node. */
  let service: TestService;
  const web: TestEndpoint[] = [];
  /** One on each node, on `front`. */
  const askers: Peer[] = [];
  const hosts: Peer[] = [];
  let stranger: Peer;
  let client: Peer;
  let farClient: Peer;
  const servers = ['web0', 'web1', 'web2'];

  before(async () => {
    await prepareConsul();
    directory = await mkdtemp(join(tmpdir(), 'causeway-hosts-'));
    world = await World.up({
      nodes: 3,
      ...(found !== undefined && { prepare: (namespace) => found.apply({ namespace }) }),
      env: (wire) => {
        const server = consulServer({
          name: 'wire',
          address: wireAddress,
          dataDir: join(directory, 'consul'),
        });
        const into = `--net=${wire.path}`;
        consul = startCommand(['setpriv', '--pdeathsig', 'KILL', '--', 'nsenter', into, ...server]);
        return { CAUSEWAY_LB: engine, CAUSEWAY_STORE: `consul://${wireAddress}:${consulPort}` };
      },
    });
    await world.everywhere(({ nodes }) => nodes.length === 3);
    front = await world.allocateNetwork('front', { subnet: '10.77.0.0/16' });
    back = await world.network('back');
    client = world.peer(world.client);
    await client.serve({ name: 'outside', tcp: 7000, udp: 7000 });
    const attach = async (node: TestNode, index: number): Promise<void> => {
      await world.createNetwork(front, node);
      const [endpoint, asking] = await Promise.all([world.attach(front, node), world.attach(front, node)]);
      web[index] = endpoint;
      askers[index] = world.peer(asking.sandbox);
      hosts[index] = world.peer(node.namespace);
      await world.peer(endpoint.sandbox).serve({ name: `web${index}`, tcp: 80, udp: 80 });
    };
    await Promise.all(world.nodes.map(attach));
    far = await world.sandbox();
    await far.ip('link', 'add', farBridge, 'address', bridgeMac, 'type', 'bridge');
    await far.ip('address', 'add', `${secondUplink.router}/24`, 'dev', farBridge);
    await far.ip('address', 'add', `${secondUplink.client}/32`, 'dev', 'lo');
    await far.ip('link', 'set', farBridge, 'up');
    await far.ip('route', 'change', '198.51.100.0/24', 'dev', farBridge, 'src', secondUplink.client);
    farClient = world.peer(far);
    stranger = world.peer((await world.attach(back)).sandbox);
    service = await world.service('web', front, ['8080:80', '8081:80/udp'], web);
  });
  after(async () => {
    if (found !== undefined) await Promise.all(world.nodes.map((node) => found.undo(node)));
    await world.down();
    consul.kill('SIGKILL');
    await consul;
    await rm(directory, { recursive: true });
  });

  /** From where, to where, and what is wrong there; empty where all is as it should be. */
  async function wrongs(parts: readonly Part[]): Promise<string[]> {
    const found: string[] = [];
    const check = async (what: string, act: () => Promise<void>): Promise<void> => {
      await act().catch((error: unknown) =>
        found.push(`${what}: ${(error as Error).message.split('\n')[0]}`),
      );
    };
    const asked = async (
      peer: Peer,
      address: string,
      port: number,
      seenFrom: RegExp,
      protocol: 'tcp' | 'udp' = 'tcp',
    ): Promise<void> => {
      const { servers: answered, clients } = await askMany(peer, address, port, 3, protocol);
      assert.equal(String(answered), String(servers));
      for (const seen of clients) assert.match(seen, seenFrom);
    };
    const exactly = (address: string): RegExp => new RegExp(`^${address.replaceAll('.', '\\.')}$`);
    // One asks at a time: the turns of a balancer are those of all that ask it.
    for (const [index, { address }] of world.nodes.entries()) {
      const [host, asker] = [hosts[index]!, askers[index]!];
      await check(`client to the port by node ${index}`, () =>
        asked(client, address, 8080, exactly(clientAddress)),
      );
      await check(`client to the UDP port by node ${index}`, () =>
        asked(client, address, 8081, exactly(clientAddress), 'udp'),
      );
      await check(`VIP on node ${index}`, () => asked(asker, service.vip, 80, /^10\.77\./));
      await check(`VIP over UDP on node ${index}`, () => asked(asker, service.vip, 80, /^10\.77\./, 'udp'));
      await check(`node ${index} itself to its port`, () => asked(host, address, 8080, /./));
      await check(`node ${index} itself to 127.0.0.1`, () => asked(host, '127.0.0.1', 8080, /./));
      await check(`node ${index} itself to the VIP`, () => asked(host, service.vip, 80, /./));
      await check(`a task on node ${index} to the port by the next node`, () =>
        asked(asker, world.nodes[(index + 1) % 3]!.address, 8080, /^10\.77\./),
      );
      for (const [at, task] of web.entries())
        await check(`task to task from node ${index} to ${at}`, async () => {
          assert.equal((await asker.ask(task.address, 80)).server, `web${at}`);
        });
      await check(`egress from node ${index}`, async () => {
        assert.equal((await asker.ask(clientAddress, 7000)).client, address);
        assert.equal((await asker.ask(clientAddress, 7000, { protocol: 'udp' })).client, address);
      });
    }
    if (parts.includes(secondUplinkToo))
      for (const [index, node] of world.nodes.entries()) {
        const second = secondAddress(node);
        await check(`client beyond the second uplink to the port by node ${index}`, () =>
          asked(farClient, second, 8080, exactly(secondUplink.client)),
        );
        await check(`client beyond the second uplink to the UDP port by node ${index}`, () =>
          asked(farClient, second, 8081, exactly(secondUplink.client), 'udp'),
        );
        await check(`a task on node ${index} to the port by its second address`, () =>
          asked(askers[index]!, second, 8080, /^10\.77\./),
        );
        await check(`node ${index} itself to its port by its second address`, () =>
          asked(hosts[index]!, second, 8080, /./),
        );
      }
    const isClosed = (what: string, peer: Peer, address: string, port: number): Promise<void> =>
      check(what, () => assert.rejects(peer.ask(address, port, { timeout: briefly })));
    await world.client.ip('route', 'replace', front.subnet, 'via', world.first.address);
    await Promise.all([
      ...web.map(({ address }, at) => isClosed(`another network to task ${at}`, stranger, address, 80)),
      isClosed('another network to the VIP', stranger, service.vip, 80),
      isClosed('client to a task', client, web[0]!.address, 80),
    ]);
    await world.client.ip('route', 'del', front.subnet);
    return found;
  }

  const set = async (parts: readonly Part[], how: 'apply' | 'undo'): Promise<void> => {
    for (const part of parts) await Promise.all(world.nodes.map((node) => part[how](node)));
    // Neighbours are asked anew: what they were told under another setting does not count.
    for (const { sandbox } of world.endpoints) await sandbox.ip('neigh', 'flush', 'all');
  };

  /** What has to be put right by a pass is so after the next one. */
  async function holds(parts: readonly Part[]): Promise<void> {
    let found = await wrongs(parts);
    for (let turn = 0; found.length > 0 && turn < 3; turn += 1) {
      await world.pass();
      found = await wrongs(parts);
    }
    assert.deepEqual(found, []);
  }

  for (const { name, parts, closes = false, tags = '' } of cases)
    it(`all traffic works, host setting: ${name} ${tags}`.trim(), async () => {
      await set(parts, 'apply');
      try {
        if (closes) await world.pass();
        await holds(parts);
      } finally {
        await set([...parts].reverse(), 'undo');
      }
    });

  if (found === undefined)
    it('a container of an earlier version, with the prefix of its subnet, keeps what it had', async () => {
      const { sandbox } = await world.attach(front, world.first, undefined, undefined, true);
      assert.match(await sandbox.ip('-4', 'route'), /10\.77\.0\.0\/16 dev eth0 proto kernel/);
      const before = world.peer(sandbox);
      assert.deepEqual((await askMany(before, service.vip, 80, 3)).servers, servers);
      for (const [at, { address }] of web.entries())
        assert.equal((await before.ask(address, 80)).server, `web${at}`);
      assert.equal((await before.ask(clientAddress, 7000)).client, world.first.address);
    });

  it('no rule is left in iptables once neither ufw nor firewalld nor anything else drops', async () => {
    if (found !== undefined) await Promise.all(world.nodes.map((node) => found.undo(node)));
    await world.pass();
    for (const { plugin } of world.nodes)
      assert.doesNotMatch(await plugin.tool('iptables-nft', ['--wait', '5', '-S']), /causeway/i);
    assert.deepEqual(await wrongs([]), []);
  });
}

describe(`hosts as they are, engine ${engine}`, function () {
  hosts.call(this, settings);
});

for (const { name, part } of firewalls)
  describe(`hosts that have ${name} before Causeway, engine ${engine}`, function () {
    hosts.call(this, [{ name: 'as it comes', parts: [] }], part);
  });
