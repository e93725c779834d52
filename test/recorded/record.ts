// Owns the recording of what the real tools print for the example, for tests that run without a kernel.
// Must not be part of a test run: by hand, as root, `npm run plugin:build && node test/recorded/record.ts && npm run format`.
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { ipvsEngine } from '../../lb/ipvs.ts';
import type { Engine } from '../../lb/model.ts';
import { nftEngine } from '../../lb/nft.ts';
import { createVeth } from '../../net/links.ts';
import { createRunner, type Runner, type Tool } from '../../net/run.ts';
import { Datapath } from '../../plugin/datapath.ts';
import { planDesiredState } from '../../plugin/desired-state.ts';
import { pluginDir } from '../../rootfs/build.ts';
import { FakeKernel } from '../fake/kernel.ts';
import { nodeAddress } from '../fake/host.ts';
import { example, localEndpoints, node } from '../scenario/example.ts';

const namespace = 'causeway-record';
const ip = (...args: string[]) => execa('ip', ['-n', namespace, ...args]);

/** Files by what makes them. */
const looks: Record<string, [Tool, string[]]> = {
  'ip-links.json': ['ip', ['-j', 'address', 'show']],
  'ip-link-vxlan.json': ['ip', ['-d', '-j', 'link', 'show', 'type', 'vxlan']],
  'ip-address.json': ['ip', ['-4', '-j', 'address', 'show']],
  'ip-route-main.json': ['ip', ['-4', '-N', '-j', 'route', 'show', 'table', 'main']],
  'ip-route-own.json': ['ip', ['-4', '-j', 'route', 'show', 'table', 'all', 'proto', '197']],
  'ip-rule.json': ['ip', ['-4', '-j', 'rule', 'show']],
  'ip-neigh.json': ['ip', ['-4', '-j', 'neigh', 'show', 'nud', 'permanent']],
  'bridge-fdb.json': ['bridge', ['-j', 'fdb', 'show', 'dev', 'cw-fabric']],
};
const list: [Tool, string[]] = ['nft', ['-j', 'list', 'table', 'inet', 'causeway']];

async function record(engine: Engine, files: Record<string, [Tool, string[]]>): Promise<void> {
  await execa('ip', ['netns', 'add', namespace]);
  try {
    await ip('link', 'set', 'lo', 'up');
    await ip('link', 'add', 'eth0', 'type', 'veth', 'peer', 'name', 'wire');
    await ip('address', 'add', `${nodeAddress}/24`, 'dev', 'eth0');
    for (const link of ['eth0', 'wire']) await ip('link', 'set', link, 'up');
    await ip('route', 'add', 'default', 'via', '203.0.113.254');
    const real = createRunner({
      root: join(pluginDir, 'rootfs'),
      prefix: ['nsenter', `--net=/run/netns/${namespace}`],
    });
    // The tables can be recorded on any kernel, so IPVS is the fake one.
    const fake = new FakeKernel();
    let transaction = '';
    const run: Runner = (tool, args, options) => {
      if (tool === 'nft' && args[0] === '-f') transaction = options?.input ?? '';
      return (tool === 'ipvsadm' ? fake.run : real)(tool, args, options);
    };
    const sysctl = { read: () => Promise.resolve('1'), write: () => Promise.resolve() };
    for (const { id, mac } of localEndpoints)
      await createVeth(run, sysctl, { endpointId: id, mac, mtu: 1450 });
    const fabric = { port: 4790, vni: 4790 };
    const datapath = new Datapath({
      run,
      conntrack: fake.conntrack,
      sysctl,
      engine,
      fabric,
      nodeAddress: () => '',
    });
    await datapath.apply(planDesiredState(example, node));
    for (const [file, [tool, args]] of Object.entries(files))
      await writeFile(join(import.meta.dirname, file), await run(tool, args));
    await writeFile(join(import.meta.dirname, `nft-table-${engine.name}.nft`), transaction);
  } finally {
    await execa('ip', ['netns', 'del', namespace]);
  }
}

await record(nftEngine, { ...looks, 'nft-table-nft.json': list });
await record(ipvsEngine, { 'nft-table-ipvs.json': list });
