// Owns reading within this process what a node's look at its kernel asks of `ip` and `bridge`, in the words of their JSON. The
// look comes every few seconds for as long as the plugin runs, and a process costs more than its answer.
// Must not show fields that nobody in net/ reads, nor what it cannot tell as iproute2 does: that is left to iproute2.
import { attributesOf, indexOf, TooLarge, type Message, type Netlink } from './netlink.ts';
import type { Tool } from './run.ts';

/** What a command prints; undefined: iproute2 has to be asked. @throws {NoDevice} */
type Show = (netlink: Netlink) => object[] | undefined;

/** In the words of iproute2. */
export class NoDevice extends Error {
  override readonly name = 'NoDevice';
}

/** Larger answers are left to a process: nothing else is done in this one meanwhile. */
const maxMessages = 2_000;

/*
 * <linux/rtnetlink.h>, <linux/if_addr.h>, <linux/neighbour.h>, <linux/fib_rules.h>. struct ifinfomsg: family, index at 4, flags at
 * 8. struct ifaddrmsg: family, prefix's length, flags, scope, index at 4. struct rtmsg: family, lengths of destination and source,
 * tos, table, protocol, scope, type, flags at 8. struct ndmsg: family, index at 4, state at 8. struct fib_rule_hdr: family, lengths
 * of destination and source, tos, table, action at 7, flags at 8. struct rtnexthop: length, flags, hops, index at 4.
 */
const RTM = { newLink: 16, getLink: 18, newAddress: 20, getAddress: 22, newRoute: 24, getRoute: 26 } as const;
const RTM_NEWNEIGH = 28;
const RTM_GETNEIGH = 30;
const RTM_NEWRULE = 32;
const RTM_GETRULE = 34;
const AF_INET = 2;
const AF_BRIDGE = 7;
const IFF_UP = 1;
const ifinfomsgBytes = 16;
const ifaddrmsgBytes = 8;
const rtmsgBytes = 12;
const ndmsgBytes = 12;
const ruleBytes = 12;
const nexthopBytes = 8;
const link = { name: 3, mtu: 4 } as const;
const ofAddress = { address: 1, local: 2, label: 3 } as const;
const ofRoute = { destination: 1, device: 4, gateway: 5, source: 7, multipath: 9, table: 15 } as const;
const ofNeighbour = { destination: 1, hardware: 2 } as const;
const NUD_PERMANENT = 0x80;
const RTM_F_CLONED = 0x200;
const ofRule = {
  ...{ destination: 1, source: 2, device: 3, target: 4, priority: 6, mark: 10 },
  ...{ suppressGroup: 13, suppressLength: 14, table: 15, mask: 16, protocol: 21 },
} as const;
const knownOfRules: ReadonlySet<number> = new Set(Object.values(ofRule));
const action = { table: 1, goto: 2, nop: 3 } as const;
const inverted = 2;
/** Their device is not there: one more thing that a rule says. */
const detached = 8;
const all = 0xffffffff;

/** As rt_scopes(5) names them. */
const scopeNames: Readonly<Record<number, string>> = { 0: 'global', 253: 'link', 254: 'host' };
const tableNames: Readonly<Record<number, string>> = { 253: 'default', 254: 'main', 255: 'local' };
const mainTable = 254;
/** As rt_protos(5) names those that are not left out. */
const protocolNames: Readonly<Record<number, string>> = { 3: 'boot', 4: 'static' };
const kernelProtocol = 2;
const bootProtocol = 3;
const typeNames: Readonly<Record<number, string>> = {
  ...{
    2: 'local',
    3: 'broadcast',
    4: 'anycast',
    5: 'multicast',
    6: 'blackhole',
    7: 'unreachable',
    8: 'prohibit',
  },
  ...{ 9: 'throw', 10: 'nat' },
};
const unicast = 1;

/** @returns undefined for a command that is not known */
export function readShow(tool: Tool, args: readonly string[]): Show | undefined {
  const command = [tool, ...args].join(' ');
  switch (command) {
    case 'ip -j link show':
      return (netlink) => readLinks(netlink).map(({ index: _, ...shown }) => shown);
    case 'ip -j address show':
      return readAddresses;
    case 'ip -4 -j address show':
      return (netlink) =>
        readAddresses(netlink)
          .map(({ addr_info, ...rest }) => ({
            ...rest,
            addr_info: addr_info.filter(({ family }) => family === 'inet'),
          }))
          .filter(({ addr_info }) => addr_info.length > 0);
    case 'ip -4 -j rule show':
      return readRules;
    case 'ip -4 -j neigh show nud permanent':
      return readNeighbours;
    case 'ip -4 -N -j route show table main':
      return (netlink) =>
        readRoutes(netlink, ({ table }) => table === mainTable)?.map(({ protocol, shown }) => ({
          ...shown,
          // That of whoever names none is not shown.
          ...(protocol !== bootProtocol && { protocol: String(protocol) }),
        }));
  }
  const [, protocol] = /^ip -4 -j route show table all proto (\d+)$/.exec(command) ?? [];
  if (protocol !== undefined)
    return (netlink) =>
      readRoutes(netlink, (route) => route.protocol === Number(protocol))?.map(({ table, shown }) => ({
        ...shown,
        ...(table !== mainTable && { table: tableNames[table] ?? String(table) }),
      }));
  const [, device] = /^bridge -j fdb show dev (\S+)$/.exec(command) ?? [];
  if (device !== undefined) return (netlink) => readForwarding(netlink, device);
  return undefined;
}

/** @returns undefined where there is too much of it */
function dump(netlink: Netlink, type: number, body: Buffer): Message[] | undefined {
  try {
    return netlink.dump(type, body, maxMessages);
  } catch (error) {
    if (error instanceof TooLarge) return undefined;
    throw error;
  }
}

/** A message's fixed part, with nothing in it but its first byte. */
function head(bytes: number, family = 0): Buffer {
  const message = Buffer.alloc(bytes);
  message[0] = family;
  return message;
}

interface ShownLink {
  index: number;
  ifname: string;
  flags: string[];
  mtu: number;
}

function readLinks(netlink: Netlink): ShownLink[] {
  return netlink.dump(RTM.getLink, head(ifinfomsgBytes)).flatMap(({ type, body }) => {
    if (type !== RTM.newLink) return [];
    const attributes = attributesOf(body, ifinfomsgBytes);
    const up = (body.readUInt32LE(8) & IFF_UP) !== 0;
    return {
      index: body.readInt32LE(4),
      ifname: textOf(attributes.get(link.name)),
      flags: up ? ['UP'] : [],
      mtu: attributes.get(link.mtu)?.readUInt32LE(0) ?? 0,
    };
  });
}

interface ShownAddress {
  family: string;
  local: string;
  prefixlen: number;
  scope: string;
  label?: string;
}

/** Of both families, as without -4. */
function readAddresses(netlink: Netlink): (Omit<ShownLink, 'index'> & { addr_info: ShownAddress[] })[] {
  const found = netlink.dump(RTM.getAddress, head(ifaddrmsgBytes)).flatMap(({ type, body }) => {
    const attributes = attributesOf(body, ifaddrmsgBytes);
    // Of IPv6 addresses only those of point-to-point links have a local one.
    const bytes = attributes.get(ofAddress.local) ?? attributes.get(ofAddress.address);
    if (type !== RTM.newAddress || bytes === undefined) return [];
    const info: ShownAddress = {
      family: body[0] === AF_INET ? 'inet' : 'inet6',
      local: addressOf(bytes),
      prefixlen: body[1] ?? 0,
      scope: scopeNames[body[3] ?? 0] ?? String(body[3]),
      ...(attributes.has(ofAddress.label) && { label: textOf(attributes.get(ofAddress.label)) }),
    };
    return { index: body.readInt32LE(4), info };
  });
  const byLink = Map.groupBy(found, ({ index }) => index);
  return readLinks(netlink).map(({ index, ...shown }) => ({
    ...shown,
    addr_info: (byLink.get(index) ?? []).map(({ info }) => info),
  }));
}

interface ReadRoute {
  table: number;
  protocol: number;
  shown: object;
}

function readRoutes(
  netlink: Netlink,
  wanted: (route: Omit<ReadRoute, 'shown'>) => boolean,
): ReadRoute[] | undefined {
  const messages = dump(netlink, RTM.getRoute, head(rtmsgBytes, AF_INET));
  if (messages === undefined) return undefined;
  const names = new Map(readLinks(netlink).map(({ index, ifname }) => [index, ifname]));
  const nameOf = (index: number | undefined): { dev?: string } => {
    // One that went meanwhile is shown by its number.
    return index === undefined ? {} : { dev: names.get(index) ?? `if${index}` };
  };
  return messages.flatMap(({ type, body }): ReadRoute[] => {
    if (type !== RTM.newRoute || (body.readUInt32LE(8) & RTM_F_CLONED) !== 0) return [];
    const attributes = attributesOf(body, rtmsgBytes);
    const table = attributes.get(ofRoute.table)?.readUInt32LE(0) ?? body[4] ?? 0;
    const protocol = body[5] ?? 0;
    if (!wanted({ table, protocol })) return [];
    const kind = body[7] ?? unicast;
    const length = body[1] ?? 0;
    const destination = attributes.get(ofRoute.destination);
    const [gateway, source, several] = [ofRoute.gateway, ofRoute.source, ofRoute.multipath].map((one) =>
      attributes.get(one),
    );
    const shown = {
      ...(kind !== unicast && { type: typeNames[kind] ?? String(kind) }),
      dst:
        destination === undefined
          ? length === 0
            ? 'default'
            : `0/${length}`
          : prefixOf(destination, length),
      ...(gateway && { gateway: addressOf(gateway) }),
      ...nameOf(attributes.get(ofRoute.device)?.readInt32LE(0)),
      ...(source && { prefsrc: addressOf(source) }),
      ...(several && {
        nexthops: nexthopsOf(several).map(({ index, gateway: by }) => ({
          ...(by && { gateway: addressOf(by) }),
          ...nameOf(index),
        })),
      }),
    };
    return [{ table, protocol, shown }];
  });
}

/** Addresses are whole, without the length of their prefix. */
function prefixOf(address: Buffer, length: number): string {
  return length === 8 * address.length ? addressOf(address) : `${addressOf(address)}/${length}`;
}

function nexthopsOf(bytes: Buffer): { index: number; gateway: Buffer | undefined }[] {
  const found: { index: number; gateway: Buffer | undefined }[] = [];
  for (let at = 0; at + nexthopBytes <= bytes.length;) {
    const length = bytes.readUInt16LE(at);
    if (length < nexthopBytes) break;
    const one = bytes.subarray(at, at + length);
    found.push({
      index: one.readInt32LE(4),
      gateway: attributesOf(one, nexthopBytes).get(ofRoute.gateway),
    });
    at += (length + 3) & ~3;
  }
  return found;
}

function readNeighbours(netlink: Netlink): object[] | undefined {
  const messages = dump(netlink, RTM_GETNEIGH, head(ndmsgBytes, AF_INET));
  if (messages === undefined) return undefined;
  const names = new Map(readLinks(netlink).map(({ index, ifname }) => [index, ifname]));
  return messages.flatMap(({ type, body }) => {
    if (type !== RTM_NEWNEIGH || (body.readUInt16LE(8) & NUD_PERMANENT) === 0) return [];
    const attributes = attributesOf(body, ndmsgBytes);
    const [dst, hardware] = [attributes.get(ofNeighbour.destination), attributes.get(ofNeighbour.hardware)];
    const dev = names.get(body.readInt32LE(4));
    return dst === undefined || dev === undefined
      ? []
      : { dst: addressOf(dst), dev, ...(hardware && { lladdr: macOf(hardware) }) };
  });
}

function readForwarding(netlink: Netlink, device: string): object[] | undefined {
  const index = find(device);
  // With struct ifinfomsg the kernel looks at this device alone.
  const request = head(ifinfomsgBytes, AF_BRIDGE);
  request.writeInt32LE(index, 4);
  return dump(netlink, RTM_GETNEIGH, request)?.flatMap(({ type, body }) => {
    if (type !== RTM_NEWNEIGH || body.readInt32LE(4) !== index) return [];
    const attributes = attributesOf(body, ndmsgBytes);
    const [mac, dst] = [attributes.get(ofNeighbour.hardware), attributes.get(ofNeighbour.destination)];
    return mac === undefined ? [] : { mac: macOf(mac), ...(dst && { dst: addressOf(dst) }) };
  });
}

function find(device: string): number {
  const index = indexOf(device);
  if (index === undefined) throw new NoDevice(`Cannot find device "${device}"`);
  return index;
}

/** In the order in which the kernel asks them. */
function readRules(netlink: Netlink): object[] | undefined {
  const shown = dump(netlink, RTM_GETRULE, head(ruleBytes, AF_INET))?.flatMap(({ type, body }) =>
    type === RTM_NEWRULE ? [showRule(body)] : [],
  );
  return shown?.every((rule) => rule !== undefined) === true ? shown : undefined;
}

/** @returns undefined for one that says what is not known here */
function showRule(body: Buffer): object | undefined {
  const attributes = attributesOf(body, ruleBytes);
  const [, destinationLength = 0, sourceLength = 0, tos = 0, shortTable = 0, , , does = 0] = body;
  const flags = body.readUInt32LE(8);
  const number = (type: number): number | undefined => attributes.get(type)?.readUInt32LE(0);
  const isKnown =
    [...attributes.keys()].every((type) => knownOfRules.has(type)) &&
    tos === 0 &&
    (does === action.table || does === action.goto || does === action.nop) &&
    (flags & ~(inverted | detached)) === 0 &&
    (number(ofRule.suppressGroup) ?? all) === all;
  if (!isKnown) return undefined;
  const [source, destination] = [attributes.get(ofRule.source), attributes.get(ofRule.destination)];
  const [mark, mask] = [number(ofRule.mark), number(ofRule.mask)];
  const suppress = number(ofRule.suppressLength) ?? all;
  const table = number(ofRule.table) ?? shortTable;
  const protocol = attributes.get(ofRule.protocol)?.[0] ?? 0;
  return {
    priority: number(ofRule.priority) ?? 0,
    ...((flags & inverted) !== 0 && { not: null }),
    src: source === undefined ? 'all' : addressOf(source),
    ...(source !== undefined && sourceLength !== 32 && { srclen: sourceLength }),
    ...(destination !== undefined && {
      dst: addressOf(destination),
      ...(destinationLength !== 32 && { dstlen: destinationLength }),
    }),
    ...((mark !== undefined || mask !== undefined) && {
      fwmark: hex(mark ?? 0),
      ...(mask !== undefined && mask !== all && { fwmask: hex(mask) }),
    }),
    ...(attributes.has(ofRule.device) && { iif: textOf(attributes.get(ofRule.device)) }),
    ...((flags & detached) !== 0 && { iif_detached: null }),
    ...(table !== 0 && { table: tableNames[table] ?? String(table) }),
    ...(suppress !== all && table !== 0 && { suppress_prefixlen: suppress }),
    ...(does === action.goto && { goto: number(ofRule.target) ?? 0 }),
    ...(does === action.nop && { nop: null }),
    ...(protocol !== 0 &&
      protocol !== kernelProtocol && { protocol: protocolNames[protocol] ?? String(protocol) }),
  };
}

/** As `%#x` of printf(3). */
function hex(value: number): string {
  return value === 0 ? '0' : `0x${value.toString(16)}`;
}

function textOf(bytes: Buffer | undefined): string {
  return bytes?.toString('utf8').replace(/\0.*$/s, '') ?? '';
}

function macOf(bytes: Buffer): string {
  return bytes.toString('hex').replaceAll(/(..)(?=.)/g, '$1:');
}

function addressOf(bytes: Buffer): string {
  if (bytes.length === 4) return bytes.join('.');
  const words = Array.from({ length: 8 }, (_, at) => bytes.readUInt16BE(2 * at).toString(16));
  // As it is written by everybody (RFC 5952).
  return new URL(`http://[${words.join(':')}]`).hostname.slice(1, -1);
}
