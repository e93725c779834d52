// Owns a disk for the virtual machine with Docker's data on it: the test image loaded, the plugin created.
// Must not run inside: what takes minutes there, emulated, is done here at native speed.
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { buildPlugin, pluginDir } from '../../../rootfs/build.ts';
import { createPlugin } from '../../../rootfs/create.ts';
import { withLock } from '../../../rootfs/lock.ts';
import { loadImage, prepareImage } from '../image.ts';
import { Lab } from '../lab.ts';
import { prepareTools, toolsDir } from '../tools.ts';
import { prepareParts } from './parts.ts';
import type { Disk } from './qemu.ts';

const cacheDir = join(import.meta.dirname, '../../../build/cache/docker-disk');
const labName = 'docker-disk';
const lockTimeoutMs = 600_000;

/** Room for containers and what they write. The file is sparse. */
const size = '8G';

/**
 * Makes the disk, unless image, plugin and Docker are those of an earlier run. Half a minute on an idle machine.
 *
 * @returns the disk, to be given to `Vm.boot`. Its mount point is a data root of Docker 20.10, to be given to `Lab.up`
 *   inside: nothing needs loading, and the plugin only enabling.
 * @throws Error not root, or no Docker Engine can be run on this machine.
 */
export async function prepareDockerDisk(
  o: { progress?: (line: string) => void; signal?: AbortSignal } = {},
): Promise<Disk> {
  const { progress = () => {}, signal } = o;
  await buildPlugin(o);
  const image = await prepareImage(o);
  // Before the key is made of what it leaves: on a fresh machine the next call's would be another one.
  await prepareTools(o);
  const { mke2fs, mke2fsConf, libraries } = await prepareParts({ progress, signal });
  await mkdir(cacheDir, { recursive: true });
  return withLock(`${cacheDir}.lock`, { timeoutMs: lockTimeoutMs, signal }, async () => {
    // What the plugin and Docker were built from; image ids are digests already.
    const inputs = [image.id, await readText(`${pluginDir}.inputs`), await readText(`${toolsDir}.packages`)];
    const key = createHash('sha256').update(inputs.join('\0')).digest('hex').slice(0, 16);
    const file = join(cacheDir, `${key}.ext4`);
    if (!existsSync(file)) {
      for (const stale of await readdir(cacheDir)) await rm(join(cacheDir, stale));
      progress('preparing a disk with Docker’s data');
      await Lab.down(labName);
      await using lab = await Lab.up({ name: labName, ...o });
      const node = lab.first;
      await loadImage(node, image);
      await createPlugin((args) => node.docker(args, { signal }));
      await node.stopDocker({ ...(signal ? { signal } : {}) });
      const data = join(node.dir, 'docker');
      // This machine's bridge, of no use on another kernel.
      await rm(join(data, 'network'), { recursive: true });
      // From a directory: nothing needs to be mounted. No journal: nobody will recover this disk.
      const options = ['-q', '-t', 'ext4', '-m', '0', '-O', '^has_journal', '-d', data];
      await execa(mke2fs, [...options, `${file}.new`, size], {
        env: { LD_LIBRARY_PATH: libraries, MKE2FS_CONFIG: mke2fsConf },
        ...(signal ? { cancelSignal: signal } : {}),
      });
      await rename(`${file}.new`, file);
    }
    // Not below /run, which every node covers with its own.
    return { image: file, at: '/docker-data' };
  });
}

/** @returns '' when there is no such file. */
const readText = (file: string) => readFile(file, 'utf8').catch(() => '');
