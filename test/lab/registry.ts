// Owns a registry of images and plugins on a lab's node: Debian's docker-registry, unpacked and not installed.
// Must not be reachable from elsewhere than the node itself.
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { unpackDebian } from '../../rootfs/debian.ts';
import type { LabNode } from './node.ts';
import { until } from '../support/until.ts';

const into = join(import.meta.dirname, '../../build/registry');

/** Where the node's Docker finds it. On loopback Docker trusts a registry without TLS. */
export const registry = '127.0.0.1:5000';

/** Fetches the program. A download of 5 MB the first time. @throws {DebianError} when it cannot be had. */
export async function prepareRegistry(
  o: { progress?: (line: string) => void; signal?: AbortSignal } = {},
): Promise<void> {
  // Alone: it is one program of Go, which needs no more than the machine's own C library.
  await unpackDebian({ packages: ['docker-registry'], into, closure: false, ...o });
}

/** Starts an empty registry at {@link registry} of a node, and resolves once it answers. It stays until the node ends. */
export async function startRegistry(node: LabNode): Promise<void> {
  const directory = join(node.dir, 'registry');
  await mkdir(directory);
  const config = join(directory, 'config.yml');
  // What a registry reads is YAML, and so may be JSON.
  await writeFile(
    config,
    JSON.stringify({
      version: 0.1,
      log: { level: 'error', accesslog: { disabled: true } },
      storage: { filesystem: { rootdirectory: join(directory, 'data') } },
      http: { addr: registry },
    }),
  );
  await node.startDaemon('registry', [join(into, 'usr/bin/docker-registry'), 'serve', config]);
  await until('the registry answers', () => answers(node), { timeoutMs: 30_000 });
}

async function answers(node: LabNode): Promise<boolean> {
  const script = `fetch("http://${registry}/v2/").then(({ ok }) => process.exit(ok ? 0 : 1), () => process.exit(1))`;
  const [file, ...args] = node.commandLine([process.execPath, '-e', script]);
  return !(await execa(file, args, { reject: false })).failed;
}
