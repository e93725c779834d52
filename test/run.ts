// Owns `npm test`: every stage in order, from pure to real, and the sum at the end.
// Must not hide a stage that could not run: it says why, and with CI=true that is a failure.
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { execa } from 'execa';
import { buildPlugin } from '../rootfs/build.ts';
import type { Count } from './reporter.ts';
import { prepareDockerDisk } from './lab/vm/docker.ts';
import { prepareConsul } from './lab/consul.ts';
import type { Disk } from './lab/vm/qemu.ts';
import { Vm } from './lab/vm.ts';

interface Stage {
  name: string;
  /** What it shows, for those who watch. */
  shows: string;
  /** Needs root, for network namespaces or Debian packages. Has the machine for itself; the others run side by side. */
  root: boolean;
  /** @param print where to write what it says; a stage with the machine for itself writes by itself, as it goes */
  run: (print: Print) => Promise<Count>;
}

type Print = (text: string) => void;

const none: Count = { passed: 0, failed: 0, skipped: 0, failures: [] };

const root = join(import.meta.dirname, '..');
const bin = (name: string): string => join(root, 'node_modules/.bin', name);

/** A command that counts as one test. */
async function single(print: Print, file: string, ...args: string[]): Promise<Count> {
  const { failed, all } = await execa(bin(file), args, { cwd: root, all: true, reject: false });
  if (all !== '') print(`${all}\n`);
  return {
    passed: failed ? 0 : 1,
    failed: failed ? 1 : 0,
    skipped: 0,
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
async function mocha(patterns: string[], print?: Print): Promise<Count> {
  const directory = await mkdtemp(join(tmpdir(), 'causeway-test-'));
  const file = join(directory, 'count.json');
  try {
    const [program, ...args] = command(patterns);
    const env = { CAUSEWAY_TEST_COUNT: file };
    const how = print === undefined ? ({ stdio: 'inherit' } as const) : ({ all: true } as const);
    const { exitCode, all } = await execa(program, args, { cwd: root, env, reject: false, ...how });
    if (typeof all === 'string') print?.(`${all}\n`);
    return parseCount(await readFile(file, 'utf8').catch(() => ''), exitCode);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
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

const fast = [
  'test/unit/**/*.test.ts',
  'test/contract/**/*.test.ts',
  'test/protocol/**/*.test.ts',
  'test/scenario/**/*.test.ts',
];

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
    run: (print) => mocha(['--parallel', '--jobs', '2', ...fast], print),
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
    root: true,
    run: () => mocha(['test/docker/**/*.test.ts', 'test/lab/**/*.test.ts']),
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
  const perform = async (stage: Stage): Promise<void> => {
    const title = `\n── ${stage.name}: ${stage.shows}\n`;
    let text = '';
    if (stage.root) process.stdout.write(title);
    else text = title;
    const started = performance.now();
    let count: Count = { ...none, skipped: 1 };
    if (stage.root && !isRoot)
      console.log('skipped: it makes network namespaces or unpacks Debian packages, which takes root');
    else count = await stage.run((more) => (text += more));
    const seconds = ((performance.now() - started) / 1000).toFixed(0);
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
  // Once more at the end, where one looks first, and which is kept where a log is cut.
  if (sum.failures.length > 0) console.log(`\nFailed:\n  ${sum.failures.join('\n  ')}`);
  console.log(`\n${sum.passed} passed, ${sum.failed} failed, ${sum.skipped} skipped`);
  process.exitCode = sum.failed > 0 ? 1 : 0;
}

await main();
