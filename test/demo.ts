// Owns `npm run demo`: the main job, shown on one machine by real Docker Engines of its own.
// Must not be a test (test/docker is), and must leave nothing of its lab behind.
import { once } from 'node:events';
import { copyFile, mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { buildPlugin } from '../rootfs/build.ts';
import { LockedError, withLock } from '../rootfs/lock.ts';
import { cluster } from './demo/cluster.ts';
import { oneNode } from './demo/one-node.ts';
import { say, type Show } from './demo/stage.ts';
import { parseEngine, type EngineName } from './lab/engines.ts';
import { prepareImage } from './lab/image.ts';
import { Lab } from './lab/lab.ts';

const root = join(import.meta.dirname, '..');
const labName = 'demo';
const lockFile = join(root, 'build/cache/demo.lock');
const failureLog = join(root, 'build/demo-dockerd.log');
/** A demo that has shown nothing by then is stuck. */
const limitMs = 900_000;
/** What one machine can be asked to bear. */
const maxNodes = 7;

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      nodes: { type: 'string', default: '1' },
      engine: { type: 'string', default: '20.10' },
      once: { type: 'boolean', default: false },
      down: { type: 'boolean', default: false },
    },
  });
  const show = chooseShow(Number(values.nodes));
  const engine = parseEngine(values.engine);
  await mkdir(join(root, 'build/cache'), { recursive: true });
  // Held for the demo's whole life: tells a running demo from what a crashed one has left.
  await withLock(lockFile, { timeoutMs: 0 }, async () => {
    if ((await Lab.list()).includes(labName)) {
      say('removing what a demo that did not end properly has left');
      await Lab.down(labName);
    }
    if (values.down) return;
    try {
      await run(show, engine, values.once);
    } finally {
      say('removing the lab');
      await Lab.down(labName);
      say('nothing of it is left; build/ keeps what was downloaded and built');
    }
  });
}

/** @throws Error when there is none for so many nodes */
function chooseShow(nodes: number): Show {
  if (nodes === 1) return oneNode;
  if (Number.isInteger(nodes) && nodes >= 3 && nodes <= maxNodes) return cluster(nodes);
  throw new Error(
    `--nodes takes 1, or 3 to ${maxNodes}: a cluster needs three managers to get over the loss of one.`,
  );
}

async function run(show: Show, engine: EngineName, onlyOnce: boolean): Promise<void> {
  const signal = AbortSignal.any([stop.signal, AbortSignal.timeout(limitMs)]);
  const step = (name: string) => ({ progress: (line: string) => say(`${name}: ${line}`), signal });
  await buildPlugin(step('plugin'));
  const image = await prepareImage(step('image'));
  const lab = await Lab.up({ name: labName, nodes: show.nodes, engine, ...step('engine') });
  try {
    await show.deploy(lab, image, signal);
    const troubles = await show.show(lab, signal);
    console.log();
    if (troubles.length > 0) throw new Error(`not all is as it should be:\n${troubles.join('\n')}`);
  } catch (error) {
    await copyFile(join(lab.first.dir, 'dockerd.log'), failureLog);
    say(`the log of Docker and the plugin${show.nodes > 1 ? ` on ${lab.first.name}` : ''}: ${failureLog}`);
    throw error;
  }
  say(show.conclusion);
  if (onlyOnce) return;
  await show.printNext(lab);
  if (!stop.signal.aborted) await once(stop.signal, 'abort');
}

const stop = new AbortController();
for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, () => stop.abort());
try {
  await main();
} catch (error) {
  // Ctrl-C also ends the commands under way, so what is thrown then says nothing.
  let why = error instanceof Error ? error.message : String(error);
  if (stop.signal.aborted) why = 'interrupted';
  if (error instanceof LockedError) why = 'one is running already in this directory; end it with Ctrl-C';
  console.error(`\ndemo: ${why}`);
  process.exitCode = stop.signal.aborted ? 130 : 1;
}
