// Owns the ports that single containers publish on their own node (docker run -p, mode=host), as nft for both engines:
// there is one container to each, so nothing is balanced.
// Must not decide which they are.
import { contentName, type NftElements, type NftPart, type NftSet } from '../net/table.ts';
import type { HostPort, PolicyRecord } from '../store/records.ts';
import { balanced, noopDnat, refused, toNode } from './chains.ts';

/** A container, and what it publishes. */
export interface HostPortContainer {
  address: string;
  ports: readonly HostPort[];
  /** Who may connect: of a policy `bind`, `allow` and `deny`; absent: everybody. */
  access?: PolicyRecord | 'nobody';
}

const anywhere = 'type inet_proto . inet_service';
const somewhere = 'type ipv4_addr . inet_proto . inet_service';

export const hostPortSets = {
  host_ports: { kind: 'map', declaration: `${anywhere} : ipv4_addr . inet_service;` },
  host_ports_at: { kind: 'map', declaration: `${somewhere} : ipv4_addr . inet_service;` },
  host_guards: { kind: 'map', declaration: `${anywhere} : verdict;` },
  host_guards_at: { kind: 'map', declaration: `${somewhere} : verdict;` },
} satisfies Record<string, NftSet>;

/** For the nat chains of both directions: one look-up for each map, whatever their size. */
export const hostPortRules = [
  `${balanced} ip daddr . meta l4proto . th dport vmap @host_guards_at`,
  `${balanced} dnat ip to ip daddr . meta l4proto . th dport map @host_ports_at`,
  `${toNode} ${balanced} meta l4proto . th dport vmap @host_guards`,
  `${toNode} ${balanced} dnat ip to meta l4proto . th dport map @host_ports`,
];

/** The content of {@link hostPortSets}; of two that publish the same, the latter counts. */
export function renderHostPorts(containers: readonly HostPortContainer[]): {
  elements: Map<string, NftElements>;
  parts: readonly NftPart[];
} {
  const maps = {
    host_ports: new Map<string, string>(),
    host_ports_at: new Map<string, string>(),
    host_guards: new Map<string, string>(),
    host_guards_at: new Map<string, string>(),
  };
  /** By name: those with the same policy share one. */
  const chains = new Map<string, readonly string[]>();
  for (const { address: container, ports, access } of containers) {
    const verdict = guard(access, chains);
    for (const { protocol, address, port, targetPort } of ports) {
      const where = address === undefined ? '' : '_at';
      const key = [...(address === undefined ? [] : [address]), protocol, port].join(' . ');
      maps[`host_ports${where}`].set(key, `${container} . ${targetPort}`);
      if (verdict === undefined) maps[`host_guards${where}`].delete(key);
      else maps[`host_guards${where}`].set(key, verdict);
    }
  }
  return { elements: new Map(Object.entries(maps)), parts: [{ chains: [...chains], elements: [] }] };
}

/** @returns what becomes of a connection ahead of its translation; undefined where everybody is let in */
function guard(
  access: HostPortContainer['access'],
  chains: Map<string, readonly string[]>,
): string | undefined {
  // Nobody gets no answer: who is let in soon asks again.
  const rules = access === 'nobody' ? ['drop'] : refused(access, noopDnat);
  if (rules.length === 0) return undefined;
  const chain = contentName('host', rules);
  chains.set(chain, rules);
  return `jump ${chain}`;
}
