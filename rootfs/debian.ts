// Owns fetching Debian packages and unpacking them into a directory: for the plugin's rootfs, the lab's tools, a VM.
// Must not install anything, nor read or write the machine's own apt and dpkg state.
import { createHash } from 'node:crypto';
import { createReadStream, existsSync } from 'node:fs';
import { mkdir, readFile, rename, rm, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { execa, type Options } from 'execa';
import { withLock } from './lock.ts';
import { mergedUsr } from './programs.ts';

const buildDir = join(import.meta.dirname, '..', 'build');
const debsDir = join(buildDir, 'cache', 'debs');
const lockFile = join(buildDir, 'cache', 'debian.lock');

const keyring = '/usr/share/keyrings/debian-archive-keyring.gpg';

/** Package lists older than this are fetched again before the next resolution. */
const listsMaxAgeMs = 24 * 3600_000;
const updateTimeoutMs = 180_000;
const downloadTimeoutMs = 600_000;
/** How long a caller waits for another process that is busy with the same cache. */
const lockTimeoutMs = 900_000;

/** One package file as apt resolved it. `sha256` comes from the signed package lists. */
interface Deb {
  file: string;
  name: string;
  version: string;
  sha256: string;
}

/** What may be asked of {@link unpackDebian}. */
export interface UnpackOptions {
  /** Binary package names, as apt knows them. */
  packages: string[];
  /** Directory to fill. It belongs to this function as a whole: a changed package set replaces it. */
  into: string;
  /** Packages (by name) to leave out of the closure, when it is known that what is used does not need them. */
  exclude?: RegExp;
  /** With all Depends and Pre-Depends (default), or the named packages only. Recommends are never taken. */
  closure?: boolean;
  /** Code name of another Debian release to take them from, on the same mirror. Default: the machine's own. */
  suite?: string;
  /** Called with one line of text per step. */
  progress?: (line: string) => void;
  signal?: AbortSignal;
}

/** A package could not be had. The message names cause and remedy; `cause` is the failed command. */
export class DebianError extends Error {
  readonly code = 'DEBIAN';
}

/**
 * Fills `into` with the files of Debian packages, merged-/usr, without installing them (no maintainer script
 * runs). Downloads are kept in build/cache/debs and checked against the hashes in the signed lists. Nothing
 * is done, and no network is needed, when `into` already holds what the same request gave before; `into`.packages
 * tells what that was. Safe to call from several processes at once.
 *
 * @throws {DebianError} not root, no Debian source configured, offline, or an unknown package.
 */
export async function unpackDebian(o: UnpackOptions): Promise<void> {
  await mkdir(debsDir, { recursive: true });
  await withLock(lockFile, { timeoutMs: lockTimeoutMs, signal: o.signal }, () => unpackLocked(o));
}

async function unpackLocked(o: UnpackOptions): Promise<void> {
  const { packages, into, exclude, closure = true, suite, progress = () => {}, signal } = o;
  const request = JSON.stringify({ packages: packages.toSorted(), exclude: exclude?.source, closure, suite });
  const stamp = `${into}.packages`;
  if (existsSync(into) && (await firstLine(stamp)) === request) return;
  if (process.getuid?.() !== 0) {
    throw new DebianError('Unpacking Debian packages keeps their owners and modes: run it as root.');
  }

  const debs = await resolveAndDownload({ packages, exclude, closure, suite, progress, signal });

  progress(`unpacking ${debs.length} packages`);
  const fresh = `${into}.new`;
  await rm(fresh, { recursive: true, force: true });
  await mergedUsr(fresh);
  for (const deb of debs) {
    // Not `dpkg-deb --extract`: it puts a directory where the merged-/usr link is.
    await execa('dpkg-deb', ['--fsys-tarfile', join(debsDir, deb.file)], {
      encoding: 'buffer',
      buffer: false,
      ...cancel(signal),
    }).pipe('tar', ['--extract', '--keep-directory-symlink', '--directory', fresh], cancel(signal));
  }
  await rm(stamp, { force: true });
  await rm(into, { recursive: true, force: true });
  await rename(fresh, into);
  await writeFile(stamp, [request, ...debs.map((d) => `${d.name} ${d.version} ${d.sha256}`), ''].join('\n'));
}

type Resolution = Required<Pick<UnpackOptions, 'packages' | 'closure' | 'progress'>> & {
  exclude: RegExp | undefined;
  suite: string | undefined;
  signal: AbortSignal | undefined;
};

/** The private apt directory: one for each release, because apt would mix their packages. */
function aptDirOf({ suite }: Resolution): string {
  return join(buildDir, 'cache', suite === undefined ? 'apt' : `apt-${suite}`);
}

async function resolveAndDownload(o: Resolution): Promise<Deb[]> {
  const updated = await prepareApt(o);
  try {
    return await attempt(o);
  } catch (error) {
    // Lists of some hours ago may name versions the mirror no longer has; fresh ones settle it.
    if (updated || o.signal?.aborted) throw error;
    await update(o);
    return await attempt(o);
  }
}

async function attempt(o: Resolution): Promise<Deb[]> {
  const debs = (await resolve(o)).filter((deb) => !o.exclude?.test(deb.name));
  const missing: Deb[] = [];
  for (const deb of debs) {
    const path = join(debsDir, deb.file);
    if (existsSync(path) && (await sha256(path)) === deb.sha256) continue;
    await rm(path, { force: true });
    missing.push(deb);
  }
  if (missing.length === 0) return debs;

  o.progress(`downloading ${missing.length} packages`);
  await apt(o, ['download', ...missing.map((d) => `${d.name}=${d.version}`)], {
    cwd: debsDir,
    timeout: downloadTimeoutMs,
    ...cancel(o.signal),
  });
  for (const deb of missing) {
    const path = join(debsDir, deb.file);
    if ((await sha256(path)) === deb.sha256) continue;
    await unlink(path);
    throw new DebianError(`${deb.file} does not have the hash the signed package list gives it. Try again.`);
  }
  return debs;
}

/** Asks apt which files a set of packages means. With an empty status file that is the whole closure. */
async function resolve(o: Resolution): Promise<Deb[]> {
  const { packages, closure, signal } = o;
  const verb = closure ? ['install', '--yes'] : ['download'];
  const lines = await apt(o, [...verb, '--print-uris', '-qq', ...packages], cancel(signal));
  // 'http://…/pool/…/x_1%3a2_amd64.deb' x_1%3a2_amd64.deb 1234 SHA256:abcd…
  const debs = lines.flatMap((line) => {
    const match = /^'[^']+' (\S+) \d+ SHA256:([0-9a-f]{64})$/.exec(line);
    if (!match) return [];
    const [, file, sha] = match as unknown as [string, string, string];
    const [name, version] = file.split('_') as [string, string];
    return [{ file, name, version: decodeURIComponent(version), sha256: sha }];
  });
  if (debs.length === 0) throw new DebianError(`apt-get named no file for ${packages.join(' ')}.`);
  return debs;
}

/**
 * Lays out a private apt directory next to the machine's, with only the machine's own Debian sources in it.
 * @returns whether the package lists were fetched anew.
 */
async function prepareApt(o: Resolution): Promise<boolean> {
  const aptDir = aptDirOf(o);
  for (const dir of ['state', 'lists/partial', 'archives/partial']) {
    await mkdir(join(aptDir, dir), { recursive: true });
  }
  // An empty status file: for apt nothing is installed, so a closure is complete.
  await writeFile(join(aptDir, 'status'), '');
  await writeFile(join(aptDir, 'apt.conf'), aptConf(aptDir));

  const sources = await debianSources(o);
  const sourcesFile = join(aptDir, 'debian.sources');
  const updatedAt = Number((await firstLine(join(aptDir, 'updated-at'))) ?? 0);
  const same = existsSync(sourcesFile) && (await readFile(sourcesFile, 'utf8')) === sources;
  if (same && Date.now() - updatedAt < listsMaxAgeMs) return false;
  await writeFile(sourcesFile, sources);
  await update(o);
  return true;
}

/**
 * apt.conf(5): a file given with -c is read last, so the machine's proxy settings stay in force. Its hooks, which would touch the
 * system, do not; nor does what would take lists without Debian's signature.
 */
export function aptConf(aptDir: string): string {
  return `#clear APT::Update;
#clear DPkg;
Dir::State "${aptDir}/state";
Dir::State::lists "${aptDir}/lists";
Dir::State::status "${aptDir}/status";
Dir::Cache "${aptDir}";
Dir::Cache::archives "${aptDir}/archives";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Dir::Etc::sourcelist "${aptDir}/debian.sources";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::ForceHash "SHA256";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
`;
}

async function update(o: Resolution): Promise<void> {
  o.progress('fetching Debian package lists');
  await apt(o, ['update', '-qq'], { timeout: updateTimeoutMs, ...cancel(o.signal) });
  await writeFile(join(aptDirOf(o), 'updated-at'), `${Date.now()}\n`);
}

/**
 * The machine's own Debian archive entries as one deb822 text. Third-party entries are left out: they may be
 * unreachable, and nothing here needs them. Debian's are told by suite (the release's code name and its
 * -updates and -security) together with the component `main`. Another release is looked for where the machine's own is.
 */
async function debianSources({ suite: other, signal }: Resolution): Promise<string> {
  const osRelease = await readFile('/etc/os-release', 'utf8').catch(() => '');
  const codename = /^VERSION_CODENAME="?(\w+)"?$/m.exec(osRelease)?.[1];
  if (!existsSync('/usr/bin/apt-get') || codename === undefined) {
    throw new DebianError('The build takes its tools from Debian packages: run it on Debian (12 is tested).');
  }
  const suites = new Set(
    [codename, 'stable', 'oldstable'].flatMap((s) =>
      other === undefined ? [s, `${s}-updates`, `${s}-security`] : [s],
    ),
  );
  const format = '$(CREATED_BY)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)';
  const { stdout } = await execa('apt-get', ['indextargets', '--format', format], cancel(signal));
  const entries = stdout.split('\n').flatMap((line) => {
    const [kind, uri, suite, component] = line.split('|');
    if (kind !== 'Packages' || component !== 'main' || !suites.has(suite ?? '')) return [];
    return [
      `Types: deb\nURIs: ${uri}\nSuites: ${other ?? suite}\nComponents: main\nTargets: Packages\nSigned-By: ${keyring}\n`,
    ];
  });
  if (entries.length === 0) {
    throw new DebianError(`No source for Debian ${codename} main is configured in /etc/apt: add one.`);
  }
  return [...new Set(entries)].join('\n');
}

/** Runs apt-get on the private state. @returns its output by lines. */
async function apt(o: Resolution, args: string[], options: Options): Promise<string[]> {
  const aptConf = join(aptDirOf(o), 'apt.conf');
  const result = await execa('apt-get', ['-c', aptConf, ...args], { ...options, lines: true, reject: false });
  if (result.isCanceled) throw new DebianError('Cancelled.', { cause: result });
  if (result.failed) {
    const said = (result.stderr as unknown as string[]).filter((line) => /^[EW]:/.test(line)).slice(0, 4);
    throw new DebianError(
      `apt-get ${args[0]} failed: ${said.join(' ') || 'no output'} (is the machine's Debian mirror reachable?)`,
      { cause: result },
    );
  }
  return result.stdout as unknown as string[];
}

async function sha256(path: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path), hash);
  return hash.digest('hex');
}

async function firstLine(path: string): Promise<string | undefined> {
  try {
    return (await readFile(path, 'utf8')).split('\n', 1)[0];
  } catch {
    return undefined;
  }
}

const cancel = (signal: AbortSignal | undefined) => (signal ? { cancelSignal: signal } : {});
