// Owns the pieces of nft that both engines share: translating to a real server, and refusing what has none.
// Must not know which engine uses them.
import { isIPv4 } from 'node:net';
import { hex, markBase, markMask } from '../net/names.ts';
import { contentName, type NftBaseChain, type NftPart, type NftSet } from '../net/table.ts';
import type { PolicyRecord } from '../store/records.ts';
import { fillTable, placesFor } from './maglev.ts';
import { activeServers, virtualServerId, type Choice, type RealServer, type VirtualServer } from './model.ts';

/**
 * The nat hooks run just ahead of Docker's own mesh, which translates published ports at -100 whatever the order of
 * its rules: the first nat chain that decides about a connection is the one that counts.
 */
export const aheadOfDocker = '-101';

export const balanced = 'meta l4proto { tcp, udp, sctp }';

/** Where programs of the node itself listen, such as its resolver at 127.0.0.53: no service is published there. */
const otherLoopback = '127.0.0.2-127.255.255.255';

/** A packet to one of the node's own addresses, 127.0.0.1 among them. */
export const toNode = `ip daddr != ${otherLoopback} fib daddr type local`;

/**
 * A sandbox's packet to another node: its published ports are balanced here already, or the task would see this node's
 * address, and whom the service lets in could not be told.
 */
export const toOtherNode = 'iifname "cw-*" ip daddr @nodes';

/** Decided by Causeway: no nat chain behind this one is asked, and the packet stays on the node. */
export const noopDnat = 'dnat ip to ip daddr';

const marked = `meta mark & ${hex(markMask)} == ${hex(markBase)}`;
const unmarked = `meta mark & ${hex(markMask)} != ${hex(markBase)}`;
export { marked };

/** `@vips`, every VIP, and `@published`, every published port, for {@link refusal}. */
export const knownSets = {
  vips: { kind: 'set', declaration: 'type ipv4_addr;' },
  published: { kind: 'set', declaration: 'type inet_proto . inet_service;' },
} satisfies Record<string, NftSet>;

/**
 * What reaches the node itself by a VIP or a published port found no real server. It is refused at once: a VIP is a
 * local address, so otherwise the node's own daemons would answer on it, and behind a published port Docker's
 * placeholder socket would accept the connection and never answer.
 */
export const refusal: NftBaseChain = {
  hook: 'type filter hook input priority filter - 5; policy accept;',
  rules: [`ct state new ${unmarked} jump refuse_known`],
};
export const refuseKnown: NftBaseChain = {
  rules: [
    // By IPv6 there is no real server either: who tries ::1 first learns at once to try 127.0.0.1.
    `ip daddr ${otherLoopback} return`,
    `meta l4proto tcp ip daddr @vips reject with tcp reset`,
    `${balanced} ip daddr @vips reject`,
    `meta l4proto tcp fib daddr type local meta l4proto . th dport @published reject with tcp reset`,
    `${balanced} fib daddr type local meta l4proto . th dport @published reject`,
  ],
};

/** The ways around the balancer, and so around whom a service lets in: by another node, and into Docker's own mesh. */
export const detours: NftBaseChain = {
  hook: 'type filter hook forward priority filter; policy accept;',
  rules: ['ct state new ct status & dnat == 0 meta l4proto . th dport @published jump refuse_detour'],
};
export const refuseDetour: NftBaseChain = {
  rules: [toOtherNode, 'oifname "docker_gwbridge"'].flatMap((way) => [
    `${way} meta l4proto tcp reject with tcp reset`,
    `${way} reject`,
  ]),
};

/** The server's elements of {@link knownSets}. */
export function knownElements(server: VirtualServer): NftPart['elements'] {
  return elementsOf(server, { vip: 'vips', port: 'published' }, '');
}

/** An element with that value for the server's address, or for each of its ports in a set of `inet_proto . inet_service`. */
export function elementsOf(
  server: VirtualServer,
  sets: Record<VirtualServer['kind'], string>,
  value: string,
): NftPart['elements'] {
  if (server.kind === 'vip') return [[sets.vip, server.address, value]];
  const { protocol, port, count = 1 } = server;
  return Array.from({ length: count }, (_, at) => [sets.port, `${protocol} . ${port + at}`, value] as const);
}

/** A chain that translates a connection to one of the real servers, if it may come in at all. */
export function translation(server: VirtualServer): { name: string; rules: string[] } {
  const rules = [...refused(policyOfPort(server), noopDnat), translate(server)];
  return { name: contentName(virtualServerId(server), rules), rules };
}

/** Who is let in is asked at published ports only. */
export function policyOfPort(server: VirtualServer): PolicyRecord | undefined {
  return server.kind === 'vip' ? undefined : server.policy;
}

/**
 * Rules for the connections to a published port that its policy does not let in. The node's own need no allowance, but none
 * comes in where the policy could not be read.
 * @param verdict what becomes of them
 */
export function refused({ bind, allow, deny, closed }: PolicyRecord = {}, verdict: string): string[] {
  if (closed === true) return [verdict];
  const matches: string[] = [];
  if (bind !== undefined) {
    const [addresses, devices] = [bind.filter((item) => isIPv4(item)), bind.filter((item) => !isIPv4(item))];
    const other = [
      ...(addresses.length > 0 ? [`ip daddr != { ${addresses.join(', ')} }`] : []),
      ...(devices.length > 0 ? [`iifname != { ${devices.map((name) => `"${name}"`).join(', ')} }`] : []),
    ];
    matches.push(other.join(' '));
  }
  if (deny !== undefined) matches.push(`fib saddr type != local ip saddr { ${deny.join(', ')} }`);
  if (allow !== undefined) matches.push(`fib saddr type != local ip saddr != { ${allow.join(', ')} }`);
  return matches.map((match) => `${match} ${verdict}`);
}

/** Schedulers to which all that take connections are the same, as in IPVS. */
const unweighted: ReadonlySet<string> = new Set(['rr', 'lc']);

/** How nft comes nearest to what the policy wants. */
function choiceOf({ policy = {} }: VirtualServer): Choice {
  if (policy.scheduler === 'sh' || policy.affinity !== undefined) return 'source';
  return policy.scheduler === 'mh' ? 'flow' : 'turn';
}

/** The same at every node, so that the same client hashes to the same place. */
const hashSeed = '0x63617573';

function translate(server: VirtualServer): string {
  const servers = activeServers(server);
  if (servers.length === 0) return noopDnat;
  const { scheduler = 'wrr' } = server.policy ?? {};
  const target = `dnat ip to ${choose(servers, choiceOf(server), !unweighted.has(scheduler))}`;
  // Without a port it stays the one that was asked for.
  if (server.kind === 'vip' || server.count !== undefined) return target;
  return `meta l4proto ${server.protocol} ${target} : ${server.targetPort}`;
}

function choose(servers: readonly RealServer[], choice: Choice, weighted: boolean): string {
  const addresses = servers.map(({ address }) => address);
  const weights = servers.map(({ weight }) => (weighted ? weight : 1));
  if (choice === 'turn' || servers.length === 1) {
    const shares = sharesOf(weights);
    const turns = turnsOf(shares);
    return `numgen inc mod ${turns.length} map { ${ranges(turns, addresses)} }`;
  }
  const places = placesFor(servers.length);
  const table = fillTable(
    addresses.map((name, at) => ({ name, weight: weights[at] ?? 1 })),
    places,
  );
  const what = choice === 'source' ? 'ip saddr' : 'ip saddr . th sport';
  return `jhash ${what} mod ${places} seed ${hashSeed} map { ${ranges(table, addresses)} }`;
}

/** The smallest numbers in the proportion of the weights. */
function sharesOf(weights: readonly number[]): number[] {
  const common = weights.reduce(greatestDivisor, 0);
  return weights.map((weight) => weight / common);
}

/** In longer rounds the turns of a server follow each other: each change of hands is an element of the map. */
const longestSpread = 512;

/**
 * Places in the list of shares, each as often as its share. Spread evenly, as blocks would be bursts; and the largest share first:
 * a new chain counts from the beginning, and must not begin with the server that has the least.
 */
function turnsOf(shares: readonly number[]): number[] {
  const round = shares.reduce((sum, share) => sum + share, 0);
  if (round > longestSpread) return shares.flatMap((share, at) => new Array<number>(share).fill(at));
  const credit = shares.map(() => 0);
  return Array.from({ length: round }, () => {
    for (const [at, share] of shares.entries()) credit[at] = (credit[at] ?? 0) + share;
    const next = credit.indexOf(Math.max(...credit));
    credit[next] = (credit[next] ?? 0) - round;
    return next;
  });
}

function greatestDivisor(one: number, other: number): number {
  return other === 0 ? one : greatestDivisor(other, one % other);
}

/** Elements of a map from places to addresses; neighbours with the same address are one element. */
function ranges(table: readonly number[], addresses: readonly string[]): string {
  const elements: string[] = [];
  for (let from = 0; from < table.length;) {
    let to = from;
    while (to + 1 < table.length && table[to + 1] === table[from]) to += 1;
    elements.push(`${from === to ? from : `${from}-${to}`} : ${addresses[table[from] ?? 0] ?? ''}`);
    from = to + 1;
  }
  return elements.join(', ');
}
