// Owns the fabric's knowledge of the other nodes: a neighbour entry and a forwarding entry for each, and the policy rules
// that lead replies back to the node their connection came in by.
// Must not decide which nodes there are, and must not know endpoints: those are routes via a node (net/routes.ts).
import {
  fabricLink,
  fabricMac,
  returnMarkBase,
  returnTableBase,
  routeProtocol,
  rulePriority,
} from './names.ts';
import { CommandError, type Runner } from './run.ts';

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

const hex = (mark: number): string => `0x${mark.toString(16).padStart(8, '0')}`;

/**
 * Policy rules are read one after the other for every packet that is routed, so all but one are skipped for packets
 * that are not on their way back.
 */
const frame = [
  `pref ${rulePriority.end} nop`,
  `pref ${rulePriority.skip} not fwmark ${hex(returnMarkBase)}/0xff000000 goto ${rulePriority.end}`,
];

function backRule(number: number): string {
  return `pref ${rulePriority.back} fwmark ${hex(returnMarkBase + number)} lookup ${returnTableBase + number}`;
}

/** What the kernel shall hold for these nodes. */
export function expectedNeighbours(wanted: readonly Neighbour[]): ObservedNeighbours {
  if (wanted.length === 0) return noNeighbours;
  return {
    neighbours: new Set(wanted.map(({ address }) => `${address} ${fabricMac(address)}`)),
    forwarding: new Set(wanted.map(({ address }) => `${fabricMac(address)} ${address}`)),
    rules: new Set([...frame, ...wanted.map(({ number }) => backRule(number))]),
  };
}

interface IpNeighbour {
  dst: string;
  lladdr?: string;
}
interface BridgeForwarding {
  mac: string;
  dst?: string;
}
interface IpRule {
  priority: number;
  fwmark?: string;
  table?: string;
  goto?: number;
  protocol?: string;
}

/** Reads what there is; nothing of the fabric device where that is missing. */
export async function observeNeighbours(run: Runner): Promise<ObservedNeighbours> {
  const [neighbours, forwarding, rules] = await Promise.all([
    readOfFabric<IpNeighbour>(run, 'ip', [
      '-4',
      '-j',
      'neigh',
      'show',
      'dev',
      fabricLink,
      'nud',
      'permanent',
    ]),
    readOfFabric<BridgeForwarding>(run, 'bridge', ['-j', 'fdb', 'show', 'dev', fabricLink]),
    run('ip', ['-4', '-j', 'rule', 'show']).then((text) => JSON.parse(text) as IpRule[]),
  ]);
  return {
    neighbours: new Set(neighbours.map(({ dst, lladdr }) => `${dst} ${lladdr ?? ''}`)),
    forwarding: new Set(forwarding.flatMap(({ mac, dst }) => (dst === undefined ? [] : [`${mac} ${dst}`]))),
    rules: new Set(rules.filter(({ protocol }) => protocol === String(routeProtocol)).map(formatRule)),
  };
}

async function readOfFabric<T>(run: Runner, tool: 'ip' | 'bridge', args: string[]): Promise<T[]> {
  try {
    const text = await run(tool, args);
    return (text.trim() === '' ? [] : JSON.parse(text)) as T[];
  } catch (error) {
    if (error instanceof CommandError && /Cannot find (bridge )?device/.test(error.stderr)) return [];
    throw error;
  }
}

/** In the words of {@link expectedNeighbours}; a rule of another shape comes out as one that is not wanted. */
function formatRule({ priority, fwmark, table, goto }: IpRule): string {
  if (priority === rulePriority.end) return frame[0] ?? '';
  if (goto !== undefined && priority === rulePriority.skip) return frame[1] ?? '';
  return `pref ${priority} fwmark ${hex(Number(fwmark))} lookup ${table ?? ''}`;
}

/** Lines for `ip -batch` and `bridge -batch`. */
export interface NeighbourPlan {
  add: { ip: string[]; bridge: string[] };
  remove: { ip: string[]; bridge: string[] };
}

/** What to add before routes use it, and what to remove after none does. */
export function planNeighbours(actual: ObservedNeighbours, wanted: ObservedNeighbours): NeighbourPlan {
  // The sets are large where there are many nodes, and hardly ever change.
  if (actual === wanted) return { add: { ip: [], bridge: [] }, remove: { ip: [], bridge: [] } };
  const missing = (key: keyof ObservedNeighbours): string[] =>
    [...wanted[key]].filter((entry) => !actual[key].has(entry));
  const surplus = (key: keyof ObservedNeighbours): string[] =>
    [...actual[key]].filter((entry) => !wanted[key].has(entry));
  // A node that changed its MAC address has the old entry replaced, not removed.
  const first = (entry: string): string => entry.split(' ', 1)[0] ?? '';
  const kept = new Set([...wanted.neighbours, ...wanted.forwarding].map(first));
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
        ...surplus('rules').map((rule) => `rule del ${rule} ${tag}`),
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
  if (lines.length > 0) await run('bridge', ['-force', '-batch', '-'], { input: lines.join('\n') + '\n' });
}
