// Owns `npm run lab`: labs by hand.
// Must not hold anything that tests need: that is lab.ts.
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { execa } from 'execa';
import { buildPlugin } from '../../rootfs/build.ts';
import { defaultEngine, parseEngine } from './engines.ts';
import { loadImage, prepareImage, type Image } from './image.ts';
import { Lab } from './lab.ts';
import type { Host, LabNode } from './node.ts';
import { toolsEnv } from './tools.ts';

const usage = `usage: npm run lab -- up [--name NAME] [--nodes N]       Docker nodes n1 … nN and a client, with the test image
           [--engine 20.10|26|28]                      … of Docker 20.10, 26.1 or 28.5
           [--swarm] [--managers M]                    … one Swarm, the first M of them (one) its managers
           [--consul]                                  … with a Consul server on every manager
           [--plugin]                                  … with the plugin on every node
       npm run lab -- exec [--name NAME] HOST -- CMD …    in the namespaces of n1, n2, … or client
       npm run lab -- ask [--name NAME] URL [--count N]   HTTP requests from the client: who answers, and whom it saw
       npm run lab -- causeway [--name NAME] HOST         what Causeway says of itself there
       npm run lab -- cut [--name NAME] HOST              pulls the node's cable
       npm run lab -- partition [--name NAME] n1 n2,n3    lets nothing pass between two sets of nodes
       npm run lab -- heal [--name NAME] [HOST]           plugs it in again; without HOST all, and ends partitions
       npm run lab -- kill [--name NAME] HOST             cuts the node's power
       npm run lab -- start [--name NAME] HOST            turns it on again: same address, same disk
       npm run lab -- consul [--name NAME] stop [HOST]    stops Consul on a node, or on all
       npm run lab -- consul [--name NAME] start          starts it where it does not run
       npm run lab -- status                              which labs are up
       npm run lab -- down [--name NAME]`;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    name: { type: 'string' },
    nodes: { type: 'string', default: '1' },
    engine: { type: 'string' },
    count: { type: 'string', default: '6' },
    swarm: { type: 'boolean', default: false },
    managers: { type: 'string' },
    consul: { type: 'boolean', default: false },
    plugin: { type: 'boolean', default: false },
  },
});
const [verb, host, ...command] = positionals;
const progress = (line: string) => console.log(`  ${line}`);

/** Without a name the only lab there is, so that nobody has to type it. */
async function labName(): Promise<string> {
  const labs = await Lab.list();
  return values.name ?? (labs.length === 1 ? labs[0]! : 'lab');
}

async function up(): Promise<void> {
  const stop = new AbortController();
  process.once('SIGINT', () => stop.abort());
  const name = values.name ?? 'lab';
  const image = await prepareImage({ progress, signal: stop.signal });
  if (values.plugin) await buildPlugin({ progress, signal: stop.signal });
  const engine = values.engine === undefined ? defaultEngine() : parseEngine(values.engine);
  const lab = await Lab.up({ name, nodes: Number(values.nodes), engine, progress, signal: stop.signal });
  try {
    await furnish(lab, image, stop.signal);
  } catch (error) {
    await lab.down();
    throw error;
  }
  await status();
}

/** Puts onto the nodes what was asked for. */
async function furnish(lab: Lab, image: Image, signal: AbortSignal): Promise<void> {
  progress('loading the test image');
  await Promise.all(lab.nodes.map((node) => loadImage(node, image)));
  const managers = Number(values.managers ?? 1);
  if (values.swarm || values.managers !== undefined) {
    progress(`forming a Swarm with ${managers} manager${managers === 1 ? '' : 's'}`);
    await lab.formSwarm({ managers, signal });
  }
  if (values.consul) await lab.startConsul({ servers: managers, progress, signal });
  if (values.plugin) {
    const set = values.consul ? { CAUSEWAY_STORE: lab.consulStore } : {};
    await lab.installPlugin({ set, progress, signal });
  }
}

async function exec(): Promise<void> {
  const lab = await Lab.attach(await labName());
  await run(host === 'client' ? lab.client : nodeOf(lab), command);
}

async function ask(url: string | undefined): Promise<void> {
  if (url === undefined) throw new Error(usage);
  const lab = await Lab.attach(await labName());
  const echo = join(import.meta.dirname, 'image/echo.ts');
  await run(lab.client, [process.execPath, echo, 'http', url, '--count', values.count]);
}

async function causeway(): Promise<void> {
  const lab = await Lab.attach(await labName());
  console.log(JSON.stringify(await nodeOf(lab).admin('/status'), null, 2));
}

/** What goes wrong, and comes right again. */
async function fail(): Promise<void> {
  const lab = await Lab.attach(await labName());
  if (verb === 'cut') await lab.cut(nodeOf(lab));
  else if (verb === 'heal') await lab.heal(host === undefined ? undefined : nodeOf(lab));
  else if (verb === 'kill') await lab.kill(nodeOf(lab));
  else if (verb === 'start') await lab.boot(nodeOf(lab));
  else {
    const [left, right] = [host, command[0]].map((names) => names?.split(',').map((name) => lab.node(name)));
    if (!left || !right) throw new Error(usage);
    await lab.partition(left, right);
  }
}

async function consul(): Promise<void> {
  const lab = await Lab.attach(await labName());
  if (host === 'stop') await lab.stopConsul(command[0] === undefined ? undefined : lab.node(command[0]));
  else if (host === 'start') await lab.startConsul({ progress });
  else throw new Error(usage);
}

function nodeOf(lab: Lab): LabNode {
  if (host === undefined) throw new Error(usage);
  return lab.node(host);
}

async function run(where: Host, [program, ...words]: string[]): Promise<void> {
  if (program === undefined) throw new Error(usage);
  const [file, ...args] = where.commandLine([program, ...words]);
  const result = await execa(file, args, { stdio: 'inherit', env: toolsEnv(), reject: false });
  process.exitCode = result.exitCode ?? 1;
}

async function status(): Promise<void> {
  for (const name of await Lab.list()) {
    const lab = await Lab.attach(name).catch(() => undefined);
    if (!lab) {
      console.log(`${name}: not running, or not whole. Remove it: npm run lab -- down --name ${name}`);
      continue;
    }
    console.log(`${name}: client ${lab.client.address}`);
    const cut = await lab.cutNodes();
    for (const node of lab.nodes) {
      const state = node.isOn ? `${cut.includes(node) ? 'cut  ' : ''}DOCKER_HOST=${node.dockerHost}` : 'off';
      console.log(`  ${node.name} ${node.address}  ${state}`);
    }
  }
}

try {
  if (verb === 'up') await up();
  else if (verb === 'exec') await exec();
  else if (verb === 'ask') await ask(host);
  else if (verb === 'causeway') await causeway();
  else if (['cut', 'partition', 'heal', 'kill', 'start'].includes(verb ?? '')) await fail();
  else if (verb === 'consul') await consul();
  else if (verb === 'status') await status();
  else if (verb === 'down') await Lab.down(await labName());
  else throw new Error(usage);
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
}
