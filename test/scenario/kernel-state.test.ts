// Owns docs/kernel-state.md: from the example's records to every command Causeway runs, as text that may not drift.
// Must not need a kernel; the kernel tests show that a real one takes the same text.
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ipvsEngine } from '../../lb/ipvs.ts';
import type { Engine } from '../../lb/model.ts';
import { nftEngine } from '../../lb/nft.ts';
import { createVeth } from '../../net/links.ts';
import { Datapath } from '../../plugin/datapath.ts';
import { planDesiredState, type NodeRecords } from '../../plugin/desired-state.ts';
import { FakeKernel, type Change } from '../fake/kernel.ts';
import { afterwards, example, localEndpoints, node } from './example.ts';

const path = join(import.meta.dirname, '..', '..', 'docs', 'kernel-state.md');

/** A node whose endpoints have their links, and its data path. */
async function startNode(engine: Engine): Promise<{ kernel: FakeKernel; datapath: Datapath }> {
  const kernel = new FakeKernel();
  for (const { id, mac } of localEndpoints)
    await createVeth(kernel.run, kernel.sysctl, { endpointId: id, mac, mtu: 1450 });
  const datapath = new Datapath({
    run: kernel.run,
    conntrack: kernel.conntrack,
    sysctl: kernel.sysctl,
    engine,
    fabric: { port: 4790, vni: 4790 },
    nodeAddress: () => '',
  });
  return { kernel, datapath };
}

/** @returns what was run to bring the node to these records */
async function bring(
  { kernel, datapath }: { kernel: FakeKernel; datapath: Datapath },
  records: NodeRecords,
): Promise<Change[]> {
  const before = kernel.changes.length;
  await datapath.apply(planDesiredState(records, node));
  await datapath.cleanedUp();
  return kernel.changes.slice(before);
}

function quote(changes: readonly Change[]): string {
  const text = changes.map(({ command, input }) => {
    if (input === '') return `# ${command}\n`;
    return `# ${command} <<.\n${input}.\n`;
  });
  return ['```sh', text.join('\n').trimEnd(), '```'].join('\n');
}

async function describeLink(): Promise<string> {
  const kernel = new FakeKernel();
  const [first] = example.endpoints;
  assert.ok(first);
  await createVeth(kernel.run, kernel.sysctl, { endpointId: first.id, mac: first.mac, mtu: 1450 });
  const settings = [...kernel.settings]
    .filter(([name]) => name.includes('cw-'))
    .map(([name, value]) => `net.${name.replaceAll('/', '.')}=${value}`);
  return `${quote(kernel.changes)}\n\n${settings.map((setting) => `- \`${setting}\``).join('\n')}`;
}

async function describeEngine(engine: Engine): Promise<string> {
  const world = await startNode(engine);
  const nothing: NodeRecords = { nodes: [], networks: [], presence: [], endpoints: [], services: [] };
  return [
    `## Engine \`${engine.name}\``,
    '### From nothing to the example',
    quote(await bring(world, example)),
    '### The old task and `10.64.0.4` are gone',
    quote(await bring(world, afterwards)),
    '### The last network is gone',
    quote(await bring(world, nothing)),
  ].join('\n\n');
}

async function render(): Promise<string> {
  return `# What Causeway puts into the kernel

Made by \`test/scenario/kernel-state.test.ts\`, which fails when this page drifts; \`UPDATE_DOCS=1 npm run check\` writes it
anew. Every command that changes the kernel of one node is here, in the order in which it is run, for the records of
\`test/scenario/example.ts\`:

| network | subnet | gateway | |
| --- | --- | --- | --- |
${example.networks.map(({ name, subnet, gateway, internal }) => `| ${name ?? ''} | ${subnet} | ${gateway} | ${internal ? 'internal' : ''} |`).join('\n')}

| service | VIP | published | tasks |
| --- | --- | --- | --- |
${example.services.map(serviceRow).join('\n')}

What nobody changed is not written again: the same records a second time run nothing. \`forget flows\` is no command: the plugin
reads conntrack's table by netlink, and deletes what leads to such an address and has no end of its own.

## The link of an endpoint

Made by Join; Docker moves the end called \`cwp…\` into the sandbox.

${await describeLink()}

${await describeEngine(nftEngine)}

${await describeEngine(ipvsEngine)}
`;
}

function serviceRow({ name, vips, ports, tasks }: NodeRecords['services'][number]): string {
  const published = ports.map(({ protocol, port, targetPort }) => `${port}→${targetPort}/${protocol}`);
  const addresses = tasks.map(
    (task) => Object.values(task.addresses).join(' ') + (task.draining ? ' (draining)' : ''),
  );
  return `| ${name} | ${Object.values(vips).join(' ')} | ${published.join(', ')} | ${addresses.join(', ')} |`;
}

describe('docs/kernel-state.md', () => {
  it('docs/kernel-state.md has the commands that both engines run for the example', async () => {
    const text = await render();
    if (process.env['UPDATE_DOCS'] === '1') await writeFile(path, text);
    assert.equal(text, await readFile(path, 'utf8'), 'the page drifted: see its first lines');
  });

  for (const engine of [nftEngine, ipvsEngine]) {
    describe(`the example on a node with engine ${engine.name}`, () => {
      it('a second pass over the same records runs nothing', async () => {
        const world = await startNode(engine);
        await bring(world, example);
        assert.deepEqual(await bring(world, example), []);
      });

      it('what is read back from the kernel is what was written: nothing is changed', async () => {
        const world = await startNode(engine);
        await bring(world, example);
        const before = world.kernel.dump();
        world.datapath.invalidate();
        assert.deepEqual(await bring(world, example), []);
        assert.equal(world.kernel.dump(), before);
      });

      it('the last network is removed: the kernel is as it was before the first', async () => {
        const world = await startNode(engine);
        const before = world.kernel.dump();
        await bring(world, example);
        await bring(world, afterwards);
        await bring(world, { nodes: [], networks: [], presence: [], endpoints: [], services: [] });
        assert.equal(world.kernel.dump(), before);
      });
    });
  }
});
