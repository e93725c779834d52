// Owns the life of the plugin's process: its settings, signals and end, and the real kernel and Docker that its node is given.
// Must not wire anything else (create-node.ts).
import { join } from 'node:path';
import { kernelConntrack } from '../net/conntrack.ts';
import { iproute } from '../net/iproute.ts';
import { nftElements } from '../net/nft-elements.ts';
import { sandboxTables } from '../net/nft-tables.ts';
import { createRunner } from '../net/run.ts';
import { fileSysctl } from '../net/sysctl.ts';
import type { Loss } from '../net/watch.ts';
import { connectDocker } from '../swarm/docker.ts';
import { parseConfig } from './config.ts';
import { createNode } from './create-node.ts';
import { createLog, type Log } from './log.ts';

const stop = new AbortController();

async function main(): Promise<void> {
  // In ps and top a plugin is not one more `node`.
  process.title = 'causeway';
  const config = parseConfig(process.env);
  const log = createLog(config.CAUSEWAY_LOG);
  const node = await createNode(
    config,
    {
      log,
      run: createRunner({
        inProcess: [iproute(), nftElements()],
        onCommand: (command, milliseconds, input) =>
          log.debug({ command, input, milliseconds: Math.round(milliseconds) }, 'ran a command'),
      }),
      conntrack: kernelConntrack({
        onForgotten: (flows, forgotten, milliseconds) =>
          log.debug({ flows, forgotten, milliseconds: Math.round(milliseconds) }, 'stale flows removed'),
      }),
      tables: sandboxTables,
      sysctl: fileSysctl(config.CAUSEWAY_HOST_SYSCTL),
      docker: connectDocker(join(config.CAUSEWAY_HOST_RUN, 'docker.sock')),
      removals: await watchKernel(log),
    },
    stop.signal,
  );
  await node.run();
}

/** @returns undefined where the machine code for it cannot be loaded: what is taken away is found at the next look */
async function watchKernel(log: Log): Promise<(() => ReadonlySet<Loss>) | undefined> {
  try {
    const { KernelWatch } = await import('../net/watch.ts');
    const watch = new KernelWatch();
    return () => watch.lost();
  } catch (error) {
    log.warn({ error }, 'cannot watch the kernel: removed rules are restored some seconds later');
    return undefined;
  }
}

for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => stop.abort());

main().catch((error: unknown) => {
  // Docker copies standard error into its own log, and says of a plugin that ends only that it could not be reached.
  process.stderr.write(
    `causeway: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`,
  );
  process.exitCode = 1;
  process.exit();
});
