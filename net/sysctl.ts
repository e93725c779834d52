// Owns reading and writing network sysctls.
// Must not know which settings are wanted.
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

/** Settings below /proc/sys/net by path, e.g. `ipv4/ip_forward`. */
export interface Sysctl {
  /** @returns the trimmed value; undefined where the kernel has no such setting */
  read(path: string): Promise<string | undefined>;
  write(path: string, value: string): Promise<void>;
}

/**
 * @param root where /proc/sys/net is to be found: a managed plugin's own /proc/sys is read-only, so it is given the
 *   host's as a mount of its own
 */
export function fileSysctl(root: string): Sysctl {
  return {
    async read(path) {
      try {
        return (await readFile(join(root, path), 'utf8')).trim();
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
        throw error;
      }
    },
    async write(path, value) {
      await writeFile(join(root, path), value);
    },
  };
}
