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

/** A setting and the value that it shall have. */
export type Setting = readonly [path: string, value: string];

/** Writes what differs. What a kernel does not have, or what went with its device, is nothing to be set. */
export async function keepSettings(sysctl: Sysctl, settings: readonly Setting[]): Promise<void> {
  await Promise.all(
    settings.map(async ([path, value]) => {
      const present = await sysctl.read(path);
      if (present === undefined || present === value) return;
      await sysctl.write(path, value).catch((error: unknown) => {
        if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      });
    }),
  );
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

/** Before a link of ours is up: nothing of ours speaks IPv6 yet, and no router is taken at its word by one. */
export async function withoutIPv6(sysctl: Sysctl, link: string): Promise<void> {
  for (const [name, value] of [
    ['disable_ipv6', '1'],
    ['accept_ra', '0'],
  ] as const) {
    const path = `ipv6/conf/${link}/${name}`;
    // A kernel without IPv6 has no such setting.
    if ((await sysctl.read(path)) !== undefined) await sysctl.write(path, value);
  }
}
