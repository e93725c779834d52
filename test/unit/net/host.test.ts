// Owns the tests of what is read of the host: its links, addresses and routes, and the device and rules of its own.
// Must not need a kernel.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ensureFabric, FabricTaken, removeFabric } from '../../../net/fabric.ts';
import { observeInUse, observeUnderlay } from '../../../net/host.ts';
import { createVeth, isVeth, observeLinks } from '../../../net/links.ts';
import { fabricLink, peerName, vethName } from '../../../net/names.ts';
import { ensureAccepted, planAccepted } from '../../../net/accept-rules.ts';
import { CommandError, type Runner } from '../../../net/run.ts';
import { FakeKernel } from '../../fake/kernel.ts';

const recorded = (file: string): Promise<string> =>
  readFile(join(import.meta.dirname, '..', '..', 'recorded', file), 'utf8');

/** Answers as the recorded host did. */
const host: Runner = (_tool, args) =>
  recorded(
    args.includes('route') ? 'ip-route-main.json' : args.includes('-4') ? 'ip-address.json' : 'ip-links.json',
  );

describe('observeInUse', () => {
  it('observeInUse gives the host’s addresses and routes, without the default route and Causeway’s own', async () => {
    assert.deepEqual(await observeInUse(host), [
      { cidr: '127.0.0.1/8', what: 'address 127.0.0.1 of lo' },
      { cidr: '203.0.113.1/24', what: 'address 203.0.113.1 of eth0' },
      { cidr: '203.0.113.0/24', what: 'route 203.0.113.0/24 dev eth0' },
    ]);
  });
});

describe('observeUnderlay', () => {
  it('the underlay address is the one on the way to the default gateway', async () => {
    assert.deepEqual(await observeUnderlay(host, ''), { address: '203.0.113.1', device: 'eth0', mtu: 1500 });
  });

  it('the underlay address is the one of the setting, and no other', async () => {
    const kernel = new FakeKernel();
    const eth1 = {
      up: true,
      mtu: 9000,
      addresses: [{ local: '198.51.100.7', prefixlen: 24, scope: 'global' as const }],
    };
    kernel.host.links.set('eth1', eth1);
    assert.equal((await observeUnderlay(kernel.run, '198.51.100.7'))?.mtu, 9000);
    assert.equal(await observeUnderlay(kernel.run, '198.51.100.8'), undefined);
    assert.equal(await observeUnderlay(kernel.run, '127.0.0.1'), undefined, 'others cannot reach loopback');
  });

  it('a host with loopback only has no underlay address', async () => {
    const kernel = new FakeKernel();
    kernel.host.removeLink('eth0');
    assert.equal(await observeUnderlay(kernel.run, ''), undefined);
  });
});

describe('links', () => {
  const endpointId = 'e1'.repeat(32);
  const veth = { endpointId, mac: '02:42:0a:40:00:03', mtu: 1450 };

  it('links: host ends of endpoints are told from all other links', async () => {
    const names = (await observeLinks(host)).map(({ name }) => name).filter(isVeth);
    assert.deepEqual(names.sort(), [
      'cw-e1e1e1e1e1e1',
      'cw-e2e2e2e2e2e2',
      'cw-e3e3e3e3e3e3',
      'cw-e4e4e4e4e4e4',
    ]);
  });

  it('links: names are what the kernel accepts', () => {
    assert.ok(vethName(endpointId).length <= 15);
    assert.ok(peerName(endpointId).length <= 15);
    assert.ok(fabricLink.length <= 15);
  });

  it('links: a veth is created with its settings, and up', async () => {
    const kernel = new FakeKernel();
    await createVeth(kernel.run, kernel.sysctl, veth);
    assert.equal(kernel.host.links.get('cw-e1e1e1e1e1e1')?.up, true);
    assert.equal(kernel.settings.get('ipv4/conf/cw-e1e1e1e1e1e1/proxy_arp'), '1');
    assert.equal(kernel.settings.get('ipv4/neigh/cw-e1e1e1e1e1e1/proxy_delay'), '0');
  });

  it('links: a left-over veth of the same endpoint is created anew', async () => {
    const kernel = new FakeKernel();
    await createVeth(kernel.run, kernel.sysctl, veth);
    await createVeth(kernel.run, kernel.sysctl, { ...veth, mtu: 1400 });
    assert.equal(kernel.host.links.get('cw-e1e1e1e1e1e1')?.mtu, 1400);
  });

  it('links: the kernel refuses a setting: no veth is left', async () => {
    const kernel = new FakeKernel();
    const before = kernel.dump();
    const sysctl = { ...kernel.sysctl, write: () => Promise.reject(new Error('EROFS')) };
    await assert.rejects(createVeth(kernel.run, sysctl, veth), /EROFS/);
    assert.equal(kernel.dump(), before);
  });
});

describe('ensureFabric', () => {
  const settings = { port: 4790, vni: 4790 };
  const underlay = { address: '203.0.113.1', device: 'eth0', mtu: 1500 };

  it('ensureFabric creates the device, leaves it alone, and creates it anew for another underlay', async () => {
    const kernel = new FakeKernel();
    await ensureFabric(kernel.run, kernel.sysctl, settings, underlay);
    // It is up when its settings are what they should be.
    assert.equal(kernel.changes.length, 2);
    await ensureFabric(kernel.run, kernel.sysctl, settings, underlay);
    assert.equal(kernel.changes.length, 2);
    await ensureFabric(kernel.run, kernel.sysctl, settings, { ...underlay, mtu: 1400 });
    assert.equal(kernel.host.links.get(fabricLink)?.mtu, 1350);
    await removeFabric(kernel.run);
    await removeFabric(kernel.run);
    assert.equal(kernel.host.links.has(fabricLink), false);
  });

  it('ensureFabric recognises a recorded device as its own', async () => {
    const kernel = new FakeKernel();
    const text = await recorded('ip-link-vxlan.json');
    const run: Runner = (tool, args, options) =>
      args.includes('vxlan') ? Promise.resolve(text) : kernel.run(tool, args, options);
    await ensureFabric(run, kernel.sysctl, settings, underlay);
    assert.deepEqual(kernel.changes, []);
  });

  it('ensureFabric: another device has the VNI: the error names it and the setting to change', async () => {
    const kernel = new FakeKernel();
    kernel.host.step(
      'link add flannel.1 mtu 1450 type vxlan id 4790 dstport 4790 local 203.0.113.1 nolearning',
    );
    const before = kernel.dump();
    await assert.rejects(
      ensureFabric(kernel.run, kernel.sysctl, settings, underlay),
      (error: unknown) =>
        error instanceof FabricTaken && /flannel\.1.*VNI 4790.*CAUSEWAY_FABRIC_VNI/.test(error.message),
    );
    assert.equal(kernel.dump(), before);
  });

  it('ensureFabric: another program has the UDP port: the error names the setting, and no device is left', async () => {
    const kernel = new FakeKernel();
    kernel.host.boundPorts.add(4790);
    const before = kernel.dump();
    await assert.rejects(
      ensureFabric(kernel.run, kernel.sysctl, settings, underlay),
      (error: unknown) =>
        error instanceof FabricTaken && /UDP port 4790.*CAUSEWAY_FABRIC_PORT/.test(error.message),
    );
    assert.equal(kernel.dump(), before);
  });
});

describe('ensureAccepted', () => {
  const own = ['-i', '-o'].map((side) => `-A FORWARD ${side} cw-+ -m comment --comment causeway -j ACCEPT`);
  const marked = '-A INPUT -m mark --mark 0xc000000/0xff000000 -m comment --comment causeway -j ACCEPT';

  it('accept rules are last in chains where the policy drops', async () => {
    const kernel = new FakeKernel();
    kernel.inputPolicy = 'DROP';
    for (const _ of [1, 2]) await ensureAccepted(kernel.run, ['FORWARD', 'INPUT']);
    assert.deepEqual(kernel.forward, ['-A FORWARD -j DOCKER-USER', ...own]);
    assert.deepEqual(kernel.input, [marked]);
    await ensureAccepted(kernel.run, ['FORWARD']);
    assert.deepEqual([kernel.input, kernel.forward.length], [[], 3], 'IPVS alone is asked for at INPUT');
  });

  it('accept rules go when they are not wanted or needed any more, duplicates too', async () => {
    const kernel = new FakeKernel();
    await ensureAccepted(kernel.run, ['FORWARD']);
    kernel.forward.push(...own);
    kernel.forwardPolicy = 'ACCEPT';
    await ensureAccepted(kernel.run, ['FORWARD']);
    assert.deepEqual(kernel.forward, ['-A FORWARD -j DOCKER-USER']);
    kernel.forwardPolicy = 'DROP';
    await ensureAccepted(kernel.run, ['FORWARD']);
    await ensureAccepted(kernel.run, []);
    assert.deepEqual(kernel.forward, ['-A FORWARD -j DOCKER-USER']);
  });

  const docker = ['-A FORWARD -j DOCKER-USER', '-A DOCKER-USER -i eth0 -j DROP', '-A DOCKER-USER -j DROP'];
  const reject = '-j REJECT --reject-with icmp-host-prohibited';
  /** What is there beside ours, and how many of its rules in FORWARD come before them. */
  const places: Record<string, [lines: string[], before: number]> = {
    'behind DOCKER-USER, whatever is in it': [docker, 1],
    'ahead of a reject at the end': [[...docker, `-A FORWARD ${reject}`], 1],
    'ahead of a reject with a comment': [[`-A FORWARD -m comment --comment "the rest" ${reject}`], 0],
    'behind a rule that drops some': [['-A FORWARD -s 192.0.2.0/24 -j DROP', '-A FORWARD -j DROP'], 1],
    'ahead of a chain that drops all': [
      ['-A FORWARD -j log', '-A FORWARD -j end', '-A log -j LOG', '-A end -m limit -j LOG', '-A end -j DROP'],
      1,
    ],
    'behind a chain that returns': [['-A FORWARD -j some', '-A some -j RETURN', '-A some -j DROP'], 1],
    'behind chains that lead round in a circle': [['-A FORWARD -j a', '-A a -j b', '-A b -j a'], 1],
    'behind ufw’s chains': [
      [
        '-A FORWARD -j ufw-before-forward',
        '-A FORWARD -j ufw-track-forward',
        '-A ufw-before-forward -p icmp -j ACCEPT',
      ],
      2,
    ],
    'ahead of ufw’s reject': [
      [
        '-A FORWARD -j ufw-before-forward',
        '-A FORWARD -j ufw-reject-forward',
        `-A ufw-reject-forward ${reject}`,
      ],
      1,
    ],
  };
  for (const [what, [lines, before]] of Object.entries(places))
    it(`accept rules are put ${what}, and moved there`, () => {
      const policy = ['-P INPUT ACCEPT', '-P FORWARD DROP'];
      const apply = (present: readonly string[]): string[] => {
        const rules = [...present];
        for (const [verb, chain = '', ...rest] of planAccepted(rules, 'FORWARD', true)) {
          const inChain = (): number[] =>
            rules.flatMap((line, at) => (line.startsWith(`-A ${chain} `) ? [at] : []));
          if (verb === '-A') rules.splice((inChain().at(-1) ?? -1) + 1, 0, `-A ${chain} ${rest.join(' ')}`);
          else if (verb === '-D') rules.splice(rules.indexOf(`-A ${chain} ${rest.join(' ')}`), 1);
          else rules.splice(inChain()[Number(rest[0]) - 1]!, 0, `-A ${chain} ${rest.slice(1).join(' ')}`);
        }
        return rules.filter((line) => line.startsWith('-A FORWARD '));
      };
      const others = lines.filter((line) => line.startsWith('-A FORWARD '));
      const expected = [...others.slice(0, before), ...own, ...others.slice(before)];
      assert.deepEqual(apply([...policy, ...lines]), expected);
      assert.deepEqual(apply([...policy, ...own, ...lines]), expected);
      assert.deepEqual(
        planAccepted(
          [...policy, ...expected, ...lines.filter((line) => !others.includes(line))],
          'FORWARD',
          true,
        ),
        [],
      );
    });

  it('no accept rules where everything passes', () => {
    assert.deepEqual(
      planAccepted(['-P FORWARD DROP', '-A FORWARD -j ACCEPT', '-A FORWARD -j DROP'], 'FORWARD', true),
      [],
    );
    assert.deepEqual(
      planAccepted(['-P INPUT ACCEPT', '-A INPUT -s 192.0.2.1/32 -j DROP'], 'INPUT', true),
      [],
    );
  });

  it('an iptables backend that is busy does not count as missing', async () => {
    const kernel = new FakeKernel();
    const busy = new CommandError('iptables', 4, 'Another app is currently holding the xtables lock.\n');
    await assert.rejects(
      ensureAccepted(() => Promise.reject(busy), []),
      busy,
    );
    await ensureAccepted(kernel.run, []);
  });

  it('an iptables backend that the host does not have is left alone', async () => {
    const kernel = new FakeKernel();
    kernel.refuse = () => 'iptables: Failed to initialize nft: Protocol not supported\n';
    await ensureAccepted(kernel.run, ['FORWARD']);
  });
});
