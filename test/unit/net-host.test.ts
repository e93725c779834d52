// Owns the tests of what is read of the host: its links, addresses and routes, and the device and rules of its own.
// Must not need a kernel.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { forgetFlows } from '../../net/conntrack.ts';
import { ensureFabric, FabricTaken, removeFabric } from '../../net/fabric.ts';
import { observeInUse, observeUnderlay } from '../../net/host.ts';
import { createVeth, isVeth, observeLinks } from '../../net/links.ts';
import { fabricLink, peerName, vethName } from '../../net/names.ts';
import { ensurePassage } from '../../net/passage.ts';
import type { Runner } from '../../net/run.ts';
import { FakeKernel } from '../fake/kernel.ts';

const recorded = (file: string): Promise<string> =>
  readFile(join(import.meta.dirname, '..', 'recorded', file), 'utf8');

/** Answers as the recorded host did. */
const host: Runner = (_tool, args) =>
  recorded(
    args.includes('address')
      ? 'ip-address.json'
      : args.includes('link')
        ? 'ip-link.json'
        : 'ip-route-main.json',
  );

describe('observeInUse', () => {
  it('names addresses and routes of the host, without the default route and without its own', async () => {
    assert.deepEqual(await observeInUse(host), [
      { cidr: '127.0.0.1/8', what: 'address 127.0.0.1 of lo' },
      { cidr: '203.0.113.1/24', what: 'address 203.0.113.1 of eth0' },
      { cidr: '203.0.113.0/24', what: 'route 203.0.113.0/24 dev eth0' },
    ]);
  });
});

describe('observeUnderlay', () => {
  it('takes the address on the way to the default gateway', async () => {
    assert.deepEqual(await observeUnderlay(host, ''), { address: '203.0.113.1', device: 'eth0', mtu: 1500 });
  });

  it('takes the address it is told, and nothing else', async () => {
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

  it('finds none on a host that has only loopback', async () => {
    const kernel = new FakeKernel();
    kernel.host.removeLink('eth0');
    assert.equal(await observeUnderlay(kernel.run, ''), undefined);
  });
});

describe('links', () => {
  const endpointId = 'e1'.repeat(32);
  const veth = { endpointId, mac: '02:42:0a:40:00:03', mtu: 1450 };

  it('tells the ends of endpoints in the host from all other links', async () => {
    const names = (await observeLinks(host)).map(({ name }) => name).filter(isVeth);
    assert.deepEqual(names.sort(), [
      'cw-e1e1e1e1e1e1',
      'cw-e2e2e2e2e2e2',
      'cw-e3e3e3e3e3e3',
      'cw-e4e4e4e4e4e4',
    ]);
  });

  it('have names the kernel takes', () => {
    assert.ok(vethName(endpointId).length <= 15);
    assert.ok(peerName(endpointId).length <= 15);
    assert.ok(fabricLink.length <= 15);
  });

  it('are made with their settings, and up', async () => {
    const kernel = new FakeKernel();
    await createVeth(kernel.run, kernel.sysctl, veth);
    assert.equal(kernel.host.links.get('cw-e1e1e1e1e1e1')?.up, true);
    assert.equal(kernel.settings.get('ipv4/conf/cw-e1e1e1e1e1e1/proxy_arp'), '1');
    assert.equal(kernel.settings.get('ipv4/neigh/cw-e1e1e1e1e1e1/proxy_delay'), '0');
  });

  it('are made anew where one of the same endpoint is left over', async () => {
    const kernel = new FakeKernel();
    await createVeth(kernel.run, kernel.sysctl, veth);
    await createVeth(kernel.run, kernel.sysctl, { ...veth, mtu: 1400 });
    assert.equal(kernel.host.links.get('cw-e1e1e1e1e1e1')?.mtu, 1400);
  });

  it('leave nothing behind when the kernel refuses one of their settings', async () => {
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

  it('makes the device, leaves it alone once it is there, and makes it anew for another underlay', async () => {
    const kernel = new FakeKernel();
    await ensureFabric(kernel.run, kernel.sysctl, settings, underlay);
    assert.equal(kernel.changes.length, 1);
    await ensureFabric(kernel.run, kernel.sysctl, settings, underlay);
    assert.equal(kernel.changes.length, 1);
    await ensureFabric(kernel.run, kernel.sysctl, settings, { ...underlay, mtu: 1400 });
    assert.equal(kernel.host.links.get(fabricLink)?.mtu, 1350);
    await removeFabric(kernel.run);
    await removeFabric(kernel.run);
    assert.equal(kernel.host.links.has(fabricLink), false);
  });

  it('takes a recorded device of its own for what it is', async () => {
    const kernel = new FakeKernel();
    const text = await recorded('ip-link-vxlan.json');
    const run: Runner = (tool, args, options) =>
      args.includes('vxlan') ? Promise.resolve(text) : kernel.run(tool, args, options);
    await ensureFabric(run, kernel.sysctl, settings, underlay);
    assert.deepEqual(kernel.changes, []);
  });

  it('names the device that has its VNI, and the setting to change', async () => {
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

  it('names the UDP port that is taken and the setting to change, and leaves no device', async () => {
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

describe('ensurePassage', () => {
  const own = ['-i', '-o'].map((side) => `-A FORWARD ${side} cw-+ -m comment --comment causeway -j ACCEPT`);

  it('lets packets of Causeway pass behind all rules of others where the policy drops them', async () => {
    const kernel = new FakeKernel();
    await ensurePassage(kernel.run, true);
    await ensurePassage(kernel.run, true);
    assert.deepEqual(kernel.forward, ['-A FORWARD -j DOCKER-USER', ...own]);
  });

  it('takes its rules away when they are not wanted, or not needed any more, and doubles too', async () => {
    const kernel = new FakeKernel();
    await ensurePassage(kernel.run, true);
    kernel.forward.push(...own);
    kernel.forwardPolicy = 'ACCEPT';
    await ensurePassage(kernel.run, true);
    assert.deepEqual(kernel.forward, ['-A FORWARD -j DOCKER-USER']);
    kernel.forwardPolicy = 'DROP';
    await ensurePassage(kernel.run, true);
    await ensurePassage(kernel.run, false);
    assert.deepEqual(kernel.forward, ['-A FORWARD -j DOCKER-USER']);
  });

  it('does without a backend the host does not have', async () => {
    const kernel = new FakeKernel();
    kernel.refuse = () => 'iptables: Failed to initialize nft: Protocol not supported\n';
    await ensurePassage(kernel.run, true);
  });
});

describe('forgetFlows', () => {
  const gone = "conntrack v1.4.7 (conntrack-tools): Operation failed: such conntrack doesn't exist\n";

  it('takes one process for all addresses, and none for none', async () => {
    const kernel = new FakeKernel();
    await forgetFlows(kernel.run, { endless: [], all: [] });
    await forgetFlows(kernel.run, { endless: ['10.64.0.3', '10.64.0.4'], all: ['10.64.0.5'] });
    assert.deepEqual(
      kernel.changes.map(({ command, input }) => [command, input.split('\n').length - 1]),
      [['conntrack -R -', 5]],
    );
  });

  it('goes on with the rest when a flow ends by itself, but not for ever', async () => {
    const kernel = new FakeKernel();
    let refusals = 3;
    kernel.refuse = () => (refusals-- > 0 ? gone : undefined);
    await forgetFlows(kernel.run, { endless: ['10.64.0.3'], all: [] });
    assert.equal(kernel.changes.length, 4);
    refusals = Infinity;
    await assert.rejects(forgetFlows(kernel.run, { endless: ['10.64.0.3'], all: [] }), /doesn't exist/);
  });

  it('does not hide another failure', async () => {
    const kernel = new FakeKernel();
    kernel.refuse = () => 'conntrack v1.4.7 (conntrack-tools): Operation failed: Operation not permitted\n';
    await assert.rejects(forgetFlows(kernel.run, { endless: ['10.64.0.3'], all: [] }), /not permitted/);
  });
});
