// Owns what of a host's settings Causeway cannot work with, and what to do about it: facts are read, problems are told. What it
// can work with, the rest of this room does (docs/hosts.md).
// Must not change anything.
import { isDeepStrictEqual } from 'node:util';
import { linkPrefix, markBase, markMask, table as ownTable } from './names.ts';
import { CommandError, type Runner } from './run.ts';
import type { Sysctl } from './sysctl.ts';

/** A base chain of nft that is not ours and lets through only what it knows. */
export interface ClosedChain {
  table: string;
  chain: string;
  hook: 'input' | 'forward';
  /** Its table names what of ours passes there, our links or our marks: somebody has thought of us. */
  knowsUs: boolean;
}

export interface HostFacts {
  closedChains: readonly ClosedChain[];
  /** `net.ipv4.conf.all.arp_ignore`. */
  arpIgnore: number;
  /** The device that the node speaks to others by, where its forwarding is off. */
  closedUplink?: string;
  /** Uplinks with source routing that table main's default route does not lead by, whose rp_filter is 1. */
  strictUplinks: readonly string[];
}

export interface HostProblem {
  what: string;
  remedy: string;
}

/** @param balancesAtInput whether the engine does: IPVS */
export function hostProblems(
  { closedChains, arpIgnore, closedUplink, strictUplinks }: HostFacts,
  balancesAtInput: boolean,
): HostProblem[] {
  const closed = closedChains.filter(
    ({ hook, knowsUs }) => !knowsUs && (hook === 'forward' || balancesAtInput),
  );
  return [
    ...[...new Set(closed.map(({ table }) => table))].map((table) => ({
      what: `the nft table ${table} lets nothing of Causeway pass (${closed
        .filter((chain) => chain.table === table)
        .map(({ chain, hook }) => `chain ${chain} at ${hook}`)
        .join(', ')})`,
      remedy:
        table !== 'inet firewalld'
          ? acceptRemedy(closed, table)
          : balancesAtInput
            ? `docker plugin set PLUGIN CAUSEWAY_LB=nft, and then ${firewalldRemedy}`
            : firewalldRemedy,
    })),
    ...(arpIgnore > 2
      ? [
          {
            what: `net.ipv4.conf.all.arp_ignore=${arpIgnore}: the host answers no ARP request of a container for its gateway`,
            remedy:
              'sysctl -w net.ipv4.conf.all.arp_ignore=1, which hides the host’s addresses from other links just so',
          },
        ]
      : []),
    ...(closedUplink === undefined
      ? []
      : [
          {
            what: `net.ipv4.conf.${closedUplink}.forwarding=0: published ports do not answer clients that come by ${closedUplink}`,
            remedy: `sysctl -w net.ipv4.conf.${inSysctl(closedUplink)}.forwarding=1`,
          },
        ]),
    ...strictUplinks.map((device) => ({
      what: `net.ipv4.conf.${device}.rp_filter=1: published ports do not answer clients that come by ${device}, which table main leads to by another uplink`,
      remedy: `sysctl -w net.ipv4.conf.${inSysctl(device)}.rp_filter=2`,
    })),
  ];
}

/** A dot in a device's name, as a VLAN's has, is not one of the setting's: see sysctl(8). */
function inSysctl(device: string): string {
  return device.replaceAll('.', '/');
}

const firewalldRemedy = `firewall-cmd --permanent --zone=trusted --add-interface=${linkPrefix}+ && firewall-cmd --reload`;

function acceptRemedy(closed: readonly ClosedChain[], table: string): string {
  const mark = `meta mark & 0x${markMask.toString(16)} == 0x${markBase.toString(16).padStart(8, '0')} accept`;
  return closed
    .filter((chain) => chain.table === table)
    .flatMap(({ chain, hook }) => {
      const rules =
        hook === 'input' ? [mark] : ['iifname', 'oifname'].map((side) => `${side} "${linkPrefix}*" accept`);
      return rules.map((rule) => `nft 'insert rule ${table} ${chain} ${rule}'`);
    })
    .join('; ');
}

interface NftChain {
  family: string;
  table: string;
  name: string;
  hook?: string;
  type?: string;
  policy?: string;
}
interface NftRule {
  chain: string;
  expr: Record<string, unknown>[];
}

/**
 * @param uplink the device that the node speaks to others by
 * @param others those whose addresses answer by tables of their own, and not by table main
 */
export async function observeHostFacts(
  run: Runner,
  sysctl: Sysctl,
  uplink: string,
  others: readonly string[],
): Promise<HostFacts> {
  // The larger one counts.
  const filterOf = async (device: string): Promise<number> =>
    Math.max(
      ...(await Promise.all(
        ['all', device].map(async (name) => Number((await sysctl.read(`ipv4/conf/${name}/rp_filter`)) ?? 0)),
      )),
    );
  const [closedChains, arpIgnore, forwarding, filters] = await Promise.all([
    observeClosedChains(run),
    sysctl.read('ipv4/conf/all/arp_ignore'),
    sysctl.read(`ipv4/conf/${uplink}/forwarding`),
    Promise.all(others.map(filterOf)),
  ]);
  return {
    closedChains,
    arpIgnore: Number(arpIgnore ?? 0),
    ...(forwarding === '0' && { closedUplink: uplink }),
    strictUplinks: others.filter((_, at) => filters[at] === 1),
  };
}

async function observeClosedChains(run: Runner): Promise<ClosedChain[]> {
  const chains = parse<{ chain?: NftChain }>(await run('nft', ['-j', 'list', 'chains'])).flatMap(
    ({ chain }) => chain ?? [],
  );
  const hooked = chains.filter(
    ({ family, table, hook, type }) =>
      type === 'filter' &&
      (hook === 'input' || hook === 'forward') &&
      (family === 'inet' || family === 'ip') &&
      table !== ownTable &&
      // That of iptables, which net/accept-rules.ts looks after.
      !(family === 'ip' && table === 'filter'),
  );
  const found: ClosedChain[] = [];
  for (const table of new Set(hooked.map(({ family, table }) => `${family} ${table}`)))
    found.push(
      ...(await closedOf(
        run,
        table,
        hooked.filter((chain) => `${chain.family} ${chain.table}` === table),
      )),
    );
  return found;
}

async function closedOf(run: Runner, table: string, chains: readonly NftChain[]): Promise<ClosedChain[]> {
  // Terse: what is in its sets may be millions, and is none of our business.
  const text = await run('nft', ['-j', '-t', 'list', 'table', ...table.split(' ')]).catch(
    (error: unknown) => {
      if (error instanceof CommandError) return '';
      throw error;
    },
  );
  const rules = parse<{ rule?: NftRule }>(text).flatMap(({ rule }) => rule ?? []);
  const named = { forward: text.includes(`"${linkPrefix}`), input: text.includes(String(markBase)) };
  return chains
    .filter(
      ({ name, policy }) => policy === 'drop' || endsClosed(rules.filter(({ chain }) => chain === name)),
    )
    .map(({ name, hook: at }) => {
      const hook = at as ClosedChain['hook'];
      return { table, chain: name, hook, knowsUs: named[hook] };
    });
}

/** Whether the last rule that takes all packets takes none further. */
function endsClosed(rules: readonly NftRule[]): boolean {
  const [verdict, ...others] = (rules.at(-1)?.expr ?? []).filter(
    (statement) => !('counter' in statement) && !('log' in statement),
  );
  return verdict !== undefined && others.length === 0 && ('drop' in verdict || 'reject' in verdict);
}

function parse<T>(text: string): T[] {
  return text.trim() === '' ? [] : (JSON.parse(text) as { nftables: T[] }).nftables;
}

/** Whether the same is wrong as before. */
export function sameProblems(one: readonly HostProblem[], other: readonly HostProblem[]): boolean {
  return isDeepStrictEqual(one, other);
}
