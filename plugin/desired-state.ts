// Owns the step from records to what a node's kernel shall hold. Pure, but for what it remembers of the last time.
// Must not know how the kernel is brought there.
import { flat, MapCache, memoLast, sameItems } from '../delta/list.ts';
import { ServicePlanner, type ServicePlan } from '../lb/plan.ts';
import type { HostPortContainer } from '../lb/host-ports.ts';
import type { PortServer, VirtualServer } from '../lb/model.ts';
import type { TimedService } from '../lb/timeouts.ts';
import type { VethGateway } from '../net/links.ts';
import type { Neighbour } from '../net/neighbours.ts';
import type { Route } from '../net/routes.ts';
import type { RuledEndpoint, RuledNetwork } from '../net/rules.ts';
import { vethName } from '../net/names.ts';
import { portName } from './own-ports.ts';
import type {
  EndpointRecord,
  NetworkRecord,
  NodeRecord,
  PolicyRecord,
  PresenceRecord,
  ServiceRecord,
} from '../store/records.ts';

/** Everything Causeway wants in the kernel of one node, links aside. */
export interface DesiredState {
  networks: readonly RuledNetwork[];
  /** Endpoints on this node that are joined. */
  endpoints: readonly RuledEndpoint[];
  /** Of the same endpoints. */
  gateways: readonly VethGateway[];
  /** The other nodes. */
  neighbours: readonly Neighbour[];
  routes: readonly Route[];
  servers: readonly VirtualServer[];
  /** Endpoints on this node that publish ports by themselves. */
  hostPorts: readonly HostPortContainer[];
  /** Addresses of endpoints whose connections may change the node that they come in by. */
  anyIngress: readonly string[];
  /** Addresses of endpoints whose established connections are to be ended. */
  flushed: readonly string[];
  /** Services and containers whose connections are remembered for another time than the node's own. */
  flowTimeouts: readonly TimedService[];
}

/** Whether nothing is desired, so that nothing of Causeway may be left. */
export function isEmpty({ networks, servers }: DesiredState): boolean {
  return networks.length === 0 && servers.length === 0;
}

export interface NodeRecords {
  nodes: readonly NodeRecord[];
  networks: readonly NetworkRecord[];
  presence: readonly PresenceRecord[];
  endpoints: readonly EndpointRecord[];
  services: readonly ServiceRecord[];
}

/**
 * @param node whose kernel it is
 * @param unreachable ids of unreachable nodes
 */
export function planDesiredState(
  records: NodeRecords,
  node: string,
  unreachable: ReadonlySet<string> = new Set(),
): DesiredState {
  return new DesiredStatePlanner(node).plan(records, unreachable, 0);
}

/** How other nodes are reached; `self` is absent without an own address in the records: there is no way yet. */
interface Ways {
  self?: string;
  others: readonly NodeRecord[];
  /** Node to its address in the underlay. */
  via: ReadonlyMap<string, string>;
}

/** What one service needs here. */
interface ServicePart {
  servers: readonly VirtualServer[];
  vips: readonly Route[];
}

/**
 * Renders what is desired, and remembers it: the next time only that is made anew which follows from records that
 * changed. What stays the same is the same object, so that whoever compares can pass over it.
 */
export class DesiredStatePlanner {
  readonly #node: string;
  readonly #reserved: Pick<ReadonlySet<string>, 'has'>;
  readonly #services: ServicePlanner;

  /** @param reserved ports that no service can have, whatever the records say, as `8500/tcp` */
  constructor(node: string, reserved: Pick<ReadonlySet<string>, 'has'> = new Set()) {
    this.#node = node;
    this.#reserved = reserved;
    this.#services = new ServicePlanner(node);
  }

  /** When it is another one though no record changes, on the clock that {@link plan} is given; Infinity: never. */
  get nextChangeAt(): number {
    return this.#services.nextChangeAt;
  }

  /** @param now on a monotonic clock, in milliseconds */
  plan(
    { nodes, networks, presence, endpoints, services }: NodeRecords,
    unreachable: ReadonlySet<string>,
    now: number,
  ): DesiredState {
    const ways = this.#ways(nodes);
    const local = this.#local.of(endpoints);
    const joined = this.#joined.of(local);
    const active = this.#keep(this.#active(networks, this.#present.of(presence), this.#local.of(endpoints)));
    const gateways = this.#gateways(active);
    const plans = this.#services.plan(services, networks, endpoints, unreachable, now);
    const parts = this.#parts.of(plans, gateways);
    const servers = this.#servers(parts);
    return {
      networks: this.#networks.of(active),
      endpoints: this.#endpoints.of(joined),
      gateways: this.#vethGateways.of(joined, this.#prefixed(active)),
      neighbours: this.#neighbours.of(ways.others),
      routes: this.#routes(
        active,
        this.#localRoutes.of(joined, gateways),
        this.#remoteRoutes.of(endpoints, ways, gateways),
        this.#targetRoutes.of(this.#targets(plans, gateways), ways),
        ways,
        this.#vips(parts),
      ),
      servers,
      hostPorts: this.#hostPorts.of(this.#ported.of(joined), this.#policies(services)),
      anyIngress: this.#anyIngress(this.#anyIngressOf.of(servers)),
      flushed: this.#flushed(this.#flushedOf.of(services)),
      flowTimeouts: this.#flowTimeouts(
        this.#timeoutsOfServices.of(services),
        this.#timeoutsOfContainers.of(joined),
      ),
    };
  }

  readonly #ways = memoLast((nodes: readonly NodeRecord[]): Ways => {
    const self = nodes.find(({ id }) => id === this.#node);
    if (self === undefined) return { others: [], via: new Map() };
    const others = nodes.filter(({ address }) => address !== self.address);
    return { self: self.address, others, via: new Map(others.map(({ id, address }) => [id, address])) };
  });

  readonly #present = new MapCache((record: PresenceRecord) =>
    record.node === this.#node ? record : undefined,
  );
  readonly #local = new MapCache((record: EndpointRecord) =>
    record.node === this.#node ? record : undefined,
  );
  readonly #joined = new MapCache((record: EndpointRecord) =>
    record.sandbox === undefined ? undefined : record,
  );

  // A network is on a node while Docker has it there. Its endpoints count too: Docker does not create a network again
  // for a plugin that was away while it was deleted.
  readonly #active = memoLast(
    (
      networks: readonly NetworkRecord[],
      present: readonly PresenceRecord[],
      local: readonly EndpointRecord[],
    ): readonly NetworkRecord[] => {
      const here = new Set([...present, ...local].map(({ network }) => network));
      return networks.filter(({ id, refused }) => refused === undefined && here.has(id));
    },
  );

  #lastActive: readonly NetworkRecord[] = [];
  /** The same list for the same networks. */
  #keep(active: readonly NetworkRecord[]): readonly NetworkRecord[] {
    if (!sameItems(active, this.#lastActive)) this.#lastActive = active;
    return this.#lastActive;
  }

  readonly #gateways = memoLast(
    (active: readonly NetworkRecord[]): ReadonlyMap<string, string> =>
      new Map(active.map(({ id, gateway }) => [id, gateway])),
  );

  /** With the prefix of the subnet. */
  readonly #prefixed = memoLast(
    (active: readonly NetworkRecord[]): ReadonlyMap<string, string> =>
      new Map(active.map(({ id, gateway, subnet }) => [id, `${gateway}/${subnet.split('/')[1] ?? ''}`])),
  );
  readonly #vethGateways = new MapCache(
    (
      { id, network, address, mac }: EndpointRecord,
      prefixed: ReadonlyMap<string, string>,
    ): VethGateway | undefined => {
      const gateway = prefixed.get(network);
      return gateway === undefined ? undefined : { device: vethName(id), gateway, address, mac };
    },
  );

  readonly #networks = new MapCache(({ subnet, gateway, internal }: NetworkRecord) => ({
    subnet: asRead(subnet),
    gateway,
    internal,
  }));
  readonly #endpoints = new MapCache(({ id, address }: EndpointRecord) => ({ id, address }));
  readonly #policies = memoLast(
    (services: readonly ServiceRecord[]): ReadonlyMap<string, PolicyRecord> =>
      new Map(services.map(({ id, policy = {} }) => [id, policy])),
  );
  readonly #ported = new MapCache((endpoint: EndpointRecord) =>
    endpoint.ports === undefined ? undefined : endpoint,
  );
  readonly #hostPorts = new MapCache(
    (
      { address, ports = [], access }: EndpointRecord,
      policies: ReadonlyMap<string, PolicyRecord>,
    ): HostPortContainer => {
      if (access === undefined) return { address, ports };
      if (access.by === 'container') return { address, ports, access: access.policy };
      // A service that is not known yet may not let everybody in.
      const policy = access.by === 'service' ? policies.get(access.service) : undefined;
      return { address, ports, access: policy ?? 'nobody' };
    },
  );
  readonly #neighbours = new MapCache(({ address, number }: NodeRecord) => ({ address, number }));

  readonly #localRoutes = new MapCache(
    ({ id, network, address }: EndpointRecord, gateways: ReadonlyMap<string, string>): Route | undefined => {
      const source = gateways.get(network);
      if (source === undefined) return undefined;
      return { type: 'unicast', destination: address, device: vethName(id), source };
    },
  );

  readonly #remoteRoutes = new MapCache(
    (endpoint: EndpointRecord, ways: Ways, gateways: ReadonlyMap<string, string>): Route | undefined =>
      gateways.has(endpoint.network) ? remoteRoute(endpoint, ways) : undefined,
  );

  // Published ports are balanced here whether their network is here or not. Other endpoints of such a network are
  // nobody's business here, and most endpoints of a large cluster are such.
  readonly #targets = memoLast(
    (plans: readonly ServicePlan[], gateways: ReadonlyMap<string, string>): readonly EndpointRecord[] => [
      ...new Set(plans.flatMap(({ targets }) => targets.filter(({ network }) => !gateways.has(network)))),
    ],
  );
  readonly #targetRoutes = new MapCache(remoteRoute);

  readonly #parts = new MapCache(
    ({ vips, ports }: ServicePlan, gateways: ReadonlyMap<string, string>): ServicePart => {
      const reachable = vips.filter(({ network }) => gateways.has(network));
      return {
        servers: [
          ...reachable.map(({ server }) => server),
          ...ports.filter((server) => !this.#isReserved(server)),
        ],
        // The node's own connections to a VIP come from the gateway: from the VIP itself, which a local route would
        // choose, no task could answer.
        vips: reachable.map(({ network, server: { address } }) => ({
          type: 'local',
          destination: address,
          source: gateways.get(network) ?? '',
        })),
      };
    },
  );

  #isReserved({ protocol, port, count = 1 }: PortServer): boolean {
    return Array.from({ length: count }, (_, at) => port + at).some((one) =>
      this.#reserved.has(portName({ protocol, port: one })),
    );
  }

  readonly #vips = memoLast((parts: readonly ServicePart[]): readonly Route[] =>
    flat(parts.map(({ vips }) => vips)),
  );
  readonly #servers = memoLast((parts: readonly ServicePart[]): readonly VirtualServer[] =>
    flat(parts.map(({ servers }) => servers)),
  );
  // Only services with scheduler `mh`.
  readonly #anyIngressOf = new MapCache(
    ({ policy, realServers }: VirtualServer): readonly string[] | undefined =>
      policy?.scheduler === 'mh' ? realServers.map(({ address }) => address) : undefined,
  );

  readonly #anyIngress = memoLast((lists: readonly (readonly string[])[]) => flat(lists));

  readonly #flushedOf = new MapCache(({ tasks }: ServiceRecord): readonly string[] | undefined => {
    const drained = tasks.filter((task) => task.drained === true);
    return drained.length === 0 ? undefined : drained.flatMap(({ addresses }) => Object.values(addresses));
  });
  readonly #flushed = memoLast((lists: readonly (readonly string[])[]) => flat(lists));

  readonly #flowTimeouts = memoLast(
    (services: readonly TimedService[], containers: readonly TimedService[]): readonly TimedService[] =>
      services.concat(containers),
  );
  readonly #timeoutsOfContainers = new MapCache(
    ({ access, address }: EndpointRecord): TimedService | undefined =>
      access?.by !== 'container' || access.policy.timeout === undefined
        ? undefined
        : { timeout: access.policy.timeout, addresses: [address] },
  );
  readonly #timeoutsOfServices = new MapCache(({ policy, tasks }: ServiceRecord): TimedService | undefined =>
    policy?.timeout === undefined
      ? undefined
      : { timeout: policy.timeout, addresses: tasks.flatMap(({ addresses }) => Object.values(addresses)) },
  );

  // Gateways first: they are the source address of the routes that follow, so they must be local before.
  readonly #networkRoutes = memoLast((active: readonly NetworkRecord[]): readonly Route[] => [
    ...active.map(({ gateway }): Route => ({ type: 'local', destination: gateway })),
    // Without it, an address of the subnet that nobody has would be looked for on the default route, and the host
    // would answer ARP for it.
    ...active.map(({ subnet }): Route => ({ type: 'unreachable', destination: asRead(subnet) })),
  ]);
  readonly #returnRoutes = new MapCache(({ address, number }: NodeRecord): Route => ({
    type: 'return',
    via: address,
    number,
  }));

  readonly #routes = memoLast(
    (
      active: readonly NetworkRecord[],
      local: readonly Route[],
      remote: readonly Route[],
      targets: readonly Route[],
      { others }: Ways,
      vips: readonly Route[],
    ): readonly Route[] =>
      this.#networkRoutes(active).concat(local, remote, targets, this.#returnRoutes.of(others), vips),
  );
}

/** As the kernel's tools print it: a subnet of one address as that address. */
function asRead(subnet: string): string {
  return subnet.replace(/\/32$/, '');
}

function remoteRoute({ node, sandbox, address }: EndpointRecord, { self, via }: Ways): Route | undefined {
  const way = via.get(node);
  if (way === undefined || sandbox === undefined || self === undefined) return undefined;
  return { type: 'remote', destination: address, via: way, source: self };
}
