// Owns the test of getting the plugin as a user does: from a registry, with Docker's question, and upgraded in place.
// Must not test what the plugin does once it is there: single-node.test.ts does.
import assert from 'node:assert/strict';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { pluginDir } from '../../rootfs/build.ts';
import { loadImage, prepareImage, type Image } from '../lab/image.ts';
import { Lab } from '../lab/lab.ts';
import type { LabNode } from '../lab/node.ts';
import { until } from '../support/until.ts';
import { prepareRegistry, registry, startRegistry } from '../lab/registry.ts';
import { slowness } from '../slowness.ts';
import { answers, ask, echo, errors, tasks, within, type Answer } from './questions.ts';

const lab = 'test-install';
const readme = join(import.meta.dirname, '../../rootfs/README.md');
const alias = 'causeway/net:latest';
const remote = (version: string): string => `${registry}/causeway/net:${version}`;

/** Asks until it is told to stop. */
class Asker {
  #output = '';
  readonly #running;

  /** @param kind http: a new connection each time; tcp: one connection for all */
  constructor(host: Lab['client'], kind: 'http' | 'tcp', target: string) {
    const limits = ['--count', '1000000', '--interval', '20', ...within(2)];
    this.#running = host.start([process.execPath, echo, kind, target, ...limits]);
    this.#running.stdout.on('data', (chunk: Buffer) => (this.#output += chunk.toString()));
  }

  get answers(): Answer[] {
    return answers(this.#output);
  }

  /** Waits for so many more answers. */
  async more(count: number): Promise<void> {
    const wanted = this.answers.length + count;
    await until(`${count} answers`, () => Promise.resolve(this.answers.length >= wanted), {
      timeoutMs: 120_000 * slowness,
    });
  }

  stop(): void {
    this.#running.kill();
  }
}

describe('docker plugin install and upgrade, from a registry', function () {
  this.timeout(600_000 * slowness);
  let client: Lab['client'];
  let node: LabNode;
  let image: Image;

  const docker = async (...args: string[]): Promise<string> => (await node.docker(args)).stdout;

  /** Makes a version of the plugin out of what was built, and has the registry hold it, and Docker not. */
  async function publish(version: string): Promise<void> {
    const dir = join(node.dir, `plugin-${version}`);
    await mkdir(dir);
    // Links, so that nothing of the build may be written to: what differs is replaced.
    await execa('cp', ['--archive', '--link', `${pluginDir}/.`, dir]);
    const main = join(dir, 'rootfs/causeway/main.mjs');
    const program = await readFile(main, 'utf8');
    await rm(main);
    await writeFile(main, `${program}\n// ${version}\n`);
    await docker('plugin', 'create', remote(version), dir);
    await docker('plugin', 'push', remote(version));
    await docker('plugin', 'rm', remote(version));
    await rm(dir, { recursive: true });
  }

  /** The tasks' addresses, as their containers have them. */
  async function addresses(): Promise<string[]> {
    const list = await docker('ps', '--quiet', '--filter', 'label=com.docker.swarm.service.name=web');
    const format = '{{.NetworkSettings.Networks.front.IPAddress}}';
    return (await docker('inspect', '--format', format, ...list.split('\n'))).split('\n').sort();
  }

  /** Waits until the published port answers from so many tasks. */
  async function serving(count: number): Promise<void> {
    await until(
      `web answers from ${count} tasks`,
      async () => {
        const words = ['http', `http://${node.address}:8080/`, '--count', String(2 * count)];
        const list = await ask(client, words);
        return tasks(list).length === count && errors(list).length === 0;
      },
      { timeoutMs: 120_000 * slowness, everyMs: 250 },
    );
  }

  const inspect = async (format: string): Promise<string> =>
    docker('plugin', 'inspect', '--format', format, alias);

  before(async function () {
    // Parts may have to be downloaded.
    this.timeout(600_000 * slowness);
    await Lab.down(lab);
    image = await prepareImage();
    await prepareRegistry();
    const all = await Lab.up({ name: lab });
    client = all.client;
    node = all.first;
    await startRegistry(node);
    await loadImage(node, image);
    await publish('1.0');
    await publish('1.1');
    await all.formSwarm();
  });
  after(() => Lab.down(lab));

  it('docker plugin install asks for the privileges that rootfs/README.md explains, and installs nothing without them', async () => {
    const install = ['plugin', 'install', '--alias', alias, remote('1.0')];
    const { stdout, failed } = await node.docker(install, { input: 'n\n', reject: false });
    assert.equal(failed, true);
    const privileges = stdout.split('\n').filter((line) => line.startsWith(' - '));
    assert.deepEqual(privileges, [
      ' - network: [host]',
      ' - mount: [/run]',
      ' - mount: [/proc/sys/net]',
      ' - capabilities: [CAP_NET_ADMIN CAP_SYS_ADMIN]',
    ]);
    assert((await readFile(readme, 'utf8')).includes(privileges.map((line) => `    ${line}`).join('\n')));
    assert.equal(await docker('plugin', 'ls', '--quiet'), '');
  });

  it('an installed plugin serves, with the settings given', async () => {
    const install = ['plugin', 'install', '--grant-all-permissions', '--alias', alias];
    await docker(...install, remote('1.0'), 'CAUSEWAY_LOG=debug');
    assert.equal(await inspect('{{.Name}} {{.Enabled}}'), `${alias} true`);
    await docker('network', 'create', '-d', alias, '--ipam-driver', alias, '--scope', 'swarm', 'front');
    const create = ['service', 'create', '--detach', '--quiet', '--no-resolve-image', '--name', 'web'];
    const ports = ['-p', '8080:80', '-p', '8081:7'];
    await docker(...create, '--network', 'front', '--replicas', '3', ...ports, image.id);
    await serving(3);
  });

  it('docker plugin upgrade: every request is answered, and nothing is forgotten', async () => {
    const before = {
      addresses: await addresses(),
      node: ((await node.admin('/status')) as { node: string }).node,
      settings: await inspect('{{json .Settings.Env}}'),
    };
    const askers = [
      new Asker(client, 'http', `http://${node.address}:8080/`),
      new Asker(client, 'tcp', `${node.address}:8081`),
    ];
    await Promise.all(askers.map((asker) => asker.more(20)));

    await docker('plugin', 'disable', '--force', alias);
    // Without this option Docker asks whether 1.1 in place of 1.0 is meant.
    const upgrade = ['plugin', 'upgrade', '--grant-all-permissions', '--skip-remote-check'];
    await docker(...upgrade, alias, remote('1.1'));
    await Promise.all(askers.map((asker) => asker.more(20)));
    await docker('plugin', 'enable', alias);
    await until('the plugin answers', () => node.admin('/status').catch(() => undefined), {
      timeoutMs: 120_000 * slowness,
    });
    await Promise.all(askers.map((asker) => asker.more(100)));
    for (const asker of askers) asker.stop();

    for (const { answers } of askers) {
      assert.deepEqual(errors(answers), []);
    }
    assert.equal(
      await inspect('{{.Name}} {{.Enabled}} {{.PluginReference}}'),
      `${alias} true ${remote('1.1')}`,
    );
    assert.deepEqual(
      {
        addresses: await addresses(),
        node: ((await node.admin('/status')) as { node: string }).node,
        settings: await inspect('{{json .Settings.Env}}'),
      },
      before,
    );
    assert.match(before.settings, /CAUSEWAY_LOG=debug/);
  });

  it('after the upgrade new tasks get addresses of their own, and serve', async () => {
    const before = await addresses();
    await docker('service', 'scale', '--detach', 'web=5');
    await serving(5);
    const now = await addresses();
    assert.equal(new Set(now).size, 5);
    assert.deepEqual(
      before.filter((address) => !now.includes(address)),
      [],
    );
  });
});
