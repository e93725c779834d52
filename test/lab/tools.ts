// Owns the lab's programs: Docker Engine 20.10 and the network tools from Debian, unpacked in build/tools.
// Must not install anything: the machine may have no Docker, or one of its own that is left alone.
import { existsSync } from 'node:fs';
import { symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { unpackDebian } from '../../rootfs/debian.ts';
import { libraryDir } from '../../rootfs/programs.ts';

const root = join(import.meta.dirname, '../..');

/** Where the programs are unpacked. */
export const toolsDir = join(root, 'build/tools');

const packages = [
  'bind9-dnsutils',
  'conntrack',
  'docker.io',
  'iproute2',
  'iptables',
  'ldnsutils',
  'nftables',
  'tini',
];

/**
 * What the machine has itself (the C library must match the loader in /lib64, so it is taken from there), and what
 * only maintainer scripts need.
 */
const unneeded =
  /^(libc6|libgcc-s1|gcc-12-base|libcrypt1|debconf|dpkg|tar|adduser|passwd|login|base-passwd|init-system-helpers|lsb-base|sysvinit-utils|usrmerge|libpam.*|libdb5\.3|lib(audit|semanage|sepol|gdbm).*|.*perl.*)$/;

/** Programs that are one of several alternatives in Debian, and so have no name of their own until installed. */
const alternatives = ['iptables', 'ip6tables'].flatMap((family) => [
  family,
  `${family}-save`,
  `${family}-restore`,
]);

/**
 * Makes build/tools complete. Takes seconds, and a download of 70 MB the first time.
 * @throws {DebianError} when the packages cannot be had.
 */
export async function prepareTools(o: {
  progress?: (line: string) => void;
  signal?: AbortSignal;
}): Promise<void> {
  await unpackDebian({ packages, into: toolsDir, exclude: unneeded, ...o });
  for (const name of alternatives) {
    const link = join(toolsDir, 'usr/sbin', name);
    if (!existsSync(link)) await symlink('xtables-nft-multi', link);
  }
}

/** An environment in which the lab's programs are found before the machine's. */
export function toolsEnv(): Record<string, string> {
  return {
    PATH: `${toolsDir}/usr/sbin:${toolsDir}/usr/bin:${root}/build/consul/usr/bin:${process.env['PATH'] ?? '/usr/sbin:/usr/bin:/sbin:/bin'}`,
    LD_LIBRARY_PATH: join(toolsDir, libraryDir),
    XTABLES_LIBDIR: join(toolsDir, libraryDir, 'xtables'),
    // Neither the machine's Docker nor its user's configuration is meant.
    DOCKER_HOST: '',
    DOCKER_CONTEXT: '',
    DOCKER_CONFIG: join(root, 'build/docker-config'),
  };
}
