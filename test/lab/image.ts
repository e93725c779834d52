// Owns the lab's container image: busybox, Node with the echo program, nginx and iperf3, all from Debian and npm, and a
// program that looks names up with musl.
// Must not need a registry or the machine's compiler; the image is a tar that `docker load` takes.
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { cp, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { execa } from 'execa';
import { unpackDebian } from '../../rootfs/debian.ts';
import { withLock } from '../../rootfs/lock.ts';
import { nodeFile } from '../../rootfs/node.ts';
import { copyPrograms, libraryDir, mergedUsr } from '../../rootfs/programs.ts';
import type { LabNode } from './node.ts';

const root = join(import.meta.dirname, '../..');
const debianDir = join(root, 'build/cache/image-debian');
const lockFile = join(root, 'build/cache/image.lock');
const tar = join(root, 'build/cache/image.tar');
const nodePackage = join(root, 'node_modules/node/package.json');
const echoFile = join(import.meta.dirname, 'image/echo.ts');
const lookFile = join(import.meta.dirname, 'image/look.c');
const compilerDir = join(root, 'build/cache/musl');

/** The image's name. Without a command its containers run `echo.ts serve`. */
export const imageName = 'causeway/lab:latest';

// Not busybox-static, whose wget and nslookup crash on name look-ups.
const packages = ['busybox', 'iperf3', 'libstdc++6', 'netbase', 'nginx-light'];
const unneeded =
  /^(debconf|perl-base|dpkg|tar|adduser|passwd|libdb5\.3|libpam.*|lsb-base|sysvinit-utils|.*perl.*)$/;

/** Debian has musl, but no program that is linked with it; of all compilers tcc is the smallest. */
const compiler = { packages: ['musl-dev', 'tcc'], closure: false };

const applets = ['cat', 'ip', 'ls', 'nc', 'nslookup', 'ping', 'ps', 'sh', 'sleep', 'wget'];

/** A static file of 1 kB and one of 10 MB on port 8000: what a plain web server can do, for measurements. */
const nginxConf = `daemon off;
worker_processes 1;
error_log stderr;
pid /tmp/nginx.pid;
events { worker_connections 4096; }
http {
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000;
  client_body_temp_path /tmp/body;
  proxy_temp_path /tmp/proxy;
  fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi;
  scgi_temp_path /tmp/scgi;
  server {
    listen 8000 backlog=4096;
    root /srv;
    # Which task answers whom, for those who ask.
    location = /who { default_type application/json; return 200 '{"task":"$hostname","client":"$remote_addr","port":$remote_port}\\n'; }
  }
}
`;

/** The image as a file for `docker load`. */
export interface Image {
  tar: string;
  /**
   * The image's id, the same on every node. Services are to be created from it: by name, every task would first
   * look for a registry and wait.
   */
  id: string;
}

/**
 * Makes the image's archive, unless the one of an earlier run is still right.
 * @throws {DebianError} when the packages cannot be had.
 */
export async function prepareImage(
  o: { progress?: (line: string) => void; signal?: AbortSignal } = {},
): Promise<Image> {
  await unpackDebian({ packages, into: debianDir, exclude: unneeded, ...o });
  await unpackDebian({ ...compiler, into: compilerDir, ...o });
  const packed = [debianDir, compilerDir].map((one) => `${one}.packages`);
  return packImage(
    {
      name: imageName,
      tar,
      inputs: [import.meta.filename, echoFile, lookFile, nodePackage, ...packed],
      fill: fillRoot,
      config: { Entrypoint: ['/usr/bin/node', '/echo.ts'], Cmd: ['serve'], Env: ['PATH=/usr/sbin:/usr/bin'] },
    },
    o,
  );
}

/** What an image is made of. */
export interface Recipe {
  name: string;
  /** The archive to write; beside it is written what it was made of. */
  tar: string;
  /** Files whose content decides whether an archive of before is still right. */
  inputs: string[];
  /** Lays out the image's file system in a directory. */
  fill: (dir: string) => Promise<void>;
  /** As in the image specification: Entrypoint, Cmd, Env. */
  config: object;
}

/** Makes an image's archive, unless the one of an earlier run is still right. */
export function packImage(
  { name, tar, inputs: files, fill, config: words }: Recipe,
  o: { progress?: (line: string) => void; signal?: AbortSignal } = {},
): Promise<Image> {
  return withLock(lockFile, { timeoutMs: 240_000, signal: o.signal }, async () => {
    const inputs = await digestOf(...files);
    const [before, id] = (await readFile(`${tar}.inputs`, 'utf8').catch(() => '')).split('\n');
    if (before === inputs && id !== undefined) return { tar, id };

    o.progress?.(`making the container image ${name}`);
    const dir = `${tar}.making`;
    await rm(dir, { recursive: true, force: true });
    await mkdir(dir);
    await fill(join(dir, 'root'));
    await pack(join(dir, 'layer.tar'), join(dir, 'root'), ['.'], o.signal);
    await rm(join(dir, 'root'), { recursive: true });
    const config = JSON.stringify({
      architecture: process.arch === 'arm64' ? 'arm64' : 'amd64',
      os: 'linux',
      config: words,
      rootfs: { type: 'layers', diff_ids: [`sha256:${await digestOf(join(dir, 'layer.tar'))}`] },
    });
    const hash = createHash('sha256').update(config).digest('hex');
    const manifest = [{ Config: `${hash}.json`, RepoTags: [name], Layers: ['layer.tar'] }];
    await writeFile(join(dir, `${hash}.json`), config);
    await writeFile(join(dir, 'manifest.json'), JSON.stringify(manifest));

    await rm(`${tar}.inputs`, { force: true });
    await pack(tar, dir, ['manifest.json', `${hash}.json`, 'layer.tar'], o.signal);
    await writeFile(`${tar}.inputs`, `${inputs}\nsha256:${hash}`);
    await rm(dir, { recursive: true });
    return { tar, id: `sha256:${hash}` };
  });
}

/** Puts the image into a node's Docker Engine. */
export async function loadImage(node: LabNode, image: Image): Promise<void> {
  await node.docker(['load', '--quiet', '--input', image.tar]);
}

/** Lays out the image's file system in `dir`. */
async function fillRoot(dir: string): Promise<void> {
  await mergedUsr(dir);
  await copyPrograms({
    from: debianDir,
    into: dir,
    programs: ['/usr/bin/busybox', '/usr/bin/iperf3', '/usr/sbin/nginx'],
    data: ['/etc/protocols', '/etc/services'],
    foreign: { '/usr/bin/node': nodeFile },
    links: Object.fromEntries(applets.map((name) => [`/usr/bin/${name}`, 'busybox'])),
  });
  for (const place of ['proc', 'sys', 'dev', 'tmp', 'srv', 'etc/nginx', 'var/log/nginx', 'var/lib/nginx']) {
    await mkdir(join(dir, place), { recursive: true });
  }
  await writeFile(join(dir, 'etc/passwd'), 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n');
  await writeFile(join(dir, 'etc/group'), 'root:x:0:\nnogroup:x:65534:\n');
  await writeFile(join(dir, 'etc/nginx/nginx.conf'), nginxConf);
  await writeFile(join(dir, 'srv/1k'), Buffer.alloc(1e3, 'x'));
  await writeFile(join(dir, 'srv/10m'), Buffer.alloc(10e6));
  await cp(echoFile, join(dir, 'echo.ts'));
  await compileLook(join(dir, 'usr/bin/look'));
}

/** Makes a static program of image/look.c and musl. */
async function compileLook(into: string): Promise<void> {
  const musl = libraryDir.replace(/gnu$/, 'musl');
  const library = (file: string): string => join(compilerDir, musl, file);
  const headers = [
    join(compilerDir, '/usr/include', basename(musl)),
    join(compilerDir, libraryDir, 'tcc/include'),
  ];
  await execa(join(compilerDir, 'usr/bin/tcc'), [
    ...['-static', '-nostdinc', '-nostdlib'],
    ...headers.map((directory) => `-I${directory}`),
    ...['-o', into],
    ...[library('crt1.o'), library('crti.o'), lookFile, library('libc.a'), library('crtn.o')],
  ]);
}

async function pack(tarFile: string, dir: string, files: string[], signal?: AbortSignal): Promise<void> {
  const fixed = ['--sort=name', '--mtime=@0', '--numeric-owner', '--owner=0', '--group=0'];
  await execa('tar', ['--create', ...fixed, '--file', tarFile, '--directory', dir, ...files], {
    ...(signal ? { cancelSignal: signal } : {}),
  });
}

async function digestOf(...files: string[]): Promise<string> {
  const hash = createHash('sha256');
  for (const file of files) for await (const chunk of createReadStream(file)) hash.update(chunk as Buffer);
  return hash.digest('hex');
}
