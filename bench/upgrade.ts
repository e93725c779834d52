// Owns the part `upgrade`: under load, the nodes go to an earlier plugin one after the other, and back to this one.
// Must not know what differs between the two.
import { copyFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as z from 'zod';
import { pluginDir } from '../rootfs/build.ts';
import { pluginName } from '../rootfs/create.ts';
import { startLoad, type Load, type Outcome } from '../test/lab/asking.ts';
import type { LabNode } from '../test/lab/node.ts';
import { enablePlugin } from '../test/lab/slow.ts';
import type { Cluster } from './cluster.ts';
import type { Finding } from './report.ts';

export interface UpgradeOptions {
  progress: (line: string) => void;
  cluster: Cluster;
  /** Where the programs of the earlier plugin are. */
  earlier: string;
  /** How often there and back. */
  rounds: number;
}

const tasks = 6;
/** New connections a second, over all nodes. */
const perSecond = 100;
const longMs = 3_000;
/** At any time, over all nodes. */
const long = 30;
const timeoutMs = 5_000;
/** What a node is left alone with its other plugin, before the next one gets it. */
const restMs = 3_000;
const toldFailures = 20;

type Way = 'to the earlier plugin' | 'to this plugin';

export async function measureUpgrades(o: UpgradeOptions): Promise<Finding[]> {
  const { cluster, rounds, progress, earlier } = o;
  const { causeway: mesh } = cluster.meshes({ dockersMesh: false, tasks, spare: 2, graceSeconds: 15 });
  const done: { way: Way; outcomes: Outcome[] }[] = [];
  await cluster.serve(mesh, progress, async () => {
    for (let round = 0; round < rounds; round += 1)
      for (const [way, programs] of [
        ['to the earlier plugin', earlier],
        ['to this plugin', join(pluginDir, 'rootfs', 'causeway')],
      ] as const) {
        const loads = await startLoads(cluster, mesh.service.port);
        const began = Date.now();
        for (const node of cluster.lab.nodes) {
          await exchange(node, programs);
          await cluster.until(`${node.name} goes on`, () => goesOn(node, cluster.lab.nodes.length));
          progress(`${node.name} is brought ${way}, after ${Date.now() - began} ms`);
          await sleep(restMs);
          // Tasks come and go while the nodes differ, too.
          await cluster.update(mesh.service, { order: 'start-first', parallelism: 2 });
          await cluster.allServe(mesh.service);
          progress(`all tasks were replaced, after ${Date.now() - began} ms`);
        }
        const outcomes = (await Promise.all(loads.map((load) => load.stop()))).flat();
        const failures = outcomes.filter(({ error }) => error !== undefined);
        for (const { at, connected, task, error } of failures.slice(0, toldFailures))
          progress(
            `begun at ${at - began} ms, connected after ${connected ?? '–'} ms to ${task ?? 'nobody'}: ${error}`,
          );
        progress(`${way}: ${failures.length} of ${outcomes.length} requests failed`);
        done.push({ way, outcomes });
      }
  });
  return (['to the earlier plugin', 'to this plugin'] as const).map((way) => {
    const own = done.filter((one) => one.way === way);
    const failed = own.map(({ outcomes }) => outcomes.filter(({ error }) => error !== undefined).length);
    const begun = own.reduce((sum, { outcomes }) => sum + outcomes.length, 0);
    return {
      what: `failed requests while three nodes go ${way}, one after the other`,
      value: failed.reduce((sum, count) => sum + count, 0),
      unit: 'requests',
      goal: { atMost: 0 },
      detail: `of ${begun}; all ${tasks} tasks are replaced after each node`,
      samples: { requests: failed },
    };
  });
}

async function startLoads(cluster: Cluster, port: number): Promise<Load[]> {
  const { nodes, client } = cluster.lab;
  const loads = nodes.flatMap((node) => {
    const url = `http://${node.address}:${port}`;
    return [
      startLoad(client, `${url}/`, { intervalMs: (1_000 / perSecond) * nodes.length, timeoutMs }),
      startLoad(client, `${url}/slow?ms=${longMs}`, {
        intervalMs: (longMs / long) * nodes.length,
        timeoutMs: timeoutMs + longMs,
      }),
    ];
  });
  return Promise.all(loads);
}

/** As `docker plugin upgrade`, without a registry, of the bundle alone: Node, its addons and the Debian programs stay. */
async function exchange(node: LabNode, programs: string): Promise<void> {
  const { stdout: id } = await node.docker(['plugin', 'inspect', '--format', '{{.Id}}', pluginName]);
  await node.docker(['plugin', 'disable', '--force', pluginName]);
  const into = join(node.dir, 'docker', 'plugins', id, 'rootfs', 'causeway');
  for (const name of await readdir(programs))
    if (name.endsWith('.mjs')) await copyFile(join(programs, name), join(into, name));
  await enablePlugin(node, pluginName);
}

/** What has been in `/status` from the beginning: the other fields may be others in an earlier plugin. */
const status = z.object({
  nodes: z.array(z.unknown()),
  kernel: z.object({ settled: z.boolean() }),
});

/** Whether it knows all nodes, and the kernel is as desired. */
async function goesOn(node: LabNode, count: number): Promise<boolean> {
  const { nodes, kernel } = status.parse(await node.admin('/status'));
  return nodes.length === count && kernel.settled;
}
