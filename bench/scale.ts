// Owns the part `scale`: what a large cluster costs one node, in its kernel and in the planner alone.
// Must not judge it by other clusters than the ones scale-cluster.ts makes.
import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { nftEngine } from '../lb/nft.ts';
import { vethName } from '../net/names.ts';
import { kernelConntrack, type Conntrack } from '../net/conntrack.ts';
import { createRunner, type Runner } from '../net/run.ts';
import { Datapath } from '../plugin/datapath.ts';
import { Reconciler } from '../plugin/reconciler.ts';
import { pluginDir } from '../rootfs/build.ts';
import { FakeKernel } from '../test/fake/kernel.ts';
import { captureLog } from '../test/fake/log.ts';
import type { Finding } from './report.ts';
import { median } from './rounds.ts';
import { measureConvergence } from './scale-convergence.ts';
import { here, ScaleCluster, tasksPerService, type Size } from './scale-cluster.ts';

export interface ScaleOptions {
  rounds: number;
  progress: (line: string) => void;
  signal: AbortSignal;
}

/** The goals' cluster, spread over few nodes and over many. */
const programmed: readonly Size[] = [
  { nodes: 3, services: 1_000 },
  { nodes: 100, services: 1_000 },
];
/** 100 endpoints on each node. */
const simulated: readonly Size[] = [
  { nodes: 10, services: 100 },
  { nodes: 100, services: 1_000 },
  { nodes: 1_000, services: 10_000 },
];
/** A change is a few milliseconds, and single ones are chance: so many in one round. */
const changesPerRound = 20;

const sysctl = {
  // A kernel without IPVS.
  read: (name: string) => Promise.resolve(name.startsWith('ipv4/vs/') ? undefined : '1'),
  write: () => Promise.resolve(),
};

export async function measureScale(options: ScaleOptions): Promise<Finding[]> {
  const findings: Finding[] = [];
  for (const size of programmed) findings.push(...(await measureKernel(size, options)));
  findings.push(...(await measurePlanner(options)), ...(await convergence(options)));
  return findings;
}

async function convergence({ rounds, progress }: ScaleOptions): Promise<Finding[]> {
  // A 99th percentile of fewer would be their slowest.
  const { last } = await measureConvergence(rounds < 15 ? rounds : 100, progress);
  const what = 'from "running" in Swarm’s list to a real server on all other nodes, p99';
  const detail = `p50 ${median(last).toFixed(0)} ms, of ${last.length}; 3 nodes, one Consul`;
  return [figure(what, percentile(last, 0.99), 250, detail, last)];
}

function nameOf({ nodes, services }: Size): string {
  return `${services.toLocaleString('en')} services × ${tasksPerService} tasks on ${nodes.toLocaleString('en')} nodes`;
}

function startNode(
  cluster: ScaleCluster,
  { run, conntrack }: { run: Runner; conntrack: Conntrack },
): { datapath: Datapath; reconciler: Reconciler } {
  const fabric = { port: 4790, vni: 4790 };
  const datapath = new Datapath({ run, conntrack, sysctl, engine: nftEngine, fabric, nodeAddress: () => '' });
  const { records } = cluster;
  const { log } = captureLog();
  const unreachable = new Set<string>();
  return {
    datapath,
    reconciler: new Reconciler({ records, datapath, node: here, log, unreachable: () => unreachable }),
  };
}

// ---- The kernel's part, with the real tools in a network namespace

async function measureKernel(size: Size, { rounds, progress, signal }: ScaleOptions): Promise<Finding[]> {
  const [cold, verify, change, tidying]: [number[], number[], number[], number[]] = [[], [], [], []];
  const [coldCpu, changeCpu]: [number[], number[]] = [[], []];
  let [processes, changeProcesses] = [0, 0];
  for (let round = 1; round <= Math.min(rounds, 5); round += 1) {
    signal.throwIfAborted();
    progress(`${nameOf(size)}: into a kernel, round ${round}`);
    const cluster = await ScaleCluster.make(size);
    await using namespace = await makeNamespace(cluster.localIds);
    const commands: string[] = [];
    const run = createRunner({
      root: join(pluginDir, 'rootfs'),
      prefix: ['nsenter', `--net=/run/netns/${namespace.name}`],
      onCommand: (command) => commands.push(command),
    });
    const conntrack = kernelConntrack({ namespace: `/run/netns/${namespace.name}` });
    const { datapath, reconciler } = startNode(cluster, { run, conntrack });
    let before = await cpuOfAll();
    cold.push(await timed(() => reconciler.pass()));
    coldCpu.push((await cpuOfAll()) - before);
    processes = commands.length;
    datapath.invalidate();
    verify.push(await timed(() => reconciler.pass()));
    before = await cpuOfAll();
    for (let turn = 0; turn < changesPerRound; turn += 1) {
      await cluster.toggle((turn >> 1) * 7, size.nodes);
      commands.length = 0;
      change.push(await timed(() => reconciler.pass()));
      // It is no part of what the change waits for, nor of the next one.
      tidying.push(await timed(() => datapath.cleanedUp()));
      changeProcesses = Math.max(changeProcesses, commands.length);
    }
    changeCpu.push(((await cpuOfAll()) - before) / changesPerRound);
  }
  const name = nameOf(size);
  return [
    figure(
      `from nothing, ${name}`,
      median(cold),
      3_000,
      `${processes} processes, ${median(coldCpu).toFixed(0)} ms of CPU`,
      cold,
    ),
    figure(
      `one task more or less, ${name}`,
      median(change),
      50,
      `and up to ${Math.max(...tidying).toFixed(0)} ms until what left is forgotten; up to ${changeProcesses} processes, ${median(changeCpu).toFixed(0)} ms of CPU`,
      change,
    ),
    figure(
      `reading the kernel and finding it right, ${name}`,
      median(verify),
      3_000,
      'every 5 s, or 20 times that',
      verify,
    ),
  ];
}

interface TestNamespace extends AsyncDisposable {
  name: string;
}

/** A node's namespace with a device for each endpoint: what Join would have made. */
async function makeNamespace(endpointIds: readonly string[]): Promise<TestNamespace> {
  const name = `cws${randomBytes(4).toString('hex')}`;
  const ip = (...words: string[]) => execa('ip', ['-n', name, ...words]);
  await execa('ip', ['netns', 'add', name]);
  const namespace = {
    name,
    [Symbol.asyncDispose]: () => execa('ip', ['netns', 'del', name]).then(() => undefined),
  };
  try {
    await ip('link', 'set', 'lo', 'up');
    await ip('link', 'add', 'eth0', 'type', 'veth', 'peer', 'name', 'wire');
    await ip('address', 'add', '203.0.112.0/16', 'dev', 'eth0');
    for (const link of ['eth0', 'wire']) await ip('link', 'set', link, 'up');
    await ip('route', 'add', 'default', 'dev', 'eth0');
    // A pair for two, with the last for itself: to routes and rules a device is a device.
    const names = endpointIds.map(vethName);
    const links = names.flatMap((link, at) =>
      at % 2 === 0 ? [`link add ${link} type veth peer name ${names[at + 1] ?? 'last'}`] : [],
    );
    const up = names.map((link) => `link set ${link} up`);
    await execa('ip', ['-n', name, '-batch', '-'], { input: [...links, ...up, ''].join('\n') });
    return namespace;
  } catch (error) {
    await namespace[Symbol.asyncDispose]();
    throw error;
  }
}

// ---- The planner's part, without a kernel

async function measurePlanner({ rounds, progress, signal }: ScaleOptions): Promise<Finding[]> {
  const figures: { size: Size; samples: number[]; cold: number }[] = [];
  for (const size of simulated) {
    signal.throwIfAborted();
    progress(`${nameOf(size)}: planning alone`);
    const cluster = await ScaleCluster.make(size);
    const { reconciler } = startNode(cluster, swallowing(cluster.localIds));
    const cold = await cpu(() => reconciler.pass());
    const samples: number[] = [];
    // The first rounds are the compiler's.
    for (let round = -3; round < rounds; round += 1) {
      const spent = await cpu(async () => {
        for (let turn = 0; turn < changesPerRound; turn += 1) {
          await cluster.toggle(((turn >> 1) * 97) % size.services, size.nodes);
          await reconciler.pass();
        }
      });
      if (round >= 0) samples.push(spent / changesPerRound);
    }
    figures.push({ size, samples, cold });
  }
  const [smallest, , largest] = figures.map(({ samples }) => median(samples)) as [number, number, number];
  return [
    ...figures.map(({ size, samples, cold }) =>
      figure(
        `planning one task more or less, ${nameOf(size)}`,
        median(samples),
        50,
        `CPU; ${cold.toFixed(0)} ms from nothing`,
        samples,
      ),
    ),
    figure(
      'the same for each 1,000 endpoints more',
      ((largest - smallest) * 1_000) / ((simulated[2]!.services - simulated[0]!.services) * tasksPerService),
      0.5,
      `${largest.toFixed(2)} − ${smallest.toFixed(2)} ms, 99,000 endpoints and 990 nodes`,
      [],
    ),
  ];
}

/** The model of a kernel for what is asked, and nobody for what is written, which would cost more than the planning. */
function swallowing(endpointIds: readonly string[]): { run: Runner; conntrack: Conntrack } {
  const kernel = new FakeKernel();
  kernel.host.links.get('eth0')!.addresses[0]!.local = '203.0.112.0';
  for (const id of endpointIds) kernel.host.links.set(vethName(id), { up: true, mtu: 1450, addresses: [] });
  const writes = new Set(['nft -f -', 'ip -4 -force -batch -', 'bridge -force -batch -']);
  return {
    run: (tool, args, options) =>
      writes.has([tool, ...args].join(' ')) ? Promise.resolve('') : kernel.run(tool, args, options),
    conntrack: { observe: () => Promise.resolve([]), forget: () => Promise.resolve() },
  };
}

// ---- Figures

/** Milliseconds of wall time. */
async function timed(work: () => Promise<void>): Promise<number> {
  const started = performance.now();
  await work();
  return performance.now() - started;
}

/** Milliseconds of this process's CPU, which is nearly the same on a busy machine. */
async function cpu(work: () => Promise<void>): Promise<number> {
  const before = process.cpuUsage();
  await work();
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1_000;
}

/** Milliseconds of CPU of this process and of those that it has started and that have ended: proc(5), ticks of 10 ms. */
async function cpuOfAll(): Promise<number> {
  const stat = await readFile('/proc/self/stat', 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return fields.slice(11, 15).reduce((sum, ticks) => sum + Number(ticks) * 10, 0);
}

function percentile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(sorted.length * share) - 1)] ?? NaN;
}

function figure(what: string, value: number, atMost: number, detail: string, samples: number[]): Finding {
  return { what, value, unit: 'ms', goal: { atMost }, detail, samples: { [what]: samples } };
}
