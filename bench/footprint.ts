// Owns what the plugin costs where it only lies or waits: bytes on disk, time to its first answer, memory when idle.
// Must not measure packets.
import { lstat, opendir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { pluginDir } from '../rootfs/build.ts';
import { Namespace } from '../test/kernel/world.ts';
import { loadImage, prepareImage } from '../test/lab/image.ts';
import type { Lab } from '../test/lab/lab.ts';
import { PluginProcess } from '../test/lab/plugin-process.ts';
import { Deployment } from './deployment.ts';
import type { Finding } from './report.ts';
import { median } from './rounds.ts';

/** The size of the unpacked root file system: what its files take on a disk, each once. */
export async function rootfsSize(): Promise<Finding> {
  let bytes = 0;
  const seen = new Set<number>();
  for await (const entry of await opendir(join(pluginDir, 'rootfs'), { recursive: true })) {
    const { ino, blocks } = await lstat(join(entry.parentPath, entry.name));
    if (seen.has(ino)) continue;
    seen.add(ino);
    // A block of stat(2) is 512 bytes, whatever the file system's own are.
    bytes += blocks * 512;
  }
  const value = bytes / 1e6;
  return {
    what: 'unpacked root file system',
    value,
    unit: 'MB',
    goal: { atMost: 180 },
    detail: `${seen.size} files and directories`,
    samples: { MB: [value] },
  };
}

/** From the start of its process to its first answer, on this machine, in a network namespace with nothing in it. */
export async function startTime(times: number): Promise<Finding> {
  const namespace = await Namespace.make(`cwb${process.pid}`);
  const samples: number[] = [];
  try {
    for (let run = 0; run < times; run += 1) {
      const start = performance.now();
      const plugin = await PluginProcess.start({ netns: namespace.path, env: { CAUSEWAY_LOG: 'info' } });
      samples.push(performance.now() - start);
      await plugin.stop();
    }
  } finally {
    await namespace.remove();
  }
  return {
    what: 'process start to first answer',
    value: median(samples),
    unit: 'ms',
    goal: { atMost: 1000 },
    detail: `median of ${times}, ${Math.min(...samples).toFixed(0)} to ${Math.max(...samples).toFixed(0)} ms`,
    samples: { ms: samples },
  };
}

/** Resident memory of the plugin in a Docker Engine, with a network and a service, after it was left alone. */
export async function idleMemory(
  lab: Lab,
  o: { idleSeconds: number; progress: (line: string) => void; signal?: AbortSignal | undefined },
): Promise<Finding> {
  const options = { progress: o.progress, ...(o.signal ? { signal: o.signal } : {}) };
  const image = await prepareImage(options);
  await loadImage(lab.first, image);
  const deployment = new Deployment(lab, image.id, o.signal);
  await deployment.prepare();
  await deployment.network('front', 'causeway');
  await deployment.server('web', 'front', { web: 8080, iperf: 5201 });
  o.progress(`idle for ${o.idleSeconds} s`);
  await sleep(o.idleSeconds * 1000, undefined, o.signal ? { signal: o.signal } : {});

  const [pid] = await lab.first.pidsOf('causeway');
  if (pid === undefined) throw new Error('The plugin is not running.');
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  const megabytes = (name: string): number =>
    (Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(status)?.[1]) * 1024) / 1e6;
  const value = megabytes('VmRSS');
  return {
    what: 'resident memory, idle',
    value,
    unit: 'MB',
    goal: { atMost: 100 },
    detail: `${megabytes('RssAnon').toFixed(0)} MB its own, ${megabytes('RssFile').toFixed(0)} MB mapped files; after ${o.idleSeconds} s`,
    samples: { MB: [value] },
  };
}
