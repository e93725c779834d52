// Owns the decision which virtual servers there are and who serves them. Pure, but for what it remembers of the last time.
// Must not know how an engine does it.
import { isDeepStrictEqual } from 'node:util';
import { difference, sameItems } from '../delta/list.ts';
import { foldPorts, unfoldPorts, type Stored } from '../store/port-ranges.ts';
import type { EndpointRecord, NetworkRecord, ServicePort, ServiceRecord } from '../store/records.ts';
import { isHealthy, activeTasksOf } from '../store/serving.ts';
import {
  virtualServerId,
  type PortServer,
  type RealServer,
  type VipServer,
  type VirtualServer,
} from './model.ts';
import { begunOf, sharesOf, type Begun } from './slow-start.ts';

type Task = ServiceRecord['tasks'][number];

/** The virtual servers of one service. */
export interface ServicePlan {
  vips: readonly { network: string; server: VipServer }[];
  ports: readonly PortServer[];
  /** The endpoints behind the ports. */
  targets: readonly EndpointRecord[];
  /** Of a service that starts its tasks slowly: when they began, by the network of a VIP, or `ports`. */
  begun?: ReadonlyMap<string, Begun>;
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
  #unreachable: ReadonlySet<string> = new Set();
  #known: ReadonlyMap<string, NetworkRecord> = new Map();
  #plans: readonly ServicePlan[] = [];
  readonly #planOf = new Map<ServiceRecord, ServicePlan>();
  /** What is behind an address, by {@link place}. */
  readonly #present = new Claims<EndpointRecord>();
  /** Services with a task at the address. */
  readonly #users = new Claims<ServiceRecord>();
  /** Services that want the virtual server, by its id. */
  readonly #owners = new Claims<ServiceRecord>();
  /** Services whose shares grow, and when they next do. */
  readonly #growing = new Map<ServiceRecord, number>();
  #now = 0;

  constructor(node: string) {
    this.#node = node;
  }

  /** When the plan is another one though no record changes, on the clock that {@link plan} is given; Infinity: never. */
  get nextChangeAt(): number {
    return Math.min(Infinity, ...this.#growing.values());
  }

  /**
   * One virtual server for each VIP and each published port of the services; of two that claim the same, one is heard, and the
   * same one at every node.
   * @param unreachable ids of unreachable nodes: their tasks get no new connections, unless a service has no others
   * @param now on a monotonic clock, in milliseconds
   */
  plan(
    services: readonly ServiceRecord[],
    networks: readonly NetworkRecord[],
    endpoints: readonly EndpointRecord[],
    unreachable: ReadonlySet<string>,
    now: number,
  ): readonly ServicePlan[] {
    this.#now = now;
    const stale = new Set<ServiceRecord>();
    for (const [service, at] of this.#growing) if (at <= now) stale.add(service);
    const all = networks !== this.#networks || !sameSet(unreachable, this.#unreachable);
    if (all)
      this.#known = new Map(
        networks.filter(({ refused }) => refused === undefined).map((network) => [network.id, network]),
      );
    this.#takeEndpoints(endpoints, stale);
    const before = new Map<string, ServicePlan>();
    this.#takeServices(services, stale, before);
    const changed = services !== this.#services || all || stale.size > 0;
    [this.#services, this.#networks, this.#endpoints, this.#unreachable] = [
      services,
      networks,
      endpoints,
      unreachable,
    ];
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
      this.#growing.delete(service);
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
    const growing = this.#grow(service, old);
    const vipsBefore = byId(old?.vips.map((vip) => vip.server));
    const portsBefore = byId(old?.ports);
    const vips = Object.entries(service.vips)
      .filter(([network]) => this.#known.has(network))
      .map(([network, address]) => ({
        network,
        server: {
          kind: 'vip' as const,
          address,
          ...policy,
          ...this.#serversOf(service, (task) => this.#endpointOn(task, network), growing.of(network)),
        },
      }))
      .filter(({ server }) => isOwn(server))
      .map(({ network, server: { targets: _, ...server } }) => ({
        network,
        server: kept(server, vipsBefore),
      }));
    if (service.ports.length === 0 || !service.networks.some((id) => this.#known.has(id)))
      return { vips, ports: [], targets: [], ...growing.end() };
    const { realServers, targets } = this.#serversOf(
      service,
      (task) => this.#ingressEndpointOf(task),
      growing.of('ports'),
    );
    const ports = rowsOf(service.ports.filter((port) => isOwn({ kind: 'port', ...port, realServers })))
      .map((port) => ({ kind: 'port', ...port, ...policy, realServers }) as const)
      .map((server) => kept(server, portsBefore));
    return { vips, ports, targets, ...growing.end() };
  }

  /** How much each task's weight counts, for one planning of a service. */
  #grow(
    service: ServiceRecord,
    old: ServicePlan | undefined,
  ): { of: (view: string) => Grow; end: () => Pick<ServicePlan, 'begun'> } {
    const seconds = service.policy?.slowStart;
    this.#growing.delete(service);
    if (seconds === undefined) return { of: () => () => new Map(), end: () => ({}) };
    const begun = new Map<string, Begun>();
    let next = Infinity;
    return {
      of: (view) => (active) => {
        const since = begunOf(active, old?.begun?.get(view), this.#now);
        begun.set(view, since);
        const { factors, nextChangeAt } = sharesOf(since, 1000 * seconds, this.#now);
        next = Math.min(next, nextChangeAt);
        return factors;
      },
      end: () => {
        if (next < Infinity) this.#growing.set(service, next);
        return { begun };
      },
    };
  }

  #endpointOn({ addresses }: Task, network: string): EndpointRecord | undefined {
    return this.#present.winner(place(network, addresses[network] ?? ''));
  }

  /**
   * The endpoint by which clients from outside reach a task: one of those that it has, not of those that its service is to
   * have by now. Of several, the one whose gateway Docker makes the sandbox's default, which it is for answers without an
   * address of their own (libnetwork's order of endpoints: internal networks last, then by name).
   */
  #ingressEndpointOf(task: Task): EndpointRecord | undefined {
    const networks = Object.keys(task.addresses).flatMap((id) => this.#known.get(id) ?? []);
    const rank = ({ internal, name = '', id }: NetworkRecord): string => `${internal ? 1 : 0} ${name} ${id}`;
    return networks
      .sort((a, b) => (rank(a) < rank(b) ? -1 : 1))
      .map(({ id }) => this.#endpointOn(task, id))
      .find((endpoint) => endpoint !== undefined);
  }

  /**
   * @param endpointOf by which a task is reached
   * @param grow tells what to multiply the weights of these endpoints with
   */
  #serversOf(
    service: ServiceRecord,
    endpointOf: (task: Task) => EndpointRecord | undefined,
    grow: Grow,
  ): { realServers: RealServer[]; targets: EndpointRecord[] } {
    const candidates = service.tasks.flatMap((task) => {
      const { weight = 1 } = task;
      const target = endpointOf(task);
      // A task Swarm still believes in, but whose endpoint is gone, answers no more.
      if (target === undefined || task.drained === true) return [];
      const healthy = isHealthy(service, task, target);
      const [unreachable, local] = [this.#unreachable.has(target.node), target.node === this.#node];
      return [{ healthy, draining: task.draining, unreachable, weight, target, local }];
    });
    const active = new Set(activeTasksOf(candidates));
    const factors = grow([...active].map(({ target }) => keyOf(target)));
    const isAsked = [...active].some(({ unreachable }) => !unreachable);
    const { locality = 'any' } = service.policy ?? {};
    const near =
      locality === 'local' || (locality === 'prefer-local' && [...active].some(({ local }) => local));
    return {
      // Not at weight 0, at which IPVS would keep what was begun and not answered with one that cannot be reached. Its
      // established connections cannot go on there; with nft they wait in conntrack, and do when it comes back.
      realServers: candidates
        .filter(({ unreachable }) => !unreachable || !isAsked)
        .map((one) => ({
          address: one.target.address,
          weight:
            !active.has(one) || (near && !one.local) ? 0 : one.weight * (factors.get(keyOf(one.target)) ?? 1),
        })),
      targets: candidates.map(({ target }) => target),
    };
  }
}

/** @param active keys ({@link keyOf}) of the endpoints that take connections */
type Grow = (active: readonly string[]) => ReadonlyMap<string, number>;

/** Another sandbox is another task. */
function keyOf({ id, sandbox = '' }: EndpointRecord): string {
  return `${id} ${sandbox}`;
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

/** Long rows of ports that are the same on the tasks as one: no engine needs to translate them. */
function rowsOf(ports: readonly ServicePort[]): Stored<ServicePort>[] {
  return foldPorts(ports).flatMap((row) =>
    row.count === undefined || row.port === row.targetPort ? [row] : unfoldPorts([row]),
  );
}

/** The server as it was, if it is as it was. */
function kept<T extends VirtualServer>(server: T, before: ReadonlyMap<string, T>): T {
  const old = before.get(virtualServerId(server));
  return old !== undefined && isSame(old, server) ? old : server;
}

function byId<T extends VirtualServer>(servers: readonly T[] = []): ReadonlyMap<string, T> {
  return new Map(servers.map((server) => [virtualServerId(server), server]));
}

/** @param other of the same id */
function isSame(one: VirtualServer, other: VirtualServer): boolean {
  const port = ({ targetPort }: PortServer): number => targetPort;
  return (
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
