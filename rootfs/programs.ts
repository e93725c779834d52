// Owns picking single programs, with exactly the shared libraries they load, out of an unpacked Debian tree.
// Must not fetch or run them: debian.ts fetches, and the loader alone is asked what a program needs.
import { cp, mkdir, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { execa } from 'execa';

/** Where this processor architecture keeps its libraries, and the loader of its programs. */
const [triplet, loader] =
  process.arch === 'arm64'
    ? ['aarch64-linux-gnu', '/lib/ld-linux-aarch64.so.1']
    : ['x86_64-linux-gnu', '/lib64/ld-linux-x86-64.so.2'];

/** The directory of shared libraries, as seen from a tree's root. */
export const libraryDir = `/usr/lib/${triplet}`;

export interface Selection {
  /** The tree to take from, as unpackDebian() leaves it. */
  from: string;
  /** The tree to fill; see {@link mergedUsr}. */
  into: string;
  /** Absolute paths of programs, or of modules a program loads by name, in `from`. */
  programs: string[];
  /** Absolute paths of files and directories taken as they are. */
  data?: string[];
  /** Programs that are not Debian's: path in `into` → file on this machine. Their libraries come from `from`. */
  foreign?: Record<string, string>;
  /** Names that lead elsewhere: path in `into` → target of a symbolic link. */
  links?: Record<string, string>;
}

/**
 * Copies a selection, and makes the tree fit to run it: loader, libraries, name service configuration.
 *
 * @throws when a program is missing, or a library it needs is not in `from`.
 */
export async function copyPrograms(o: Selection): Promise<void> {
  const { from, into, programs, data = [], foreign = {}, links = {} } = o;
  const take = (path: string) =>
    cp(join(from, path), join(into, path), { recursive: true, dereference: true });

  for (const path of [...programs, ...data, loader]) await take(path);
  for (const [path, file] of Object.entries(foreign)) {
    await mkdir(dirname(join(into, path)), { recursive: true });
    await cp(file, join(into, path));
  }
  const libraries = new Set<string>();
  for (const path of [...programs, ...Object.keys(foreign)]) {
    for (const library of await librariesOf(join(into, path), from)) libraries.add(library);
  }
  for (const library of libraries) await take(library);

  for (const [path, target] of Object.entries(links)) await symlink(target, join(into, path));
  // Without this file the C library asks DNS before /etc/hosts.
  await mkdir(join(into, 'etc'), { recursive: true });
  await writeFile(join(into, 'etc/nsswitch.conf'), 'hosts: files dns\n');
}

/** @returns the shared libraries `file` loads when the tree `root` provides them, as paths from that root. */
async function librariesOf(file: string, root: string): Promise<string[]> {
  const path = join(root, libraryDir);
  const { stdout } = await execa(join(root, loader), [
    '--inhibit-cache',
    '--library-path',
    path,
    '--list',
    file,
  ]);
  //   libz.so.1 => …/build/cache/plugin-debian/usr/lib/x86_64-linux-gnu/libz.so.1 (0x00007f…)
  return stdout.split('\n').flatMap((line) => {
    const [, library] = / => (\S+)/.exec(line) ?? [];
    return library?.startsWith(root) ? [library.slice(root.length)] : [];
  });
}

/**
 * Lays out an empty root: /bin, /sbin, /lib and /lib64 as links into /usr. Debian 12 is merged-/usr, yet its
 * packages still ship files under both names.
 */
export async function mergedUsr(root: string): Promise<void> {
  for (const dir of ['bin', 'sbin', 'lib', 'lib64']) {
    await mkdir(join(root, 'usr', dir), { recursive: true });
    await symlink(join('usr', dir), join(root, dir));
  }
}
