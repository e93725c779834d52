// Owns `npm test`: every stage in order, from pure to real, and the sum at the end.
// Must not hide a stage that could not run: it says why, and with CI=true that is a failure.
import { glob, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { execa } from 'execa';
import { buildPlugin } from '../rootfs/build.ts';
import { defaultEngine, prepareEngine, type EngineName } from './lab/engines.ts';
import { prepareTools } from './lab/tools.ts';
import { keepShown, showing, whatIsUntrue } from './support-page.ts';
import { whereTheTimeWent } from './durations.ts';
import type { Count } from './reporter.ts';
import { prepareImage } from './lab/image.ts';
import { prepareDockerDisk } from './lab/vm/docker.ts';
import { prepareConsul } from './lab/consul.ts';
import type { Disk } from './lab/vm/qemu.ts';
import { Vm } from './lab/vm.ts';

interface Stage {
  name: string;
  /** What it shows, for those who watch. */
  shows: string;
  /** The Docker Engines that it runs, where docs/support.md tells what it shows. */
  engines?: readonly EngineName[];
  /** Needs root, for network namespaces or Debian packages. Has the machine for itself; the others run side by side. */
  root: boolean;
  /** @param print where to write what it says; a stage with the machine for itself writes by itself, as it goes */
  run: (print: Print) => Promise<Count>;
}

type Print = (text: string) => void;

const none: Count = { passed: 0, failed: 0, skipped: 0, failures: [], passes: [], times: [] };

const root = join(import.meta.dirname, '..');
const bin = (name: string): string => join(root, 'node_modules/.bin', name);

/** A command that counts as one test. */
async function single(print: Print, file: string, ...args: string[]): Promise<Count> {
  const { failed, all } = await execa(bin(file), args, { cwd: root, all: true, reject: false });
  if (all !== '') print(`${all}\n`);
  return {
    ...none,
    passed: failed ? 0 : 1,
    failed: failed ? 1 : 0,
    failures: failed ? [[file, ...args].join(' ')] : [],
  };
}

const cache = (name: string): string => join(root, 'build/cache', name);

async function lint(print: Print): Promise<Count> {
  const rules = await single(print, 'eslint', '--cache', '--cache-location', cache('eslint.json'), '.');
  const format = await single(
    print,
    'prettier',
    '--check',
    '--log-level=warn',
    ...['--cache', '--cache-location', cache('prettier.json')],
    '.',
  );
  return add(rules, format);
}

const command = (patterns: string[]): [string, ...string[]] => [
  process.execPath,
  join(root, 'node_modules/mocha/bin/mocha.js'),
  '--reporter',
  'test/reporter.ts',
  ...patterns,
];

/** @param print given: told all at the end */
async function mocha(
  patterns: string[],
  print?: Print,
  more: Readonly<Record<string, string>> = {},
): Promise<Count> {
  const directory = await mkdtemp(join(tmpdir(), 'causeway-test-'));
  const file = join(directory, 'count.json');
  try {
    const [program, ...args] = command(patterns);
    const env = { ...more, CAUSEWAY_TEST_COUNT: file };
    const how = print === undefined ? ({ stdio: 'inherit' } as const) : ({ all: true } as const);
    const { exitCode, all } = await execa(program, args, { cwd: root, env, reject: false, ...how });
    if (typeof all === 'string') print?.(`${all}\n`);
    return parseCount(await readFile(file, 'utf8').catch(() => ''), exitCode);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** Settings of a newer engine than the one that the Docker stage runs. */
const engineOnly = 'test/docker/engine-settings.test.ts';

/** What newer engines show every time: the rest of the Docker suite is shown by 20.10. */
const engineSuites: readonly { engine: EngineName; suite: string[] }[] = [
  { engine: '28', suite: ['--grep', '#engines', 'test/docker/cluster.test.ts'] },
  { engine: '26', suite: ['--grep', '#engines', 'test/docker/cluster.test.ts'] },
  { engine: '28', suite: [engineOnly] },
  { engine: '26', suite: ['--grep', '#main', 'test/docker/single-node.test.ts'] },
  { engine: '28', suite: ['--grep', '#main', 'test/docker/single-node.test.ts'] },
];

/** One after the other: three nodes under load keep two processors busy. */
async function mochaOnEngines(): Promise<Count> {
  const progress = (line: string): void => console.log(`  ${line}`);
  await prepareTools({ progress });
  await prepareImage({ progress });
  for (const engine of new Set(engineSuites.map((each) => each.engine)))
    await prepareEngine(engine, { progress });
  let sum = none;
  for (const { engine, suite } of engineSuites) {
    const print = (text: string): void =>
      console.log(text.replace(/^/gm, `${engine} │ `).replaceAll(/ +$/gm, ''));
    const count = await mocha(suite, print, { CAUSEWAY_TEST_ENGINE: engine });
    // The same file has a time with each engine.
    const times = count.times.map((time) => ({ ...time, file: `${time.file} (${engine})` }));
    sum = add(sum, { ...count, times });
  }
  return sum;
}

/** The emulated processor is about this much slower than the machine's own. */
const vmSlowness = 6;
const vmTimeoutMs = 40 * 60_000;

/** Room for a Docker Engine, the plugin and six tasks. */
const vmMemoryMiB = 6144;

/** What one virtual machine runs. */
interface Guest {
  name: string;
  /** Each the arguments of one mocha; one after the other. */
  suites: string[][];
}

/** Runs the guests side by side: each has one processor, and keeps one of the host's busy. */
async function mochaInVms(...guests: Guest[]): Promise<Count> {
  const progress = (line: string): void => console.log(`  ${line}`);
  // Inside there is no network to fetch it from.
  await prepareConsul({ progress });
  const disk = await prepareDockerDisk({ progress });
  const counts = await Promise.all(guests.map((guest) => mochaInVm(guest, disk)));
  return counts.reduce(add, none);
}

async function mochaInVm({ name, suites }: Guest, disk: Disk): Promise<Count> {
  const say = byLine((line) => console.log(`${name} │ ${line}`));
  const progress = (line: string): void => say(`  ${line}\n`);
  await using vm = await Vm.boot({ name, memoryMiB: vmMemoryMiB, disks: [disk], progress });
  let sum = none;
  for (const [index, suite] of suites.entries()) {
    const file = `/tmp/count-${index}.json`;
    const { exitCode } = await vm.run(command(suite), {
      env: {
        CAUSEWAY_TEST_COUNT: file,
        CAUSEWAY_TEST_LB: 'ipvs',
        CAUSEWAY_TEST_DOCKER: disk.at,
        CAUSEWAY_TEST_SLOWNESS: String(vmSlowness),
      },
      timeoutMs: vmTimeoutMs,
      onStdout: say,
      onStderr: say,
    });
    sum = add(sum, parseCount((await vm.run(['cat', file])).stdout, exitCode));
  }
  return sum;
}

/** @returns what takes text as it comes, and passes it on line by line */
function byLine(print: (line: string) => void): Print {
  let rest = '';
  return (text) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) print(line);
  };
}

/** @param text what the reporter wrote; '' when mocha did not get that far, as with a file that cannot be loaded */
function parseCount(text: string, exitCode: number | undefined): Count {
  const count = text === '' ? none : (JSON.parse(text) as Count);
  if (exitCode === 0 || count.failed > 0) return count;
  return { ...count, failed: 1, failures: [`mocha ended with code ${String(exitCode)}`] };
}

/** Files that wait for a clock. Begun last, one process would wait for the other's at the end. */
const slowest = [
  'test/unit/swarm/publisher.test.ts',
  'test/protocol/calls.test.ts',
  'test/unit/plugin/reconciler.test.ts',
];

/** What needs no kernel, the slowest first. */
async function fastFiles(): Promise<string[]> {
  const [first, rest]: [string[], string[]] = [[], []];
  for await (const file of glob('test/{unit,contract,protocol,scenario}/**/*.test.ts', { cwd: root }))
    (slowest.includes(file) ? first : rest).push(file);
  return [...first, ...rest.sort()];
}

const stages: Stage[] = [
  {
    name: 'types',
    shows: 'the types fit',
    root: false,
    run: (print) => single(print, 'tsc', '--incremental', '--tsBuildInfoFile', cache('tsc.json')),
  },
  {
    name: 'lint',
    shows: 'rooms import in one direction only; the code is formatted',
    root: false,
    run: lint,
  },
  {
    name: 'unit',
    shows: 'plans, records, protocol, without a kernel',
    root: false,
    // Half of it is waiting for a clock.
    run: async (print) => mocha(['--parallel', '--jobs', '2', ...(await fastFiles())], print),
  },
  {
    name: 'consul',
    shows: 'the store in a real Consul: contract, locks, outages, access',
    root: true,
    run: () => mocha(['test/consul/**/*.test.ts']),
  },
  {
    name: 'kernel',
    shows: 'data path and nft engine with real packets, on this kernel',
    root: true,
    run: () => mocha(['test/kernel/**/*.test.ts']),
  },
  {
    name: 'docker',
    shows: 'the plugin in a real Docker Engine, one-node Swarm, on this kernel',
    engines: [defaultEngine()],
    root: true,
    run: () => mocha(['--ignore', engineOnly, 'test/docker/**/*.test.ts', 'test/lab/**/*.test.ts']),
  },
  {
    name: 'workloads',
    shows: 'servers from Debian’s packages in stacks as users have them, on three nodes',
    root: true,
    run: () => mocha(['test/workloads/**/*.test.ts']),
  },
  {
    name: 'engines',
    shows: 'the main job in newer Docker Engines, one node and three, and with settings that people have',
    engines: [...new Set(engineSuites.map((each) => each.engine))],
    root: true,
    run: mochaOnEngines,
  },
  {
    name: 'ipvs',
    shows:
      'the same data path, and the main job in a real Docker Engine, with the IPVS engine, on a stock Debian kernel',
    root: true,
    // What of the Docker suite there is time for on an emulated processor.
    run: () =>
      mochaInVms(
        {
          name: 'cluster',
          suites: [['--grep', '#main', 'test/kernel/cluster.test.ts'], ['test/kernel/policy.test.ts']],
        },
        {
          name: 'node',
          suites: [['test/kernel/datapath.test.ts'], ['--grep', '#main', 'test/docker/single-node.test.ts']],
        },
      ),
  },
];

function add(a: Count, b: Count): Count {
  return {
    passed: a.passed + b.passed,
    failed: a.failed + b.failed,
    skipped: a.skipped + b.skipped,
    failures: [...a.failures, ...b.failures],
    passes: [...a.passes, ...b.passes],
    times: [...a.times, ...b.times],
  };
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { only: { type: 'string' }, fast: { type: 'boolean', default: false } },
  });
  const names =
    values.only?.split(',') ?? (values.fast ? ['types', 'lint', 'unit'] : stages.map(({ name }) => name));
  const unknown = names.filter((name) => !stages.some((stage) => stage.name === name));
  if (unknown.length > 0) {
    throw new Error(
      `There is no stage ${unknown.join(', ')}; there are ${stages.map(({ name }) => name).join(', ')}.`,
    );
  }
  const chosen = stages.filter(({ name }) => names.includes(name));
  const isRoot = process.getuid?.() === 0;
  if (isRoot && chosen.some((stage) => stage.root)) {
    await buildPlugin({ progress: (line) => console.log(`  ${line}`) });
  }
  let sum = none;
  const stageTimes = new Map<string, number>();
  const perform = async (stage: Stage): Promise<void> => {
    const title = `\n── ${stage.name}: ${stage.shows}\n`;
    let text = '';
    if (stage.root) process.stdout.write(title);
    else text = title;
    const started = performance.now();
    let count: Count = { ...none, skipped: 1 };
    if (stage.root && !isRoot)
      console.log('skipped: it makes network namespaces or unpacks Debian packages, which takes root');
    else {
      // A stage that cannot be run at all is one failure; the others, and the count at the end, are not its business.
      count = await stage
        .run((more) => (text += more))
        .catch((error: unknown) => {
          const failure = error instanceof Error ? error.message : String(error);
          text += `${failure}\n`;
          if (stage.root) console.log(failure);
          return { ...none, failed: 1, failures: [failure] };
        });
      if (stage.engines !== undefined) await keepShown(stage.name, stage.engines, count.passes);
    }
    const took = (performance.now() - started) / 1000;
    const seconds = took.toFixed(0);
    stageTimes.set(stage.name, took);
    const { passed, failed, skipped } = count;
    count = { ...count, failures: count.failures.map((failure) => `${stage.name}: ${failure}`) };
    console.log(
      `${text}── ${stage.name}: ${passed} passed, ${failed} failed, ${skipped} skipped in ${seconds} s`,
    );
    sum = add(sum, count);
  };
  await Promise.all(chosen.filter((stage) => !stage.root).map(perform));
  for (const stage of chosen.filter((stage) => stage.root)) await perform(stage);
  if (process.env['CI'] === 'true' && sum.skipped > 0) {
    console.log('\nWith CI=true a skipped test is a failure.');
    sum = { ...sum, failed: sum.failed + sum.skipped, skipped: 0 };
  }
  console.log(`\nWhere the time went:\n${whereTheTimeWent(stageTimes, sum.times)}`);
  const untrue = showing.every((name) => stageTimes.has(name)) ? await whatIsUntrue() : undefined;
  if (untrue !== undefined) console.log(`\n${untrue}`);
  // Once more at the end, where one looks first, and which is kept where a log is cut.
  if (sum.failures.length > 0) console.log(`\nFailed:\n  ${sum.failures.join('\n  ')}`);
  console.log(`\n${sum.passed} passed, ${sum.failed} failed, ${sum.skipped} skipped`);
  process.exitCode = sum.failed > 0 ? 1 : 0;
}

await main();
