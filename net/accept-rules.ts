// Owns the rules of iptables that let Causeway's packets pass where FORWARD or INPUT drop or reject what nobody let through.
// Must not touch any other rule of iptables.
import { readFile } from 'node:fs/promises';
import { iptablesComment, linkPrefix, markBase, markMask } from './names.ts';
import { CommandError, type Runner, type Tool } from './run.ts';

/** A chain of iptables' table filter that packets of Causeway go through. */
export type FilterChain = 'FORWARD' | 'INPUT';

const tag = ['-m', 'comment', '--comment', iptablesComment, '-j', 'ACCEPT'];
const mark = `0x${markBase.toString(16)}/0x${markMask.toString(16)}`;

/** As `iptables -S` writes them, so that they are found again. */
const acceptRules: Record<FilterChain, readonly string[][]> = {
  // What may pass between endpoints and the world is decided in our own nft table.
  FORWARD: ['-i', '-o'].map((side) => [side, `${linkPrefix}+`, ...tag]),
  // IPVS balances behind this chain, and what is marked for it goes nowhere else.
  INPUT: [['-m', 'mark', '--mark', mark, ...tag]],
};

/**
 * Docker uses the one `iptables` leads to on its host, which the plugin cannot see: so both are looked at, the legacy
 * one only where it has a table already, because looking would make one.
 */
async function backends(): Promise<Tool[]> {
  const tables = await readFile('/proc/net/ip_tables_names', 'utf8').catch(() => '');
  return tables.split('\n').includes('filter') ? ['iptables-nft', 'iptables-legacy'] : ['iptables-nft'];
}

/**
 * Puts the rules where a backend drops what no rule accepts, and takes them from where it does not (any more).
 * @param desired the chains that Causeway's packets go through; in others there is no rule of ours afterwards
 */
export async function ensureAccepted(run: Runner, desired: readonly FilterChain[]): Promise<void> {
  for (const backend of await backends()) {
    const lines = await readFilter(run, backend);
    if (lines === undefined) continue;
    for (const chain of ['FORWARD', 'INPUT'] as const)
      for (const step of planAccepted(lines, chain, desired.includes(chain)))
        await run(backend, ['--wait', '5', ...step]);
  }
}

/** What iptables(8) ends with where it could not have what it needs for now, such as the lock of its table. */
const busy = 4;

/**
 * @returns the lines of `iptables -S`; undefined where the kernel or the host has no such backend
 * @throws {CommandError} when it could not be read now
 */
async function readFilter(run: Runner, backend: Tool): Promise<string[] | undefined> {
  try {
    return (await run(backend, ['--wait', '5', '-S'])).split('\n');
  } catch (error) {
    if (error instanceof CommandError && error.exitCode !== undefined && error.exitCode !== busy)
      return undefined;
    throw error;
  }
}

/**
 * What to run, each as arguments of iptables. Our rules stand as late as they can: ahead of the first rule that lets
 * nothing pass it, or at the end, in the place of the policy. So they decide what nobody else has decided; above all they
 * are behind DOCKER-USER.
 * @param lines what `iptables -S` says
 */
export function planAccepted(lines: readonly string[], chain: FilterChain, desired: boolean): string[][] {
  const chains = parseChains(lines);
  const present = chains.get(chain) ?? [];
  const own = acceptRules[chain].map((rule) => rule.join(' '));
  const others = present.filter((rule) => !own.includes(rule));
  const end = others.findIndex((rule) => verdictOf(rule, chains) !== undefined);
  const last = others[end];
  const isOpen =
    last === undefined ? !lines.includes(`-P ${chain} DROP`) : verdictOf(last, chains) === 'pass';
  const needed = desired && !isOpen;
  const at = end === -1 ? others.length : end;
  const expected = needed ? [...others.slice(0, at), ...own, ...others.slice(at)] : others;
  if (present.join('\n') === expected.join('\n')) return [];
  const arguments_ = (rule: string): string[] => rule.split(' ');
  return [
    ...present.filter((rule) => own.includes(rule)).map((rule) => ['-D', chain, ...arguments_(rule)]),
    ...(needed
      ? own.map((rule, index) =>
          at === others.length
            ? ['-A', chain, ...arguments_(rule)]
            : ['-I', chain, String(at + index + 1), ...arguments_(rule)],
        )
      : []),
  ];
}

/** Chain to its rules, without the `-A CHAIN`. */
function parseChains(lines: readonly string[]): Map<string, string[]> {
  const chains = new Map<string, string[]>();
  for (const line of lines) {
    const [, chain = '', rule] = /^-A (\S+) (.*)$/.exec(line) ?? [];
    if (rule === undefined) continue;
    const rules = chains.get(chain);
    if (rules === undefined) chains.set(chain, [rule]);
    else rules.push(rule);
  }
  return chains;
}

/** What a user wants Docker's containers to be kept from: to be left alone, whatever is in it. */
const usersOwn = 'DOCKER-USER';

/**
 * What becomes of every packet that comes to the rule: it passes, it does not, or undefined: that depends, or the next rule
 * decides.
 */
function verdictOf(
  rule: string,
  chains: ReadonlyMap<string, readonly string[]>,
  within: readonly string[] = [],
): 'pass' | 'end' | undefined {
  const [, target = ''] = /^(?:-m comment --comment (?:"[^"]*"|\S+) )?-[jg] (\S+)/.exec(rule) ?? [];
  if (target === 'DROP' || target === 'REJECT') return 'end';
  if (target === 'ACCEPT') return 'pass';
  if (target === usersOwn || within.includes(target)) return undefined;
  for (const next of chains.get(target) ?? []) {
    if (/^(?:-m comment --comment (?:"[^"]*"|\S+) )?-j RETURN/.test(next)) return undefined;
    const verdict = verdictOf(next, chains, [...within, target]);
    if (verdict !== undefined) return verdict;
  }
  return undefined;
}
