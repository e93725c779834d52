// Owns the test of names in real containers of one node: long answers, names of the world outside, and what remains of them
// when the plugin is away.
// Must not reach into the plugin: what a program in a container gets is what counts.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { pluginName } from '../../rootfs/create.ts';
import { imageName, loadImage, prepareImage } from '../lab/image.ts';
import { Lab } from '../lab/lab.ts';
import type { LabNode } from '../lab/node.ts';
import { signal } from '../lab/processes.ts';
import { until } from '../support/until.ts';
import { enablePlugin } from '../lab/slow.ts';
import { slowness } from '../slowness.ts';
import { findAddresses, keepLookingUp, lookUp } from './questions.ts';

const upstreamProgram = join(import.meta.dirname, 'upstream-program.ts');
const outside = '192.0.2.80';
const port = 4795;
const many = 50;
/** From half a second after a plugin's restart on Docker looks whether it listens; should it end meanwhile, Docker looks on. */
const restartMs = 3000 * slowness;

const patience = { timeoutMs: 150_000 * slowness, everyMs: 300 };

describe('names in the containers of a node', function () {
  this.timeout(600_000 * slowness);
  let lab: Lab;
  let node: LabNode;
  let asker: string;

  const docker = async (...args: string[]): Promise<string> => (await node.docker(args)).stdout;

  /** Runs a program of the lab in the asker's network. @returns what it prints */
  async function inSandbox(...command: string[]): Promise<string> {
    const pid = await docker('inspect', '--format', '{{.State.Pid}}', asker);
    const { stdout } = await node.exec(['nsenter', `--net=/proc/${pid}/ns/net`, ...command]);
    return stdout;
  }

  /** @returns how many addresses `dig` or `drill` was answered with, and whether that was said to be all */
  async function counted(...command: string[]): Promise<[number, 'all' | 'truncated']> {
    const text = await inSandbox(...command);
    const flags = /;; flags:([a-z ]*);/.exec(text)?.[1] ?? '';
    const records = text.match(/^many\.?\s.*\sIN\s+A\s+10\.98\./gm) ?? [];
    return [records.length, /\btc\b/.test(flags) ? 'truncated' : 'all'];
  }

  const isLed = async (): Promise<boolean> =>
    Array.isArray((await lookUp(node, asker, ['asker.front.causeway.internal A']))[0]);

  before(async () => {
    const image = await prepareImage();
    await Lab.down('test-names');
    lab = await Lab.up({ name: 'test-names' });
    node = lab.first;
    await loadImage(node, image);
    await lab.installPlugin();
    await lab.formSwarm();
    const upstream = lab.client.start([process.execPath, upstreamProgram, lab.client.address]);
    upstream.catch(() => undefined);
    await once(upstream.stdout, 'data');
    const drivers = ['--driver', pluginName, '--ipam-driver', pluginName, '--scope', 'swarm'];
    await docker('network', 'create', ...drivers, '--attachable', '--subnet', '10.98.0.0/24', 'front');
    const dns = ['--dns', lab.client.address];
    asker = await docker(
      'run',
      '--detach',
      '--name',
      'asker',
      '--network',
      'front',
      ...dns,
      imageName,
      'serve',
    );
    await docker(
      ...['service', 'create', '--detach', '--quiet', '--no-resolve-image', '--name', 'many'],
      ...['--network', 'front', '--endpoint-mode', 'dnsrr', '--replicas', String(many)],
      ...['--stop-grace-period', '1s', '--entrypoint', 'sleep', image.id, '100000'],
    );
    await until('the name server answers', isLed, patience);
  });
  after(() => Lab.down('test-names'));

  it('names are answered in full, however many addresses there are, to dig and drill, glibc and musl', async () => {
    const all = async (): Promise<boolean> =>
      (await counted('drill', '-t', 'many', '@127.0.0.11'))[0] === many;
    await until(`all ${many} tasks run`, all, patience);
    assert.deepEqual(await counted('dig', '+tcp', 'many', '@127.0.0.11'), [many, 'all']);
    assert.deepEqual(await counted('dig', '+bufsize=1232', 'many', '@127.0.0.11'), [many, 'all']);
    assert.deepEqual(await counted('drill', '-b', '1232', 'many', '@127.0.0.11'), [many, 'all']);
    // Too many for what the asker takes: said to be truncated, whereupon dig asks again by TCP unless it shall not.
    for (const small of ['dig +noedns +ignore', 'dig +bufsize=512 +ignore', 'drill -b 512']) {
      const [count, end] = await counted(...small.split(' '), 'many', '@127.0.0.11');
      assert.ok(count > 20 && count < many && end === 'truncated', `${small}: ${count} ${end}`);
    }
    assert.deepEqual(await counted('dig', '+bufsize=512', 'many', '@127.0.0.11'), [many, 'all']);

    const [found] = await findAddresses(node, asker, ['many']);
    assert.equal(found?.glibc.length, many);
    // Before 1.2.4 it does not ask again by TCP.
    assert.ok(found.musl.length > 20, `${found.musl.length}`);
    assert.ok(found.musl.every((address) => found.glibc.includes(address)));
    await docker('service', 'rm', 'many');
  });

  it('names that are not ours are asked of the container’s own resolvers', async () => {
    assert.deepEqual(await lookUp(node, asker, ['www.example A', 'www.example AAAA', 'nosuch.test A']), [
      [outside],
      'ENODATA',
      'ENOTFOUND',
    ]);
    const [found] = await findAddresses(node, asker, ['www.example']);
    assert.deepEqual(found, { glibc: [outside], musl: [outside] });
    assert.deepEqual(await counted('dig', '+tcp', 'www.example', '@127.0.0.11'), [0, 'all']);
  });

  it('names are answered to the node itself, and to nobody outside', async () => {
    for (const protocol of ['+notcp', '+tcp']) {
      const words = [protocol, '+tries=1', '+time=2', 'asker.causeway.internal'];
      const { stdout } = await lab.client.exec(['dig', '-p', String(port), `@${node.address}`, ...words], {
        reject: false,
      });
      assert.doesNotMatch(stdout, /status:/);
    }
    const own = ['dig', '-p', String(port), '@127.0.0.1'] as const;
    assert.match((await node.exec([...own, 'asker.causeway.internal'])).stdout, /10\.98\.0\./);
    assert.match((await node.exec([...own, 'www.example'])).stdout, /status: REFUSED/);
  });

  it('names, ours and others’, are answered while the plugin is killed, disabled and switched off', async () => {
    const names = ['asker', 'www.example'];
    const looking = keepLookingUp(node, asker, names);
    const [pid] = await node.pidsOf('causeway');
    assert.ok(pid);
    signal(pid, 'SIGKILL');
    await until('it is back', isLed, patience);
    await sleep(restartMs);
    await docker('plugin', 'disable', '--force', pluginName);
    assert.equal(await isLed(), false);
    await enablePlugin(node, pluginName);
    await until('it is back', isLed, patience);
    await docker('plugin', 'disable', '--force', pluginName);
    await docker('plugin', 'set', pluginName, 'CAUSEWAY_DNS=off');
    await enablePlugin(node, pluginName);
    await until(
      'the sandbox is as Docker made it',
      async () => !/causeway/.test(await inSandbox('nft', 'list', 'tables')),
      patience,
    );
    const { asked, failed } = await looking.end();
    assert.ok(asked > 20, `${asked}`);
    assert.deepEqual(failed, []);
  });
});
