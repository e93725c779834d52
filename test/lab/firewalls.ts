// Owns ufw and firewalld as Debian has them: unpacked in build/firewalls, and run in a network namespace with files of their own.
// Must not know what is opened in them. The machine's own firewall is left alone.
import { once } from 'node:events';
import { mkdtemp, rmdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { execa } from 'execa';
import { unpackDebian } from '../../rootfs/debian.ts';
import { slowness } from '../slowness.ts';

const rootfs = join(import.meta.dirname, '../../build/firewalls');

/** The two, and what they expect of every Debian: a shell's commands, the names of protocols, a bus. */
const packages = [
  'coreutils',
  'dash',
  'dbus-daemon',
  'firewalld',
  'grep',
  'iptables',
  'netbase',
  'procps',
  'sed',
  'ufw',
];

/** What only maintainer scripts need, who else may be asked over D-Bus, and what comes with those. */
const unneeded =
  /^(tar|dpkg|debconf|usrmerge|passwd|adduser|init-system-helpers|polkitd|dbus|systemd.*|libsystemd-shared|mount|dmsetup|ucf|sgml-base|xml-core|media-types|gir1\.2-nm.*|.*perl.*|lib(pam|krb5|k5|gssapi|cryptsetup|devmapper|polkit|semanage|gdbm|duktape|sqlite3|hogweed|nettle|gnutls|unistring|idn2|argon2|tirpc|nsl2|fdisk|sepol|db5|nm|ssl).*)$/;

/** Nothing of the machine's, whose Python may be another. */
const surroundings = {
  env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C' },
  extendEnv: false,
} as const;

/** Ends with this process at the latest. */
function start([file, ...args]: readonly [string, ...string[]], stdout: 'pipe' | 'ignore') {
  return execa('setpriv', ['--pdeathsig', 'KILL', '--', file, ...args], {
    ...surroundings,
    stdin: 'ignore',
    stdout,
    stderr: 'ignore',
    buffer: false,
    reject: false,
  });
}
type Program = ReturnType<typeof start>;

/** The files and programs of a node's firewall. */
export class Firewalls {
  readonly #directory: string;
  /** Whose end is that of the file system. */
  readonly #holder: Program;
  #firewalld: Program | undefined;

  private constructor(directory: string, holder: Program) {
    this.#directory = directory;
    this.#holder = holder;
  }

  /**
   * The first time it makes build/firewalls: 90 MB, a download of 25 MB.
   * @param netns path of the network namespace that they are to keep
   * @throws {DebianError} when the packages cannot be had.
   */
  static async up(netns: string): Promise<Firewalls> {
    await unpackDebian({ packages, into: rootfs, exclude: unneeded });
    const directory = await mkdtemp(join(tmpdir(), 'causeway-firewall-'));
    const script = join(import.meta.dirname, 'firewall.sh');
    const bus = ['dbus-daemon', '--system', '--nofork', '--nopidfile'];
    const holder = start(
      ['nsenter', `--net=${netns}`, 'unshare', '--mount', script, rootfs, directory, ...bus],
      'pipe',
    );
    const lines = createInterface({ input: holder.stdout! });
    const [line] = (await Promise.race([once(lines, 'line'), once(lines, 'close')])) as [string?];
    if (line !== 'ready') throw new Error('the firewalls’ file system could not be laid out');
    return new Firewalls(directory, holder);
  }

  /** Runs one of their commands to its end. @throws when it fails */
  async run(...command: readonly string[]): Promise<string> {
    const [file, ...args] = this.#inside(command);
    return (await execa(file, args, surroundings)).stdout;
  }

  /** @throws when it does not come up */
  async startFirewalld(): Promise<void> {
    this.#firewalld = start(this.#inside(['firewalld', '--nofork', '--nopid']), 'ignore');
    const deadline = Date.now() + 60_000 * slowness;
    for (;;) {
      try {
        await this.run('firewall-cmd', '--state');
        return;
      } catch (error) {
        if (Date.now() > deadline) throw error;
        await sleep(200);
      }
    }
  }

  /** Ends its programs: firewalld takes its tables away. */
  async down(): Promise<void> {
    this.#firewalld?.kill('SIGTERM');
    await this.#firewalld;
    this.#holder.kill('SIGKILL');
    await this.#holder;
    await rmdir(this.#directory);
  }

  #inside(command: readonly string[]): [string, ...string[]] {
    const place = ['--target', String(this.#holder.pid), '--mount', '--net', '--root', '--wdns=/'];
    return ['nsenter', ...place, ...command];
  }
}
