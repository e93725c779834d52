// Owns the demo of several nodes: the mesh over all of them, and what a client notices when one loses its power.
// Must not judge how fast that is overcome, only that it is: the machine may be busy. bench/ measures.
import { setTimeout as sleep } from 'node:timers/promises';
import { reportLoss } from '../../bench/failover-outcome.ts';
import { startLoad, type Load, type Outcome } from '../lab/asking.ts';
import { loadImage, type Image } from '../lab/image.ts';
import type { Lab } from '../lab/lab.ts';
import type { LabNode } from '../lab/node.ts';
import { until } from '../support/until.ts';
import { timeline } from './timeline.ts';
import {
  allRun,
  ask,
  createNetwork,
  createService,
  echoInside,
  echoOutside,
  published,
  say,
  troublesOf,
  vipOf,
  visitorOn,
  type Answer,
  type Question,
  type Show,
} from './stage.ts';

const tasksPerNode = 2;
/** New connections to each node while the power is cut. */
const pace = { intervalMs: 50, timeoutMs: 2_000 };
const beforeCutMs = 3_000;
const afterCutMs = 8_000;
/** By then it should be over; a busy machine may be late with a single answer even then. */
const overMs = 5_000;

/** Swarm, and so the managers here, must keep a majority when one is lost. */
const managers = 3;

/** How long a node may take to come back, with Swarm and its tasks. */
const returnMs = 240_000;

const urlOf = (node: LabNode): string => `http://${node.address}:${published}/`;

/** The client asks a node's published port, and all tasks of the cluster shall answer. */
const fromOutside = (lab: Lab, node: LabNode): Question => ({
  from: lab.client,
  program: echoOutside,
  url: urlOf(node),
  real: lab.client.address,
  tasks: tasksPerNode * lab.nodes.length,
});

/** Makes the cluster: Consul, plugin and Swarm on every node, a network and two services. */
async function deploy(lab: Lab, image: Image, signal: AbortSignal): Promise<void> {
  const { first, nodes } = lab;
  const step = (name: string) => ({ progress: (line: string) => say(`${name}: ${line}`), signal });
  await Promise.all(nodes.map((node) => loadImage(node, image)));
  await lab.startConsul({ servers: managers, ...step('consul') });
  await lab.installPlugin({ set: { CAUSEWAY_STORE: lab.consulStore }, ...step('plugin') });
  say(`swarm: ${nodes.length} nodes, ${managers} of them managers`);
  await lab.formSwarm({ managers, signal });
  await until(
    'all nodes know each other',
    async () => {
      const known = nodes.map(async (node) => {
        const { nodes: all } = (await node.admin('/status')) as { nodes: unknown[] };
        return all.length === nodes.length;
      });
      return (await Promise.all(known.map((one) => one.catch(() => false)))).every(Boolean);
    },
    { timeoutMs: 120_000, everyMs: 300, signal },
  );
  await createNetwork(first, signal);
  const count = tasksPerNode * nodes.length;
  say(`service: docker service create --name web --replicas ${count} --network front -p ${published}:80 …`);
  // The node is part of the name, so that an answer tells where it comes from.
  const hostname = ['--hostname', '{{.Service.Name}}.{{.Task.Slot}}.{{.Node.Hostname}}'];
  const spread = ['--replicas', String(count), '--replicas-max-per-node', String(tasksPerNode)];
  const port = ['--publish', `${published}:80`];
  await createService(first, image, [...hostname, '--name', 'web', ...spread, ...port], signal);
  // On every node a neighbour on the same network, to reach the service by its name and so by its VIP.
  await createService(first, image, ['--name', 'visitor', '--mode', 'global'], signal);
  await allRun(first, signal);
}

/** `web.3.n2` is the third task, on n2. */
function placeOf(hostname: string): { task: string; on: string } {
  const dot = hostname.lastIndexOf('.');
  return { task: hostname.slice(0, dot), on: hostname.slice(dot + 1) };
}

function printHead(asked: string): void {
  console.log(`\n   ${asked.padEnd(16)}answered by   on    saw the client as   times`);
}

/** Prints one line for each task that answered, and for each way to fail. */
function print(asked: string, answers: Answer[], real: string): void {
  const lines = answers.map(({ task, client = '', error }) => {
    if (task === undefined) return `-             -     ${error ?? 'nothing'}`;
    const place = placeOf(task);
    const seen = client + (client === real ? '' : ' ◄ not the client');
    return `${place.task.padEnd(14)}${place.on.padEnd(6)}${seen}`;
  });
  for (const [index, line] of [...new Set(lines)].sort().entries()) {
    const times = lines.filter((each) => each === line).length;
    console.log(`   ${(index === 0 ? asked : '').padEnd(16)}${line.padEnd(40)}${times}`);
  }
}

/** Draws who reaches whom. */
function draw(lab: Lab, answers: Answer[]): void {
  const columns = lab.nodes.map(({ name }) => ({
    name,
    tasks: [...new Set(answers.flatMap(({ task }) => task ?? []))]
      .map(placeOf)
      .filter(({ on }) => on === name)
      .map(({ task }) => task)
      .sort(),
  }));
  const width = 22;
  const middle = (text: string): string => {
    const left = Math.floor((width - text.length) / 2);
    return (' '.repeat(Math.max(0, left)) + text).padEnd(width);
  };
  const row = (text: (column: (typeof columns)[number]) => string): string =>
    `   ${columns.map((column) => middle(text(column))).join('')}`.trimEnd();
  const half = width / 2;
  const between = width * (columns.length - 1) - 1;
  const client = `client ${lab.client.address}`;
  const above = Math.floor((width * columns.length - client.length) / 2);
  console.log(
    [
      '',
      `   ${' '.repeat(above)}${client}`,
      `   ${' '.repeat(half - 1)}┌${Array.from({ length: between }, (_, at) => ((at + 1) % width === 0 ? '┬' : '─')).join('')}┐`,
      row(() => '▼'),
      row(({ name }) => `${name}:${published}`),
      row(() => '│'),
      `   ${columns.map(() => '═════ Causeway ═══════').join('')}   the fabric: any node takes a connection,`,
      row(() => '│'),
      `${row(({ tasks }) => tasks.join(' '))}        any task answers, and sees ${lab.client.address}`,
      '',
    ].join('\n'),
  );
}

/** The mesh from outside, and from a task of every node. */
async function showMesh(lab: Lab, signal: AbortSignal): Promise<string[]> {
  const { client, first, nodes } = lab;
  const tasks = tasksPerNode * nodes.length;
  const troubles: string[] = [];
  const all: Answer[] = [];
  say(`a client outside the cluster, ${client.address}, asks the published port of each node`);
  printHead('node asked');
  for (const node of nodes) {
    const question = fromOutside(lab, node);
    const answers = await ask(question, signal);
    print(`${node.name}:${published}`, answers, client.address);
    troubles.push(...troublesOf(answers, question));
    all.push(...answers);
  }
  draw(lab, all);

  const { network } = await visitorOn(first, 'visitor', signal);
  say(`a task on each node asks the service by name, and so its VIP ${await vipOf(first, 'web', network)}`);
  printHead('asked from');
  for (const node of nodes) {
    const visitor = await visitorOn(node, 'visitor', signal);
    const question = { url: 'http://web/', real: visitor.address, tasks };
    const answers = await ask({ ...question, from: visitor, program: echoInside }, signal);
    print(`a task on ${node.name}`, answers, visitor.address);
    troubles.push(...troublesOf(answers, question).map((trouble) => `${node.name}: ${trouble}`));
  }
  console.log();
  return troubles;
}

/** Prints what became of the connections to each node, around the cut. @returns who has not got over it */
function printLoss(loads: { node: LabNode; outcomes: Outcome[] }[], cut: number): string[] {
  const troubles: string[] = [];
  console.log('\n   node asked      new connections   failed   the last of them');
  for (const { node, outcomes } of loads) {
    const { begun, failed, lastFailed, failedBefore } = reportLoss(outcomes, { cut, back: Infinity });
    const when = failed === 0 ? '-' : `began ${(lastFailed / 1000).toFixed(2)} s after the cut`;
    const name = `${node.name}:${published}`;
    console.log(`   ${name.padEnd(16)}${String(begun).padEnd(18)}${String(failed).padEnd(9)}${when}`);
    if (failedBefore > 0) troubles.push(`${name}: ${failedBefore} connections failed before the cut`);
    const late = outcomes.filter(({ at }) => at >= cut + overMs);
    const lost = late.filter(({ error }) => error !== undefined);
    for (const { at, error } of lost) {
      console.log(`   ${''.padEnd(43)}at ${((at - cut) / 1000).toFixed(2)} s: ${error ?? ''}`);
    }
    if (lost.length * 10 > late.length) {
      troubles.push(`${name}: connections still fail ${overMs / 1000} s later`);
    }
  }
  console.log(
    `\n${timeline(
      loads.map(({ node, outcomes }) => ({ name: node.name, outcomes })),
      cut,
    )}\n`,
  );
  return troubles;
}

/** Cuts a node's power while the others are asked, and turns it on again. */
async function showLoss(lab: Lab, signal: AbortSignal): Promise<string[]> {
  const victim = lab.nodes.at(-1)!;
  const others = lab.nodes.filter((node) => node !== victim);
  say(`the client makes ${1000 / pace.intervalMs} new connections per second to each of the other nodes …`);
  const running: { node: LabNode; load: Load }[] = [];
  const loads: { node: LabNode; outcomes: Outcome[] }[] = [];
  let cut: number;
  try {
    for (const node of others) running.push({ node, load: await startLoad(lab.client, urlOf(node), pace) });
    await sleep(beforeCutMs, undefined, { signal });
    say(`… and ${victim.name} loses its power, with its tasks, its Consul server and its manager`);
    cut = Date.now();
    await lab.kill(victim);
    await sleep(afterCutMs, undefined, { signal });
  } finally {
    for (const { node, load } of running) loads.push({ node, outcomes: await load.stop() });
  }
  const troubles = printLoss(loads, cut);

  say(`${victim.name} is turned on again`);
  await lab.boot(victim, signal);
  const question = { ...fromOutside(lab, victim), patienceMs: returnMs };
  const answers = await ask(question, signal);
  const left = troublesOf(answers, question);
  if (left.length === 0)
    say(`${victim.name} serves again, and so do its tasks; nothing was restarted by hand`);
  troubles.push(...left);
  printHead('node asked');
  print(`${victim.name}:${published}`, answers, lab.client.address);
  return troubles;
}

async function show(lab: Lab, signal: AbortSignal): Promise<string[]> {
  const troubles = await showMesh(lab, signal);
  return [...troubles, ...(await showLoss(lab, signal))];
}

function printNext(lab: Lab): Promise<void> {
  const { first: node, name } = lab;
  const last = lab.nodes.at(-1)!;
  const command = (words: string): string =>
    `npm run -s lab -- ${words.replace(/^\S+/, `$& --name ${name}`)}`;
  const inNode = command(`exec ${node.name} --`);
  console.log(`
   It stays up until you press Ctrl-C. To try next, in another terminal in this directory:

   ask again        ${command(`ask ${urlOf(last)} --count 12`)}
   the tasks        ${inNode} docker service ps web
   scale            ${inNode} docker service scale -d web=3
   what it knows    ${command(`causeway ${node.name}`)}
   the fabric       ${inNode} ip route show proto 197
   Consul away      ${command('consul stop')}          … and back: consul start
   pull a cable     ${command(`cut ${last.name}`)}               … and back: heal
   cut the power    ${command(`kill ${last.name}`)}              … and back: start ${last.name}
   by your docker   export DOCKER_HOST=${node.dockerHost}
`);
  return Promise.resolve();
}

/** @param nodes three at least: of two managers none may be lost */
export function cluster(nodes: number): Show {
  return {
    nodes,
    deploy,
    show,
    conclusion:
      "every node answered for every task, with the client's own address, and the loss of one was got over",
    printNext,
  };
}
