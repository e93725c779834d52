// Owns what a Docker Engine needs that runs on an emulated processor, where every program's first start is slow.
// Must not change what is tested: on a plain machine it does the same, at once.
import { createReadStream } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { slowness } from '../slowness.ts';
import type { LabNode } from './node.ts';
import { toolsDir } from './tools.ts';

const enableAttempts = 8;
/** What Docker still takes down of the last attempt, a new one finds in its way. */
const betweenAttemptsMs = 10_000;
/** How long Docker waits for the plugin's answer to a call, in seconds. */
const callSeconds = 120;
const commandMs = 300_000;

/** dockerd gives containerd 15 s to start. Emulated, reading the two through the disk of the host takes longer. */
export async function readDockersPrograms(): Promise<void> {
  for (const name of [
    'sbin/dockerd',
    'bin/containerd',
    'bin/containerd-shim-runc-v2',
    'sbin/runc',
    'bin/docker',
  ]) {
    for await (const _ of createReadStream(join(toolsDir, 'usr', name), { highWaterMark: 1 << 20 })) continue;
  }
}

/**
 * Enables a plugin. Docker gives it some ten seconds to listen. An emulated processor may need more, with every
 * program to be read for the first time; the next attempt finds them in memory.
 */
export async function enablePlugin(node: LabNode, name: string, signal?: AbortSignal): Promise<void> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      await node.docker(['plugin', 'enable', '--timeout', String(callSeconds), name], {
        timeout: commandMs,
        signal,
      });
      return;
    } catch (error) {
      signal?.throwIfAborted();
      // An attempt that Docker gave up waiting for, or its own at a restart, may have come to its end after all.
      if (await isEnabled(node, name)) return;
      if (attempt === enableAttempts) throw error;
      await sleep(betweenAttemptsMs, undefined, signal ? { signal } : {});
    }
  }
}

/**
 * Enables a plugin again that did not come back in time. Docker gives one that ended, or that it finds when it starts
 * itself, the same ten seconds, and then disables it for good. For the emulated processor only: elsewhere a plugin has
 * to come back by itself.
 */
export async function reviveWhereSlow(node: LabNode, name: string): Promise<void> {
  if (slowness === 1) return;
  if (!(await isEnabled(node, name))) await enablePlugin(node, name);
}

async function isEnabled(node: LabNode, name: string): Promise<boolean> {
  const { stdout } = await node.docker(['plugin', 'inspect', '--format', '{{.Enabled}}', name]);
  return stdout === 'true';
}
