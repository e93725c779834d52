// Owns making build/plugin (config.json and rootfs/) out of the bundle, Node and a few Debian programs.
// Must not talk to Docker (create.ts does), and must fetch nothing but Debian packages.
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { cp, lstat, lutimes, mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { build } from 'esbuild';
import { unpackDebian } from './debian.ts';
import { withLock } from './lock.ts';
import { checkNode, nodeFile } from './node.ts';
import { copyPrograms, libraryDir, mergedUsr } from './programs.ts';

const root = join(import.meta.dirname, '..');

/** Where the finished plugin lies: the directory `docker plugin create` takes. */
export const pluginDir = join(root, 'build', 'plugin');
const debianDir = join(root, 'build', 'cache', 'plugin-debian');
const inputsFile = join(root, 'build', 'plugin.inputs');
const lockFile = join(root, 'build', 'cache', 'plugin.lock');

/** The unpacked size the project promises to stay below, in bytes. */
const sizeLimit = 180e6;

/** The packages that hold the programs below; netbase names protocols for nft. */
const packages = [
  'conntrack',
  'iproute2',
  'iptables',
  'ipvsadm',
  'libstdc++6',
  'netbase',
  'nftables',
  'util-linux',
];

/** Only maintainer scripts and programs that are not taken over need these. */
const unneeded = /^(debconf|perl-base|dpkg|tar|libdb5\.3|libpam.*|libcap2-bin)$/;

const nodePath = '/usr/bin/node';
const bundleDir = '/causeway';
const mainFile = 'main.mjs';
/** What else is bundled: threads' programs, by the names under which the main one looks for them beside itself. */
const threads: Record<string, string> = {
  'dns-worker.mjs': join(root, 'dns', 'worker.ts'),
};

/** What cannot be bundled, for it holds machine code: looked for in node_modules/ beside the bundle. And its licence. */
const addons: Record<string, string[]> = {
  koffi: ['package.json', 'LICENSE.txt'],
  [`@koromix/koffi-linux-${process.arch}`]: ['package.json', 'index.js', `linux_${process.arch}/koffi.node`],
};
const addonsDir = 'node_modules';

/** Every program taken from Debian, by the absolute path it is called by: there is no shell and no PATH. */
const debianPrograms = [
  '/usr/bin/ip',
  '/usr/sbin/bridge',
  '/usr/sbin/nft',
  '/usr/sbin/ipvsadm',
  '/usr/sbin/conntrack',
  // For the sandboxes.
  '/usr/bin/nsenter',
  // Docker's own rules may be in either world; the rules that accept ours go where they are.
  '/usr/sbin/xtables-nft-multi',
  '/usr/sbin/xtables-legacy-multi',
];

/** Names that lead to a program under another one. */
const links: Record<string, string> = {
  '/usr/sbin/ip': '../bin/ip',
  ...Object.fromEntries(
    ['nft', 'legacy'].flatMap((world) =>
      ['iptables', 'ip6tables'].flatMap((family) =>
        ['', '-save', '-restore'].map((verb) => [
          `/usr/sbin/${family}-${world}${verb}`,
          `xtables-${world}-multi`,
        ]),
      ),
    ),
  ),
};

/** Files the programs load by name at run time, which no library dependency shows. */
const data = ['/etc/iproute2', '/etc/protocols', '/etc/services'];

/** Mount points, and places programs expect. */
const directories = [
  'causeway',
  'data',
  'dev',
  'host/run',
  'host/sys-net',
  'proc',
  'run/docker/plugins',
  'sys',
  'tmp',
];

/** xtables loads its extensions by name, from this directory. */
const extensions = join(libraryDir, 'xtables');

/** What a build came to, in bytes. */
export interface Built {
  total: number;
  node: number;
  bundle: number;
  debian: number;
}

export interface BuildOptions {
  /** The program to bundle: plugin/main.ts, or a stand-in when the packaging itself is tested. */
  entry?: string;
  progress?: (line: string) => void;
  signal?: AbortSignal;
}

/**
 * Brings build/plugin up to date, which takes seconds once the Debian packages are cached. Nothing is touched when
 * nothing changed, so that builds do not disturb a `docker plugin create` under way. Concurrent builds wait for
 * each other. A build that fails leaves the former result in place.
 *
 * @throws {DebianError} when a package cannot be had; Error when Node is not the one of the lock, a library is missing,
 *   or the result is larger than promised.
 */
export async function buildPlugin(o: BuildOptions = {}): Promise<Built> {
  const { entry = join(root, 'plugin', 'main.ts'), progress = () => {}, signal } = o;
  await unpackDebian({
    packages,
    into: debianDir,
    exclude: unneeded,
    progress,
    ...(signal ? { signal } : {}),
  });
  return withLock(lockFile, { timeoutMs: 300_000, signal }, async () => {
    progress(`bundling ${relative(root, entry)}`);
    const programs = new Map<string, Uint8Array>();
    for (const [file, source] of Object.entries({ [mainFile]: entry, ...threads }))
      programs.set(join(bundleDir, file), await bundle(source));
    const inputs = await digest(programs.values(), await checkNode());
    if ((await readFile(inputsFile, 'utf8').catch(() => '')) === inputs) return measure(pluginDir);

    progress('assembling the root file system');
    const fresh = `${pluginDir}.new`;
    const rootfs = join(fresh, 'rootfs');
    await rm(fresh, { recursive: true, force: true });
    await mergedUsr(rootfs);
    for (const dir of directories) await mkdir(join(rootfs, dir), { recursive: true });
    await copyDebian(rootfs);
    for (const [path, program] of programs) await writeFile(join(rootfs, path), program);
    for (const [addon, files] of Object.entries(addons))
      for (const file of files)
        await cp(join(root, addonsDir, addon, file), join(rootfs, bundleDir, addonsDir, addon, file));
    await cp(join(root, 'config.json'), join(fresh, 'config.json'));
    await normalise(fresh);

    const built = await measure(fresh);
    if (built.total > sizeLimit) {
      throw new Error(
        `The root file system has ${megabytes(built.total)}, more than ${megabytes(sizeLimit)}.`,
      );
    }
    await rm(inputsFile, { force: true });
    // Moved away before it is deleted, which takes a while: somebody may be about to read it.
    const old = `${pluginDir}.old`;
    await rm(old, { recursive: true, force: true });
    if (existsSync(pluginDir)) await rename(pluginDir, old);
    await rename(fresh, pluginDir);
    await writeFile(inputsFile, inputs);
    await rm(old, { recursive: true, force: true });
    return built;
  });
}

/** Names everything the result depends on. */
async function digest(programs: Iterable<Uint8Array>, node: string): Promise<string> {
  const hash = createHash('sha256').update(node);
  for (const program of programs) hash.update(program);
  const versions = Object.keys(addons).map((name) => join(addonsDir, name, 'package.json'));
  const files = ['config.json', 'rootfs/build.ts', 'rootfs/programs.ts', ...versions];
  for (const file of [...files.map((f) => join(root, f)), `${debianDir}.packages`]) {
    hash.update(await readFile(file));
  }
  return hash.digest('hex');
}

async function measure(dir: string): Promise<Built> {
  const rootfs = join(dir, 'rootfs');
  const total = await sizeOf(rootfs);
  const node = (await stat(join(rootfs, nodePath))).size;
  const bundled = await sizeOf(join(rootfs, bundleDir));
  return { total, node, bundle: bundled, debian: total - node - bundled };
}

async function copyDebian(rootfs: string): Promise<void> {
  const modules = await readdir(join(debianDir, extensions));
  await copyPrograms({
    from: debianDir,
    into: rootfs,
    programs: [...debianPrograms, ...modules.map((name) => join(extensions, name))],
    data: [...data, ...(await licences())],
    foreign: { [nodePath]: nodeFile },
    links,
  });
}

/** The copyright files of the packages, which have to go where their programs go. */
async function licences(): Promise<string[]> {
  const unpacked = (await readFile(`${debianDir}.packages`, 'utf8')).trim().split('\n').slice(1);
  return unpacked
    .map((line) => join('/usr/share/doc', line.split(' ', 1)[0]!, 'copyright'))
    .filter((path) => existsSync(join(debianDir, path)));
}

/**
 * One ES module. Comments and white space are left out, which saves 12 MB of resident memory and some start-up time;
 * names stay and lines are short: the stack traces in an operator's log must be readable.
 */
async function bundle(entry: string): Promise<Uint8Array> {
  const result = await build({
    entryPoints: [entry],
    bundle: true,
    write: false,
    platform: 'node',
    target: 'node24',
    format: 'esm',
    legalComments: 'eof',
    minifyWhitespace: true,
    minifySyntax: true,
    lineLimit: 200,
    logLevel: 'warning',
    // express and others are CommonJS and call require() for Node's own modules.
    banner: {
      js: "import { createRequire as causewayRequire } from 'node:module'; const require = causewayRequire(import.meta.url);",
    },
  });
  // V8 keeps a text at two bytes a character when a single one of them is beyond Latin-1, and holds it for as long as
  // the process lives. esbuild has escaped them everywhere but in comments.
  const text = result.outputFiles[0]!.text.replace(
    /\P{ASCII}/gu,
    (character) => `\\u{${character.codePointAt(0)!.toString(16)}}`,
  );
  return Buffer.from(text);
}

/** Same input, same bytes: gives every file one time, for Docker derives the plugin's digest from it. */
async function normalise(dir: string): Promise<void> {
  const epoch = Number(process.env['SOURCE_DATE_EPOCH'] ?? 0);
  for (const entry of await readdir(dir, { withFileTypes: true })) {
    const path = join(dir, entry.name);
    if (entry.isDirectory()) await normalise(path);
    await lutimes(path, epoch, epoch);
  }
}

async function sizeOf(dir: string): Promise<number> {
  let sum = 0;
  for (const entry of await readdir(dir, { recursive: true, withFileTypes: true })) {
    if (entry.isFile()) sum += (await lstat(join(entry.parentPath, entry.name))).size;
  }
  return sum;
}

const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`;

if (import.meta.main) {
  try {
    const built = await buildPlugin({ progress: (line) => console.log(`  ${line}`) });
    console.log(
      `build/plugin: ${megabytes(built.total)} unpacked (Node ${megabytes(built.node)}, ` +
        `Debian programs ${megabytes(built.debian)}, bundle ${megabytes(built.bundle)})`,
    );
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    process.exitCode = 1;
  }
}
