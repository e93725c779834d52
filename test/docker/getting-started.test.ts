// Owns the test of docs/getting-started.md: every line it tells people to type is typed into three real Docker nodes.
// Must not know a command that is not on that page, but for looking whether it did what it says.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { cp, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { pluginDir } from '../../rootfs/build.ts';
import { startLoad } from '../lab/asking.ts';
import { consulProgram, prepareConsul } from '../lab/consul.ts';
import { imageName, loadImage, prepareImage } from '../lab/image.ts';
import { Lab } from '../lab/lab.ts';
import type { Host, LabNode } from '../lab/node.ts';
import { until } from '../support/until.ts';
import { prepareRegistry, registry, startRegistry } from '../lab/registry.ts';
import { slowness } from '../slowness.ts';
import { ask, clients, errors, tasks } from './questions.ts';

const root = join(import.meta.dirname, '../..');
const page = readFileSync(join(root, 'docs/getting-started.md'), 'utf8');
const patience = { timeoutMs: 120_000 * slowness, everyMs: 500 };
/** Docker may first have to find out that there is no registry in reach. */
const commandMs = 180_000 * slowness;

/** The page's sections with the lines in them, HOST and what is typed there. */
const sections = page
  .split(/^## /m)
  .slice(1)
  .map((text) => ({
    title: text.split('\n', 1)[0] ?? '',
    lines: [...text.matchAll(/^ {4}(\w+)\$ (.+)$/gm)].map(([, host = '', line = '']) => ({ host, line })),
  }));

describe('docs/getting-started.md, typed into three real Docker nodes', function () {
  this.timeout(900_000 * slowness);
  let lab: Lab;
  /** What the page has words for, as lines of it have printed them. */
  const printed = { TOKEN: '', MANAGEMENT: '', SECRET: '' };

  const hostOf = (name: string): Host => (name === 'client' ? lab.client : lab.node(name));

  /** What the page's reader would type: with the own registry, token and addresses. */
  function adapt(line: string): string {
    let text = line.replaceAll('REGISTRY', registry);
    for (const [word, value] of Object.entries(printed))
      text = text.replaceAll(new RegExp(`\\b${word}\\b`, 'g'), value);
    for (const [index, { address }] of lab.nodes.entries())
      text = text.replaceAll(`198.51.100.${index + 1}`, address);
    return text;
  }

  async function type(host: string, line: string): Promise<void> {
    const run = () =>
      hostOf(host).exec(['sh', '-c', `cd '${root}' && ${adapt(line)}`], {
        reject: false,
        timeout: commandMs,
      });
    // What is looked at may take its time to come about; what is done is done once, unless the page says otherwise.
    const isLook = line.startsWith('curl') || line.endsWith('stack rm demo');
    let last = await run();
    if (isLook && last.failed)
      await until(`${host}: ${line}`, async () => !(last = await run()).failed, patience);
    const { failed, stdout, stderr } = last;
    assert.ok(!failed, `${host}: ${line}\n${stdout}\n${stderr}`);
    if (line.includes('join-token')) printed.TOKEN = stdout;
    if (line.endsWith('/acl/bootstrap')) printed.MANAGEMENT = secretIn(stdout);
    if (line.endsWith('/acl/token')) printed.SECRET = secretIn(stdout);
    // While Consul is away.
    if (line.includes('service scale')) await serving(8080, 8);
  }

  /** Waits until each node's port answers from so many tasks, which all see the client. */
  async function serving(port: number, count: number): Promise<void> {
    for (const { name, address } of lab.nodes)
      await until(
        `port ${port} of ${name} answers from ${count} tasks`,
        async () => {
          const list = await ask(lab.client, [
            'http',
            `http://${address}:${port}/`,
            '--count',
            String(2 * count),
          ]);
          return (
            tasks(list).length === count &&
            errors(list).length === 0 &&
            clients(list)[0] === lab.client.address
          );
        },
        patience,
      );
  }

  /** Gives a node the images under the names the stacks ask for. */
  async function provideImages(node: LabNode): Promise<void> {
    await node.docker(['tag', imageName, 'traefik/whoami:latest']);
    const entrypoint = join(node.dir, 'docker-entrypoint.sh');
    await writeFile(entrypoint, '#!/bin/sh\nexec consul "$@"\n', { mode: 0o755 });
    const { stdout: container } = await node.docker(['create', imageName]);
    await node.docker(['cp', consulProgram, `${container}:/usr/bin/consul`]);
    await node.docker(['cp', entrypoint, `${container}:/usr/bin/docker-entrypoint.sh`]);
    await node.docker(['commit', container, 'hashicorp/consul:latest']);
    await node.docker(['rm', container]);
  }

  /** Has every node's own registry hold two versions of the plugin, which differ in a comment. */
  async function publish(): Promise<void> {
    const { first } = lab;
    await startRegistry(first);
    for (const version of ['0.1.0', '0.1.1']) {
      const name = `${registry}/causeway/net:${version}`;
      const dir = join(first.dir, `plugin-${version}`);
      await mkdir(dir);
      // Links, so that nothing of the build may be written to: what differs is replaced.
      await execa('cp', ['--archive', '--link', `${pluginDir}/.`, dir]);
      const main = join(dir, 'rootfs/causeway/main.mjs');
      const program = await readFile(main, 'utf8');
      await rm(main);
      await writeFile(main, `${program}\n// ${version}\n`);
      for (const words of [
        ['create', name, dir],
        ['push', name],
        ['rm', name],
      ])
        await first.docker(['plugin', ...words]);
      await rm(dir, { recursive: true });
    }
    for (const node of lab.nodes.slice(1)) {
      await startRegistry(node);
      await cp(join(first.dir, 'registry/data'), join(node.dir, 'registry/data'), { recursive: true });
    }
  }

  async function allAgree(): Promise<void> {
    for (const node of lab.nodes)
      await until(
        `${node.name} and Consul agree`,
        async () => {
          const diff = await node.admin('/diff').catch(() => undefined);
          return JSON.stringify(diff) === '{"missing":[],"extra":[],"different":[]}';
        },
        patience,
      );
  }

  /** What a section promises, beyond that its lines can be typed. */
  const promises: Record<string, () => Promise<void>> = {
    '2': async () => {
      const { stdout } = await lab.first.exec(['curl', '-s', 'http://127.0.0.1:8500/v1/status/peers']);
      assert.equal((JSON.parse(stdout) as string[]).length, 3);
      const key = 'http://127.0.0.1:8500/v1/kv/causeway/cluster/swarm';
      const status = ['-s', '-o', '/dev/null', '-w', '%{http_code}'];
      const without = await lab.first.exec(['curl', ...status, key]);
      assert.equal(without.stdout, '403', 'nothing without a token');
      const token = `X-Consul-Token: ${printed.SECRET}`;
      const withIt = await lab.first.exec(['curl', ...status, '-H', token, key]);
      assert.equal(withIt.stdout, '404', 'nothing is there yet');
    },
    '3': async () => {
      await until(
        'all nodes know each other',
        async () => {
          const { nodes, store } = (await lab.first.admin('/status')) as {
            nodes: { unreachable: boolean }[];
            store: { connected: boolean };
          };
          return nodes.length === 3 && nodes.every(({ unreachable }) => !unreachable) && store.connected;
        },
        patience,
      );
      const plugins = '{{range .Description.Engine.Plugins}} {{.Name}}{{end}}';
      await until(
        'Swarm knows that every node has the plugin',
        async () => {
          const { stdout } = await lab.first.docker([
            'node',
            'inspect',
            '--format',
            plugins,
            'n1',
            'n2',
            'n3',
          ]);
          return stdout.split('\n').every((line) => line.includes('causeway/net:latest'));
        },
        patience,
      );
    },
    '4': () => serving(8080, 6),
    '6': async () => {
      await serving(8080, 8);
      await allAgree();
    },
    '7': () => serving(8080, 8),
  };

  /** Asks all nodes from now on. @returns ends that: nobody was left without an answer */
  async function keepAsking(): Promise<() => Promise<void>> {
    const pace = { intervalMs: 20, timeoutMs: 5_000 * slowness };
    const loads = await Promise.all(
      lab.nodes.map(({ address }) => startLoad(lab.client, `http://${address}:8080/`, pace)),
    );
    return async () => {
      const outcomes = (await Promise.all(loads.map((load) => load.stop()))).flat();
      assert.deepEqual(
        outcomes.filter(({ error }) => error !== undefined),
        [],
      );
    };
  }

  /** What goes on while a section is typed; each gives how that ends. */
  const meanwhile: Record<string, () => Promise<() => Promise<void>>> = { '7': keepAsking };

  before(async () => {
    const image = await prepareImage();
    await Promise.all([prepareRegistry(), prepareConsul()]);
    await Lab.down('test-start');
    lab = await Lab.up({ name: 'test-start', nodes: 3 });
    await Promise.all(lab.nodes.map((node) => loadImage(node, image)));
    for (const node of lab.nodes) await provideImages(node);
    await publish();
  });
  after(() => lab.down());

  let stuck: string | undefined;
  for (const { title, lines } of sections)
    it(title, async () => {
      assert.equal(stuck, undefined, 'each section goes on from where the one before has come to');
      stuck = title;
      const number = title.split('.', 1)[0] ?? '';
      const end = await meanwhile[number]?.();
      for (const { host, line } of lines) await type(host, line);
      await promises[number]?.();
      await end?.();
      stuck = undefined;
    });
});

/** What Consul prints of a token. */
function secretIn(text: string): string {
  return (JSON.parse(text) as { SecretID: string }).SecretID;
}
