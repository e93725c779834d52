// Owns what is promised of a lab of several nodes: its failures are those of real machines, and nothing of it stays.
// Must not test the plugin: test/swarm/ and test/docker/ do.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { groupOf } from './cgroups.ts';
import { loadImage, prepareImage, type Image } from './image.ts';
import { Lab, labsDir } from './lab.ts';
import type { Host, LabNode } from './node.ts';
import { until } from '../support/until.ts';

const name = 'test-lab';

/** What a lab has beside its files: control groups, and mounts seen from outside. */
async function traces(): Promise<string[]> {
  const groups = await readdir('/sys/fs/cgroup', { recursive: true });
  const mounts = await readFile('/proc/self/mounts', 'utf8');
  return [
    ...groups.filter((path) => path.includes(groupOf(name))),
    ...mounts.split('\n').filter((line) => line.includes(join(labsDir, name))),
  ];
}

/** Whether a connection to a node's Swarm comes about: every node listens there. */
async function reaches(from: Host, to: LabNode): Promise<boolean> {
  const script = `const s = require("net").connect({ port: 7946, host: "${to.address}", timeout: 3000 });
    s.on("connect", () => process.exit(0)); s.on("error", () => process.exit(1));
    s.on("timeout", () => process.exit(1))`;
  return !(await from.exec([process.execPath, '-e', script], { reject: false })).failed;
}

describe('a lab of three Docker nodes', function () {
  this.timeout(180_000);
  let lab: Lab;
  let image: Image;
  let n1: LabNode, n2: LabNode, n3: LabNode;

  /** Waits until the first node, a manager, says this of another. */
  const becomes = async (node: LabNode, status: 'Ready' | 'Down'): Promise<void> => {
    await until(
      `${node.name} is ${status}`,
      async () => {
        const { stdout } = await n1.docker(['node', 'ls', '--format', '{{.Hostname}} {{.Status}}']);
        return stdout.split('\n').includes(`${node.name} ${status}`);
      },
      { timeoutMs: 90_000, everyMs: 250 },
    );
  };

  before(async function () {
    // Parts may have to be downloaded.
    this.timeout(600_000);
    await Lab.down(name);
    image = await prepareImage();
    lab = await Lab.up({ name, nodes: 3 });
    [n1, n2, n3] = lab.nodes as [LabNode, LabNode, LabNode];
    await lab.formSwarm();
    // A lost node is noticed after three of these; Docker's default is 5 s.
    await n1.docker(['swarm', 'update', '--dispatcher-heartbeat', '1s']);
  });
  after(() => Lab.down(name));

  it('a lab loses a node whose cable is pulled, and has it back', async () => {
    await lab.cut(n2);
    assert.deepEqual(await lab.cutNodes(), [n2]);
    assert.equal(await reaches(n1, n2), false);
    assert.equal(await reaches(n2, n1), false);
    assert.equal(await reaches(n1, n3), true);
    await becomes(n2, 'Down');

    await lab.heal(n2);
    assert.equal(await reaches(n1, n2), true);
    await becomes(n2, 'Ready');
  });

  it('a lab can be split in two, and healed by another process', async () => {
    await lab.partition([n1], [n2, n3]);
    assert.equal(await reaches(n1, n2), false);
    assert.equal(await reaches(n3, n1), false);
    assert.equal(await reaches(n2, n3), true);
    for (const node of lab.nodes) assert.equal(await reaches(lab.client, node), true);
    await becomes(n3, 'Down');

    await (await Lab.attach(name)).heal();
    assert.equal(await reaches(n1, n2), true);
    await becomes(n2, 'Ready');
    await becomes(n3, 'Ready');
  });

  it('a lab cuts a node’s power without a goodbye, and the node comes back by itself', async () => {
    await loadImage(n3, image);
    const create = ['service', 'create', '--detach', '--quiet', '--no-resolve-image', '--name', 'web'];
    await n1.docker([...create, '--mode', 'global', '--constraint', 'node.hostname==n3', image.id]);
    const tasks = async (): Promise<string> => (await n3.docker(['ps', '--quiet'])).stdout;
    await until('the task runs', async () => (await tasks()) !== '', { timeoutMs: 60_000 });
    const before = await tasks();
    await writeFile(join(n3.dir, 'run/from-before'), '');
    await lab.startConsul({ servers: 3 });
    await n1.exec(['consul', 'kv', 'put', 'word', 'kept']);

    // Two connections of the client, one of them to a node that stays, to see what a goodbye looks like.
    const said: string[] = [];
    const run = (host: Host, script: string) => {
      const running = host.start([process.execPath, '-e', script]);
      running.stdout.on('data', (text: Buffer) => said.push(...text.toString().trim().split('\n')));
      return running;
    };
    const has = (what: string) =>
      until(what, () => Promise.resolve(said.includes(what)), { timeoutMs: 20_000 });
    const servers = [n2, n3].map((node) =>
      run(node, `require("net").createServer().listen(7000, () => console.log("${node.name} listens"))`),
    );
    for (const { name } of [n2, n3]) await has(`${name} listens`);
    const clients = [n2, n3].map(({ name, address }) =>
      run(
        lab.client,
        `const s = require("net").connect(7000, "${address}"); s.resume();
         s.on("connect", () => console.log("${name} accepts"));
         s.on("end", () => console.log("${name} ends"));
         s.on("error", ({ code }) => console.log("${name}:", code))`,
      ),
    );
    for (const { name } of [n2, n3]) await has(`${name} accepts`);

    await lab.kill(n3);
    servers[0]!.kill();
    await has('n2 ends');
    await becomes(n3, 'Down');
    assert.deepEqual(
      said.filter((line) => line.startsWith('n3')),
      ['n3 listens', 'n3 accepts'],
    );
    for (const client of clients) client.kill();

    const attached = await Lab.attach(name);
    assert.equal(attached.node('n3').isOn, false);
    assert.throws(() => attached.node('n3').exec(['true']), /n3 is off\. Start it: npm run lab -- start n3/);
    assert.deepEqual(
      (await traces()).filter((line) => line.includes('/n3')),
      [],
    );

    await attached.boot(attached.node('n3'));
    await becomes(n3, 'Ready');
    assert.equal(await reaches(lab.client, n3), true);
    await until('the task runs again', async () => ![before, ''].includes(await tasks()), {
      timeoutMs: 60_000,
    });
    assert.equal(existsSync(join(n3.dir, 'run/from-before')), false);
    const read = async (): Promise<string> =>
      (await n3.exec(['consul', 'kv', 'get', 'word'], { reject: false })).stdout;
    const back = () =>
      until('its Consul is back', async () => (await read()) === 'kept', { timeoutMs: 60_000 });
    await back();
    await lab.stopConsul(n3);
    assert.equal(await read(), '');
    await lab.startConsul();
    await back();
    assert.equal(lab.consulStore, `consul://${lab.nodes.map(({ address }) => `${address}:8500`).join(',')}`);
  });

  it('a lab with a node that is off leaves nothing behind', async () => {
    await lab.kill(n2);
    assert.notDeepEqual(await traces(), []);
    await lab.down();
    assert.equal(existsSync(join(labsDir, name)), false);
    assert.deepEqual(await traces(), []);
  });
});
