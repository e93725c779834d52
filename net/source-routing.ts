// Owns following a host's source routing: by which table of the host's own the replies of published ports leave, where the host
// has rules by which what is sent from one of its addresses leaves by another router than the rest.
// Must not change the host's rules, nor its tables.
import { observeLinks, type Link } from './links.ts';
import { hex, linkPrefix, routeProtocol, rulePriority, sourceTableBase } from './names.ts';
import type { Runner } from './run.ts';

/** What is sent from this address of the host leaves by that table, and not by table main. */
export interface SourceRoute {
  address: string;
  /** That has the address. */
  device: string;
  table: number;
  /** Of the host's rule. */
  priority: number;
}

/** A policy rule as `ip -j rule` prints it. */
export interface IpRule {
  priority: number;
  src?: string;
  srclen?: number;
  dst?: string;
  dstlen?: number;
  not?: null;
  iif?: string;
  fwmark?: string;
  fwmask?: string;
  table?: string;
  suppress_prefixlen?: number;
  goto?: number;
  protocol?: string;
}

/** Marks have 24 bits to name a table. */
const maxTable = 0x00ffffff;

/** The sandboxes' links and Docker's bridges: their addresses are asked by what is behind them. */
const notUplinks = new RegExp(`^(lo$|${linkPrefix}|docker|br-)`);

/** All that a rule may say which is for whatever has a source: of others nobody can tell here whom they are for. */
const plain: ReadonlySet<string> = new Set(['priority', 'src', 'srclen', 'table', 'protocol']);

/** Reads all policy rules, in the order in which the kernel asks them. */
export async function observeRules(run: Runner): Promise<IpRule[]> {
  return JSON.parse(await run('ip', ['-4', '-j', 'rule', 'show'])) as IpRule[];
}

/** Reads what the host has; its links only where it has rules for sources. */
export async function observeSourceRoutes(run: Runner): Promise<SourceRoute[]> {
  const rules = await observeRules(run);
  return rules.some(isBySource) ? sourceRoutes(rules, await observeLinks(run)) : [];
}

/**
 * @param rules in the order in which the kernel asks them
 * @param links of the host
 */
export function sourceRoutes(
  rules: readonly IpRule[],
  links: readonly Pick<Link, 'name' | 'addresses'>[],
): SourceRoute[] {
  // Behind a rule that leads everything to table main, which has a default route, no other is asked.
  const end = rules.findIndex(isMain);
  const bySource = rules.slice(0, end < 0 ? rules.length : end).filter(isBySource);
  const own = new Map(
    links
      .filter(({ name }) => !notUplinks.test(name))
      .flatMap(({ name, addresses }) => addresses.map((address) => [address.split('/', 1)[0] ?? '', name])),
  );
  return [...own].sort().flatMap(([address, device]): SourceRoute[] => {
    const rule = bySource.find(({ src = '', srclen = 32 }) => isWithin(address, src, srclen));
    if (rule === undefined) return [];
    // Table main has a name.
    const table = Number(rule.table);
    return Number.isInteger(table) && table > 0 && table <= maxTable
      ? [{ address, device, table, priority: rule.priority }]
      : [];
  });
}

function isMain({ src, table, ...rest }: IpRule): boolean {
  return src === 'all' && table === 'main' && Object.keys(rest).every((key) => plain.has(key));
}

function isBySource(rule: IpRule): boolean {
  return (
    rule.src !== undefined &&
    rule.src !== 'all' &&
    rule.protocol !== String(routeProtocol) &&
    Object.keys(rule).every((key) => plain.has(key))
  );
}

function isWithin(address: string, prefix: string, length: number): boolean {
  const bits = (text: string): number => text.split('.').reduce((sum, byte) => sum * 256 + Number(byte), 0);
  const size = 2 ** (32 - length);
  return Math.floor(bits(address) / size) === Math.floor(bits(prefix) / size);
}

/** The mark of what leaves by this table. */
export function sourceTableMark(table: number): number {
  return sourceTableBase + table;
}

/**
 * As `ip rule` takes them. What the node itself sends to containers, from an address that has a table of its own, goes as all
 * else does to them. The other rules are for what has the mark and goes to where table main has no way but the default one: of containers, on
 * this node or another, the host's own tables need not know. Neither for what the node sends itself nor where the kernel asks by which
 * device a packet would have to come (rp_filter), which it asks as if it were sent from here.
 * @param subnets of the networks, in CIDR form
 */
export function sourceRules(routes: readonly SourceRoute[], subnets: readonly string[]): string[] {
  if (routes.length === 0) return [];
  // Before the host's own, whose priority may be any: those that are added without one get one before all there are.
  const before = Math.max(1, Math.min(rulePriority.subnets, ...routes.map(({ priority }) => priority - 1)));
  const { tables, tablesLocal, tablesMain, table, tablesEnd } = rulePriority;
  return [
    // What has a mark is led by the rules for that.
    ...subnets.map((subnet) => `pref ${before} to ${subnet} iif lo fwmark ${hex(0)}/0xff000000 lookup main`),
    `pref ${tablesEnd} nop`,
    `pref ${tables} not fwmark ${hex(sourceTableBase)}/0xff000000 goto ${tablesEnd}`,
    `pref ${tablesLocal} iif lo goto ${tablesEnd}`,
    `pref ${tablesMain} lookup main suppress_prefixlength 0`,
    ...[...new Set(routes.map((route) => route.table))].map(
      (number) => `pref ${table} fwmark ${hex(sourceTableMark(number))} lookup ${number}`,
    ),
  ];
}
