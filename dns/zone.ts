// Owns what is known by which name on each network: made of the records, and pure.
// Must not know who asks (resolve.ts), nor what an answer looks like (message.ts).
import { sameItems } from '../delta/list.ts';
import type { EndpointRecord, NameRecord, NetworkRecord, ServiceRecord } from '../store/records.ts';
import { isHealthy, activeTasksOf, type Candidate } from '../store/serving.ts';
import { rangeOf, toNumber, type Range } from './address.ts';
import { canonical, maxTextLength } from './name.ts';

export interface ZoneRecords {
  networks: readonly NetworkRecord[];
  services: readonly ServiceRecord[];
  endpoints: readonly EndpointRecord[];
  names: readonly NameRecord[];
}

/** Below it, every name can be asked for by the host, and nothing is ever forwarded. */
export const suffix = 'causeway.internal';

/**
 * What is `live` is answered. `starting`: its health check has not succeeded yet; where nobody is live it is answered to peers,
 * who may have to find it before it can. `draining`: its task shall stop. `detached`: no sandbox has joined. `unreachable`: its node is.
 * `unhealthy`: its container's health check fails, or that of its service's labels.
 */
export type State = 'live' | 'starting' | 'draining' | 'detached' | 'unreachable' | 'unhealthy';

/** What has an address of its own on a network: a task or another container. */
export interface Member {
  address: string;
  /** The id of the node it is on; absent when there is no endpoint. */
  node?: string;
  state: State;
  /** Of a task; absent where it cannot take connections at all. */
  candidate?: Candidate;
  /** A name that stands for it and for nothing else, below {@link suffix}; absent when there is none. */
  target?: string;
}

/** A service on one network. */
export interface ServiceOnNetwork {
  id: string;
  vip?: string;
  /** All its tasks on the network, also those that are not live. */
  members: readonly Member[];
  /** `NAME/PROTOCOL` to the port at which its tasks listen. */
  ports: ReadonlyMap<string, number>;
}

/** What a name stands for on one network. */
export interface Owner {
  /** `service`: a name or alias. `tasks`: such with `tasks.` in front. `task`: one of a service. `container`: all else. */
  kind: 'service' | 'tasks' | 'task' | 'container';
  network: ZoneNetwork;
  /** Of the kinds `service` and `tasks`. */
  services: readonly ServiceOnNetwork[];
  /** Of the kinds `task` and `container`. */
  members: readonly Member[];
  /** What its name is answered with; empty when nobody is live. */
  addresses: readonly string[];
  /** All addresses are VIPs. */
  stable: boolean;
}

export interface ZoneNetwork {
  id: string;
  /** Docker's name, or the id as long as that is not known. */
  label: string;
  range: Range;
  /** By name in lower case. */
  owners: ReadonlyMap<string, Owner>;
  /** Address to name, which is the container's or the service's and, once it is known, the network's. */
  reverse: ReadonlyMap<string, string>;
}

/** All names of all networks at one moment. */
export interface Zone {
  /** By id. Networks that were refused are not among them. */
  networks: ReadonlyMap<string, ZoneNetwork>;
  /** By Docker's name in lower case; Docker allows networks with the same name. */
  networksByName: ReadonlyMap<string, readonly ZoneNetwork[]>;
  /** Whether the address is in a network's subnet, and there is neither a gateway, nor a VIP, nor anybody live. */
  isStale: (address: string) => boolean;
}

/** All that one network's names are made of. Its lists are in the order of the records. */
interface NetworkRecords {
  network: NetworkRecord;
  /** Also those that have left it, while tasks of theirs are still there. */
  services: ServiceRecord[];
  endpoints: EndpointRecord[];
  names: NameRecord[];
}

interface Made {
  from: NetworkRecords;
  network: NetworkBuilder;
}

/** Makes zones, one after the other: a network of which no record is another object is the one of the zone before. */
export class ZoneBuilder {
  #made = new Map<string, Made>();
  #unreachable: ReadonlySet<string> = new Set();

  /** @param unreachable ids of unreachable nodes */
  build(records: ZoneRecords, unreachable: ReadonlySet<string>): Zone {
    const sameNodes =
      unreachable.size === this.#unreachable.size &&
      [...unreachable].every((id) => this.#unreachable.has(id));
    if (!sameNodes) this.#made.clear();
    this.#unreachable = new Set(unreachable);
    const made = new Map<string, Made>();
    for (const [id, from] of groupByNetwork(records)) {
      const known = this.#made.get(id);
      made.set(
        id,
        known !== undefined && isSame(known.from, from)
          ? known
          : { from, network: new NetworkBuilder(from, new Endpoints(from, unreachable)) },
      );
    }
    this.#made = made;
    return zoneOf([...made.values()].map(({ network }) => network));
  }
}

function groupByNetwork(records: ZoneRecords): Map<string, NetworkRecords> {
  const networks = new Map<string, NetworkRecords>();
  for (const network of records.networks)
    if (network.refused === undefined)
      networks.set(network.id, { network, services: [], endpoints: [], names: [] });
  for (const service of records.services) {
    const tasks = service.tasks.flatMap(({ addresses }) => Object.keys(addresses));
    for (const id of new Set([...service.networks, ...Object.keys(service.vips), ...tasks]))
      networks.get(id)?.services.push(service);
  }
  for (const endpoint of records.endpoints) networks.get(endpoint.network)?.endpoints.push(endpoint);
  for (const name of records.names) networks.get(name.network)?.names.push(name);
  return networks;
}

function isSame(one: NetworkRecords, other: NetworkRecords): boolean {
  return (
    one.network === other.network &&
    sameItems(one.services, other.services) &&
    sameItems(one.endpoints, other.endpoints) &&
    sameItems(one.names, other.names)
  );
}

function zoneOf(networks: readonly NetworkBuilder[]): Zone {
  const networksByName = new Map<string, ZoneNetwork[]>();
  for (const network of networks) {
    if (network.name === undefined) continue;
    const others = networksByName.get(network.name);
    if (others === undefined) networksByName.set(network.name, [network]);
    else others.push(network);
  }
  return {
    networks: new Map(networks.map((network) => [network.id, network])),
    networksByName,
    isStale: (address) => {
      const number = toNumber(address);
      if (number === undefined) return false;
      const network = networks.find(({ range }) => contains(range, number));
      return network !== undefined && !network.inhabited.has(address);
    },
  };
}

export function contains({ first, last }: Range, address: number): boolean {
  return address >= first && address <= last;
}

type TaskState = Pick<ServiceRecord['tasks'][number], 'draining' | 'drained' | 'assumed'>;

/** A network's endpoints by what they are looked up by, and how each of them is. */
class Endpoints {
  readonly #unreachable: ReadonlySet<string>;
  /** By endpoint. */
  readonly #names = new Map<string, NameRecord>();
  readonly #byAddress = new Map<string, EndpointRecord>();
  /** Addresses. */
  readonly #draining = new Set<string>();
  /** Addresses. */
  readonly #failing = new Set<string>();

  constructor({ network, endpoints, names, services }: NetworkRecords, unreachable: ReadonlySet<string>) {
    this.#unreachable = unreachable;
    for (const endpoint of endpoints) {
      if (endpoint.sandbox === undefined) continue;
      const other = this.#byAddress.get(endpoint.address);
      // Of two at one address the same counts at every node, and for the balancer as well.
      if (other === undefined || other.id < endpoint.id) this.#byAddress.set(endpoint.address, endpoint);
    }
    for (const record of names) this.#names.set(record.endpoint, record);
    const tasks = services.flatMap((service) => service.tasks);
    for (const { draining, addresses } of tasks.toSorted((a, b) => Number(b.draining) - Number(a.draining))) {
      const address = addresses[network.id];
      if (address === undefined) continue;
      // An address that a new task has got is not draining, though its old task may still be listed.
      if (draining) this.#draining.add(address);
      else this.#draining.delete(address);
    }
    for (const service of services)
      for (const task of service.tasks) {
        const endpoint = this.#byAddress.get(task.addresses[network.id] ?? '');
        if (endpoint !== undefined && !isHealthy(service, task, endpoint))
          this.#failing.add(endpoint.address);
      }
  }

  /** A task of a service; its address can be another's already. */
  memberAt(address: string, service: ServiceRecord, task: TaskState): Member {
    const endpoint = this.#byAddress.get(address);
    if (endpoint === undefined) return { address, state: 'detached' };
    const member = this.memberOf(endpoint);
    const { draining, drained } = task;
    return {
      ...member,
      ...(draining && member.state === 'live' && { state: 'draining' as const }),
      ...(drained !== true && {
        candidate: {
          healthy: isHealthy(service, task, endpoint),
          draining,
          unreachable: this.#unreachable.has(endpoint.node),
        },
      }),
    };
  }

  memberOf(endpoint: EndpointRecord): Member {
    return { address: endpoint.address, node: endpoint.node, state: this.#stateOf(endpoint) };
  }

  namesOf({ id }: EndpointRecord): readonly string[] {
    return this.#names.get(id)?.names ?? [];
  }

  #stateOf({ id, address, node, sandbox, failing }: EndpointRecord): State {
    if (sandbox === undefined) return 'detached';
    if (this.#unreachable.has(node)) return 'unreachable';
    // A node of an earlier version says it of a container's names alone.
    const isUnhealthy = failing === true || this.#names.get(id)?.unhealthy === true;
    if (isUnhealthy || this.#failing.has(address)) return 'unhealthy';
    return this.#draining.has(address) ? 'draining' : 'live';
  }
}

interface Claims {
  kind: Owner['kind'];
  services: ServiceOnNetwork[];
  members: Member[];
}

/** Makes one network's names of its records: services first, then endpoints. */
class NetworkBuilder implements ZoneNetwork {
  readonly id: string;
  /** As it can be asked for. */
  readonly name: string | undefined;
  readonly label: string;
  readonly range: Range;
  readonly owners = new Map<string, Owner>();
  readonly reverse = new Map<string, string>();
  /** Addresses that belong to somebody. */
  readonly inhabited: Set<string>;
  readonly #claims = new Map<string, Claims>();
  /** Tasks that need a name which is theirs alone: the one derived from the address, if there is no other. */
  readonly #tasks: { member: Member; derived: string }[] = [];
  /** Address to the first name of the container that has it. */
  readonly #names = new Map<string, string>();

  constructor(records: NetworkRecords, endpoints: Endpoints) {
    const { id, name, subnet, gateway } = records.network;
    this.id = id;
    this.name = name === undefined ? undefined : canonical(name);
    this.label = name ?? id;
    this.range = rangeOf(subnet);
    this.inhabited = new Set([gateway]);
    for (const service of records.services)
      if (service.networks.includes(id) || service.vips[id] !== undefined)
        this.#addService(service, endpoints);
    for (const endpoint of records.endpoints) this.#addEndpoint(endpoint, endpoints);
    this.#finish();
  }

  #addService(record: ServiceRecord, endpoints: Endpoints): void {
    const vip = record.vips[this.id];
    const members: Member[] = [];
    const service: ServiceOnNetwork = {
      id: record.id,
      ...(vip !== undefined && { vip }),
      members,
      ports: portsOf(record),
    };
    const own = canonical(record.name);
    for (const { starting, ...task } of [
      ...record.tasks.map((task) => ({ ...task, starting: false })),
      ...(record.starting ?? []).map((task) => ({ ...task, draining: false, starting: true })),
    ]) {
      const address = task.addresses[this.id];
      if (address === undefined) continue;
      const found = endpoints.memberAt(address, record, task);
      const { candidate: _, ...rest } = found;
      const member: Member = starting
        ? { ...rest, ...(found.state === 'live' && { state: 'starting' as const }) }
        : found;
      members.push(member);
      if (own === undefined) continue;
      const derived = `${address.replaceAll('.', '-')}.${own}`;
      this.#claim(derived, 'task')?.members.push(member);
      this.#tasks.push({ member, derived });
    }
    for (const name of namesOf([record.name, ...(record.aliases?.[this.id] ?? [])])) {
      this.#claim(name, 'service')?.services.push(service);
      this.#claim(`tasks.${name}`, 'tasks')?.services.push(service);
    }
    if (vip === undefined) return;
    this.inhabited.add(vip);
    if (own !== undefined) this.#names.set(vip, own);
  }

  #addEndpoint(endpoint: EndpointRecord, endpoints: Endpoints): void {
    const { address } = endpoint;
    const member = endpoints.memberOf(endpoint);
    if (member.state === 'live') this.inhabited.add(address);
    const names = namesOf(endpoints.namesOf(endpoint));
    for (const name of names) this.#claim(name, 'container')?.members.push(member);
    const [first] = names;
    if (first !== undefined && endpoint.sandbox !== undefined) this.#names.set(address, first);
  }

  #finish(): void {
    for (const [name, claims] of this.#claims) this.owners.set(name, this.#ownerOf(claims));
    for (const { member, derived } of this.#tasks) {
      const names = [this.#names.get(member.address) ?? derived, derived].filter((name) =>
        this.#standsFor(name, member.address),
      );
      const target = firstShort(names.map((name) => `${this.#qualified(name)}.${suffix}`));
      if (target !== undefined) member.target = target;
      // Swarm tells of a task before its node tells the container's names.
      if (!this.#names.has(member.address) && member.state === 'live')
        this.#names.set(member.address, derived);
    }
    for (const [address, name] of this.#names) {
      const text = firstShort([this.#qualified(name), name]);
      if (text !== undefined) this.reverse.set(address, text);
    }
  }

  /**
   * @param key a name in lower case that can be asked for
   * @returns undefined if the name belongs to what comes before this kind
   */
  #claim(key: string, kind: Owner['kind']): Claims | undefined {
    const claims = this.#claims.get(key);
    if (claims !== undefined) return claims.kind === kind ? claims : undefined;
    const first: Claims = { kind, services: [], members: [] };
    this.#claims.set(key, first);
    return first;
  }

  #ownerOf({ kind, services, members }: Claims): Owner {
    // A name of one alone promises nothing but where it is.
    const present = members.filter(({ state }) => state === 'live' || state === 'starting');
    const addresses = new Set(present.map(({ address }) => address));
    let stable = kind === 'service';
    for (const { vip, members: tasks } of services) {
      if (kind === 'tasks' || vip === undefined) {
        for (const { address } of servingOf(tasks)) addresses.add(address);
        stable = false;
      } else if (servingOf(tasks.filter(({ state }) => state !== 'starting')).length > 0) addresses.add(vip);
    }
    return { kind, network: this, services, members, addresses: [...addresses], stable };
  }

  /** Whether the name is answered with this address, and could not be with another one. */
  #standsFor(name: string, address: string): boolean {
    const claims = this.#claims.get(name);
    return (
      claims !== undefined &&
      claims.members.length > 0 &&
      claims.members.every((one) => one.address === address)
    );
  }

  #qualified(name: string): string {
    return this.name === undefined ? name : `${name}.${this.label}`;
  }
}

/** @returns what of these can be asked for, in lower case and each once */
function namesOf(names: readonly string[]): string[] {
  return [...new Set(names.flatMap((name) => canonical(name) ?? []))];
}

/** @param names made of what can be asked for, but perhaps too long */
function firstShort(names: readonly string[]): string | undefined {
  return names.find((name) => name.length <= maxTextLength);
}

/**
 * The tasks of one service to send somebody to: as for the balancer, and where nobody takes connections whose node answers, those
 * that start. The members of a cluster become healthy by finding each other.
 */
export function servingOf(tasks: readonly Member[]): readonly Member[] {
  const active = activeTasksOf(
    tasks.flatMap((member) => (member.candidate === undefined ? [] : { ...member.candidate, member })),
  );
  const starting = tasks.filter(({ state }) => state === 'starting');
  return starting.length > 0 && active.every(({ unreachable }) => unreachable)
    ? starting
    : active.map(({ member }) => member);
}

function portsOf({ ports }: ServiceRecord): Map<string, number> {
  return new Map(
    ports.flatMap(({ name, protocol, targetPort }) =>
      name === undefined ? [] : [[`${name.toLowerCase()}/${protocol}`, targetPort] as const],
    ),
  );
}
