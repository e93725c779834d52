// Owns the load: new connections by wrk, throughput by iperf3; both from Debian, each run short and bounded.
// Must not know what lies between client and server.
import { join } from 'node:path';
import { unpackDebian } from '../rootfs/debian.ts';
import { libraryDir } from '../rootfs/programs.ts';
import type { Command, Host } from '../test/lab/node.ts';

const programsDir = join(import.meta.dirname, '../build/bench-programs');
const script = join(import.meta.dirname, 'wrk.lua');

/** The C library is the machine's own; the rest is for maintainer scripts and for logging in. */
const unneeded =
  /^(libc6|libgcc-s1|gcc-12-base|libcrypt1|dpkg|tar|adduser|passwd|usrmerge|init-system-helpers|lib(pam|semanage|sepol|selinux|audit|cap-ng|gdbm|db5|bz2|lzma|md0|pcre2|zstd|acl).*|.*debconf.*|.*perl.*)$/;

/** Enough that no side ever waits for the other, few enough for an emulated processor. */
const connections = 16;

/** What a run may take beyond its own duration before it counts as hung, in milliseconds. */
const graceMs = 60_000;

/** More failures than this and the figure says nothing. */
const tolerated = 0.001;

/** Unpacks wrk and iperf3. @throws {DebianError} when they cannot be had */
export async function prepareLoad(o: {
  progress?: (line: string) => void;
  signal?: AbortSignal;
}): Promise<void> {
  await unpackDebian({ packages: ['iperf3', 'wrk'], into: programsDir, exclude: unneeded, ...o });
}

export interface RunLength {
  seconds: number;
  signal?: AbortSignal | undefined;
}

/**
 * Connects, asks for 1 kB and closes, again and again on {@link connections} connections at once.
 *
 * @param target as `ADDRESS:PORT`
 * @returns new connections per second
 * @throws Error more than one in a thousand failed
 */
export async function newConnections(
  from: Pick<Host, 'exec'>,
  target: string,
  { seconds, signal }: RunLength,
): Promise<number> {
  const count = ['--threads', '1', '--connections', String(connections), '--duration', String(seconds)];
  const { stdout } = await from.exec(
    program('wrk', ...count, '--header', 'Connection: close', '--script', script, `http://${target}/1k`),
    { timeout: seconds * 1000 + graceMs, signal },
  );
  const { requests, microseconds, failed } = JSON.parse(stdout.slice(stdout.lastIndexOf('{'))) as {
    requests: number;
    microseconds: number;
    failed: number;
  };
  if (requests === 0 || failed > requests * tolerated) {
    throw new Error(`${failed} connections to ${target} failed, ${requests} did not.`);
  }
  return requests / (microseconds / 1e6);
}

/**
 * Sends over one TCP connection as fast as it goes.
 *
 * @param direction seen from the client: `up` sends, `down` receives
 * @returns what arrived, in megabits (1,000,000 bits) per second
 */
export async function throughput(
  from: Pick<Host, 'exec'>,
  { address, port }: { address: string; port: number },
  direction: 'up' | 'down',
  { seconds, signal }: RunLength,
): Promise<number> {
  const { stdout } = await from.exec(
    program(
      'iperf3',
      ...['--json', '--client', address, '--port', String(port), '--time', String(seconds)],
      ...(direction === 'down' ? ['--reverse'] : []),
    ),
    { timeout: seconds * 1000 + graceMs, signal },
  );
  const { end } = JSON.parse(stdout) as { end: { sum_received: { bits_per_second: number } } };
  return end.sum_received.bits_per_second / 1e6;
}

/** The command for one of the unpacked programs, with its own libraries wherever it is run. */
function program(name: 'wrk' | 'iperf3', ...args: string[]): Command {
  const libraries = `LD_LIBRARY_PATH=${join(programsDir, libraryDir)}`;
  return ['env', libraries, join(programsDir, 'usr/bin', name), ...args];
}
