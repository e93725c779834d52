// Owns the second choice: a connection that its real server refuses is offered to another one, once.
// Must not choose; the client's next SYN is balanced as any other.
import type { NftBaseChain, NftPart, NftSet } from '../net/table.ts';
import { activeServers, type VirtualServer } from './model.ts';

/** Longer than from a client's first SYN to its second (1 s, RFC 6298) and the answer to that. */
const remembered = '3s';

/** A connection as its client knows it. Only behind a match of TCP does nft know that there are ports. */
const connection =
  'ct original ip saddr . ct original proto-src . ct original ip daddr . ct original proto-dst';

export const secondChoiceSets = {
  // Where there is a second choice.
  several_vips: { kind: 'set', declaration: 'type ipv4_addr;' },
  // A row of ports is one element, so that a service of thousands costs as much as one of one.
  several_tcp_ports: { kind: 'set', declaration: 'type inet_service; flags interval;' },
  refused_once: {
    kind: 'set',
    declaration:
      'type ipv4_addr . inet_service . ipv4_addr . inet_service; size 16384; flags dynamic,timeout; ' +
      `timeout ${remembered};`,
    filledByRules: true,
  },
} satisfies Record<string, NftSet>;

/**
 * A task that ends closes its port before every node has it out of its balancer: at once, where a node gets no processor
 * for a while. Conntrack forgets a connection that is refused, so when the refusal does not arrive, the client's second
 * SYN finds another task. A second refusal is passed on: where no task listens, the client learns it a second later.
 */
export const secondChoiceChains = {
  second_choice: {
    hook: 'type filter hook prerouting priority mangle; policy accept;',
    rules: [
      // The answer to a SYN has no number of its own (RFC 9293, 3.10.7.1); what ends a connection has.
      'tcp flags & (rst | ack) == rst | ack tcp sequence 0 iifname "cw-*" ct direction reply ct status & dnat == dnat jump refused',
    ],
  },
  refused: {
    rules: [
      'ct original ip daddr @several_vips goto offer_again',
      'meta l4proto tcp ct original proto-dst @several_tcp_ports goto offer_again',
    ],
  },
  offer_again: {
    rules: [
      `meta l4proto tcp ${connection} @refused_once return`,
      // A full set refuses the element, and the rule ends there: then the first refusal is passed on, too.
      `meta l4proto tcp add @refused_once { ${connection} } drop`,
    ],
  },
} satisfies Record<string, NftBaseChain>;

/** The server's elements of {@link secondChoiceSets}. */
export function secondChoiceElements(server: VirtualServer): NftPart['elements'] {
  if (activeServers(server).length < 2) return [];
  if (server.kind === 'vip') return [['several_vips', server.address, '']];
  const { protocol, port, count = 1 } = server;
  if (protocol !== 'tcp') return [];
  return [['several_tcp_ports', count === 1 ? String(port) : `${port}-${port + count - 1}`, '']];
}
