// Owns the model of Causeway's one nft table: how a desired table is compared with the one in the kernel and how the
// difference becomes one atomic transaction. Must not know what the rules are for.
import { createHash } from 'node:crypto';
import { difference } from '../delta/list.ts';
import { table } from './names.ts';
import { CommandError, type Runner } from './run.ts';
import { aRule, safe, words } from './safe.ts';

/** A named set or map, without its elements. */
export interface NftSet {
  kind: 'set' | 'map';
  /** As nft takes it, e.g. `type ipv4_addr . ipv4_addr; flags interval;`. */
  declaration: string;
  /** Its elements come and go by rules, and are no content of the table. */
  filledByRules?: true;
}

export interface NftBaseChain {
  /** e.g. `type filter hook forward priority filter; policy accept;`; absent for a chain that is only jumped to. */
  hook?: string;
  rules: readonly string[];
}

/** The part of the table that changes with Causeway's version and settings only, by name. */
export interface NftLayout {
  sets: Readonly<Record<string, NftSet>>;
  chains: Readonly<Record<string, NftBaseChain>>;
}

/** Elements of one set: key in nft's words to value ('' in a set; `goto CHAIN` or `jump CHAIN`, an address or a number in a map). */
export type NftElements = ReadonlyMap<string, string>;

/** Chains, and the elements that lead to them: what comes and goes together. */
export interface NftPart {
  /** By a name from {@link contentName}. */
  chains: readonly (readonly [name: string, rules: readonly string[]])[];
  /** As in {@link NftElements}. */
  elements: readonly (readonly [set: string, key: string, value: string])[];
}

/** The part that changes with every endpoint and service. */
export interface NftContent {
  /** By name of the set; of the same content if it is the same object. */
  elements: ReadonlyMap<string, NftElements>;
  /**
   * No two of them name the same chain or key, and none a set that is in `elements`; a set that neither names is empty.
   * A part that is the same object is not looked into when tables are compared.
   */
  parts: readonly NftPart[];
  /**
   * Timeout policies of conntrack that rules name: by a name from {@link contentName}, e.g.
   * `protocol udp; l3proto ip; policy = { replied: 60 };`.
   */
  timeouts?: ReadonlyMap<string, string>;
}

export interface NftTable {
  layout: NftLayout;
  content: NftContent;
}

/** The table as it reads back: rules by their number, because nft rewords them. */
export interface ObservedTable {
  elements: ReadonlyMap<string, NftElements>;
  /** Chain name to its number of rules. */
  chains: ReadonlyMap<string, number>;
  /** By name. */
  timeouts: ReadonlySet<string>;
}

/**
 * Names a chain by what it holds. A chain with other rules is another chain, so elements are moved from one to the
 * other in one transaction, and a chain that reads back under its name holds what it should.
 */
export function contentName(stem: string, rules: readonly string[]): string {
  return `${stem}.${hash(rules.join('\n'))}`;
}

function hash(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 12);
}

// An empty chain whose name carries the hash of the layout: nft can neither read rules back as they were written nor,
// on older kernels, keep a comment on a table or chain.
function layoutName(layout: NftLayout): string {
  const known = layoutNames.get(layout) ?? `layout.${hash(JSON.stringify(layout))}`;
  layoutNames.set(layout, known);
  return known;
}
const layoutNames = new WeakMap<NftLayout, string>();

/** What the kernel will read back once the table is as desired. */
export function expectedTable({ layout, content }: NftTable): ObservedTable {
  return {
    elements: allElements(layout, content),
    chains: new Map([
      [layoutName(layout), 0],
      ...Object.entries(layout.chains).map(([name, { rules }]) => [name, rules.length] as const),
      ...content.parts.flatMap(({ chains }) => chains.map(([name, rules]) => [name, rules.length] as const)),
    ]),
    timeouts: new Set(content.timeouts?.keys()),
  };
}

/** The sets whose elements are content. */
function declaredSets({ sets }: NftLayout): string[] {
  return Object.entries(sets).flatMap(([name, { filledByRules }]) => (filledByRules === true ? [] : [name]));
}

/** Every set of the layout with all that is in it. */
function allElements(layout: NftLayout, { elements, parts }: NftContent): Map<string, NftElements> {
  const all = new Map(declaredSets(layout).map((name) => [name, new Map(elements.get(name) ?? [])] as const));
  for (const part of parts) for (const [set, key, value] of part.elements) all.get(set)?.set(key, value);
  return all;
}

/**
 * The smallest transactions for `nft -f -` that make the table as desired, in order; none when it is so already. All of them in one
 * would be valid, too, and lead to the same.
 *
 * A packet goes through the rules as they were when it came, and looks up elements as they are at that moment. If those change in
 * between, it finds the way to a new chain, which has no rules for it yet, or is in an old one whose own elements are gone: it
 * would pass untranslated, and be refused. So where an element changes from one chain to another, the new chain is there before,
 * and the old one until after.
 *
 * A table of another layout, or with a chain somebody edited, is replaced as a whole, in one transaction too: no
 * packet ever sees half of it, and connections that are established keep their translation in conntrack.
 * @param actual what the kernel has: read from it, or written to it before; undefined when there is no table
 * @param desired undefined when there should be none
 */
export function planTable(
  actual: ObservedTable | NftTable | undefined,
  desired: NftTable | undefined,
): string[] {
  if (desired === undefined) return actual === undefined ? [] : [`delete table inet ${table}\n`];
  if (actual === undefined) return [renderTable(desired)];
  const steps = 'layout' in actual ? stepsFrom(actual, desired) : stepsFromRead(actual, desired);
  return steps === undefined ? [`delete table inet ${table}\n${renderTable(desired)}`] : renderSteps(steps);
}

/** What leads from one table to another of the same layout. */
interface Steps {
  newTimeouts: readonly Pair[];
  newChains: readonly (readonly [name: string, rules: readonly string[]])[];
  sets: readonly { name: string; stale: Pair[]; missing: Pair[] }[];
  oldChains: readonly string[];
  oldTimeouts: readonly string[];
}
type Pair = readonly [key: string, value: string];

/** @returns undefined when the table has to be replaced */
function stepsFromRead(actual: ObservedTable, desired: NftTable): Steps | undefined {
  const expected = expectedTable(desired);
  const intact =
    actual.chains.has(layoutName(desired.layout)) &&
    [...expected.elements.keys()].every((name) => actual.elements.has(name)) &&
    [...expected.chains].every(([name, rules]) => (actual.chains.get(name) ?? rules) === rules) &&
    Object.keys(desired.layout.chains).every((name) => actual.chains.has(name));
  if (!intact) return undefined;
  return {
    ...compareTimeouts(actual.timeouts, desired.content.timeouts),
    newChains: chainsOf(desired.content.parts).filter(([name]) => !actual.chains.has(name)),
    sets: [...expected.elements].map(([name, elements]) =>
      compareSet(name, actual.elements.get(name), elements),
    ),
    oldChains: [...actual.chains.keys()].filter((name) => !expected.chains.has(name)),
  };
}

/** As {@link stepsFromRead}, of what we wrote ourselves: what is the same object needs no look. */
function stepsFrom(actual: NftTable, desired: NftTable): Steps | undefined {
  if (layoutName(actual.layout) !== layoutName(desired.layout)) return undefined;
  const { removed, added } = difference(actual.content.parts, desired.content.parts);
  const [before, after] = [removed, added].map((parts) => ({
    chains: new Map(chainsOf(parts)),
    elements: Map.groupBy(
      parts.flatMap(({ elements }) => elements),
      ([set]) => set,
    ),
  })) as [Changed, Changed];
  return {
    ...compareTimeouts(actual.content.timeouts ?? none, desired.content.timeouts),
    newChains: [...after.chains].filter(([name]) => !before.chains.has(name)),
    sets: Object.keys(desired.layout.sets).map((name) =>
      before.elements.has(name) || after.elements.has(name)
        ? compareSet(name, pairs(before.elements.get(name)), pairs(after.elements.get(name)))
        : compareSet(name, actual.content.elements.get(name), desired.content.elements.get(name)),
    ),
    oldChains: [...before.chains.keys()].filter((name) => !after.chains.has(name)),
  };
}

const none: ReadonlyMap<string, string> = new Map();

function compareTimeouts(
  present: { has: (name: string) => boolean; keys: () => Iterable<string> },
  desired: ReadonlyMap<string, string> = none,
): Pick<Steps, 'newTimeouts' | 'oldTimeouts'> {
  return {
    newTimeouts: [...desired].filter(([name]) => !present.has(name)),
    oldTimeouts: [...present.keys()].filter((name) => !desired.has(name)),
  };
}

interface Changed {
  chains: Map<string, readonly string[]>;
  elements: Map<string, NftPart['elements'][number][]>;
}

function chainsOf(parts: readonly NftPart[]): NftPart['chains'][number][] {
  return parts.flatMap(({ chains }) => chains);
}

function pairs(elements: readonly NftPart['elements'][number][] = []): NftElements {
  return new Map(elements.map(([, key, value]) => [key, value]));
}

function compareSet(
  name: string,
  present: NftElements = new Map(),
  desired: NftElements = new Map(),
): Steps['sets'][number] {
  if (present === desired) return { name, stale: [], missing: [] };
  return {
    name,
    stale: [...present].filter(([key, value]) => desired.get(key) !== value),
    missing: [...desired].filter(([key, value]) => present.get(key) !== value),
  };
}

function renderSteps({ newTimeouts, newChains, sets, oldChains, oldTimeouts }: Steps): string[] {
  const added = [
    ...newTimeouts.map(renderTimeout),
    ...newChains.flatMap(([name, rules]) => renderContentChain(name, rules)),
  ];
  const changed = [
    ...sets.flatMap(({ name, stale }) => (stale.length > 0 ? [renderElements('delete', name, stale)] : [])),
    ...sets.flatMap(({ name, missing }) =>
      missing.length > 0 ? [renderElements('add', name, missing)] : [],
    ),
  ];
  const removed = [
    ...oldChains.flatMap((name) => [
      `flush chain inet ${table} ${name}`,
      `delete chain inet ${table} ${name}`,
    ]),
    ...oldTimeouts.map((name) => `delete ct timeout inet ${table} ${name}`),
  ];
  const transactions = sets.some(isLedElsewhere)
    ? [added, changed, removed]
    : [[...added, ...changed, ...removed]];
  return transactions.flatMap((lines) =>
    lines.length === 0 ? [] : [lines.map((line) => `${line}\n`).join('')],
  );
}

/** Whether an element leads to another chain than before. */
function isLedElsewhere({ stale, missing }: Steps['sets'][number]): boolean {
  const before = new Set(stale.flatMap(([key, value]) => (isVerdict(value) ? [key] : [])));
  return missing.some(([key]) => before.has(key));
}

function isVerdict(value: string): boolean {
  return /^(goto|jump) /.test(value);
}

function renderTable({ layout, content }: NftTable): string {
  const sets = Object.entries(layout.sets).map(
    ([name, { kind, declaration }]) => `add ${kind} inet ${table} ${name} { ${declaration} }`,
  );
  const chains = [
    [layoutName(layout), { rules: [] } as NftBaseChain] as const,
    ...Object.entries(layout.chains),
  ];
  const declared = chains.map(
    ([name, { hook }]) => `add chain inet ${table} ${name}${hook === undefined ? '' : ` { ${hook} }`}`,
  );
  const rules = chains.flatMap(([name, chain]) =>
    chain.rules.map((rule) => `add rule inet ${table} ${name} ${rule}`),
  );
  const timeouts = [...(content.timeouts ?? none)].map(renderTimeout);
  const contentChains = chainsOf(content.parts).flatMap(([name, list]) => renderContentChain(name, list));
  const elements = [...allElements(layout, content)]
    .filter(([, list]) => list.size > 0)
    .map(([name, list]) => renderElements('add', name, [...list]));
  return [
    `add table inet ${table}`,
    ...sets,
    ...declared,
    ...rules,
    ...timeouts,
    ...contentChains,
    ...elements,
  ]
    .map((line) => `${line}\n`)
    .join('');
}

function renderTimeout([name, declaration]: Pair): string {
  return `add ct timeout inet ${table} ${name} { ${declaration} }`;
}

function renderContentChain(name: string, rules: readonly string[]): string[] {
  return [
    `add chain inet ${table} ${name}`,
    ...rules.map((rule) => `add rule inet ${table} ${name} ${safe('nft', rule, aRule)}`),
  ];
}

function renderElements(verb: 'add' | 'delete', set: string, elements: readonly Pair[]): string {
  const list = elements
    .map(([key, value]) => safe('nft', value === '' ? key : `${key} : ${value}`, words))
    .join(', ');
  return `${verb} element inet ${table} ${set} { ${list} }`;
}

/** Reads the table from the kernel; undefined when it is not there. */
export async function observeTable(run: Runner): Promise<ObservedTable | undefined> {
  let text: string;
  try {
    text = await run('nft', ['-j', 'list', 'table', 'inet', table]);
  } catch (error) {
    if (error instanceof CommandError && error.stderr.includes('No such file or directory')) return undefined;
    throw error;
  }
  return parseTable(text);
}

/** One object of `nft -j list table`, as far as it matters here (libnftables-json(5)). */
interface NftObject {
  set?: NftJsonSet;
  map?: NftJsonSet;
  chain?: { name: string };
  rule?: { chain: string };
  'ct timeout'?: { name: string };
}
interface NftJsonSet {
  name: string;
  elem?: unknown[];
}

/** @param text the output of `nft -j list table` */
export function parseTable(text: string): ObservedTable {
  const { nftables } = JSON.parse(text) as { nftables: NftObject[] };
  const elements = new Map<string, NftElements>();
  const chains = new Map<string, number>();
  const timeouts = new Set<string>();
  for (const { set, map, chain, rule, 'ct timeout': timeout } of nftables) {
    if (set !== undefined)
      elements.set(set.name, new Map((set.elem ?? []).map((key) => [formatKey(key), ''])));
    if (map !== undefined) {
      const pairs = (map.elem ?? []) as [unknown, unknown][];
      elements.set(map.name, new Map(pairs.map(([key, value]) => [formatKey(key), formatValue(value)])));
    }
    if (chain !== undefined) chains.set(chain.name, chains.get(chain.name) ?? 0);
    if (rule !== undefined) chains.set(rule.chain, (chains.get(rule.chain) ?? 0) + 1);
    if (timeout !== undefined) timeouts.add(timeout.name);
  }
  return { elements, chains, timeouts };
}

function formatKey(key: unknown): string {
  if (typeof key === 'string' || typeof key === 'number') return String(key);
  const { concat, prefix, range, elem } = key as {
    concat?: unknown[];
    prefix?: { addr: string; len: number };
    range?: [unknown, unknown];
    elem?: { val: unknown };
  };
  if (concat !== undefined) return concat.map(formatKey).join(' . ');
  if (prefix !== undefined) return `${prefix.addr}/${prefix.len}`;
  if (range !== undefined) return range.map(formatKey).join('-');
  // An element with a comment, counter or timeout is wrapped; ours have none, somebody else's addition may.
  return elem === undefined ? JSON.stringify(key) : formatKey(elem.val);
}

function formatValue(value: unknown): string {
  const verdict = value as Partial<Record<'goto' | 'jump', { target: string }>>;
  for (const word of ['goto', 'jump'] as const)
    if (verdict[word] !== undefined) return `${word} ${verdict[word].target}`;
  return formatKey(value);
}
