// Owns `npm run support`: docs/support.md, which Docker Engine was shown to do what, out of what the last runs of the stages
// docker and engines have left.
// Must not claim what no run has shown.
import { existsSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { engineNames, engineVersion, type EngineName } from './lab/engines.ts';

const root = join(import.meta.dirname, '..');
const page = join(root, 'docs/support.md');
const runs = join(root, 'build/cache/runs');

/** A line of the table: what a user gets, and the test that shows it. */
export interface Claim {
  what: string;
  /** What the title of the test's file begins with, and the beginning of its own. */
  suite: string;
  test: string;
}

const one = 'a one-node Swarm in Docker';
const three = 'a three-node Swarm in Docker';
const set = 'Docker';

export const claims: readonly Claim[] = [
  { what: 'published port, with the client’s address', suite: one, test: 'the published port answers' },
  { what: 'VIP and name, from another task', suite: one, test: 'the VIP, which' },
  { what: '`docker run -p`, `mode=host`', suite: one, test: 'ports of a single container are published' },
  { what: 'the plugin is killed under traffic', suite: one, test: 'the plugin is killed under traffic' },
  { what: 'Docker is stopped and started', suite: one, test: 'traffic comes back after Docker was stopped' },
  { what: 'Docker is killed and started', suite: one, test: 'traffic comes back after Docker was killed' },
  { what: 'nothing is left when all is removed', suite: one, test: 'everything is removed: nothing is left' },
  {
    what: 'three nodes: published port by each',
    suite: three,
    test: 'each node’s published port answers',
  },
  { what: 'three nodes: VIP from each', suite: three, test: 'the VIP answers' },
  { what: 'three nodes: networks are apart', suite: three, test: 'two networks are kept apart' },
  { what: 'three nodes: attachable containers', suite: three, test: 'attachable containers take part' },
  {
    what: 'three nodes: rolling update without a lost request',
    suite: three,
    test: 'no request is lost while all',
  },
  {
    what: 'three nodes: a manager loses its power',
    suite: three,
    test: 'the leading manager loses its power',
  },
  {
    what: 'API versions below 1.44 refused (as Docker 29.0 to 29.2 do)',
    suite: set,
    test: 'does its job where Docker refuses',
  },
  { what: '`--userland-proxy=false`', suite: set, test: 'does its job where Docker has no proxies' },
  { what: '`--iptables=false`', suite: set, test: 'does its job where Docker makes no rules' },
  {
    what: '`--default-address-pool` within Causeway’s',
    suite: set,
    test: 'does its job where Docker takes its own',
  },
  { what: 'a Docker that hangs is told of', suite: set, test: 'Docker hangs: the plugin says so' },
];

/** @param passes full titles of tests that passed */
export function shows({ suite, test }: Claim, engine: EngineName, passes: readonly string[]): boolean {
  const begins = `${suite} ${engine}`;
  return passes.some((title) => new RegExp(`^${begins}[ ,]`).test(title) && title.includes(` ${test}`));
}

/** A stage's last run: the engines that it ran, each with its version, and the full titles of the tests that passed. */
export interface Shown {
  versions: Readonly<Partial<Record<EngineName, string>>>;
  passes: readonly string[];
}

/** The stages whose runs the table is made of. */
export const showing: readonly string[] = ['docker', 'engines'];

/** @returns a column for each engine that was run, and for no other */
export function renderTable(stages: readonly Shown[]): string {
  const versions: Shown['versions'] = Object.fromEntries(
    stages.flatMap((stage) => Object.entries(stage.versions)),
  );
  const passes = stages.flatMap((stage) => stage.passes);
  const ran = engineNames.filter((name) => versions[name] !== undefined);
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
  return [
    line(['', ...ran.map((name) => `Docker ${versions[name]}`)]),
    line(['---', ...ran.map(() => '---')]),
    ...claims.map((claim) =>
      line([claim.what, ...ran.map((name) => (shows(claim, name, passes) ? 'yes' : '–'))]),
    ),
  ].join('\n');
}

const table = /(<!-- npm run support -->\n\n)[^]*?(\n\n<!-- end -->)/;

/**
 * @returns the page with the table that these runs make
 * @throws Error the page has no place for it
 */
export function withTable(text: string, stages: readonly Shown[]): string {
  if (!table.test(text))
    throw new Error('docs/support.md has lost the two comments between which its table is.');
  // By a function: a "$" in a cell is a "$".
  return text.replace(table, (_, before: string, after: string) => before + renderTable(stages) + after);
}

/** Remembers what a stage has shown, and of the engines it was to run those that could be had. */
export async function keepShown(
  stage: string,
  engines: readonly EngineName[],
  passes: readonly string[],
): Promise<void> {
  const versions = Object.fromEntries(
    await Promise.all(engines.map(async (name) => [name, await engineVersion(name)] as const)),
  );
  await mkdir(runs, { recursive: true });
  await writeFile(fileOf(stage), JSON.stringify({ versions, passes } satisfies Shown));
}

const fileOf = (stage: string): string => join(runs, `${stage}.run.json`);

/** @returns the page as it is, and as the last runs say it */
async function render(): Promise<{ before: string; text: string }> {
  const files = showing.map(fileOf).filter((file) => existsSync(file));
  const stages = await Promise.all(
    files.map(async (file) => JSON.parse(await readFile(file, 'utf8')) as Shown),
  );
  const before = await readFile(page, 'utf8');
  return { before, text: withTable(before, stages) };
}

/** @returns how docs/support.md differs from what the last runs have shown; undefined when it does not. Never rejects. */
export async function whatIsUntrue(): Promise<string | undefined> {
  try {
    const { before, text } = await render();
    const had = new Set(before.split('\n'));
    const missing = text.split('\n').filter((line) => !had.has(line));
    if (text === before) return undefined;
    return `docs/support.md is not what this run has shown; npm run support writes it anew:\n${missing.join('\n')}`;
  } catch (error) {
    return `docs/support.md cannot be compared with what this run has shown: ${String(error)}`;
  }
}

if (import.meta.main) await writeFile(page, (await render()).text);
