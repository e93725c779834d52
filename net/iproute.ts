// Owns doing within this process what `ip` and `bridge` would do, for the few commands that the start and end of each container
// need: they are read as iproute2 reads them, and answered in its words. What they show is iproute-show.ts's.
// Must not decide what is done, and leaves every command it does not know to iproute2.
import { isIPv4 } from 'node:net';
import { inNamespace } from './namespace.ts';
import { attribute, how, indexOf, nested, Netlink, NetlinkError, text, u32 } from './netlink.ts';
import { NoDevice, readShow } from './iproute-show.ts';
import type { Tool } from './run.ts';

/** What a command wrote, and how it ended. */
export interface Outcome {
  stdout: string;
  stderr: string;
  exitCode: number;
}

/**
 * @param sandbox path of the network namespace to do it in; undefined: where this process is
 * @returns undefined for a command that it does not know: nothing has been done then
 * @throws {NamespaceError} when there is no such sandbox
 */
export type InProcess = (
  tool: Tool,
  args: readonly string[],
  input?: string,
  sandbox?: string,
) => Outcome | undefined;

/** What one line of a batch has the kernel do. @throws {Refused} */
type Step = (netlink: Netlink) => void;

/** Why, as iproute2 says it. */
class Refused extends Error {
  override readonly name = 'Refused';
}

/** More lines are left to a process: nothing else is done in this one meanwhile. */
const maxLines = 200;

/*
 * <linux/rtnetlink.h>, <linux/if_link.h>, <linux/veth.h>, <linux/fib_rules.h>. struct ifinfomsg: family, type at 2, index at 4, flags at 8, which of
 * them to change at 12. struct rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type, flags. struct
 * ifaddrmsg: family, prefix's length, flags, scope, index at 4. struct ndmsg: family, index at 4, state at 8. struct fib_rule_hdr:
 * family, lengths of destination and source, tos, table at 4, action at 7, flags at 8.
 */
const RTM = {
  ...{ newLink: 16, deleteLink: 17, newAddress: 20 },
  ...{ newRoute: 24, deleteRoute: 25 },
  ...{ newNeighbour: 28, deleteNeighbour: 29 },
  ...{ newRule: 32, deleteRule: 33 },
} as const;
const AF_INET = 2;
const AF_INET6 = 10;
const IFF_UP = 1;
const ifinfomsgBytes = 16;
const rtmsgBytes = 12;
const ndmsgBytes = 12;
const link = { address: 1, name: 3, mtu: 4, info: 18, families: 26 } as const;
const info = { kind: 1, data: 2 } as const;
const VETH_INFO_PEER = 1;
const addressGeneration = { attribute: 8, none: 1 } as const;
const route = { destination: 1, device: 4, gateway: 5, priority: 6, source: 7, table: 15 } as const;
const ofAddress = { address: 1, local: 2, flags: 8 } as const;
const IFA_F_NOPREFIXROUTE = 0x200;
const fibRuleBytes = 12;
const ofFibRule = { source: 2, priority: 6, suppress: 14, table: 15, protocol: 21, ipProtocol: 22 } as const;
const action = { lookup: 1, unreachable: 7 } as const;
const IPPROTO_UDP = 17;
const ofNeighbour = { destination: 1, hardware: 2 } as const;
const NUD_PERMANENT = 0x80;
const types: Readonly<Record<string, number>> = { local: 2, unreachable: 7 };
const unicast = 1;
const tables: Readonly<Record<string, number>> = { main: 254, local: 255 };
const scopes: Readonly<Record<string, number>> = { link: 253 };
const scope = { universe: 0, link: 253, host: 254, nowhere: 255 } as const;
const RTNH_F_ONLINK = 4;
const protocolBoot = 3;

/** Speaks for the network namespace that this process is in now, or for a sandbox. @throws {NetlinkError} */
export function iproute(): InProcess {
  const netlink = new Netlink();
  return (tool, args, input, sandbox) => {
    const act = read(tool, args, input);
    if (sandbox === undefined || act === undefined) return act?.(netlink);
    return inNamespace(sandbox, () => {
      const there = new Netlink();
      try {
        return act(there);
      } finally {
        there.close();
      }
    });
  };
}

/** Whether {@link iproute} does it. */
export function isKnown(...[tool, args, input]: Parameters<InProcess>): boolean {
  return read(tool, args, input) !== undefined;
}

/** @returns what does it; undefined for a command that is not known */
function read(
  tool: Tool,
  args: readonly string[],
  input = '',
): ((netlink: Netlink) => Outcome | undefined) | undefined {
  const show = readShow(tool, args);
  if (show !== undefined)
    return (netlink) => {
      try {
        const shown = show(netlink);
        return shown && { stdout: JSON.stringify(shown), stderr: '', exitCode: 0 };
      } catch (error) {
        if (error instanceof NoDevice) return { stdout: '', stderr: `${error.message}\n`, exitCode: 1 };
        throw error;
      }
    };
  if (tool !== 'ip') return undefined;
  const command = args.join(' ');
  const force = command === '-4 -force -batch -';
  if (force || command === '-batch -') {
    const steps = parseBatch(input);
    return steps && ((netlink) => runSteps(netlink, steps, { force, batch: true }));
  }
  const step = parse(args);
  return step && ((netlink) => runSteps(netlink, [step], { force: false, batch: false }));
}

function parseBatch(input: string): Step[] | undefined {
  const lines = input.trimEnd().split('\n');
  if (lines.length > maxLines) return undefined;
  const steps: Step[] = [];
  for (const line of lines) {
    const step = parse(line.split(' '));
    if (step === undefined) return undefined;
    steps.push(step);
  }
  return steps;
}

function runSteps(
  netlink: Netlink,
  steps: readonly Step[],
  { force, batch }: { force: boolean; batch: boolean },
): Outcome {
  let stderr = '';
  for (const [at, step] of steps.entries())
    try {
      step(netlink);
    } catch (error) {
      if (!(error instanceof NetlinkError || error instanceof Refused)) throw error;
      const why = error instanceof Refused ? error.message : `RTNETLINK answers: ${error.message}`;
      stderr += `${why}\n${batch ? `Command failed -:${at + 1}\n` : ''}`;
      if (!force) break;
    }
  return { stdout: '', stderr, exitCode: stderr === '' ? 0 : 1 };
}

function parse(words: readonly string[]): Step | undefined {
  const [object = '', verb = '', ...rest] = words;
  switch (`${object} ${verb}`) {
    case 'link add':
      return parseVeth(rest);
    case 'link set':
      return parseLinkSet(rest);
    case 'link del':
      return rest.length === 1 ? deleteLink(rest[0] ?? '') : undefined;
    case 'address replace':
      return parseAddress(rest);
    case 'neigh replace':
    case 'neigh del':
      return parseNeighbour(verb, rest);
    case 'route replace':
    case 'route del':
      return parseRoute(verb, rest);
    case 'rule add':
    case 'rule del':
      return parseRule(verb, rest);
    default:
      return undefined;
  }
}

function parseVeth(words: readonly string[]): Step | undefined {
  const matched =
    /^(\S+) mtu (\d+) type veth peer name (\S+) address ((?:[\da-f]{2}:){5}[\da-f]{2}) mtu (\d+)$/.exec(
      words.join(' '),
    );
  if (matched === null) return undefined;
  const [, name = '', mtu, peer = '', mac = '', peerMtu] = matched;
  if (!isName(name) || !isName(peer)) return undefined;
  const message = Buffer.concat([
    Buffer.alloc(ifinfomsgBytes),
    attribute(link.mtu, u32(Number(mtu))),
    attribute(link.name, text(name)),
    nested(
      link.info,
      attribute(info.kind, Buffer.from('veth')),
      nested(
        info.data,
        nested(
          VETH_INFO_PEER,
          Buffer.alloc(ifinfomsgBytes),
          attribute(link.mtu, u32(Number(peerMtu))),
          attribute(link.address, Buffer.from(mac.replaceAll(':', ''), 'hex')),
          attribute(link.name, text(peer)),
        ),
      ),
    ),
  ]);
  return (netlink) => netlink.change(RTM.newLink, how.create | how.exclusively, message);
}

/** What iproute2 takes for one itself: it would refuse others. */
function isName(name: string): boolean {
  return /^[^/\s]{1,15}$/.test(name) && !['.', '..'].includes(name);
}

function parseLinkSet([name = '', ...words]: readonly string[]): Step | undefined {
  const what = words.join(' ');
  if (what === 'up') return (netlink) => netlink.change(RTM.newLink, 0, ofLink(name, { flags: IFF_UP }));
  if (what !== 'addrgenmode none') return undefined;
  const mode = attribute(addressGeneration.attribute, Buffer.from([addressGeneration.none]));
  const families = nested(link.families, nested(AF_INET6, mode));
  return (netlink) => netlink.change(RTM.newLink, 0, Buffer.concat([ofLink(name), families]));
}

function deleteLink(name: string): Step {
  return (netlink) => netlink.change(RTM.deleteLink, 0, ofLink(name));
}

/** @throws {Refused} when there is no such link */
function ofLink(name: string, { flags = 0 } = {}): Buffer {
  const message = Buffer.alloc(ifinfomsgBytes);
  message.writeInt32LE(find(name), 4);
  message.writeUInt32LE(flags, 8);
  message.writeUInt32LE(flags, 12);
  return message;
}

function find(name: string): number {
  const index = indexOf(name);
  if (index === undefined) throw new Refused(`Cannot find device "${name}"`);
  return index;
}

function parseAddress(words: readonly string[]): Step | undefined {
  const matched = /^(\S+)\/(\d{1,2}) dev (\S+)( scope link)?( noprefixroute)?$/.exec(words.join(' '));
  if (matched === null) return undefined;
  const [, address = '', length, device = '', isLink, noRoute] = matched;
  if (!isIPv4(address) || Number(length) > 32) return undefined;
  return (netlink) => {
    const head = Buffer.from([AF_INET, Number(length), 0, isLink === undefined ? 0 : scope.link, 0, 0, 0, 0]);
    head.writeInt32LE(find(device), 4);
    const message = Buffer.concat([
      head,
      attribute(ofAddress.local, bytesOf(address)),
      attribute(ofAddress.address, bytesOf(address)),
      ...(noRoute === undefined ? [] : [attribute(ofAddress.flags, u32(IFA_F_NOPREFIXROUTE))]),
    ]);
    netlink.change(RTM.newAddress, how.create | how.replace, message);
  };
}

function parseNeighbour(verb: string, words: readonly string[]): Step | undefined {
  const remove = verb === 'del';
  const shape = remove
    ? /^(\S+)( )dev (\S+)$/
    : /^(\S+) lladdr ((?:[\da-f]{2}:){5}[\da-f]{2}) dev (\S+) nud permanent$/;
  const [, address = '', mac = '', device = ''] = shape.exec(words.join(' ')) ?? [];
  if (!isIPv4(address)) return undefined;
  return (netlink) => {
    const head = Buffer.alloc(ndmsgBytes);
    head[0] = AF_INET;
    head.writeInt32LE(find(device), 4);
    head.writeUInt16LE(NUD_PERMANENT, 8);
    const destination = attribute(ofNeighbour.destination, bytesOf(address));
    if (remove) netlink.change(RTM.deleteNeighbour, 0, Buffer.concat([head, destination]));
    else {
      const hardware = attribute(ofNeighbour.hardware, Buffer.from(mac.replaceAll(':', ''), 'hex'));
      const message = Buffer.concat([head, destination, hardware]);
      netlink.change(RTM.newNeighbour, how.create | how.replace, message);
    }
  };
}

function parseRoute(verb: string, words: readonly string[]): Step | undefined {
  const rest = [...words];
  const named = types[rest[0] ?? ''];
  if (named !== undefined) rest.shift();
  const destination = parseDestination(rest.shift() ?? '');
  if (destination === undefined) return undefined;
  const given = new Map<string, string>();
  let onlink = false;
  while (rest.length > 0) {
    const word = rest.shift() ?? '';
    if (word === 'onlink') onlink = true;
    else given.set(word, rest.shift() ?? '');
  }
  const [via, device, source] = [given.get('via'), given.get('dev'), given.get('src')];
  const table = tables[given.get('table') ?? 'main'] ?? numberOf(given.get('table'));
  const metric = given.has('metric') ? numberOf(given.get('metric')) : 0;
  const protocol = given.has('proto') ? numberOf(given.get('proto')) : protocolBoot;
  const known = ['via', 'dev', 'src', 'table', 'metric', 'proto', 'scope'];
  if (
    [...given.keys()].some((word) => !known.includes(word)) ||
    table === undefined ||
    metric === undefined ||
    protocol === undefined ||
    protocol > 255 ||
    [via, source].some((address) => address !== undefined && !isIPv4(address)) ||
    (given.has('scope') && scopes[given.get('scope') ?? ''] === undefined)
  )
    return undefined;
  const remove = verb === 'del';
  const head = Buffer.alloc(rtmsgBytes);
  head[0] = AF_INET;
  head[1] = destination.length;
  head[4] = table < 256 ? table : 0;
  head[5] = remove && !given.has('proto') ? 0 : protocol;
  head[6] = scopes[given.get('scope') ?? ''] ?? scopeOf(named, remove, via !== undefined);
  head[7] = named ?? (remove ? 0 : unicast);
  head.writeUInt32LE(onlink ? RTNH_F_ONLINK : 0, 8);
  const attributes = [
    ...(destination.length === 0 ? [] : [attribute(route.destination, bytesOf(destination.address))]),
    ...(via === undefined ? [] : [attribute(route.gateway, bytesOf(via))]),
    ...(source === undefined ? [] : [attribute(route.source, bytesOf(source))]),
    ...(metric === 0 ? [] : [attribute(route.priority, u32(metric))]),
    attribute(route.table, u32(table)),
  ];
  return (netlink) => {
    const way = device === undefined ? [] : [attribute(route.device, u32(find(device)))];
    const message = Buffer.concat([head, ...attributes, ...way]);
    if (remove) netlink.change(RTM.deleteRoute, 0, message);
    else netlink.change(RTM.newRoute, how.create | how.replace, message);
  };
}

function parseRule(verb: string, words: readonly string[]): Step | undefined {
  const matched =
    /^(?:from (\S+) )?(?:ipproto (udp) )?(?:(unreachable) |lookup (\w+) )?(?:suppress_prefixlength (\d+) )?priority (\d+)(?: protocol (\d+))?$/.exec(
      words.join(' '),
    );
  if (matched === null) return undefined;
  const [, from, udp, unreachable, lookup, ...numbers] = matched;
  const table = lookup === undefined ? undefined : (tables[lookup] ?? numberOf(lookup));
  const [suppress, priority, protocol] = numbers.map(numberOf);
  const add = verb === 'add';
  if (
    priority === undefined ||
    (protocol ?? 0) > 255 ||
    (from !== undefined && !isIPv4(from)) ||
    (lookup !== undefined && table === undefined) ||
    // What iproute2 makes of a rule without either is not asked for.
    (add && table === undefined && unreachable === undefined)
  )
    return undefined;
  const head = Buffer.alloc(fibRuleBytes);
  head[0] = AF_INET;
  head[2] = from === undefined ? 0 : 32;
  head[4] = table !== undefined && table < 256 ? table : 0;
  if (unreachable !== undefined) head[7] = action.unreachable;
  else if (add) head[7] = action.lookup;
  const message = Buffer.concat([
    head,
    attribute(ofFibRule.priority, u32(priority)),
    ...(from === undefined ? [] : [attribute(ofFibRule.source, bytesOf(from))]),
    ...(udp === undefined ? [] : [attribute(ofFibRule.ipProtocol, Buffer.from([IPPROTO_UDP]))]),
    ...(table === undefined ? [] : [attribute(ofFibRule.table, u32(table))]),
    ...(suppress === undefined ? [] : [attribute(ofFibRule.suppress, u32(suppress))]),
    ...(protocol === undefined ? [] : [attribute(ofFibRule.protocol, Buffer.from([protocol]))]),
  ]);
  return (netlink) => {
    if (add) netlink.change(RTM.newRule, how.create | how.exclusively, message);
    else netlink.change(RTM.deleteRule, 0, message);
  };
}

/** Where the words do not say it: as in iproute2's iproute_modify(). */
function scopeOf(type: number | undefined, remove: boolean, viaOther: boolean): number {
  if (type === types['local']) return scope.host;
  if (remove) return scope.nowhere;
  return type === undefined && !viaOther ? scope.link : scope.universe;
}

function parseDestination(words: string): { address: string; length: number } | undefined {
  if (words === 'default') return { address: '0.0.0.0', length: 0 };
  const [address = '', length = '32'] = words.split('/');
  const bits = numberOf(length);
  return isIPv4(address) && bits !== undefined && bits <= 32 ? { address, length: bits } : undefined;
}

function numberOf(words: string | undefined): number | undefined {
  return /^\d{1,10}$/.test(words ?? '') && Number(words) <= 0xffffffff ? Number(words) : undefined;
}

function bytesOf(address: string): Buffer {
  return Buffer.from(address.split('.').map(Number));
}
