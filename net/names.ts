// Owns the names, numbers and marks by which Causeway's objects in the kernel are known to be Causeway's.
// Must not hold anything that changes at run time.

/** The nft table that holds every rule of Causeway. */
export const table = 'causeway';

/** Every link of Causeway in the host's namespace starts with this; nft matches it as `cw-*`, iptables as `cw-+`. */
export const linkPrefix = 'cw-';

/** The VXLAN device that carries traffic between nodes. */
export const fabricLink = 'cw-fabric';

/** Route protocol (rtnetlink's rtm_protocol) on every route of Causeway; 197 is in no registry of rt_protos. */
export const routeProtocol = 197;

/**
 * Packet marks that name a virtual server: the upper 8 bits say "Causeway", the lower 24 which one. Clear of the
 * bits of kube-proxy (0x4000, 0x8000), Tailscale (0xff0000) and Docker (1, 0xd0c4e3).
 */
export const markBase = 0x0c000000;
export const markMask = 0xff000000;

/** How many virtual servers the marks can name. */
export const markCount = 0x01000000 - 1;

/**
 * Connection and packet marks that name the node a connection came from by the fabric: the upper 8 bits say "return to
 * node", the lower 24 its number.
 */
export const returnMarkBase = 0x0d000000;

/** Packet mark of what has come out of this node's fabric device, until it has left the output hook: "fabric". */
export const fabricMark = 0x0e000000;

/**
 * Set beside a return mark in packets that come out of the fabric: by it alone the kernel looks whether their source may
 * come from there (rp_filter), and none is sent back for it.
 */
export const sourceMark = 0x02000000;

/**
 * Packet marks that name a routing table of the host, by which the replies of one of its addresses leave: the upper 8 bits say
 * "leave by table", the lower 24 its number.
 */
export const sourceTableBase = 0x0b000000;

/** Routing tables that lead back to one node: this plus its number. Tables up to 2^32 can be named. */
export const returnTableBase = 0x0d000000;

/** Highest number a node can have: marks and tables have 24 bits for it. */
export const maxNodeNumber = 0x00ffffff;

/**
 * Priorities of Causeway's policy rules: before those of table main (32766). A rule that somebody adds without one gets the
 * priority just before the first one there is: those of others shall not get in between ours, or be skipped with them.
 */
export const rulePriority = {
  subnets: 18680,
  tables: 18681,
  tablesLocal: 18682,
  tablesMain: 18683,
  table: 18684,
  tablesEnd: 18689,
  fabric: 19690,
  skip: 19700,
  source: 19701,
  back: 19702,
  end: 19799,
} as const;

/**
 * The same in a sandbox: by which link answers leave; and where nothing else may, what table main has within reach, datagrams
 * from no address, and that there is no way.
 */
export const sandboxPriority = { wayOut: 19700, only: 19701, unaddressed: 19702, nothing: 19703 } as const;

/**
 * The MAC address of a node's fabric device: locally administered, 'c' for Causeway, then the node's IPv4 address. So it
 * is known to whoever knows the node.
 */
export function fabricMac(address: string): string {
  const bytes = address.split('.').map((byte) => Number(byte).toString(16).padStart(2, '0'));
  return ['02', '63', ...bytes].join(':');
}

/** The comment on iptables rules of Causeway. */
export const iptablesComment = 'causeway';

// A link name has at most 15 characters (IFNAMSIZ - 1): 3 for the prefix, 12 of the endpoint's id. Docker's ids
// are 64 random hexadecimal digits; 48 bits of them do not meet twice on one node.
const idDigits = 12;

/** The host's end of the veth pair of an endpoint. */
export function vethName(endpointId: string): string {
  return linkPrefix + endpointId.slice(0, idDigits);
}

/** The sandbox's end, as it is called until Docker moves it into the sandbox and renames it. */
export function peerName(endpointId: string): string {
  return `cwp${endpointId.slice(0, idDigits)}`;
}

/** A mark as nft and iproute2 print it: `0x0c000001`. */
export function hex(mark: number): string {
  return `0x${mark.toString(16).padStart(8, '0')}`;
}
