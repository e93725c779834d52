// Owns what a run has found: its shape, its files in build/bench/, and how it is shown as text and in the documentation.
// Must not measure anything.
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as z from 'zod';

const root = join(import.meta.dirname, '..');
const resultsDir = join(root, 'build/bench');

/** The parts of the bench, in the order they are run and shown. */
export const parts = [
  'footprint',
  'nft',
  'ipvs',
  'names',
  'start',
  'start-many',
  'one-client',
  'scale',
  'ports',
  'ports-ipvs',
  'failover',
  'failover-ipvs',
  'rollout',
  'rollout-ipvs',
  'upgrade',
  'leaders',
  'outage',
] as const;
export type Part = (typeof parts)[number];

const finding = z.object({
  /** What was measured, for a table. */
  what: z.string(),
  /** In `unit`. */
  value: z.number(),
  /** `ratio`, or that of a figure: `MB` (1,000,000 bytes), `ms`, `connections`, `requests`. */
  unit: z.string(),
  /** Where 90 % of the values would lie were the rounds drawn again; only of ratios. */
  interval: z.tuple([z.number(), z.number()]).optional(),
  goal: z.union([z.object({ atLeast: z.number() }), z.object({ atMost: z.number() })]),
  /** What the value was made of. */
  detail: z.string(),
  /** Every single figure, by what it is of. */
  samples: z.record(z.string(), z.array(z.number())),
});
export type Finding = z.infer<typeof finding>;

/** Under which conditions the findings were made; as much of it as a reader needs to judge them. */
const circumstances = z.object({
  /** As given to a shell in the repository. */
  command: z.string(),
  /** ISO 8601, to the minute. */
  date: z.string(),
  commit: z.string(),
  kernel: z.string(),
  processors: z.string(),
  /** Rounds per comparison, and seconds per round. */
  rounds: z.number(),
  seconds: z.number(),
});
export type Circumstances = z.infer<typeof circumstances>;

const result = z.object({ part: z.enum(parts), circumstances, findings: z.array(finding) });
export type Result = z.infer<typeof result>;

export function isMet({ value, goal }: Finding): boolean {
  return 'atLeast' in goal ? value >= goal.atLeast : value <= goal.atMost;
}

const fileOf = (part: Part) => join(resultsDir, `${part}.json`);

export async function save(one: Result): Promise<void> {
  await mkdir(resultsDir, { recursive: true });
  await writeFile(fileOf(one.part), `${JSON.stringify(one, null, 2)}\n`);
}

/** @returns what the last run of each part found, of those that were ever run here */
export async function load(): Promise<Result[]> {
  const texts = await Promise.all(parts.map((part) => readFile(fileOf(part), 'utf8').catch(() => undefined)));
  return texts.flatMap((text) => (text === undefined ? [] : [result.parse(JSON.parse(text))]));
}

/** The table of one part: for the terminal, and as it is for Markdown. */
export function renderTable(findings: readonly Finding[]): string {
  const rows = [
    ['what', 'measured', '90 % interval', 'goal', '', 'of'],
    ...findings.map((one) => [
      one.what,
      format(one.value, one.unit),
      one.interval === undefined ? '' : one.interval.map((bound) => bound.toFixed(2)).join('–'),
      'atLeast' in one.goal
        ? `≥ ${format(one.goal.atLeast, one.unit)}`
        : `≤ ${format(one.goal.atMost, one.unit)}`,
      isMet(one) ? 'met' : '**missed**',
      one.detail,
    ]),
  ];
  const widths = rows[0]!.map((_, column) => Math.max(3, ...rows.map((row) => row[column]!.length)));
  const line = (cells: string[]): string =>
    `| ${cells.map((cell, column) => cell.padEnd(widths[column]!)).join(' | ')} |`;
  return [line(rows[0]!), line(widths.map((width) => '-'.repeat(width))), ...rows.slice(1).map(line)].join(
    '\n',
  );
}

function format(value: number, unit: string): string {
  if (unit === 'ratio') return value.toFixed(2);
  return `${value < 10 && !Number.isInteger(value) ? value.toFixed(1) : value.toFixed(0)} ${unit}`;
}

const titles: Record<Part, string> = {
  footprint: 'Footprint',
  nft: 'Engine nft',
  ipvs: "Engine ipvs, and Docker's own mesh",
  names: 'Names',
  start: 'Starting containers',
  'start-many': 'Starting many containers at a time',
  'one-client': 'Many connections of one client',
  scale: 'Scale',
  ports: 'Many published ports',
  'ports-ipvs': 'Many published ports, engine ipvs',
  failover: 'Loss of a node',
  'failover-ipvs': "Loss of a node, engine ipvs, and Docker's own mesh",
  rollout: 'Rolling updates',
  'rollout-ipvs': "Rolling updates, engine ipvs, and Docker's own mesh",
  upgrade: 'Rolling upgrade, and back',
  leaders: 'The leading manager lost under churn',
  outage: 'Consul away',
};

/** How much was measured, where it is not told elsewhere. */
const extents: Record<Part, (of: Circumstances) => string> = {
  footprint: () => '',
  nft: ({ rounds, seconds }) => ` ${rounds} rounds of ${seconds} s.`,
  ipvs: ({ rounds, seconds }) => ` ${rounds} rounds of ${seconds} s.`,
  names: ({ rounds, seconds }) => ` ${rounds} rounds of ${seconds} s.`,
  start: ({ rounds }) => ` ${rounds} rounds of docker run, a third of them of services.`,
  'start-many': ({ rounds }) => ` ${rounds} rounds.`,
  'one-client': ({ rounds, seconds }) => ` ${seconds} s, then ${rounds} rounds of bursts.`,
  scale: ({ rounds }) => ` ${rounds} rounds.`,
  ports: ({ rounds, seconds }) => ` ${rounds} rounds of ${seconds} s.`,
  'ports-ipvs': ({ rounds, seconds }) => ` ${rounds} rounds of ${seconds} s.`,
  failover: ({ rounds }) => ` ${rounds} rounds.`,
  'failover-ipvs': ({ rounds }) => ` ${rounds} rounds.`,
  rollout: ({ rounds }) => ` ${rounds} updates.`,
  'rollout-ipvs': ({ rounds }) => ` ${rounds} updates.`,
  upgrade: ({ rounds }) => ` There and back ${rounds === 1 ? 'once' : `${rounds} times`}.`,
  leaders: ({ rounds }) => ` ${rounds} losses.`,
  outage: ({ seconds }) => ` ${seconds} s.`,
};

function documentOf(part: Part): string {
  if (part === 'scale') return 'docs/scale.md';
  return part === 'leaders' || part === 'outage' || part === 'upgrade'
    ? 'docs/resilience.md'
    : 'docs/performance.md';
}

const [begin, end] = [
  '<!-- generated by npm run bench: begin -->',
  '<!-- generated by npm run bench: end -->',
];

/** The first line of a section. */
const headingOf = (section: string): string => section.split('\n', 1)[0]?.trim() ?? '';

/** Puts the results between the marks of their documents. @throws Error when one has no such marks */
export async function writeDocuments(results: readonly Result[]): Promise<void> {
  for (const [name, list] of Map.groupBy(results, ({ part }) => documentOf(part))) {
    const file = join(root, name);
    const text = await readFile(file, 'utf8');
    const [from, to] = [text.indexOf(begin), text.indexOf(end)];
    if (from < 0 || to < from) throw new Error(`${file} has no place for generated text.`);
    // What was measured on another day, or in another clone, stays.
    const before = text
      .slice(from + begin.length, to)
      .split(/^(?=### )/m)
      .map((section) => section.trim())
      .filter((section) => section.startsWith('### '));
    const measured = new Map(before.map((section) => [headingOf(section), section]));
    for (const { part, circumstances: c, findings } of list) {
      const section = [
        `### ${titles[part]}`,
        `\`${c.command}\`, ${c.date}, commit ${c.commit}, Linux ${c.kernel}, ${c.processors}.${extents[part](c)}`,
        renderTable(findings),
      ].join('\n\n');
      measured.set(headingOf(section), section);
    }
    const sections = [...measured.values()].join('\n\n');
    await writeFile(file, `${text.slice(0, from)}${begin}\n\n${sections}\n\n${text.slice(to)}`);
  }
}
