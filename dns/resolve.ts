// Owns the rules by which a question is answered, refused or passed on. Pure.
// Must not know records, packets or sockets.
import { toNumber } from './address.ts';
import { TYPE } from './types.ts';
import {
  contains,
  suffix,
  type Owner,
  type ServiceOnNetwork,
  type Zone,
  type ZoneNetwork,
  servingOf,
} from './zone.ts';

/**
 * Who asks: a container sees the networks it is on, the first one that knows a name before the others; the host sees all of them.
 */
export type Asker = { kind: 'container'; networks: ReadonlySet<string> /* ids */ } | { kind: 'host' };

/** What a record says, by its type. */
export type Data =
  | { type: typeof TYPE.A; address: string }
  | { type: typeof TYPE.PTR; target: string }
  | { type: typeof TYPE.SRV; priority: number; weight: number; port: number; target: string }
  | { type: typeof TYPE.TXT; text: string }
  | { type: typeof TYPE.SOA };

/** A record whose name is the one that was asked for. */
export type Answer = Data & { /** seconds */ ttl: number };

/** A record that goes with the answer, and has a name of its own. */
export type Additional = Answer & { name: string };

export type Resolution =
  | { kind: 'answer'; records: readonly Answer[]; additional: readonly Additional[] }
  /** The name is ours and has nothing of this type. */
  | { kind: 'nodata' }
  | { kind: 'nxdomain' }
  /** The name is not ours: somebody else may know it. */
  | { kind: 'forward' }
  | { kind: 'refuse' };

export interface Question {
  /** In any case, with or without the dot at its end. */
  name: string;
  type: number;
}

/** Seconds. Containers and tasks come and go, and clients that keep an address longer than it is used talk to nobody. */
const movingTtl = 1;
/** A VIP stays as long as its service, but whether anybody serves behind it may change. */
const vipTtl = 5;
/** What is missing may start at any moment: whoever waits for it shall not wait for a cache. */
export const negativeTtl = 1;

const reverseSuffix = '.in-addr.arpa';
const maxPort = 65_535;
const maxTextBytes = 255;

/** @param random from 0 and below 1, as Math.random: addresses come in another order each time */
export function resolve(
  zone: Zone,
  asker: Asker,
  question: Question,
  random: () => number = Math.random,
): Resolution {
  const name = plain(question.name);
  const address = reversed(name);
  const unknown = { kind: asker.kind === 'host' ? 'refuse' : 'forward' } as const;
  if (address !== undefined) return pointer(zone, asker, address, question.type) ?? unknown;
  if (name === suffix)
    return question.type === TYPE.SOA ? answer([{ type: TYPE.SOA, ttl: negativeTtl }]) : nodata;
  const isBelow = name.endsWith(`.${suffix}`);
  if (!isBelow && asker.kind === 'host') return unknown;
  const short = isBelow ? name.slice(0, -suffix.length - 1) : name;
  const owners = find(zone, asker, short);
  if (owners.length > 0) return named(owners, question.type, random);
  const servers = located(zone, asker, short, question.type, random);
  if (servers !== undefined) return servers;
  if (!isBelow) return unknown;
  // There are names below a network's, so it has to exist (RFC 8020).
  return visibleCalled(zone, asker, short).length > 0 ? nodata : nxdomain;
}

const nodata: Resolution = { kind: 'nodata' };
const nxdomain: Resolution = { kind: 'nxdomain' };

function answer(records: readonly Answer[], additional: readonly Additional[] = []): Resolution {
  return records.length === 0 ? nodata : { kind: 'answer', records, additional };
}

function plain(name: string): string {
  return (name.endsWith('.') ? name.slice(0, -1) : name).toLowerCase();
}

/** @returns the address that a name below in-addr.arpa asks for, if it is a whole one */
function reversed(name: string): string | undefined {
  if (!name.endsWith(reverseSuffix)) return undefined;
  const address = name.slice(0, -reverseSuffix.length).split('.').reverse().join('.');
  return toNumber(address) === undefined ? undefined : address;
}

/** @returns undefined when the address is in no network's subnet */
function pointer(zone: Zone, asker: Asker, address: string, type: number): Resolution | undefined {
  const number = toNumber(address) ?? 0;
  for (const network of zone.networks.values()) {
    if (!contains(network.range, number)) continue;
    // Nobody else could know who is there, and who is not on the network shall not.
    if (asker.kind === 'container' && !asker.networks.has(network.id)) return nxdomain;
    const target = network.reverse.get(address);
    if (target === undefined) return nxdomain;
    if (type !== TYPE.PTR && type !== TYPE.ANY) return nodata;
    return answer([{ type: TYPE.PTR, ttl: movingTtl, target }]);
  }
  return undefined;
}

function visible(zone: Zone, asker: Asker): Iterable<ZoneNetwork> {
  if (asker.kind === 'host') return zone.networks.values();
  const networks: ZoneNetwork[] = [];
  for (const id of asker.networks) {
    const network = zone.networks.get(id);
    if (network !== undefined) networks.push(network);
  }
  return networks;
}

function visibleCalled(zone: Zone, asker: Asker, name: string): readonly ZoneNetwork[] {
  const networks = zone.networksByName.get(name) ?? [];
  return asker.kind === 'host' ? networks : networks.filter(({ id }) => asker.networks.has(id));
}

/**
 * @returns who owns NAME, or else NAME.NETWORK, on the first network of the asker's that knows it; for the host on all of them,
 * services if there are any
 */
function find(zone: Zone, asker: Asker, name: string): readonly Owner[] {
  const owners = ownersOn(visible(zone, asker), name, asker);
  if (owners.length > 0) return owners;
  // Both container names and network names may have dots in them.
  for (let dot = name.indexOf('.'); dot > 0; dot = name.indexOf('.', dot + 1)) {
    const networks = visibleCalled(zone, asker, name.slice(dot + 1));
    if (networks.length === 0) continue;
    const qualified = ownersOn(networks, name.slice(0, dot), asker);
    if (qualified.length > 0) return qualified;
  }
  return [];
}

function ownersOn(networks: Iterable<ZoneNetwork>, name: string, asker: Asker): readonly Owner[] {
  const owners: Owner[] = [];
  for (const network of networks) {
    const owner = network.owners.get(name);
    if (owner === undefined) continue;
    // What is called the same on another network may be another stack's, and is never mixed in.
    if (asker.kind === 'container') return [owner];
    owners.push(owner);
  }
  if (owners.length < 2) return owners;
  const services = owners.filter(({ kind }) => kind !== 'container');
  return services.length > 0 ? services : owners;
}

function named(owners: readonly Owner[], type: number, random: () => number): Resolution {
  const wantsAny = type === TYPE.ANY;
  if (type === TYPE.A || wantsAny) {
    const addresses = owners.length === 1 ? owners[0]?.addresses : union(owners);
    // All records of one name and type have the same TTL (RFC 2181 §5.2).
    const ttl = owners.every(({ stable }) => stable) ? vipTtl : movingTtl;
    const records = (addresses ?? []).map((address) => ({ type: TYPE.A, ttl, address }));
    // Of all types one is enough for ANY (RFC 8482 §4.1).
    if (records.length > 0 || !wantsAny) return answer(shuffle(records, random));
  }
  if (type !== TYPE.TXT && !wantsAny) return nodata;
  return answer(
    owners
      .flatMap(diagnosis)
      .map((text) => ({ type: TYPE.TXT, ttl: movingTtl, text: text.slice(0, maxTextBytes) })),
  );
}

function union(owners: readonly Owner[]): string[] {
  return [...new Set(owners.flatMap(({ addresses }) => addresses))];
}

/** In place. */
function shuffle<T>(items: T[], random: () => number): T[] {
  for (let at = items.length - 1; at > 0; at -= 1) {
    const other = Math.floor(random() * (at + 1));
    const [one, two] = [items[at], items[other]];
    if (one !== undefined && two !== undefined) [items[at], items[other]] = [two, one];
  }
  return items;
}

/** What a person who asks for TXT gets to see, a line each. */
function diagnosis({ kind, network, services, members }: Owner): string[] {
  return [
    ...services.flatMap(({ vip, members: tasks }) => {
      const live = tasks.filter(({ state }) => state === 'live');
      const address = vip === undefined ? '' : ` vip=${vip}`;
      return [
        `kind=${kind} network=${network.label}${address} tasks=${tasks.length} live=${live.length}`,
        ...live.map((task) => `task=${task.address} node=${task.node ?? ''}`),
      ];
    }),
    ...members.map(
      ({ address, node, state }) =>
        `kind=${kind} network=${network.label} address=${address} node=${node ?? ''} state=${state}`,
    ),
  ];
}

/** @returns undefined unless the name is _PORT._PROTO.SERVICE of a service that the asker sees */
function located(
  zone: Zone,
  asker: Asker,
  name: string,
  type: number,
  random: () => number,
): Resolution | undefined {
  const [, port, protocol, owned] = /^_([^.]+)\._(tcp|udp)\.(.+)$/.exec(name) ?? [];
  if (port === undefined || protocol === undefined || owned === undefined) return undefined;
  const services = find(zone, asker, owned).flatMap((owner) => owner.services);
  if (services.length === 0) return undefined;
  const ports = services.flatMap((service) => {
    const number = portOf(service, port, protocol);
    return number === undefined ? [] : { service, number };
  });
  if (ports.length === 0) return nxdomain;
  if (type !== TYPE.SRV && type !== TYPE.ANY) return nodata;
  const records: Extract<Answer, { type: typeof TYPE.SRV }>[] = [];
  const additional: Additional[] = [];
  for (const { service, number } of ports)
    for (const { target, address } of servingOf(service.members)) {
      if (target === undefined) continue;
      records.push({ type: TYPE.SRV, ttl: movingTtl, priority: 0, weight: 1, port: number, target });
      additional.push({ type: TYPE.A, ttl: movingTtl, name: target, address });
    }
  return answer(shuffle(records, random), additional);
}

function portOf(service: ServiceOnNetwork, port: string, protocol: string): number | undefined {
  if (!/^[1-9][0-9]{0,4}$/.test(port)) return service.ports.get(`${port}/${protocol}`);
  return Number(port) <= maxPort ? Number(port) : undefined;
}
