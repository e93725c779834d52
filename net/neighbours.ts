// Owns the fabric's knowledge of the other nodes: a neighbour entry and a forwarding entry for each, and the policy rules
// that lead replies back to the node their connection came in by.
// Must not decide which nodes there are, and must not know endpoints: those are routes via a node (net/routes.ts).
import {
  hex,
  fabricLink,
  fabricMac,
  returnMarkBase,
  returnTableBase,
  routeProtocol,
  rulePriority,
  sourceMark,
} from './names.ts';
import { CommandError, type Runner } from './run.ts';
import { safe, words as safeWords } from './safe.ts';
import { observeRules, sourceRules, type IpRule, type SourceRoute } from './source-routing.ts';

/** Another node of the cluster. */
export interface Neighbour {
  /** In the underlay. Also what routes through the fabric name it by. */
  address: string;
  /** Unique in the cluster, 1 to {@link maxNodeNumber}: names its mark and its routing table. */
  number: number;
}

/** What the kernel holds of the other nodes, each entry as the identity by which it is compared. */
export interface ObservedNeighbours {
  /** `ADDRESS MAC` */
  neighbours: ReadonlySet<string>;
  /** `MAC ADDRESS` */
  forwarding: ReadonlySet<string>;
  /** As `ip rule` takes them. */
  rules: ReadonlySet<string>;
}

export const noNeighbours: ObservedNeighbours = {
  neighbours: new Set(),
  forwarding: new Set(),
  rules: new Set(),
};

const kind = 0xff000000;
/** Of return marks and of marks of a source alike. */
const eitherWay = 0xffffffff - sourceMark;

/**
 * Policy rules are read one after the other for every packet that is routed, so all but two are skipped for packets
 * that have no mark of ours. (On a host with source routing there is one more for each network.)
 *
 * The kernel looks by the same rules whether a packet may have come by the device it came by (rp_filter), as if it were
 * sent from here to its source: with `iif lo`, and with the packet's mark where src_valid_mark is set. What comes out of
 * the fabric has a mark for that: its clients are reached by the node that sent it. The packet itself goes on as if it had
 * none. What is on its way back comes from a sandbox, and for its source its mark does not count.
 */
const frame = [
  `pref ${rulePriority.end} nop`,
  `pref ${rulePriority.fabric} iif ${fabricLink} goto ${rulePriority.end}`,
  `pref ${rulePriority.skip} not fwmark ${hex(returnMarkBase)}/${hex(kind - sourceMark)} goto ${rulePriority.end}`,
  `pref ${rulePriority.source} iif lo fwmark ${hex(returnMarkBase)}/${hex(kind)} goto ${rulePriority.end}`,
];

function backRule(number: number): string {
  return `pref ${rulePriority.back} fwmark ${hex(returnMarkBase + number)}/${hex(eitherWay)} lookup ${returnTableBase + number}`;
}

/** What the kernel shall hold for these nodes, and for a host with source routing. */
export function expectedNeighbours(
  desired: readonly Neighbour[],
  routes: readonly SourceRoute[] = [],
  networks: readonly { subnet: string }[] = [],
): ObservedNeighbours {
  const subnets = networks.map(({ subnet }) => subnet);
  const ownTables = sourceRules(routes, subnets);
  if (desired.length === 0) return { ...noNeighbours, rules: new Set(ownTables) };
  return {
    neighbours: new Set(desired.map(({ address }) => `${address} ${fabricMac(address)}`)),
    forwarding: new Set(desired.map(({ address }) => `${fabricMac(address)} ${address}`)),
    rules: new Set([...ownTables, ...frame, ...desired.map(({ number }) => backRule(number))]),
  };
}

/** A permanent entry for a neighbour, of whatever device. */
export interface PermanentNeighbour {
  dst: string;
  dev: string;
  lladdr?: string;
}
interface BridgeForwarding {
  mac: string;
  dst?: string;
}

/** Reads what there is; nothing of the fabric device where that is missing. */
export async function observeNeighbours(run: Runner): Promise<ObservedNeighbours> {
  const [neighbours, forwarding, rules] = await Promise.all([
    observePermanent(run),
    readForwarding(run),
    observeRules(run),
  ]);
  return {
    neighbours: new Set(
      neighbours.filter(({ dev }) => dev === fabricLink).map(({ dst, lladdr }) => `${dst} ${lladdr ?? ''}`),
    ),
    forwarding: new Set(forwarding.flatMap(({ mac, dst }) => (dst === undefined ? [] : [`${mac} ${dst}`]))),
    rules: new Set(rules.filter(({ protocol }) => protocol === String(routeProtocol)).map(formatRule)),
  };
}

/** Reads who is known for good by which MAC address, on all devices. */
export async function observePermanent(run: Runner): Promise<PermanentNeighbour[]> {
  return parse(await run('ip', ['-4', '-j', 'neigh', 'show', 'nud', 'permanent']));
}

async function readForwarding(run: Runner): Promise<BridgeForwarding[]> {
  try {
    return parse(await run('bridge', ['-j', 'fdb', 'show', 'dev', fabricLink]));
  } catch (error) {
    if (error instanceof CommandError && /Cannot find (bridge )?device/.test(error.stderr)) return [];
    throw error;
  }
}

/** iproute2 says nothing where there is nothing. */
function parse<T>(text: string): T[] {
  return (text.trim() === '' ? [] : JSON.parse(text)) as T[];
}

/** In the words of {@link expectedNeighbours}, which is also how it is deleted. */
function formatRule(rule: IpRule): string {
  const { priority, not, dst, dstlen = 32, iif, fwmark, fwmask, table, suppress_prefixlen, goto } = rule;
  const mask = fwmask === undefined ? '' : `/${hex(Number(fwmask))}`;
  return [
    `pref ${priority}`,
    ...(not === undefined ? [] : ['not']),
    ...(dst === undefined ? [] : [`to ${dst}/${dstlen}`]),
    ...(iif === undefined ? [] : [`iif ${iif}`]),
    ...(fwmark === undefined ? [] : [`fwmark ${hex(Number(fwmark))}${mask}`]),
    goto !== undefined ? `goto ${goto}` : table !== undefined ? `lookup ${table}` : 'nop',
    ...(suppress_prefixlen === undefined ? [] : [`suppress_prefixlength ${suppress_prefixlen}`]),
  ].join(' ');
}

/** Lines for `ip -batch` and `bridge -batch`. */
export interface NeighbourPlan {
  add: { ip: string[]; bridge: string[] };
  remove: { ip: string[]; bridge: string[] };
}

/** What a rule guards goes before it, and what it leads on to after it: the ends, which do nothing, are last. */
function lastFirst(one: string, other: string): number {
  const rank = (rule: string): number =>
    rule.endsWith(' nop') ? -1 : Number(/^pref (\d+)/.exec(rule)?.[1] ?? 0);
  return rank(other) - rank(one);
}

/** What to add before routes use it, and what to remove after none does. */
export function planNeighbours(actual: ObservedNeighbours, desired: ObservedNeighbours): NeighbourPlan {
  // The sets are large where there are many nodes, and hardly ever change.
  if (actual === desired) return { add: { ip: [], bridge: [] }, remove: { ip: [], bridge: [] } };
  const missing = (key: keyof ObservedNeighbours): string[] =>
    [...desired[key]].filter((entry) => !actual[key].has(entry));
  const surplus = (key: keyof ObservedNeighbours): string[] =>
    [...actual[key]].filter((entry) => !desired[key].has(entry));
  // A node that changed its MAC address has the old entry replaced, not removed.
  const first = (entry: string): string => entry.split(' ', 1)[0] ?? '';
  const kept = new Set([...desired.neighbours, ...desired.forwarding].map(first));
  const tag = `protocol ${routeProtocol}`;
  const words = (entry: string): [string, string] => entry.split(' ') as [string, string];
  return {
    add: {
      ip: [
        ...missing('neighbours')
          .map(words)
          .map(([address, mac]) => `neigh replace ${address} lladdr ${mac} dev ${fabricLink} nud permanent`),
        ...missing('rules').map((rule) => `rule add ${rule} ${tag}`),
      ],
      bridge: missing('forwarding')
        .map(words)
        .map(([mac, address]) => `fdb replace ${mac} dev ${fabricLink} dst ${address} self permanent`),
    },
    remove: {
      ip: [
        ...surplus('rules')
          .sort(lastFirst)
          .map((rule) => `rule del ${rule} ${tag}`),
        ...surplus('neighbours')
          .map(words)
          .filter(([address]) => !kept.has(address))
          .map(([address]) => `neigh del ${address} dev ${fabricLink}`),
      ],
      bridge: surplus('forwarding')
        .map(words)
        .filter(([mac]) => !kept.has(mac))
        .map(([mac]) => `fdb del ${mac} dev ${fabricLink} self`),
    },
  };
}

/** Runs lines of `bridge -batch` in one process; no process for no lines. @throws {CommandError} */
export async function runBridgeBatch(run: Runner, lines: readonly string[]): Promise<void> {
  if (lines.length === 0) return;
  for (const line of lines) safe('bridge', line, safeWords);
  await run('bridge', ['-force', '-batch', '-'], { input: lines.join('\n') + '\n' });
}
