// Owns what the virtual machine is made of: QEMU, Debian's stock kernel with its modules, and the initramfs.
// Must not install anything, nor start a machine: qemu.ts does.
import { createHash } from 'node:crypto';
import { createReadStream, createWriteStream, existsSync } from 'node:fs';
import { cp, mkdir, open, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { transformSync } from 'esbuild';
import { execa } from 'execa';
import { unpackDebian } from '../../../rootfs/debian.ts';
import { withLock } from '../../../rootfs/lock.ts';
import { libraryDir } from '../../../rootfs/programs.ts';

const buildDir = join(import.meta.dirname, '../../../build');
const programsDir = join(buildDir, 'vm/programs');
const kernelDir = join(buildDir, 'vm/kernel');
const cacheDir = join(buildDir, 'cache/vm');
const lockTimeoutMs = 900_000;

/**
 * Of QEMU's and kmod's dependencies: what the machine has itself (the C library must match the loader in /lib64), what
 * only maintainer scripts need, and what is for screens, sound, USB and booting from a network.
 */
const unneeded =
  /^(libc6|libgcc-s1|gcc-12-base|libcrypt1|dpkg|tar|adduser|passwd|login|usrmerge|lib(pam|db5|semanage|sepol|audit|krb5|k5|nss3|nspr|asound|sndio|spice|gstreamer|orc|opus|epoxy|gbm|drm|wayland|brlapi|cacard|usb|gpm|slang|newt).*|.*debconf.*|.*perl.*|iso-codes|ipxe-qemu)$/;

/** What must be loaded before modules can be had from the host's disk, and what no event loads later. */
const earlyModules = ['9p', '9pnet_virtio', 'virtio_pci', 'overlay', 'virtio_console', 'virtio_blk'];

/** Everything a machine is booted from. All paths are on the host, and the same inside the machine. */
export interface Parts {
  qemu: string;
  /** Directories of QEMU's firmware. */
  firmware: string[];
  /** For QEMU and the other unpacked programs. */
  libraries: string;
  /** An ELF image, booted without a boot loader. */
  kernel: string;
  initramfs: string;
  /** The directory of modules of that kernel. */
  modules: string;
  kmod: string;
  /** Makes an ext4 file system. */
  mke2fs: string;
  mke2fsConf: string;
}

/**
 * Brings the parts together in build/. Seconds and a download of 120 MB the first time, nothing later. Safe to call
 * from several processes at once.
 *
 * @throws {DebianError} when the packages cannot be had.
 */
export async function prepareParts(o: {
  progress?: (line: string) => void;
  signal?: AbortSignal | undefined;
}): Promise<Parts> {
  const { progress = () => {}, signal } = o;
  if (process.arch !== 'x64')
    throw new Error(`The virtual machine is an x86-64 one; this is ${process.arch}.`);
  await mkdir(cacheDir, { recursive: true });
  return withLock(join(buildDir, 'cache/vm.lock'), { timeoutMs: lockTimeoutMs, signal }, async () => {
    const options = { progress, ...(signal ? { signal } : {}) };
    await unpackDebian({
      packages: ['busybox-static', 'e2fsprogs', 'kmod', 'qemu-system-x86', 'xz-utils'],
      into: programsDir,
      exclude: unneeded,
      ...options,
    });
    await unpackDebian({
      packages: ['linux-image-amd64'],
      into: kernelDir,
      // The kernel's dependencies serve to install and boot it the usual way.
      exclude: /^(?!linux-image-)/,
      ...options,
    });
    return assemble(progress);
  });
}

async function assemble(progress: (line: string) => void): Promise<Parts> {
  const modulesDir = join(kernelDir, 'usr/lib/modules');
  const release = (await readdir(modulesDir))[0]!;
  const modules = join(modulesDir, release);
  const kmod = join(programsDir, 'usr/bin/kmod');
  if (!existsSync(join(modules, 'modules.dep.bin'))) {
    progress(`indexing the modules of ${release}`);
    await execa(kmod, ['--basedir', kernelDir, release], { argv0: 'depmod', env: libraryEnv() });
  }

  const initScript = await readFile(join(import.meta.dirname, 'init.sh'), 'utf8');
  const agent = await readFile(join(import.meta.dirname, 'agent.ts'), 'utf8');
  const packages = await readFile(`${kernelDir}.packages`, 'utf8');
  const key = createHash('sha256')
    .update([packages, initScript, agent, ...earlyModules].join('\0'))
    .digest('hex')
    .slice(0, 16);
  const kernel = join(cacheDir, `vmlinux-${key}`);
  const initramfs = join(cacheDir, `initramfs-${key}`);
  if (!existsSync(kernel) || !existsSync(initramfs)) {
    progress(`building the initramfs for ${release}`);
    for (const stale of await readdir(cacheDir)) await rm(join(cacheDir, stale), { recursive: true });
    await extractKernel(join(kernelDir, 'boot', `vmlinuz-${release}`), kernel);
    await buildInitramfs(initramfs, { initScript, agent, modules });
  }
  return {
    qemu: join(programsDir, 'usr/bin/qemu-system-x86_64'),
    firmware: ['usr/share/qemu', 'usr/share/seabios'].map((dir) => join(programsDir, dir)),
    libraries: join(programsDir, libraryDir),
    kernel,
    initramfs,
    modules,
    kmod,
    mke2fs: join(programsDir, 'usr/sbin/mke2fs'),
    mke2fsConf: join(programsDir, 'etc/mke2fs.conf'),
  };
}

/**
 * Takes the ELF image out of a compressed kernel. Decompressed here it boots at once; a kernel that has to do it
 * itself, emulated, takes 5 s longer. The layout is that of the kernel's Documentation/x86/boot.rst.
 */
async function extractKernel(vmlinuz: string, into: string): Promise<void> {
  await using file = await open(vmlinuz);
  const header = Buffer.alloc(0x250);
  await file.read(header, 0, header.length, 0);
  const setupSectors = header.readUInt8(0x1f1);
  const payload = (setupSectors + 1) * 512 + header.readUInt32LE(0x248);
  // The last four bytes are not xz's: they give the unpacked size.
  const length = header.readUInt32LE(0x24c) - 4;
  const xz = execa(join(programsDir, 'usr/bin/xz'), ['--decompress', '--stdout'], {
    env: libraryEnv(),
    encoding: 'buffer',
    buffer: false,
  });
  await Promise.all([
    pipeline(createReadStream(vmlinuz, { start: payload, end: payload + length - 1 }), xz.stdin),
    pipeline(xz.stdout, createWriteStream(`${into}.new`)),
    xz,
  ]);
  await rename(`${into}.new`, into);
}

async function buildInitramfs(
  into: string,
  o: { initScript: string; agent: string; modules: string },
): Promise<void> {
  const tree = join(cacheDir, 'tree');
  for (const dir of ['bin', 'dev', 'modules', 'proc', 'sys'])
    await mkdir(join(tree, dir), { recursive: true });
  const busybox = join(programsDir, 'usr/bin/busybox');
  await cp(busybox, join(tree, 'bin/busybox'));
  await writeFile(join(tree, 'init'), o.initScript, { mode: 0o755 });
  // Not run as it is: taking the types off inside, emulated, costs seconds.
  const { code } = transformSync(o.agent, { loader: 'ts', format: 'esm' });
  await writeFile(join(tree, 'agent.js'), code);

  const order = await loadOrder(join(o.modules, 'modules.dep'), earlyModules);
  for (const module of order) await cp(join(o.modules, module), join(tree, 'modules', basename(module)));
  await writeFile(join(tree, 'modules/order'), order.map((module) => `${basename(module)}\n`).join(''));

  const files = await readdir(tree, { recursive: true });
  const { stdout } = await execa(busybox, ['cpio', '-o', '-H', 'newc'], {
    cwd: tree,
    input: files.join('\n'),
    encoding: 'buffer',
    maxBuffer: 64 * 1024 * 1024,
  });
  await writeFile(`${into}.new`, stdout);
  await rename(`${into}.new`, into);
  await rm(tree, { recursive: true });
}

/**
 * @returns the files, relative to the modules' directory, of the named modules and all they need, in an order in which
 *   they can be loaded.
 */
async function loadOrder(index: string, names: string[]): Promise<string[]> {
  const byName = new Map<string, string[]>();
  for (const line of (await readFile(index, 'utf8')).split('\n')) {
    // kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/fscache/fscache.ko kernel/fs/netfs/netfs.ko
    const [file, needs] = line.split(':') as [string, string | undefined];
    // Farthest last, so backwards is the order to load them in.
    byName.set(basename(file, '.ko'), [file, ...(needs?.split(' ').filter(Boolean) ?? [])].reverse());
  }
  const order = new Set<string>();
  for (const name of names) {
    const files = byName.get(name);
    if (files === undefined) throw new Error(`The kernel has no module ${name}; see ${index}.`);
    for (const file of files) order.add(file);
  }
  return [...order];
}

const libraryEnv = () => ({ LD_LIBRARY_PATH: join(programsDir, libraryDir) });
