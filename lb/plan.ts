// Owns the decision which virtual servers there are and who serves them. Pure, but for what it remembers of the last time.
// Must not know how an engine does it.
import { isDeepStrictEqual } from 'node:util';
import { difference, sameItems } from '../delta/list.ts';
import type { EndpointRecord, NetworkRecord, ServiceRecord } from '../store/records.ts';
import { isHealthy } from '../store/serving.ts';
import {
  virtualServerId,
  type PortServer,
  type RealServer,
  type VipServer,
  type VirtualServer,
} from './model.ts';

/** The virtual servers of one service. */
export interface ServicePlan {
  vips: readonly { network: string; server: VipServer }[];
  ports: readonly PortServer[];
  /** The network by which the ports are reached; absent when there is none of ours. */
  entrance?: string;
  /** The endpoints behind the ports. */
  targets: readonly EndpointRecord[];
}

/**
 * @param node that balances
 * @param hidden ids of nodes that are lost: their tasks get no new connections, unless a service has no others
 * @returns one virtual server for each VIP and each published port of the services
 */
export function planVirtualServers(
  services: readonly ServiceRecord[],
  networks: readonly NetworkRecord[],
  endpoints: readonly EndpointRecord[],
  node: string,
  hidden: ReadonlySet<string> = new Set(),
): VirtualServer[] {
  const plans = new ServicePlanner(node).plan(services, networks, endpoints, hidden);
  return plans.flatMap(({ vips, ports }) => [...vips.map(({ server }) => server), ...ports]);
}

/**
 * Plans all services, and remembers it: the next time only those are planned anew that changed, or that have an endpoint
 * which did. What stays the same is the same object.
 */
export class ServicePlanner {
  /** That balances. */
  readonly #node: string;
  #services: readonly ServiceRecord[] = [];
  #networks: readonly NetworkRecord[] = [];
  #endpoints: readonly EndpointRecord[] = [];
  #hidden: ReadonlySet<string> = new Set();
  #known: ReadonlyMap<string, NetworkRecord> = new Map();
  #plans: readonly ServicePlan[] = [];
  readonly #planOf = new Map<ServiceRecord, ServicePlan>();
  /** What is behind an address, by {@link place}. */
  readonly #present = new Claims<EndpointRecord>();
  /** Services with a task at the address. */
  readonly #users = new Claims<ServiceRecord>();
  /** Services that want the virtual server, by its id. */
  readonly #owners = new Claims<ServiceRecord>();

  constructor(node: string) {
    this.#node = node;
  }

  /** As {@link planVirtualServers}; of two that claim the same, one is heard, and the same one at every node. */
  plan(
    services: readonly ServiceRecord[],
    networks: readonly NetworkRecord[],
    endpoints: readonly EndpointRecord[],
    hidden: ReadonlySet<string>,
  ): readonly ServicePlan[] {
    const stale = new Set<ServiceRecord>();
    const all = networks !== this.#networks || !sameSet(hidden, this.#hidden);
    if (all)
      this.#known = new Map(
        networks.filter(({ refused }) => refused === undefined).map((network) => [network.id, network]),
      );
    this.#takeEndpoints(endpoints, stale);
    const before = new Map<string, ServicePlan>();
    this.#takeServices(services, stale, before);
    const changed = services !== this.#services || all || stale.size > 0;
    [this.#services, this.#networks, this.#endpoints, this.#hidden] = [services, networks, endpoints, hidden];
    if (!changed) return this.#plans;
    for (const service of all ? services : stale) {
      const old = this.#planOf.get(service) ?? before.get(service.id);
      this.#planOf.set(service, this.#planService(service, old));
    }
    const plans: ServicePlan[] = [];
    for (const service of services) {
      const plan = this.#planOf.get(service);
      if (plan !== undefined) plans.push(plan);
    }
    if (!sameItems(plans, this.#plans)) this.#plans = plans;
    return this.#plans;
  }

  #takeEndpoints(endpoints: readonly EndpointRecord[], stale: Set<ServiceRecord>): void {
    const { removed, added } = difference(this.#endpoints, endpoints);
    const touch = (endpoint: EndpointRecord, change: 'add' | 'remove'): void => {
      if (endpoint.sandbox === undefined) return;
      const key = place(endpoint.network, endpoint.address);
      this.#present[change](key, endpoint);
      for (const service of this.#users.all(key)) stale.add(service);
    };
    for (const endpoint of removed) touch(endpoint, 'remove');
    for (const endpoint of added) touch(endpoint, 'add');
  }

  #takeServices(
    services: readonly ServiceRecord[],
    stale: Set<ServiceRecord>,
    before: Map<string, ServicePlan>,
  ): void {
    const { removed, added } = difference(this.#services, services);
    const touch = (service: ServiceRecord, change: 'add' | 'remove'): void => {
      for (const key of places(service)) this.#users[change](key, service);
      for (const id of claimed(service)) {
        this.#owners[change](id, service);
        for (const other of this.#owners.all(id)) stale.add(other);
      }
    };
    for (const service of removed) {
      touch(service, 'remove');
      const plan = this.#planOf.get(service);
      if (plan !== undefined) before.set(service.id, plan);
      this.#planOf.delete(service);
    }
    for (const service of added) {
      touch(service, 'add');
      stale.add(service);
    }
    for (const service of removed) stale.delete(service);
  }

  #planService(service: ServiceRecord, old: ServicePlan | undefined): ServicePlan {
    const policy = service.policy === undefined ? {} : { policy: service.policy };
    const isOwn = (server: VirtualServer): boolean =>
      this.#owners.winner(virtualServerId(server)) === service;
    const vips = Object.entries(service.vips)
      .filter(([network]) => this.#known.has(network))
      .map(([network, address]) => ({
        network,
        server: { kind: 'vip', address, ...policy, ...this.#serversOn(service, network) } as const,
      }))
      .filter(({ server }) => isOwn(server))
      .map(({ network, server: { targets: _, ...server } }) => ({
        network,
        server: kept(
          server,
          old?.vips.map((vip) => vip.server),
        ),
      }));
    const entrance = publishNetwork(service.networks.flatMap((id) => this.#known.get(id) ?? []))?.id;
    if (entrance === undefined || service.ports.length === 0) return { vips, ports: [], targets: [] };
    const { realServers, targets } = this.#serversOn(service, entrance);
    const ports = service.ports
      .map((port) => ({ kind: 'port', ...port, ...policy, realServers }) as const)
      .filter(isOwn)
      .map((server) => kept(server, old?.ports));
    return { vips, ports, entrance, targets };
  }

  #serversOn(
    service: ServiceRecord,
    network: string,
  ): { realServers: RealServer[]; targets: EndpointRecord[] } {
    const candidates = service.tasks.flatMap((task) => {
      const { addresses, weight = 1 } = task;
      const address = addresses[network];
      const target = this.#present.winner(place(network, address ?? ''));
      // A task Swarm still believes in, but whose endpoint is gone, answers no more.
      if (address === undefined || target === undefined || task.drained === true) return [];
      const [lost, local] = [this.#hidden.has(target.node), target.node === this.#node];
      const healthy = isHealthy(service, task, target);
      return [{ address, healthy, draining: task.draining, weight, target, lost, local }];
    });
    // While those that run are not healthy yet, the ones they replace are better than nobody: Docker leaves them alone for
    // two seconds more.
    const early = !candidates.some(({ healthy, draining }) => healthy && !draining);
    const stopgap = early && candidates.some(({ draining }) => !draining);
    const servers = candidates.map(({ healthy, draining, ...rest }) => ({
      ...rest,
      serves: healthy && (!draining || stopgap),
    }));
    // When all that could serve seem lost, it may be this node that is: asking them is better than refusing.
    const trusting = !servers.some(({ serves, lost }) => serves && !lost);
    const { locality = 'any' } = service.policy ?? {};
    const near =
      locality === 'local' ||
      (locality === 'prefer-local' && servers.some(({ local, serves }) => local && serves));
    return {
      // Not at weight 0, at which IPVS would keep what was begun and not answered with the lost one. Its established
      // connections cannot go on there; with nft they wait in conntrack, and do when it comes back.
      realServers: servers
        .filter(({ lost }) => !lost || trusting)
        .map(({ address, serves, weight, local }) => ({
          address,
          weight: !serves || (near && !local) ? 0 : weight,
        })),
      targets: servers.map(({ target }) => target),
    };
  }
}

/** Who claims what, by key. The claim of the greatest id counts. */
class Claims<T extends { id: string }> {
  readonly #claims = new Map<string, T[]>();

  add(key: string, item: T): void {
    const claims = this.#claims.get(key);
    if (claims === undefined) this.#claims.set(key, [item]);
    else claims.push(item);
  }

  remove(key: string, item: T): void {
    const claims = (this.#claims.get(key) ?? []).filter((other) => other !== item);
    if (claims.length === 0) this.#claims.delete(key);
    else this.#claims.set(key, claims);
  }

  all(key: string): readonly T[] {
    return this.#claims.get(key) ?? [];
  }

  winner(key: string): T | undefined {
    const [first, ...others] = this.all(key);
    return others.reduce((best, item) => (best !== undefined && best.id > item.id ? best : item), first);
  }
}

function place(network: string, address: string): string {
  return `${network} ${address}`;
}

function places({ tasks }: ServiceRecord): Set<string> {
  return new Set(
    tasks.flatMap(({ addresses }) =>
      Object.entries(addresses).map(([network, address]) => place(network, address)),
    ),
  );
}

function claimed({ vips, ports }: ServiceRecord): Set<string> {
  const realServers: RealServer[] = [];
  return new Set([
    ...Object.values(vips).map((address) => virtualServerId({ kind: 'vip', address, realServers })),
    ...ports.map((port) => virtualServerId({ kind: 'port', ...port, realServers })),
  ]);
}

/** The server as it was, if it is as it was. */
function kept<T extends VirtualServer>(server: T, before: readonly T[] = []): T {
  return before.find((old) => isSame(old, server)) ?? server;
}

function isSame(one: VirtualServer, other: VirtualServer): boolean {
  const port = ({ targetPort }: PortServer): number => targetPort;
  return (
    virtualServerId(one) === virtualServerId(other) &&
    (one.kind === 'vip' || other.kind === 'vip' || port(one) === port(other)) &&
    (one.policy === other.policy || isDeepStrictEqual(one.policy, other.policy)) &&
    one.realServers.length === other.realServers.length &&
    one.realServers.every(({ address, weight }, at) => {
      const real = other.realServers[at];
      return address === real?.address && weight === real.weight;
    })
  );
}

function sameSet<T>(one: ReadonlySet<T>, other: ReadonlySet<T>): boolean {
  return one.size === other.size && [...one].every((item) => other.has(item));
}

/**
 * The network through which clients from outside reach the tasks of a service that is on several: the one whose
 * gateway Docker makes the sandbox's default, because the replies leave by it (libnetwork's order of endpoints:
 * internal networks last, then by name).
 */
function publishNetwork(networks: readonly NetworkRecord[]): NetworkRecord | undefined {
  const rank = ({ internal, name = '', id }: NetworkRecord): string => `${internal ? 1 : 0} ${name} ${id}`;
  return [...networks].sort((a, b) => (rank(a) < rank(b) ? -1 : 1))[0];
}
