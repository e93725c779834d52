// Owns the load: new connections by wrk, throughput by iperf3, questions for names by dnsperf; all from Debian, each run
// short and bounded.
// Must not know what lies between client and server.
import { writeFile } from 'node:fs/promises';
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

/** Unpacks the programs. @throws {DebianError} when they cannot be had */
export async function prepareLoad(o: {
  progress?: (line: string) => void;
  signal?: AbortSignal;
}): Promise<void> {
  await unpackDebian({
    packages: ['dnsmasq-base', 'dnsperf', 'iperf3', 'nginx-light', 'wrk'],
    into: programsDir,
    exclude: unneeded,
    ...o,
  });
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

interface Asked {
  server: string;
  port: number;
  /** A name and a type in each line, asked for again and again. */
  file: string;
}

/**
 * Asks on 16 sockets, 100 questions at once.
 *
 * @param perSecond no more than so many; by default as many as are answered
 * @returns answers per second
 * @throws Error when more than one in a thousand was lost, or answered with anything but NOERROR
 */
export async function questions(
  from: Pick<Host, 'exec'>,
  asked: Asked,
  { seconds, signal, perSecond }: RunLength & { perSecond?: number | undefined },
): Promise<number> {
  const limit = perSecond === undefined ? [] : ['-Q', String(perSecond)];
  const load = ['-c', String(connections), '-q', '100', ...limit];
  const text = await dnsperf(from, asked, load, { seconds, signal });
  return Number(/Queries per second:\s+([\d.]+)/.exec(text)?.[1]);
}

/** Questions among many others, whose time is looked at: few, for to tell the time of each takes time, too. */
const sampledPerSecond = 500;

/**
 * Asks a few questions while many others are asked.
 *
 * @param perSecond how many others
 * @returns milliseconds from the question to its answer, of the slowest but for one in a hundred
 * @throws Error like {@link questions}
 */
export async function slowest(
  from: Pick<Host, 'exec'>,
  asked: Asked,
  { seconds, signal, perSecond }: RunLength & { perSecond: number },
): Promise<number> {
  const others = questions(from, asked, { seconds: seconds + 1, signal, perSecond });
  const sample = ['-c', '1', '-q', '10', '-Q', String(sampledPerSecond), '-v'];
  const [text] = await Promise.all([dnsperf(from, asked, sample, { seconds, signal }), others]);
  const times = Array.from(
    text.matchAll(/^> NOERROR \S+ \S+ ([\d.]+)$/gm),
    ([, time]) => Number(time) * 1_000,
  );
  const at = times.toSorted((a, b) => a - b)[Math.floor(times.length * 0.99)];
  if (at === undefined) throw new Error(`dnsperf told no times:\n${text.slice(0, 500)}`);
  return at;
}

async function dnsperf(
  from: Pick<Host, 'exec'>,
  { server, port, file }: Asked,
  load: readonly string[],
  { seconds, signal }: RunLength,
): Promise<string> {
  const what = ['-s', server, '-p', String(port), '-d', file, '-l', String(seconds), '-T', '1', '-t', '1'];
  const { stdout } = await from.exec(program('dnsperf', ...what, ...load), {
    timeout: seconds * 1000 + graceMs,
    signal,
  });
  const figure = (pattern: RegExp): number => Number(pattern.exec(stdout)?.[1] ?? NaN);
  const [sent, completed] = [figure(/Queries sent:\s+(\d+)/), figure(/Queries completed:\s+(\d+)/)];
  const good = figure(/Response codes:.*NOERROR (\d+)/);
  if (!(sent > 0) || !(good >= sent * (1 - tolerated)))
    throw new Error(`Of ${sent} questions to ${server}, ${completed} were answered, ${good} of them well.`);
  return stdout;
}

/** The command for dnsmasq with no configuration but these options. */
export function dnsmasq(...options: string[]): Command {
  const nothing = ['--no-resolv', '--no-hosts', '--no-poll', '--bind-interfaces', '--user=root'];
  return program(
    'dnsmasq',
    '--keep-in-foreground',
    '--conf-file=/dev/null',
    '--pid-file',
    ...nothing,
    ...options,
  );
}

/** The command for a web server on port 80 that serves the files of a directory, which it also writes its own into. */
export async function webServer(directory: string): Promise<Command> {
  const file = join(directory, 'nginx.conf');
  const places = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(
    (kind) => `${kind}_temp_path ${directory}/${kind};`,
  );
  await writeFile(
    file,
    `daemon off; worker_processes 1; user root; error_log stderr; pid ${directory}/pid;
    events { worker_connections 4096; }
    http { access_log off; ${places.join(' ')} server { listen 80 backlog=4096; root ${directory}; } }\n`,
  );
  return program('nginx', '-c', file, '-p', directory);
}

/** The command for one of the unpacked programs, with its own libraries wherever it is run. */
function program(name: 'dnsmasq' | 'dnsperf' | 'iperf3' | 'nginx' | 'wrk', ...args: string[]): Command {
  const libraries = `LD_LIBRARY_PATH=${join(programsDir, libraryDir)}`;
  const directory = name === 'dnsmasq' || name === 'nginx' ? 'usr/sbin' : 'usr/bin';
  return ['env', libraries, join(programsDir, directory, name), ...args];
}
