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

/** Routing tables that lead back to one node: this plus its number. Tables up to 2^32 can be named. */
export const returnTableBase = 0x0d000000;

/** Highest number a node can have: marks and tables have 24 bits for it. */
export const maxNodeNumber = 0x00ffffff;

/** Priorities of Causeway's policy rules: before those of table main (32766). */
export const rulePriority = { skip: 19700, back: 19701, end: 19799 } as const;

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
