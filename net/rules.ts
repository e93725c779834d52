// Owns the rules that make routed endpoints a network: who may speak to whom, and what leaves with which address.
// Must not know of services or balancing; lb/ adds its own chains to the same table.
import {
  hex,
  fabricMac,
  fabricMark,
  markBase,
  markMask,
  returnMarkBase,
  sourceMark,
  vethName,
} from './names.ts';
import type { Neighbour } from './neighbours.ts';
import { sourceTableMark, type SourceRoute } from './source-routing.ts';
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

/** A port of a node. */
export interface RuledPort {
  protocol: 'tcp' | 'udp';
  port: number;
}

/** What is closed to sandboxes, and what open. */
export interface RuledHost {
  /** UDP and TCP port by which nodes watch each other. */
  peerPort?: number;
  /** Ports that nodes have among themselves, on every node. */
  control: readonly RuledPort[];
  /** TCP addresses of the store, on nodes or elsewhere. */
  stores: readonly { address: string; port: number }[];
  /** What a sandbox may ask of any address of the node. */
  openPorts: readonly RuledPort[];
  /** Whether sandboxes may use the node's own ports, but for those of control. */
  access: boolean;
  /** Devices that lead on to elsewhere. */
  uplinks: readonly string[];
  /** Of the host's addresses, those whose replies leave by a table of their own. */
  sourceRoutes: readonly SourceRoute[];
}

/** What the rules need to know of the fabric. */
export interface RuledFabric {
  /** UDP port of the encapsulation. */
  port: number;
  /** This node's own address in the underlay. */
  address: string;
  neighbours: readonly Neighbour[];
  /** Endpoints whose connections may change the node that they come in by. */
  anyIngress: readonly string[];
}

/**
 * The kernel routes a reply before its source is translated back, by the task's own address. Where the host has what it sends
 * from the address that was asked leave by a table of its own, the reply does so, too.
 */
const bySource =
  // What a container or the node itself has asked for goes to them.
  'ct direction reply ct original ip daddr @source_routed ip daddr != @subnets fib daddr type != local ' +
  'meta mark set ct original ip daddr map @source_marks';
const cameByFabric = `ct mark & 0xff000000 == ${hex(returnMarkBase)}`;
const balanced = `meta mark & ${hex(markMask)} == ${hex(markBase)}`;

/**
 * What is not new was decided when it began. (What conntrack cannot make out, `invalid`, may be new.) Half of a node's
 * packets are decided so, and all but one of a connection: it is the first question everywhere.
 */
const decided = 'ct state established,related';

// Marks are set at priority mangle (-150) by the balancer, and Docker translates at dstnat (-100). The guard looks at
// what the sandbox really sent, so it comes before both, and after conntrack (-200), which tells it what is a reply.
const guardPriority = 'mangle - 5';

/** Zones of conntrack have 16 bits, and 0 is where everything else is. */
const zones = 0xffff;

/** Nobody has to wait to learn that a port is closed. */
const refuse = ['meta l4proto tcp reject with tcp reset', 'reject'];

/** The sets and chains every Causeway table has. */
export const netLayout: NftLayout = {
  sets: {
    // Which address may come out of which veth.
    sources: { kind: 'set', declaration: 'type ifname . ipv4_addr;' },
    subnets: { kind: 'set', declaration: 'type ipv4_addr; flags interval;' },
    // Subnet paired with itself: source and destination are on the same network.
    same_network: { kind: 'set', declaration: 'type ipv4_addr . ipv4_addr; flags interval;' },
    internal: { kind: 'set', declaration: 'type ipv4_addr; flags interval;' },
    // Address paired with itself: an endpoint that was balanced to itself.
    hairpins: { kind: 'set', declaration: 'type ipv4_addr . ipv4_addr;' },
    gateways: { kind: 'map', declaration: 'type ipv4_addr : ipv4_addr; flags interval;' },
    fabric_ports: { kind: 'set', declaration: 'type inet_service;' },
    peer_ports: { kind: 'set', declaration: 'type inet_service;' },
    nodes: { kind: 'set', declaration: 'type ipv4_addr;' },
    // What nodes have among themselves, closed to all that is forwarded: at every node, and where the store is.
    control: { kind: 'set', declaration: 'type inet_proto . inet_service;' },
    stores: { kind: 'set', declaration: 'type ipv4_addr . inet_service;' },
    // What a sandbox may ask of the node.
    host_ports_open: { kind: 'set', declaration: 'type inet_proto . inet_service;' },
    // Networks whose sandboxes may use the node's own ports, but for those of control.
    trusted: { kind: 'set', declaration: 'type ipv4_addr; flags interval;' },
    // Bridges that lead on to elsewhere. All others are Docker's, or others', and their ports behind them unpublished.
    uplinks: { kind: 'set', declaration: 'type ifname;' },
    // Of the node's addresses, those whose replies leave by a table of their own, with the mark that names it.
    source_routed: { kind: 'set', declaration: 'type ipv4_addr;' },
    source_marks: { kind: 'map', declaration: 'type ipv4_addr : mark;' },
    // The other nodes by the MAC address of their fabric device, with the mark that leads back to each. Two of them,
    // because Linux 6.1 cannot tell that something is not in a map.
    node_macs: { kind: 'set', declaration: 'type ether_addr;' },
    return_marks: { kind: 'map', declaration: 'type ether_addr : mark;' },
    ct_zones: { kind: 'map', declaration: 'typeof ether saddr : ct zone;' },
    any_ingress: { kind: 'set', declaration: 'type ipv4_addr;' },
    // Sources another node would take for its own addresses, with the one that only this node has.
    node_snat: { kind: 'map', declaration: 'type ipv4_addr : ipv4_addr; flags interval;' },
  },
  chains: {
    // Ahead of conntrack: what is not from whom it says leaves no trace in anybody's connections.
    origin: {
      hook: 'type filter hook prerouting priority raw; policy accept;',
      rules: ['iifname "cw-*" jump check_origin'],
    },
    check_origin: {
      rules: [
        // Nothing is offered by IPv6 yet, so nothing passes: not to the node, not through it, no advertisement of a router.
        'meta nfproto ipv6 drop',
        'iifname "cw-fabric" goto check_node',
        'iifname . ip saddr != @sources drop',
      ],
    },
    check_node: {
      rules: [
        'ether saddr != @node_macs drop',
        // A client may have connections from one port of its own to several nodes, which are all balanced to one task: alike
        // in everything but the node they came by. In a zone of its node each is known from the others, and as the zone is
        // that of the one direction only, the kernel gives the later one another source port on its way to the task.
        // A connection that changes the node would not be known in the other's zone.
        'ip daddr != @any_ingress ct original zone set ether saddr map @ct_zones',
      ],
    },
    antispoof: {
      hook: `type filter hook prerouting priority ${guardPriority}; policy accept;`,
      rules: [
        'iifname "cw-*" goto from_endpoint',
        // Networks, their gateways and VIPs are reached from within and by the node: others have published ports.
        `iifname != "lo" ip daddr @subnets ct state new,invalid,untracked drop`,
      ],
    },
    from_endpoint: {
      rules: [
        'iifname "cw-fabric" goto from_node',
        // What came in by another node goes back by it, which knows the client and undoes the balancing.
        `ct direction reply ${cameByFabric} meta mark set ct mark return`,
        bySource,
        `${decided} return`,
        // route_localnet is on for the veths, so the kernel itself no longer refuses these.
        'ip daddr 127.0.0.0/8 drop',
        'ip saddr . ip daddr @same_network return',
        'ip daddr @subnets drop',
        'ip saddr @internal drop',
      ],
    },
    from_node: {
      rules: [
        // With every packet, not with the first alone: a connection may change the node it comes in by.
        'ct direction original ct mark set ether saddr map @return_marks',
        // By which the kernel looks whether the client may come from there, see net/neighbours.ts.
        `ct direction original meta mark set ct mark | ${hex(sourceMark)}`,
        bySource,
        `${decided} return`,
        // Whatever another node sends is for a task here. It was balanced there, so nothing of it is for a VIP, a published
        // port or a program of this node.
        'ip daddr != @subnets drop',
        'fib daddr type local drop',
        // Who has an address of a network that is here is where its route leads to.
        'ip saddr @subnets fib saddr oifname != "cw-fabric" drop',
      ],
    },
    input: {
      hook: 'type filter hook input priority filter - 5; policy accept;',
      rules: [
        'udp dport @fabric_ports ip saddr != @nodes drop',
        `${decided} accept`,
        'iifname "cw-*" goto to_node',
        'iifname != "lo" meta l4proto { tcp, udp } th dport @peer_ports ip saddr != @nodes drop',
      ],
    },
    // A sandbox, or another node, to this one.
    to_node: {
      rules: [
        'iifname "cw-fabric" drop',
        // What the balancer has taken goes on to a task from here.
        `${balanced} accept`,
        'meta l4proto . th dport @host_ports_open accept',
        'icmp type echo-request accept',
        'meta l4proto . th dport @control jump refuse_here',
        'ip saddr @trusted accept',
        'jump refuse_here',
      ],
    },
    refuse_here: { rules: refuse },
    encapsulate: {
      hook: 'type filter hook postrouting priority srcnat + 10; policy accept;',
      rules: [
        // The packet of the encapsulation inherits the mark: with that of its connection it would be balanced or sent back
        // once more, and by this one it is known.
        `oifname "cw-fabric" meta mark set ${hex(fabricMark)}`,
      ],
    },
    // What goes to another node's fabric has been through this one's. Any program could send as much from a socket of its
    // own, in the name of any network; to set a mark takes CAP_NET_ADMIN.
    to_fabric: {
      hook: 'type filter hook output priority raw; policy accept;',
      rules: ['udp dport @fabric_ports ip daddr @nodes goto encapsulated'],
    },
    encapsulated: { rules: [`meta mark != ${hex(fabricMark)} drop`, 'meta mark set 0'] },
    forward: {
      hook: 'type filter hook forward priority filter; policy accept;',
      rules: [
        `${decided} accept`,
        'oifname "cw-*" goto to_endpoint',
        // Whoever it is from: a node takes what comes with a node's address for that node's own.
        'ip daddr @nodes meta l4proto . th dport @control drop',
        'ip daddr . th dport @stores meta l4proto tcp drop',
        'iifname "cw-*" goto from_sandbox',
      ],
    },
    // From outside and from other networks, only what was balanced may reach an endpoint: its unpublished ports are
    // nobody's business. (IPVS hands its packets over behind this hook.)
    to_endpoint: {
      rules: [
        'ct status & dnat == dnat accept',
        'iifname "cw-fabric" oifname != "cw-fabric" accept',
        'iifname "cw-*" ip saddr . ip daddr @same_network accept',
        'drop',
      ],
    },
    from_sandbox: {
      rules: [
        // Nothing of another node's leaves by this one.
        'iifname "cw-fabric" drop',
        'ct status & dnat == dnat accept',
        'meta oifkind "bridge" oifname != @uplinks jump refuse_here',
      ],
    },
    source_nat: {
      hook: 'type nat hook postrouting priority srcnat - 1; policy accept;',
      rules: [
        // This node's own connections, and those of another node to a port it has published itself: its task there
        // could not answer to an address that is local where it is.
        'oifname "cw-fabric" snat ip to ip saddr map @node_snat',
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
  host: RuledHost,
): Map<string, NftElements> {
  const set = (keys: readonly string[]): NftElements => new Map(keys.map((key) => [key, '']));
  const ports = (list: readonly RuledPort[]): NftElements =>
    set(list.map(({ protocol, port }) => `${protocol} . ${port}`));
  return new Map([
    ['sources', set(endpoints.map(({ id, address }) => `${vethName(id)} . ${address}`))],
    ['subnets', set(networks.map(({ subnet }) => subnet))],
    ['same_network', set(networks.map(({ subnet }) => `${subnet} . ${subnet}`))],
    ['internal', set(networks.filter(({ internal }) => internal).map(({ subnet }) => subnet))],
    ['hairpins', set(endpoints.map(({ address }) => `${address} . ${address}`))],
    ['gateways', new Map(networks.map(({ subnet, gateway }) => [subnet, gateway]))],
    ['fabric_ports', set([String(fabric.port)])],
    ['peer_ports', set(host.peerPort === undefined ? [] : [String(host.peerPort)])],
    ['control', ports(host.control)],
    ['stores', set(host.stores.map(({ address, port }) => `${address} . ${port}`))],
    ['host_ports_open', ports(host.openPorts)],
    ['trusted', set(host.access ? networks.map(({ subnet }) => subnet) : [])],
    ['uplinks', set(host.uplinks)],
    ['source_routed', set(host.sourceRoutes.map(({ address }) => address))],
    [
      'source_marks',
      new Map(host.sourceRoutes.map(({ address, table }) => [address, String(sourceTableMark(table))])),
    ],
    ['nodes', set(fabric.neighbours.map(({ address }) => address))],
    ['node_macs', set(fabric.neighbours.map(({ address }) => fabricMac(address)))],
    [
      'return_marks',
      new Map(
        fabric.neighbours.map(({ address, number }) => [fabricMac(address), String(returnMarkBase + number)]),
      ),
    ],
    ['any_ingress', set([...new Set(fabric.anyIngress)])],
    [
      'ct_zones',
      new Map(
        fabric.neighbours.map(({ address, number }) => [
          fabricMac(address),
          String(1 + ((number - 1) % zones)),
        ]),
      ),
    ],
    [
      'node_snat',
      new Map([
        ['127.0.0.0/8', fabric.address],
        ...networks.map(({ gateway }) => [gateway, fabric.address] as const),
        ...fabric.neighbours.map(({ address }) => [address, fabric.address] as const),
      ]),
    ],
  ]);
}
