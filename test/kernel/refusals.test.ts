// Owns the tests of what a host can be in the way with: each is told by a clear error, and nothing half-made is left.
// Must not test what can be seen without a kernel (test/protocol).
import assert from 'node:assert/strict';
import { parseConfig } from '../../plugin/config.ts';
import { PluginProcess } from '../lab/plugin-process.ts';
import { slowness } from '../slowness.ts';
import { Namespace, nodeAddress, World } from './world.ts';

const engine = process.env['CAUSEWAY_TEST_LB'] ?? 'nft';

describe('a host that is in the way', function () {
  this.timeout(60_000 * slowness);
  let world: World;
  let untouched: string;

  before(async () => {
    world = await World.up({ env: () => ({ CAUSEWAY_LB: engine }) });
    untouched = await world.kernelState();
  });
  after(() => world.down());

  /** Creates a network, which must fail, and removes on Docker's side what there is of it. */
  async function refused(options: Parameters<World['allocateNetwork']>[1], message: RegExp): Promise<void> {
    const network = await world.allocateNetwork('refused', options);
    await assert.rejects(world.createNetwork(network), message);
    await world.removeNetwork(network);
    assert.deepEqual((await world.status()).networks, [], 'no record is left');
  }

  it('another device has the fabric’s VNI: CreateNetwork names the device', async () => {
    const { CAUSEWAY_FABRIC_VNI: vni, CAUSEWAY_FABRIC_PORT: port } = parseConfig({});
    await world.node.ip(
      ...`link add vxtaken type vxlan id ${vni} dstport ${port} local ${nodeAddress}`.split(' '),
    );
    await refused({}, new RegExp(`vxtaken already has VNI ${vni}.*CAUSEWAY_FABRIC_VNI`));
    await world.node.ip('link', 'del', 'vxtaken');
    assert.equal(await world.kernelState(), untouched);
  });

  it('the fabric’s UDP port is taken: CreateNetwork says so', async () => {
    const peer = world.peer(world.node);
    await peer.serve({ name: 'taken', udp: parseConfig({}).CAUSEWAY_FABRIC_PORT });
    await refused({}, /UDP port 4790 is in use.*CAUSEWAY_FABRIC_PORT/);
    await peer.stop();
    assert.equal(await world.kernelState(), untouched);
  });

  it('a subnet overlaps the host’s: the error names the address and the route', async () => {
    await refused({ subnet: '203.0.113.128/25' }, /203\.0\.113\.0\/24/);
    await refused({ subnet: '203.0.0.0/16' }, /203\.0\.113\.\d/);
    await world.node.ip('route', 'add', '10.123.0.0/16', 'via', '203.0.113.2');
    await refused({ subnet: '10.123.4.0/24' }, /10\.123\.0\.0\/16/);
    await world.node.ip('route', 'del', '10.123.0.0/16');
    assert.equal(await world.kernelState(), untouched);
  });

  it('networks without a subnet get one that overlaps nothing of the host', async () => {
    await world.node.ip('route', 'add', '10.64.0.0/19', 'via', '203.0.113.2');
    const network = await world.network('evasive');
    assert.equal(network.subnet, '10.64.32.0/20');
    await world.removeNetwork(network);
    await world.node.ip('route', 'del', '10.64.0.0/19');
  });

  it('a capability is missing: the error names it', async () => {
    const plugin = await PluginProcess.start({
      netns: world.node.path,
      without: ['net_admin'],
      env: { CAUSEWAY_LB: 'nft' },
    });
    try {
      const data = { AddressSpace: 'causeway-local', Pool: '10.77.0.0/24', Gateway: '10.77.0.1/24' };
      const { body } = await plugin.client.post('NetworkDriver.CreateNetwork', {
        NetworkID: 'n1',
        Options: {},
        IPv4Data: [data],
        IPv6Data: [],
      });
      assert.match(String(body['Err']), /CAP_NET_ADMIN/);
    } finally {
      await plugin.stop();
    }
  });

  it('a setting that cannot be honoured: the plugin does not start, and says why', async () => {
    const namespace = await Namespace.make(`${world.node.name}cfg`);
    const wrong: [Record<string, string>, RegExp][] = [
      [{ CAUSEWAY_LB: 'best' }, /CAUSEWAY_LB=best: takes auto, ipvs or nft/],
      [{ CAUSEWAY_STORE: 'etcd://x' }, /CAUSEWAY_STORE=etcd:\/\/x/],
      [{ CAUSEWAY_TYPO: '1' }, /unknown setting CAUSEWAY_TYPO/],
    ];
    // The other kernel has IPVS.
    if (engine === 'nft')
      wrong.push([{ CAUSEWAY_LB: 'ipvs' }, /this kernel has no IPVS.*set CAUSEWAY_LB=auto/]);
    for (const [env, message] of wrong) {
      await assert.rejects(PluginProcess.start({ netns: namespace.path, env }), message);
    }
    await namespace.remove();
  });
});
