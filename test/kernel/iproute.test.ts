// Owns the tests of commands that the plugin does by itself: to the kernel they are the same as iproute2's and nft's.
// Must not test when they are run.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { execa } from 'execa';
import { formatRoute, type Route } from '../../net/routes.ts';
import { netLayout } from '../../net/rules.ts';
import type { Runner } from '../../net/run.ts';
import { leadOut, type WayOut, type WaysOut } from '../../net/sandbox-routes.ts';
import { slowness } from '../slowness.ts';
import type { Command, Outcome } from './iproute-program.ts';
import { Namespace } from './world.ts';

const program = join(import.meta.dirname, 'iproute-program.ts');
const [host, peer] = ['cw-e1e1e1e1e1e1', 'cwpe1e1e1e1e1e1'];
const pair = `link add ${host} mtu 1450 type veth peer name ${peer} address 02:42:0a:4d:00:05 mtu 1400`;
const routes: Route[] = [
  { type: 'local', destination: '10.77.0.1' },
  { type: 'unreachable', destination: '10.77.0.0/16' },
  { type: 'unicast', destination: '10.77.0.5', device: host, source: '10.77.0.1' },
  { type: 'local', destination: '10.77.0.4', source: '10.77.0.1' },
];
const onFabric: Route[] = [
  { type: 'remote', destination: '10.77.0.6', via: '203.0.113.2', source: '10.77.0.1' },
  { type: 'return', via: '203.0.113.2', number: 2 },
];
const moved: Route = { type: 'remote', destination: '10.77.0.6', via: '203.0.113.3', source: '10.77.0.1' };

const batch = (...lines: string[]): Command => ({ args: ['-batch', '-'], input: `${lines.join('\n')}\n` });
const forced = (verb: 'replace' | 'del', ...list: Route[]): Command => ({
  args: ['-4', '-force', '-batch', '-'],
  input: list.map((route) => `route ${verb} ${formatRoute(route)}\n`).join(''),
});
const one = (words: string): Command => ({ args: words.split(' ') });

/** The one command of it. */
async function ledOut(wants: WaysOut, before: readonly WayOut[] = []): Promise<Command> {
  const found: Command[] = [];
  const run: Runner = (_tool, args, { input = '' } = {}) => {
    found.push({ args, input, sandbox: true });
    return Promise.resolve('');
  };
  await leadOut(run, 'sandbox', wants, before);
  return found[0]!;
}
const way: WayOut = { address: '10.77.0.1', gateway: '10.77.0.5' };
const noWay: WayOut = { address: '10.77.0.200', gateway: '198.51.100.1' };

/** What each container's start and end does, and what may go wrong with it. */
const commands: Record<string, Command> = {
  'the loopback device up': one('link set lo up'),
  'a pair, without an address of its own': batch(pair, `link set ${host} addrgenmode none`),
  'the same pair once more, and what is behind it in the batch': batch(
    pair,
    `link set ${peer} addrgenmode none`,
  ),
  'its end up': one(`link set ${host} up`),
  'a link that is not there up': one('link set cw-none up'),
  routes: forced('replace', ...routes),
  'an address of a gateway': one(`address replace 10.77.0.1/16 dev ${host} scope link noprefixroute`),
  'the same address': one(`address replace 10.77.0.1/16 dev ${host} scope link noprefixroute`),
  'a neighbour': one(`neigh replace 10.77.0.5 lladdr 02:42:0a:4d:00:05 dev ${host} nud permanent`),
  'another one in its place': one(
    `neigh replace 10.77.0.5 lladdr 02:42:0a:4d:00:06 dev ${host} nud permanent`,
  ),
  'a neighbour away': one(`neigh del 10.77.0.5 dev ${host}`),
  'a neighbour away that is gone': one(`neigh del 10.77.0.5 dev ${host}`),
  'a way out of a sandbox': await ledOut({ ways: [way], closed: undefined }),
  'the same way, in one that begins nothing': await ledOut({ ways: [way], closed: true }),
  'one more, of which the link is not there': await ledOut({ ways: [noWay, way], closed: true }),
  'one that goes out again, by what is left': await ledOut({ ways: [way], closed: false }, [noWay, way]),
  'no way out of a sandbox': await ledOut({ ways: [], closed: undefined }, [way]),
  'no way out where there was none': await ledOut({ ways: [], closed: false }, [way, noWay]),
  'the same routes': forced('replace', ...routes),
  'routes over a link that is not there': forced('replace', ...onFabric),
  'one that cannot be and one behind it': forced(
    'replace',
    { type: 'unicast', destination: '10.77.0.8', device: host, source: '198.51.100.1' },
    { type: 'unicast', destination: '10.77.0.9', device: host, source: '10.77.0.1' },
  ),
  'a stand-in for the fabric': batch(
    'link add cw-fabric mtu 1450 type veth peer name fabric address 02:42:0a:4d:00:07 mtu 1450',
    'link set cw-fabric addrgenmode none',
    'link set cw-fabric up',
    'link set fabric up',
  ),
  'routes to another node and back': forced('replace', ...onFabric),
  'one that leads to another node now': forced('replace', moved),
  'routes away': forced('del', moved, ...onFabric.slice(1), ...routes.slice(1)),
  'routes away that are gone': forced('del', ...routes),
  'a link away': one(`link del ${host}`),
  'a link away that is gone': one(`link del ${host}`),
};

describe('what the plugin does without iproute2 and nft', function () {
  this.timeout(120_000 * slowness);

  async function perform(by: 'itself' | 'process', list: readonly Command[]): Promise<Outcome[]> {
    const namespace = await Namespace.make(`cw-test-${randomBytes(4).toString('hex')}`);
    try {
      const words = [`--net=${namespace.path}`, process.execPath, program, JSON.stringify(list), by];
      return JSON.parse((await execa('nsenter', words)).stdout) as Outcome[];
    } finally {
      await namespace.remove();
    }
  }

  /** What iproute2 says of the same refusal in more words than the kernel's number has. */
  const plain = (stderr: string): string =>
    stderr.replaceAll(
      /^(Error: .*|RTNETLINK answers: (Invalid argument|Network is unreachable))$/gm,
      'refused',
    );

  /** Without what the kernel says of a carrier a moment later. */
  const settled = (state: string): string =>
    state
      .replaceAll('<NO-CARRIER,', '<')
      .replaceAll(/(?<= state )(UNKNOWN|LOWERLAYERDOWN|DOWN|UP)\b/g, '?')
      .replaceAll(/ linkdown( |$)/gm, '$1');

  it('a container’s commands, without iproute2: the kernel is left as iproute2 leaves it, with the same messages', async () => {
    const list = Object.values(commands);
    const [own, others] = await Promise.all([perform('itself', list), perform('process', list)]);
    for (const [at, name] of Object.keys(commands).entries()) {
      assert.equal(own[at]!.own, true, `${name}: without a process`);
      assert.equal(plain(own[at]!.stderr), plain(others[at]!.stderr), name);
      const [ours, theirs] = [settled(own[at]!.state), settled(others[at]!.state)].map((state) =>
        state.split('\n'),
      );
      // Line by line, so that one that differs is told whole.
      const only = (these: string[], those: string[]): string[] =>
        these.filter((line) => !those.includes(line));
      assert.deepEqual([only(ours!, theirs!), only(theirs!, ours!)], [[], []], name);
      assert.deepEqual(ours, theirs, name);
    }
  });

  it('set elements, without nft: changed as nft does, all of a transaction or nothing', async () => {
    const nft = (...lines: string[]): Command => ({
      tool: 'nft',
      args: ['-f', '-'],
      input: `${lines.join('\n')}\n`,
    });
    const declared = ['sources', 'hairpins', 'subnets'].map(
      (set) => `add set inet causeway ${set} { ${netLayout.sets[set]?.declaration ?? ''} }`,
    );
    const elements = (verb: string, set: string, ...list: string[]): string =>
      `${verb} element inet causeway ${set} { ${list.join(', ')} }`;
    const known: Record<string, Command> = {
      'where there is no table': nft(elements('add', 'sources', `${host} . 10.77.0.5`)),
      sets: nft('add table inet causeway', ...declared),
      'a container’s': nft(
        elements('add', 'sources', `${host} . 10.77.0.5`),
        elements('add', 'hairpins', '10.77.0.5 . 10.77.0.5'),
      ),
      'the same, and another': nft(
        elements('add', 'sources', `${host} . 10.77.0.5`, 'cw-longest-name . 255.254.0.6'),
      ),
      'one for the other': nft(
        elements('delete', 'sources', `${host} . 10.77.0.5`),
        elements('add', 'sources', `${host} . 10.77.0.7`),
      ),
      'one that is gone': nft(
        elements('add', 'hairpins', '10.77.0.8 . 10.77.0.8'),
        elements('delete', 'sources', `${host} . 10.77.0.5`),
      ),
      'what is left to nft': nft(elements('add', 'subnets', '10.77.0.0/16')),
      all: nft(
        elements('delete', 'sources', `${host} . 10.77.0.7`, 'cw-longest-name . 255.254.0.6'),
        elements('delete', 'hairpins', '10.77.0.5 . 10.77.0.5'),
      ),
    };
    const list = Object.values(known);
    const [own, others] = await Promise.all([perform('itself', list), perform('process', list)]);
    // The kernel tells elements in an order of its own.
    const sorted = (state: string): string[] =>
      settled(state)
        .split(/[\s,]+/)
        .sort();
    const word = (stderr: string): string =>
      /Error: (?:Could not process rule: )?(.*)/.exec(stderr)?.[1] ?? stderr;
    for (const [at, name] of Object.keys(known).entries()) {
      assert.equal(own[at]!.own, !['sets', 'what is left to nft'].includes(name), name);
      assert.equal(word(own[at]!.stderr), word(others[at]!.stderr), name);
      assert.deepEqual(sorted(own[at]!.state), sorted(others[at]!.state), name);
    }
    assert.match(own[4]!.state, /"cw-e1e1e1e1e1e1" \. 10\.77\.0\.7/);
  });

  it('links are read as iproute2 reads them', async () => {
    const list = [
      commands['a stand-in for the fabric']!,
      commands['a pair, without an address of its own']!,
      one('-j link show'),
    ];
    const links = (outcomes: Outcome[]): object[] =>
      (JSON.parse(outcomes.at(-1)?.stdout ?? '') as { ifname: string; mtu: number; flags: string[] }[]).map(
        ({ ifname, mtu, flags }) => ({ ifname, mtu, up: flags.includes('UP') }),
      );
    const [own, others] = await Promise.all([perform('itself', list), perform('process', list)]);
    assert.equal(own.at(-1)?.own, true);
    assert.deepEqual(links(own), links(others));
    assert.ok(links(own).length > 4);
  });

  it('addresses are read as iproute2 reads them', async () => {
    const list = [
      one('link set lo up'),
      commands['a stand-in for the fabric']!,
      one('address replace 203.0.113.7/24 dev fabric'),
      one('address replace 10.77.0.1/16 dev cw-fabric scope link noprefixroute'),
      one('-j address show'),
    ];
    interface Shown {
      ifname: string;
      mtu: number;
      flags: string[];
      addr_info: { family: string; local: string; prefixlen: number; scope: string; label?: string }[];
    }
    const addresses = (outcomes: Outcome[]): object[] =>
      (JSON.parse(outcomes.at(-1)!.stdout) as Shown[]).map(({ ifname, mtu, flags, addr_info }) => ({
        ...{ ifname, mtu, up: flags.includes('UP') },
        // The kernel makes others of IPv6 in its own time, and by chance.
        addresses: addr_info
          .filter(({ family, scope }) => family === 'inet' || scope === 'host')
          .map(({ family, local, prefixlen, scope, label }) => ({ family, local, prefixlen, scope, label })),
      }));
    const [own, others] = await Promise.all([perform('itself', list), perform('process', list)]);
    assert.ok(own.every((outcome) => outcome.own));
    assert.deepEqual(addresses(own), addresses(others));
    assert.match(own.at(-1)!.stdout, /203\.0\.113\.7/);
  });

  describe('reads as iproute2 does', () => {
    /** What is read of each entry; a field that iproute2 does not show either is undefined. */
    const shows: Record<string, { look: Command; fields: string[]; count: number }> = {
      'addresses of IPv4': {
        look: one('-4 -j address show'),
        fields: ['ifname', 'mtu'],
        count: 3,
      },
      'routes of table main': {
        look: one('-4 -N -j route show table main'),
        fields: ['dst', 'dev', 'gateway', 'prefsrc', 'protocol', 'nexthops'],
        count: 7,
      },
      'our routes of all tables': {
        look: one('-4 -j route show table all proto 197'),
        fields: ['type', 'dst', 'dev', 'gateway', 'prefsrc', 'table'],
        count: 5,
      },
      'policy rules': { look: one('-4 -j rule show'), fields: [], count: 12 },
      'permanent neighbours': {
        look: one('-4 -j neigh show nud permanent'),
        fields: ['dst', 'dev', 'lladdr'],
        count: 1,
      },
      'the forwarding of a VXLAN device': {
        look: { tool: 'bridge', args: ['-j', 'fdb', 'show', 'dev', 'cw-vx'] },
        fields: ['mac', 'dst'],
        count: 2,
      },
      'the forwarding of a device that is not there': {
        look: { tool: 'bridge', args: ['-j', 'fdb', 'show', 'dev', 'cw-none'] },
        fields: [],
        count: 0,
      },
    };
    const setUp = [
      one('link set lo up'),
      commands['a stand-in for the fabric']!,
      one('address replace 203.0.113.7/24 dev fabric'),
      one('address replace 10.77.0.1/16 dev cw-fabric scope link noprefixroute'),
      one('link add cw-vx type vxlan id 7 dstport 4790 local 203.0.113.7 nolearning'),
      one('link set cw-vx up'),
      one('neigh replace 203.0.113.9 lladdr 02:42:0a:4d:00:09 dev fabric nud permanent'),
      one('neigh replace 203.0.113.10 lladdr 02:42:0a:4d:00:0a dev fabric nud stale'),
      ...[
        ['02:0c:cb:00:71:09', '203.0.113.9'],
        ['02:0c:cb:00:71:0a', '203.0.113.10'],
      ].map(([mac = '', to = '']): Command => ({
        tool: 'bridge',
        args: ['fdb', 'replace', mac, 'dev', 'cw-vx', 'dst', to, 'self', 'permanent'],
      })),
      ...[
        'default via 203.0.113.1 dev fabric',
        '198.51.100.0/24 nexthop via 203.0.113.2 dev fabric nexthop via 203.0.113.3 dev fabric',
        'unreachable 10.77.0.0/16 metric 4294967295 proto 197',
        '10.77.0.5 dev cw-fabric scope link src 10.77.0.1 proto 197',
        '10.77.0.6 via 203.0.113.2 dev cw-fabric onlink src 10.77.0.1 proto 197',
        'default via 203.0.113.2 dev cw-fabric onlink table 218103810 proto 197',
        'local 10.77.0.4 dev lo table local src 10.77.0.1 proto 197',
        '192.0.2.0/24 via 203.0.113.4 proto static',
      ].map((route) => one(`route add ${route}`)),
      ...[
        'pref 99 to 10.77.0.0/16 iif lo fwmark 0x0/0xff000000 lookup main',
        'pref 18689 nop protocol 197',
        'pref 18681 not fwmark 0x0b000000/0xff000000 goto 18689 protocol 197',
        'pref 18683 lookup main suppress_prefixlength 0',
        'pref 18684 fwmark 0x0b000066 lookup 102',
        'pref 18000 iif cw-none goto 18689',
        'pref 101 from 203.0.113.7 lookup 101 protocol static',
        'pref 102 from 203.0.113.0/24 lookup 103',
        'pref 103 to 192.0.2.1 lookup default',
      ].map((rule) => one(`rule add ${rule}`)),
    ];
    let own: Outcome[];
    let others: Outcome[];
    const looks = Object.values(shows).map(({ look }) => look);
    before(async () => {
      [own, others] = await Promise.all([
        perform('itself', [...setUp, ...looks]),
        perform('process', [...setUp, ...looks]),
      ]);
    });
    for (const [at, [name, { fields, count }]] of Object.entries(shows).entries())
      it(name, () => {
        const [ours, theirs] = [own, others].map((outcomes) => outcomes[setUp.length + at]!);
        assert.ok(ours!.own, 'without a process');
        assert.equal(ours!.stderr, theirs!.stderr);
        const entries = ({ stdout }: Outcome): Record<string, unknown>[] =>
          (JSON.parse(stdout || '[]') as Record<string, unknown>[]).map((entry) =>
            fields.length === 0 ? entry : Object.fromEntries(fields.map((field) => [field, entry[field]])),
          );
        // Of what a route is made of iproute2 shows more.
        const plain = (entry: Record<string, unknown>): Record<string, unknown> => ({
          ...entry,
          ...(Array.isArray(entry['nexthops']) && {
            nexthops: (entry['nexthops'] as { gateway: string; dev: string }[]).map(({ gateway, dev }) => ({
              gateway,
              dev,
            })),
          }),
        });
        assert.deepEqual(entries(ours!).map(plain), entries(theirs!).map(plain));
        assert.equal(entries(ours!).length, count, ours!.stdout);
      });
  });

  it('what netlink cannot tell, or is too much, is left to iproute2', async () => {
    const rule = one('rule add pref 50 ipproto udp lookup main');
    const many = batch(
      ...Array.from({ length: 2_001 }, (_, at) => `route add 10.${at >> 8}.${at & 255}.1 dev lo`),
    );
    const list = [rule, one('-4 -j rule show'), one('link set lo up'), many];
    list.push(one('-4 -N -j route show table main'), one('-4 -j address show'));
    const outcomes = await perform('itself', list);
    assert.match(outcomes[1]!.stdout, /"ipproto":"udp"/);
    assert.equal(outcomes[1]!.own, false);
    assert.equal((JSON.parse(outcomes[4]!.stdout) as object[]).length, 2_001);
    assert.equal(outcomes[4]!.own, false);
    // And goes on by itself with what it can.
    assert.equal(outcomes[5]!.own, true);
    assert.match(outcomes[5]!.stdout, /127\.0\.0\.1/);
  });

  it('a batch with an unknown command is left to iproute2 whole', async () => {
    const unknown = [
      one('-4 -j rule list'),
      one('route replace 10.77.0.9 dev lo nexthop'),
      one('route replace 10.77.0.9/33 dev lo'),
      one('link set lo mtu 1500'),
      batch('link set lo up', 'link set lo alias loop'),
    ];
    assert.deepEqual(
      (await perform('itself', unknown)).map(({ own }) => own),
      unknown.map(() => false),
    );
  });
});
