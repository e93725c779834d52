// Owns the rules that make routed endpoints a network: who may speak to whom, and what leaves with which address.
// Must not know of services or balancing; lb/ adds its own chains to the same table.
import { fabricMac, returnMarkBase, vethName } from './names.ts';
import type { Neighbour } from './neighbours.ts';
import type { NftElements, NftLayout } from './table.ts';

/** A network as the rules see it. Addresses are IPv4, subnets in CIDR form. */
export interface RuledNetwork {
  subnet: string;
  gateway: string;
  /** No way in or out but through published ports. */
  internal: boolean;
}

/** An endpoint on this node. */
export interface RuledEndpoint {
  id: string;
  address: string;
}

/** What the rules need to know of the fabric. */
export interface RuledFabric {
  /** UDP port of the encapsulation. */
  port: number;
  /** This node's own address in the underlay. */
  address: string;
  neighbours: readonly Neighbour[];
  /** Endpoints whose connections may change the node that they come in by. */
  movable: readonly string[];
}

const hex = (mark: number): string => `0x${mark.toString(16).padStart(8, '0')}`;
const cameByFabric = `ct mark & 0xff000000 == ${hex(returnMarkBase)}`;

// Marks are set at priority mangle (-150) by the balancer, and Docker translates at dstnat (-100). The guard looks at
// what the sandbox really sent, so it comes before both, and after conntrack (-200), which tells it what is a reply.
const guardPriority = 'mangle - 5';

/** Zones of conntrack have 16 bits, and 0 is where everything else is. */
const zones = 0xffff;

/** The sets and chains every Causeway table has. */
export const netLayout: NftLayout = {
  sets: {
    // Which address may come out of which veth.
    sources: { kind: 'set', declaration: 'type ifname . ipv4_addr;' },
    subnets: { kind: 'set', declaration: 'type ipv4_addr; flags interval;' },
    // Subnet paired with itself: source and destination are on the same network.
    within: { kind: 'set', declaration: 'type ipv4_addr . ipv4_addr; flags interval;' },
    internal: { kind: 'set', declaration: 'type ipv4_addr; flags interval;' },
    // Address paired with itself: an endpoint that was balanced to itself.
    hairpins: { kind: 'set', declaration: 'type ipv4_addr . ipv4_addr;' },
    gateways: { kind: 'map', declaration: 'type ipv4_addr : ipv4_addr; flags interval;' },
    fabric_ports: { kind: 'set', declaration: 'type inet_service;' },
    nodes: { kind: 'set', declaration: 'type ipv4_addr;' },
    // The other nodes by the MAC address of their fabric device, with the mark that leads back to each. Two of them,
    // because Linux 6.1 cannot tell that something is not in a map.
    node_macs: { kind: 'set', declaration: 'type ether_addr;' },
    return_marks: { kind: 'map', declaration: 'type ether_addr : mark;' },
    zones: { kind: 'map', declaration: 'typeof ether saddr : ct zone;' },
    movable: { kind: 'set', declaration: 'type ipv4_addr;' },
    // Sources another node would take for its own addresses, with the one that only this node has.
    everywhere: { kind: 'map', declaration: 'type ipv4_addr : ipv4_addr; flags interval;' },
  },
  chains: {
    // A client may have connections from one port of its own to several nodes, which are all balanced to one task: alike
    // in everything but the node they came by. In a zone of its node each is known from the others, and as the zone is
    // that of the one direction only, the kernel gives the later one another source port on its way to the task.
    // A connection that changes the node would not be known in the other's zone.
    zone: {
      hook: 'type filter hook prerouting priority raw; policy accept;',
      rules: ['iifname "cw-fabric" ip daddr != @movable ct original zone set ether saddr map @zones'],
    },
    guard: {
      hook: `type filter hook prerouting priority ${guardPriority}; policy accept;`,
      rules: ['iifname "cw-*" meta nfproto ipv4 jump from_endpoint'],
    },
    from_endpoint: {
      rules: [
        'iifname "cw-fabric" goto from_node',
        'iifname . ip saddr != @sources drop',
        // route_localnet is on for the veths, so the kernel itself no longer refuses these.
        'ip daddr 127.0.0.0/8 drop',
        // What came in by another node goes back by it, which knows the client and undoes the balancing.
        `ct direction reply ${cameByFabric} meta mark set ct mark return`,
        'ct direction reply return',
        'ip saddr . ip daddr @within return',
        'ip daddr @subnets drop',
        'ip saddr @internal drop',
      ],
    },
    from_node: {
      rules: [
        'ether saddr != @node_macs drop',
        // route_localnet is on for the fabric too.
        'ip daddr 127.0.0.0/8 drop',
        // With every packet, not with the first alone: a connection may change the node it comes in by.
        'ct direction original ct mark set ether saddr map @return_marks',
      ],
    },
    input: {
      hook: 'type filter hook input priority filter - 5; policy accept;',
      rules: [
        'udp dport @fabric_ports ip saddr != @nodes drop',
        // What is for this node itself comes by the underlay.
        'iifname "cw-fabric" ct state new drop',
      ],
    },
    encapsulate: {
      hook: 'type filter hook postrouting priority srcnat + 10; policy accept;',
      rules: [
        // The packet of the encapsulation inherits the mark, and would be balanced or sent back once more.
        'oifname "cw-fabric" meta mark set 0',
      ],
    },
    forward: {
      hook: 'type filter hook forward priority filter; policy accept;',
      rules: [
        // From outside, only what was balanced may reach an endpoint: its unpublished ports are nobody's business.
        // (IPVS hands its packets over behind this hook.)
        'oifname "cw-*" iifname != "cw-*" ct state new ct status & dnat == 0 drop',
      ],
    },
    source: {
      hook: 'type nat hook postrouting priority srcnat - 1; policy accept;',
      rules: [
        // This node's own connections, and those of another node to a port it has published itself: its task there
        // could not answer to an address that is local where it is.
        'oifname "cw-fabric" snat ip to ip saddr map @everywhere',
        // A task that was balanced to itself would answer itself without passing the balancer again.
        'oifname "cw-*" ip saddr . ip daddr @hairpins snat ip to ip daddr map @gateways',
        // The node's own connections to 127.0.0.1:PORT: a sandbox cannot answer to 127.0.0.1.
        'oifname "cw-*" ip saddr 127.0.0.0/8 snat ip to ip daddr map @gateways',
        'oifname != "cw-*" ip saddr @subnets masquerade',
      ],
    },
  },
};

/** The elements of {@link netLayout}'s sets. */
export function netElements(
  networks: readonly RuledNetwork[],
  endpoints: readonly RuledEndpoint[],
  fabric: RuledFabric,
): Map<string, NftElements> {
  const set = (keys: string[]): NftElements => new Map(keys.map((key) => [key, '']));
  return new Map([
    ['sources', set(endpoints.map(({ id, address }) => `${vethName(id)} . ${address}`))],
    ['subnets', set(networks.map(({ subnet }) => subnet))],
    ['within', set(networks.map(({ subnet }) => `${subnet} . ${subnet}`))],
    ['internal', set(networks.filter(({ internal }) => internal).map(({ subnet }) => subnet))],
    ['hairpins', set(endpoints.map(({ address }) => `${address} . ${address}`))],
    ['gateways', new Map(networks.map(({ subnet, gateway }) => [subnet, gateway]))],
    ['fabric_ports', set([String(fabric.port)])],
    ['nodes', set(fabric.neighbours.map(({ address }) => address))],
    ['node_macs', set(fabric.neighbours.map(({ address }) => fabricMac(address)))],
    [
      'return_marks',
      new Map(
        fabric.neighbours.map(({ address, number }) => [fabricMac(address), String(returnMarkBase + number)]),
      ),
    ],
    ['movable', set([...new Set(fabric.movable)])],
    [
      'zones',
      new Map(
        fabric.neighbours.map(({ address, number }) => [
          fabricMac(address),
          String(1 + ((number - 1) % zones)),
        ]),
      ),
    ],
    [
      'everywhere',
      new Map([
        ['127.0.0.0/8', fabric.address],
        ...networks.map(({ gateway }) => [gateway, fabric.address] as const),
        ...fabric.neighbours.map(({ address }) => [address, fabric.address] as const),
      ]),
    ],
  ]);
}
