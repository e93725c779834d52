// Owns the parts `start` and `start-many`: how long containers take to start on a Causeway network and on Docker's own overlay, one by
// one and many at a time, and what they cost the plugins.
// Must not count processes and commits: test/protocol/costs.test.ts bounds them.
import { readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { until } from '../test/support/until.ts';
import type { Cluster } from './cluster.ts';
import type { Finding } from './report.ts';
import { interleave, median, ratio, type Samples, type Way } from './rounds.ts';

export interface StartOptions {
  cluster: Cluster;
  progress: (line: string) => void;
  /** Of `docker run`, or of 120 tasks; of six there are fewer. */
  rounds: number;
  signal?: AbortSignal | undefined;
}

/** Of tasks on all nodes. */
const few = 6;
const many = 120;
const fewRounds = (rounds: number): number => Math.ceil(rounds / 3);

/** A third of what it was when the goal was set, in milliseconds of processor time of one plugin and its processes. */
const processorGoal = 6_500 / 3;

const drivers = ['causeway', 'overlay'] as const;
type Driver = (typeof drivers)[number];
const networkOf = (driver: Driver): string => `start-${driver}`;
const command = ['--entrypoint', '/usr/bin/sleep'];
const patienceMs = 300_000;
/** The kernel's clock for processes has so many ticks in a second, on every architecture (proc_pid_stat(5)). */
const ticks = 100;

/** One by one, and six at a time. */
export async function measureStarts(o: StartOptions): Promise<Finding[]> {
  const { rounds, progress } = o;
  await prepare(o);
  const starts = await interleave(ways(o, run), rounds, (round) =>
    progress(`docker run, round ${round} of ${rounds}`),
  );
  const six = await interleave(ways(o, deploy(few)), fewRounds(rounds), (round) =>
    progress(`${few} tasks, round ${round} of ${fewRounds(rounds)}`),
  );
  return [
    compare("docker run ÷ on Docker's overlay, time", starts),
    compare(`${few} tasks on 3 nodes ÷ on Docker's overlay, time until they run`, six),
  ];
}

async function prepare({ cluster }: StartOptions): Promise<void> {
  for (const driver of drivers) {
    await cluster.network(networkOf(driver), driver);
    // With the first container on a node comes the network: what that costs is not what is measured.
    for (const node of cluster.lab.nodes)
      await node.docker([
        'run',
        '--detach',
        '--network',
        networkOf(driver),
        ...command,
        cluster.image,
        '1000000',
      ]);
  }
}

/** As many as a node takes whose containers all come at once. */
export async function measureManyStarts(o: StartOptions): Promise<Finding[]> {
  const { cluster, rounds, progress } = o;
  await prepare(o);
  const processor: number[] = [];
  const hundred = await interleave(
    ways(o, async (options, driver) => {
      const before = await used(cluster);
      const took = await deploy(many)(options, driver);
      const after = await used(cluster);
      if (driver === 'causeway') processor.push(Math.max(...after.map((now, at) => now - before[at]!)));
      return took;
    }),
    rounds,
    (round) => progress(`${many} tasks, round ${round} of ${rounds}`),
  );
  return [
    compare(`${many} tasks on 3 nodes ÷ on Docker's overlay, time until they run`, hundred),
    {
      what: `processor time of a plugin for ${many} tasks`,
      value: median(processor),
      unit: 'ms',
      goal: { atMost: Math.round(processorGoal) },
      detail: `of the one that used most, and its processes; ${(median(processor) / (many / 3)).toFixed(0)} ms for each container of a node`,
      samples: { ms: processor },
    },
  ];
}

type Measure = (o: StartOptions, driver: Driver) => Promise<number>;

function ways(o: StartOptions, measure: Measure): Way[] {
  return drivers.map((driver) => ({
    name: driver,
    measure: async () => {
      const took = await measure(o, driver);
      // What follows an end is not the next one's.
      await sleep(2_000, undefined, { signal: o.signal });
      return took;
    },
  }));
}

/** @returns milliseconds until the container has begun and ended */
async function run({ cluster }: StartOptions, driver: Driver): Promise<number> {
  const began = performance.now();
  await cluster.lab.first.docker([
    'run',
    '--rm',
    '--network',
    networkOf(driver),
    ...command,
    cluster.image,
    '0',
  ]);
  return performance.now() - began;
}

/** @returns milliseconds until Swarm says of all tasks of a new service that they run */
function deploy(tasks: number): Measure {
  return async ({ cluster, signal }, driver) => {
    const name = `many-${driver}`;
    const patience = { timeoutMs: patienceMs, everyMs: 50, signal };
    const began = performance.now();
    const create = ['service', 'create', '--detach', '--quiet', '--no-resolve-image', '--name', name];
    const rest = ['--replicas', String(tasks), '--network', networkOf(driver), '--stop-grace-period', '1s'];
    await cluster.docker(...create, ...rest, ...command, cluster.image, '1000000');
    const words = ['service', 'ls', '--filter', `name=${name}`, '--format', '{{.Replicas}}'];
    await until(
      `${tasks} tasks of ${name} run`,
      async () => (await cluster.docker(...words)).trim() === `${tasks}/${tasks}`,
      patience,
    );
    const took = performance.now() - began;
    await cluster.docker('service', 'rm', name);
    const filter = ['--all', '--quiet', '--filter', `label=com.docker.swarm.service.name=${name}`];
    for (const node of cluster.lab.nodes)
      await until(
        `the tasks of ${name} are gone from ${node.name}`,
        async () => (await node.docker(['ps', ...filter])).stdout.trim() === '',
        { ...patience, everyMs: 500 },
      );
    return took;
  };
}

/** Processor time of each node's plugin and the processes it has started, in milliseconds. */
async function used({ lab }: Cluster): Promise<number[]> {
  return Promise.all(
    lab.nodes.map(async (node) => {
      const [pid] = await node.pidsOf('causeway');
      if (pid === undefined) throw new Error(`The plugin of ${node.name} is not running.`);
      const text = await readFile(`/proc/${pid}/stat`, 'utf8');
      // Behind the name, which may have blanks in it: fields 14 to 17, of itself and of its children.
      const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
      return (fields.slice(11, 15).reduce((sum, field) => sum + Number(field), 0) * 1000) / ticks;
    }),
  );
}

function compare(what: string, samples: Samples): Finding {
  const [causeway, overlay] = drivers.map((driver) => samples.get(driver)!) as [number[], number[]];
  const { value, low, high } = ratio(causeway, overlay);
  return {
    what,
    value,
    unit: 'ratio',
    interval: [low, high],
    goal: { atMost: 1 },
    detail: `${median(causeway).toFixed(0)} ÷ ${median(overlay).toFixed(0)} ms`,
    samples: Object.fromEntries(samples),
  };
}
