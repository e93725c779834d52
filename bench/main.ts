// Owns `npm run bench`: which parts are run, progress on the way, and the tables at the end.
// Must not measure anything itself.
import { cpus, release } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { execa } from 'execa';
import { buildPlugin } from '../rootfs/build.ts';
import { Lab } from '../test/lab/lab.ts';
import { prepareConsul } from '../test/lab/consul.ts';
import { prepareDockerDisk } from '../test/lab/vm/docker.ts';
import type { Disk } from '../test/lab/vm/qemu.ts';
import { Vm } from '../test/lab/vm.ts';
import { idleMemory, rootfsSize, startTime } from './footprint.ts';
import { Cluster } from './cluster.ts';
import { measureFailover } from './failover.ts';
import { prepareLoad } from './load.ts';
import { compareResolvers } from './names.ts';
import { measureOneClient } from './one-client.ts';
import { comparePaths } from './paths.ts';
import { isMet, load, parts, renderTable, save, writeDocuments, type Finding, type Part } from './report.ts';
import { measurePorts } from './ports.ts';
import { measureRollouts } from './rollout.ts';
import { measureScale } from './scale.ts';
import { measureManyStarts, measureStarts } from './start.ts';
import { buildEarlier } from './earlier.ts';
import { measureUpgrades } from './upgrade.ts';
import { soakLeaders, soakOutage, type SoakOptions } from './soak.ts';

const usage = `usage: npm run bench -- [PART...] [--quick] [--rounds N] [--seconds N] [--write]

  footprint   size on disk, time to the first answer, memory when idle
  nft         published port and VIP against the container's own address, engine nft, this machine's kernel
  ipvs        the same with engine ipvs, and against Docker's own mesh, on a stock Debian kernel in a virtual machine
  names       questions for names, against Docker's own resolver and dnsmasq
  start       docker run, and six tasks on three nodes, against Docker's overlay
  start-many  the same with 120 tasks, and what they cost the plugins; a round takes minutes
  one-client  many short connections of one client by three nodes to one task: steady, and in bursts
  scale       what large clusters cost a node, and how soon a task is a real server on all nodes
  failover    until when connections fail once a node of three has lost its power, and when it serves again
  ports       what 2,000 published ports and a range of 1,000 cost
  rollout     requests that fail while a service of six tasks is updated, twenty times
              (without a PART: all of them)
  ports-ipvs, failover-ipvs, rollout-ipvs
              the same with engine ipvs, and of Docker's own mesh beside it, in the virtual machine
  upgrade     requests that fail while three nodes go to the plugin of an earlier commit (--from) and back
  soak        half an hour: leaders, the leading manager lost ten times under churn; outage, ten minutes without Consul

  --quick     3 rounds of 1 s, 5 s idle: whether it works, not how well
  --rounds N  default 15, of failover 5 (ipvs: 3), of rollout 20 (ipvs: 4), of one-client 5, of leaders 10, of start-many 3,
              of upgrade 1
  --seconds N of each round, default 2, of one-client 100, of outage 600
  --from C    of upgrade: the commit to go to and come back from
  --write     put the results of all parts, of this run or an earlier one, into docs/performance.md; of soak into
              docs/resilience.md, of scale into docs/scale.md

Ends 1 when a goal was missed.`;

const labName = 'bench';

/** Docker, the plugin and what is measured, with room; the host gives what is used. */
const guestMemoryMiB = 6144;
const guestTimeoutMs = 3_600_000;
const guestSlowness = '6';

interface Settings {
  rounds: number;
  seconds: number;
  idleSeconds: number;
  /** The commit that is upgraded from. */
  from?: string;
  signal: AbortSignal;
}

const root = join(import.meta.dirname, '..');
const started = performance.now();
function say(line: string): void {
  console.error(`${((performance.now() - started) / 1000).toFixed(1).padStart(6)} s  ${line}`);
}

/** Runs `work` in a lab, of which nothing is left. */
async function inLab<T>(
  signal: AbortSignal,
  progress: (line: string) => void,
  work: (lab: Lab) => Promise<T>,
  { name = labName, nodes = 1 }: { name?: string; nodes?: number } = {},
): Promise<T> {
  // What an earlier run left that did not end properly.
  await Lab.down(name);
  await using lab = await Lab.up({ name, nodes, progress, signal });
  return await work(lab);
}

/** What a part has measured, and on which kernel. */
interface Measured {
  kernel: string;
  findings: Finding[];
}

type Progress = (line: string) => void;

const measure: Record<Part, (settings: Settings, progress: Progress) => Promise<Measured>> = {
  async footprint({ idleSeconds, signal }, progress) {
    const size = await rootfsSize();
    progress('starting the plugin five times');
    const start = await startTime(5);
    const memory = await inLab(signal, progress, (lab) => idleMemory(lab, { idleSeconds, progress, signal }));
    return { kernel: release(), findings: [size, start, memory] };
  },

  async nft(settings, progress) {
    const findings = await inLab(settings.signal, progress, (lab) =>
      comparePaths({ lab, engine: 'nft', dockersMesh: false, progress, ...settings }),
    );
    return { kernel: release(), findings };
  },

  ipvs: (settings, progress) => inGuest('ipvs', settings, progress, { nodes: 1 }),

  async names(settings, progress) {
    const findings = await inLab(settings.signal, progress, (lab) =>
      compareResolvers({ lab, progress, ...settings }),
    );
    return { kernel: release(), findings };
  },

  failover: ({ rounds, signal }, progress) =>
    inCluster('failover', signal, progress, (o) =>
      measureFailover({ ...o, dockersMesh: false, rounds, tasks: 6, intervalMs: 20 }),
    ),

  start: ({ rounds, signal }, progress) =>
    inCluster('start', signal, progress, (o) => measureStarts({ ...o, rounds, signal })),

  'start-many': ({ rounds, signal }, progress) =>
    inCluster('start', signal, progress, (o) => measureManyStarts({ ...o, rounds, signal })),

  'one-client': ({ rounds, seconds, signal }, progress) =>
    inCluster('one-client', signal, progress, (o) => measureOneClient({ ...o, rounds, seconds, signal })),

  async scale({ rounds, signal }, progress) {
    return { kernel: release(), findings: await measureScale({ rounds, progress, signal }) };
  },

  async ports(settings, progress) {
    return { kernel: release(), findings: await measurePorts({ engine: 'nft', progress, ...settings }) };
  },

  rollout: ({ rounds, signal }, progress) =>
    inCluster('rollout', signal, progress, (o) =>
      measureRollouts({
        ...o,
        dockersMesh: false,
        rounds,
        tasks: 6,
        parallelism: 2,
        perSecond: 200,
        long: 50,
        flows: 10,
      }),
    ),

  'ports-ipvs': (settings, progress) => inGuest('ports-ipvs', settings, progress),

  // An emulated processor has no time for more nodes: Swarm would take them for lost while it starts their tasks.
  'failover-ipvs': (settings, progress) => inGuest('failover-ipvs', settings, progress, { nodes: 2 }),
  'rollout-ipvs': (settings, progress) => inGuest('rollout-ipvs', settings, progress, { nodes: 1 }),

  upgrade: async ({ rounds, from, signal }, progress) => {
    if (from === undefined) throw new Error(`upgrade wants --from COMMIT.\n${usage}`);
    progress(`building the plugin of ${from}`);
    const earlier = await buildEarlier(from, signal);
    return inCluster('upgrade', signal, progress, (o) => measureUpgrades({ ...o, earlier, rounds }));
  },

  leaders: ({ rounds, signal }, progress) =>
    inCluster('soak-leaders', signal, progress, (o) => soakLeaders(o, { losses: rounds })),

  outage: ({ seconds, signal }, progress) =>
    inCluster('soak-outage', signal, progress, (o) => soakOutage(o, { seconds })),
};

/** Measures a part in the virtual machine: see guest.ts. */
async function inGuest(
  part: Part,
  { rounds, seconds, signal }: Settings,
  progress: Progress,
  { nodes = 0 } = {},
): Promise<Measured> {
  // Inside there is no network to fetch it from.
  await prepareConsul({ progress, signal });
  const disks: Disk[] = [];
  for (let node = 0; node < nodes; node += 1) {
    // What is written goes to a copy of each disk's own, so one file does for all nodes.
    const disk = await prepareDockerDisk({ progress, signal });
    disks.push({ ...disk, at: `${disk.at}-${node}` });
  }
  const program = [join(import.meta.dirname, 'guest.ts'), part, String(rounds), String(seconds)];
  await using vm = await Vm.boot({ name: part, memoryMiB: guestMemoryMiB, disks, progress, signal });
  const { exitCode, stdout } = await vm.run(['node', ...program, ...disks.map(({ at }) => at)], {
    timeoutMs: guestTimeoutMs,
    env: { CAUSEWAY_TEST_SLOWNESS: guestSlowness },
    onStderr: (text) => {
      for (const line of text.trimEnd().split('\n')) progress(line);
    },
    signal,
  });
  if (exitCode !== 0) throw new Error('It failed in the virtual machine; why is told above.');
  return JSON.parse(stdout) as Measured;
}

/** Runs `work` with three nodes, Consul on each. */
async function inCluster(
  name: string,
  signal: AbortSignal,
  progress: Progress,
  work: (o: SoakOptions) => Promise<Finding[]>,
): Promise<Measured> {
  const findings = await inLab(
    signal,
    progress,
    async (lab) => work({ cluster: await Cluster.start({ lab, consuls: 3, progress, signal }), progress }),
    { name, nodes: 3 },
  );
  return { kernel: release(), findings };
}

/** What `soak` names. */
const soak: readonly Part[] = ['leaders', 'outage'];
/** Too long to be meant by a command that names no part. */
const onlyByName: readonly Part[] = ['ports-ipvs', 'failover-ipvs', 'rollout-ipvs', 'upgrade', ...soak];

/** Where they differ: a round of failover takes a minute, and what is lost is lost as often and as long as promised. */
const defaultRounds: Partial<Record<Part, number>> = {
  failover: 5,
  'failover-ipvs': 3,
  rollout: 20,
  'rollout-ipvs': 4,
  'one-client': 5,
  'start-many': 3,
  upgrade: 1,
  leaders: 10,
};
const defaultSeconds: Partial<Record<Part, number>> = { 'one-client': 100, outage: 600 };

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      quick: { type: 'boolean', default: false },
      rounds: { type: 'string' },
      seconds: { type: 'string' },
      from: { type: 'string' },
      write: { type: 'boolean', default: false },
    },
  });
  const named = positionals.flatMap((name) => (name === 'soak' ? soak : name));
  const unknown = named.find((name) => !(parts as readonly string[]).includes(name));
  if (unknown !== undefined) throw new Error(`There is no part ${unknown}.\n${usage}`);
  const wanted = parts.filter((part) =>
    named.length === 0 ? !onlyByName.includes(part) : named.includes(part),
  );
  const settingsOf = (part: Part): Settings => ({
    rounds: Number(values.rounds ?? (values.quick ? 3 : (defaultRounds[part] ?? 15))),
    seconds: Number(values.seconds ?? defaultSeconds[part] ?? (values.quick ? 1 : 2)),
    idleSeconds: values.quick ? 5 : 60,
    ...(values.from !== undefined && { from: values.from }),
    signal: stop.signal,
  });
  if (!wanted.map(settingsOf).every(({ rounds, seconds }) => rounds >= 1 && seconds >= 1))
    throw new Error(usage);

  await buildPlugin({ progress: (line) => say(`plugin: ${line}`), signal: stop.signal });
  await prepareLoad({ progress: (line) => say(`load: ${line}`), signal: stop.signal });
  const { stdout: commit } = await execa('git', ['describe', '--always', '--dirty'], { cwd: root });
  for (const part of wanted) {
    const settings = settingsOf(part);
    const date = new Date().toISOString().slice(0, 16).replace('T', ' ') + ' UTC';
    const { kernel, findings } = await measure[part](settings, (line) => say(`${part}: ${line}`));
    const circumstances = {
      command: [
        'npm run bench --',
        part,
        ...process.argv.slice(2).filter((word) => !positionals.includes(word)),
      ].join(' '),
      date,
      commit,
      kernel,
      processors: `${cpus().length} × ${cpus()[0]?.model ?? 'unknown'}`,
      rounds: settings.rounds,
      seconds: settings.seconds,
    };
    await save({ part, circumstances, findings });
    console.log(`\n${part}, Linux ${kernel}:\n\n${renderTable(findings)}\n`);
    if (!findings.every(isMet)) process.exitCode = 1;
  }
  if (values.write) await writeDocuments(await load());
}

const stop = new AbortController();
for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, () => stop.abort());
try {
  await main();
} catch (error) {
  const why = stop.signal.aborted ? 'interrupted' : error instanceof Error ? error.message : String(error);
  console.error(`\nbench: ${why}`);
  process.exitCode = stop.signal.aborted ? 130 : 2;
}
