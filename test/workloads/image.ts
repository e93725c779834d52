// Owns the container image of the workloads: servers as Debian ships them, for stacks as users have them.
// Must not hold their configuration: that is in the stacks.
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { unpackDebian } from '../../rootfs/debian.ts';
import { copyPrograms, libraryDir, mergedUsr } from '../../rootfs/programs.ts';
import { consulDir, prepareConsul } from '../lab/consul.ts';
import { packImage, type Image } from '../lab/image.ts';

const cache = join(import.meta.dirname, '../../build/cache');
const debianDir = join(cache, 'workloads-debian');

/** As the stacks name it. */
export const workloadsImage = 'causeway/workloads:latest';

const packages = ['busybox', 'etcd-client', 'etcd-server', 'haproxy', 'nginx-light', 'rsyslog'];
const unneeded =
  /^(debconf|perl-base|dpkg|tar|adduser|passwd|libdb5\.3|libpam.*|lsb-base|sysvinit-utils|.*perl.*)$/;

const servers = ['haproxy', 'nginx', 'rsyslogd'].map((name) => `/usr/sbin/${name}`);
/** What rsyslogd loads by name. */
const modules = ['lmnet', 'imudp'].map((name) => `${libraryDir}/rsyslog/${name}.so`);
const applets = ['cat', 'grep', 'hostname', 'ip', 'ls', 'ping', 'ps', 'sh', 'sleep', 'wget'];

/** Makes the image's archive, unless the one of an earlier run is still right. @throws {DebianError} */
export async function prepareWorkloads(
  o: { progress?: (line: string) => void; signal?: AbortSignal } = {},
): Promise<Image> {
  await unpackDebian({ packages, into: debianDir, exclude: unneeded, ...o });
  await prepareConsul(o);
  return packImage(
    {
      name: workloadsImage,
      tar: join(cache, 'workloads.tar'),
      inputs: [import.meta.filename, `${debianDir}.packages`, `${consulDir}.packages`],
      fill: fillRoot,
      config: { Cmd: ['/bin/sh'], Env: ['PATH=/usr/sbin:/usr/bin'] },
    },
    o,
  );
}

async function fillRoot(dir: string): Promise<void> {
  await mergedUsr(dir);
  await copyPrograms({
    from: debianDir,
    into: dir,
    programs: ['/usr/bin/busybox', '/usr/bin/etcd', '/usr/bin/etcdctl', ...servers, ...modules],
    foreign: { '/usr/bin/consul': join(consulDir, 'usr/bin/consul') },
    links: Object.fromEntries(applets.map((name) => [`/usr/bin/${name}`, 'busybox'])),
  });
  const places = [
    'dev',
    'etc/nginx',
    'proc',
    'sys',
    'tmp',
    'var/lib/nginx',
    'var/log/nginx',
    'var/spool/rsyslog',
  ];
  for (const place of places) await mkdir(join(dir, place), { recursive: true });
  await writeFile(join(dir, 'etc/passwd'), 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n');
  await writeFile(join(dir, 'etc/group'), 'root:x:0:\nnogroup:x:65534:\n');
}
