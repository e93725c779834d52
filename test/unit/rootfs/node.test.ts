// Owns the tests of what is shipped as Node: pinned in the lock, and looked at when it is built in.
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { checkNode, nodeFile, pinned } from '../../../rootfs/node.ts';

const root = join(import.meta.dirname, '../../..');

interface Lock {
  packages: Record<
    string,
    { integrity?: string; resolved?: string; hasInstallScript?: true; link?: true } | undefined
  >;
}

describe('The Node that is shipped', () => {
  let dir: string;
  let lock: Lock;
  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'causeway-node-'));
    lock = JSON.parse(await readFile(join(root, 'package-lock.json'), 'utf8')) as Lock;
  });
  after(() => rm(dir, { recursive: true, force: true }));

  it('Node: the lock has it for each processor, with the pinned integrity', () => {
    for (const [name, { integrity }] of Object.entries(pinned))
      assert.equal(lock.packages[`node_modules/${name}`]?.integrity, integrity, name);
  });

  it('Node: the shipped program is the one that runs here, byte for byte', async () => {
    assert.equal(await checkNode(), pinned[`node-linux-${process.arch}`]!.sha256);
  });

  it('Node: a program with one byte more is refused, with both hashes and the remedy', async () => {
    const file = join(dir, 'node');
    await writeFile(file, Buffer.concat([await readFile(nodeFile), Buffer.of(0)]));
    await assert.rejects(checkNode({ file }), /is not the Node of package-lock\.json.*Remove node_modules/);
  });

  it('Node: a lock that names another one, or none, is refused', async () => {
    const lockFile = join(dir, 'package-lock.json');
    for (const integrity of ['sha512-AAAA', undefined]) {
      const entry = { ...(integrity === undefined ? {} : { integrity }) };
      await writeFile(
        lockFile,
        JSON.stringify({ packages: { [`node_modules/node-linux-${process.arch}`]: entry } }),
      );
      await assert.rejects(checkNode({ lockFile }), /another node-linux-\w+ than rootfs\/node\.ts pins/);
    }
    await writeFile(lockFile, JSON.stringify({ packages: {} }));
    await assert.rejects(checkNode({ lockFile }), /pins/);
  });

  it('Node: other processors are refused', async () => {
    await assert.rejects(checkNode({ arch: 'riscv64' }), /no Node for riscv64/);
  });
});

describe('What npm installs', () => {
  it('npm: each package has its integrity in the lock, which names no host', async () => {
    const text = await readFile(join(root, 'package-lock.json'), 'utf8');
    const { packages } = JSON.parse(text) as Lock;
    for (const [path, entry] of Object.entries(packages)) {
      if (path === '') continue;
      assert.match(entry!.integrity ?? '', /^sha512-/, path);
      assert.equal(entry!.resolved, undefined, path);
    }
  });

  it('npm: no package runs a script', async () => {
    assert.match(await readFile(join(root, '.npmrc'), 'utf8'), /^ignore-scripts=true$/m);
    assert.match(await readFile(join(root, 'bootstrap.sh'), 'utf8'), /npm ci --ignore-scripts/);
  });
});
