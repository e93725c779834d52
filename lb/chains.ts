// Owns the pieces of nft that both engines share: translating to a real server, and refusing what has none.
// Must not know which engine uses them.
import { markBase, markMask } from '../net/names.ts';
import { contentName, type NftBaseChain, type NftPart, type NftSet } from '../net/table.ts';
import { takers, virtualServerId, type VirtualServer } from './model.ts';

/**
 * The nat hooks run just ahead of Docker's own mesh, which translates published ports at -100 whatever the order of
 * its rules: the first nat chain that decides about a connection is the one that counts.
 */
export const aheadOfDocker = '-101';

export const balanced = 'meta l4proto { tcp, udp, sctp }';

/** A packet to one of the node's own addresses, 127.0.0.0/8 among them. */
export const toNode = 'meta nfproto ipv4 fib daddr type local';

/** Decided by Causeway: no nat chain behind this one is asked, and the packet stays on the node. */
export const decidedHere = 'dnat ip to ip daddr';

const marked = `meta mark & ${hex(markMask)} == ${hex(markBase)}`;
const unmarked = `meta mark & ${hex(markMask)} != ${hex(markBase)}`;
export { marked };

function hex(mark: number): string {
  return `0x${mark.toString(16).padStart(8, '0')}`;
}

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
  rules: [`meta nfproto ipv4 ct state new ${unmarked} jump refuse_known`],
};
export const refuseKnown: NftBaseChain = {
  rules: [
    `meta l4proto tcp ip daddr @vips reject with tcp reset`,
    `${balanced} ip daddr @vips reject`,
    `meta l4proto tcp fib daddr type local meta l4proto . th dport @published reject with tcp reset`,
    `${balanced} fib daddr type local meta l4proto . th dport @published reject`,
  ],
};

/** The server's element of {@link knownSets}. */
export function knownElement(server: VirtualServer): NftPart['elements'][number] {
  return server.kind === 'vip' ? ['vips', server.address, ''] : ['published', portKey(server), ''];
}

/** The key of a published port in sets of `inet_proto . inet_service`. */
export function portKey({ protocol, port }: { protocol: string; port: number }): string {
  return `${protocol} . ${port}`;
}

/** A chain that translates a connection to the real servers in turn. */
export function translation(server: VirtualServer): { name: string; rules: string[] } {
  const rules = [translate(server)];
  return { name: contentName(virtualServerId(server), rules), rules };
}

function translate(server: VirtualServer): string {
  const turns = takers(server);
  if (turns.length === 0) return decidedHere;
  const map = turns.map(({ address }, turn) => `${turn} : ${address}`).join(', ');
  const target = `dnat ip to numgen inc mod ${turns.length} map { ${map} }`;
  return server.kind === 'vip' ? target : `meta l4proto ${server.protocol} ${target} : ${server.targetPort}`;
}
