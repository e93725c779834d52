// Owns the ports that single containers publish on their own node (docker run -p, mode=host), as nft for both engines:
// there is one container to each, so nothing is balanced.
// Must not decide which they are.
import type { NftElements, NftSet } from '../net/table.ts';
import type { HostPort } from '../store/records.ts';
import { balanced, toNode } from './chains.ts';

/** A container, and what it publishes. */
export interface Publisher {
  address: string;
  ports: readonly HostPort[];
}

export const hostPortSets = {
  host_ports: { kind: 'map', declaration: 'type inet_proto . inet_service : ipv4_addr . inet_service;' },
  host_ports_at: {
    kind: 'map',
    declaration: 'type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service;',
  },
} satisfies Record<string, NftSet>;

/** For the nat chains of both directions: one look-up for each map, whatever their size. */
export const hostPortRules = [
  `${balanced} dnat ip to ip daddr . meta l4proto . th dport map @host_ports_at`,
  `${toNode} ${balanced} dnat ip to meta l4proto . th dport map @host_ports`,
];

export function hostPortElements(publishers: readonly Publisher[]): Map<string, NftElements> {
  const [anywhere, somewhere] = [new Map<string, string>(), new Map<string, string>()];
  for (const { address: container, ports } of publishers)
    for (const { protocol, address, port, targetPort } of ports) {
      const target = `${container} . ${targetPort}`;
      if (address === undefined) anywhere.set(`${protocol} . ${port}`, target);
      else somewhere.set(`${address} . ${protocol} . ${port}`, target);
    }
  return new Map<string, NftElements>([
    ['host_ports', anywhere],
    ['host_ports_at', somewhere],
  ]);
}
