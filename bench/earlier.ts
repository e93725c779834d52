// Owns building the plugin of another commit of this repository, to upgrade from it and go back to it.
// Must not change the checkout, nor what was built of it.
import { cp, mkdir, rm, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';

const root = join(import.meta.dirname, '..');
const into = join(root, 'build', 'earlier');

/**
 * Builds it with the libraries that are installed here.
 * @returns the directory of its programs, as it is in the plugin's root file system
 * @throws Error when the commit is not in this repository, or cannot be built
 */
export async function buildEarlier(commit: string, signal: AbortSignal): Promise<string> {
  await rm(into, { recursive: true, force: true });
  await mkdir(join(into, 'build', 'cache'), { recursive: true });
  const { stdout } = await execa('git', ['archive', commit], {
    cwd: root,
    encoding: 'buffer',
    maxBuffer: 1e9,
    cancelSignal: signal,
  });
  await execa('tar', ['--extract', '--directory', into], { input: stdout });
  await symlink(join(root, 'node_modules'), join(into, 'node_modules'));
  // The Debian packages need not be fetched again.
  for (const name of ['plugin-debian', 'plugin-debian.packages'])
    await cp(join(root, 'build', 'cache', name), join(into, 'build', 'cache', name), {
      recursive: true,
      verbatimSymlinks: true,
    });
  await execa(process.execPath, [join(into, 'rootfs', 'build.ts')], { cwd: into, cancelSignal: signal });
  return join(into, 'build', 'plugin', 'rootfs', 'causeway');
}
