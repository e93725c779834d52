// Owns the step from records to what a node's kernel shall hold. Pure, but for what it remembers of the last time.
// Must not know how the kernel is brought there.
import { flat, Mapped, remember, sameItems } from '../delta/list.ts';
import { ServicePlanner, type ServicePlan } from '../lb/plan.ts';
import type { Publisher } from '../lb/host-ports.ts';
import type { VirtualServer } from '../lb/model.ts';
import type { TimedService } from '../lb/timeouts.ts';
import type { Neighbour } from '../net/neighbours.ts';
import type { Route } from '../net/routes.ts';
import type { RuledEndpoint, RuledNetwork } from '../net/rules.ts';
import { vethName } from '../net/names.ts';
import type {
  EndpointRecord,
  NetworkRecord,
  NodeRecord,
  PolicyRecord,
  PresenceRecord,
  ServiceRecord,
} from '../store/records.ts';

/** Everything Causeway wants in the kernel of one node, links aside. */
export interface Wanted {
  networks: readonly RuledNetwork[];
  /** Endpoints on this node that are joined. */
  endpoints: readonly RuledEndpoint[];
  /** The other nodes. */
  neighbours: readonly Neighbour[];
  routes: readonly Route[];
  servers: readonly VirtualServer[];
  /** Endpoints on this node that publish ports by themselves. */
  publishers: readonly Publisher[];
  /** Addresses of endpoints whose connections may change the node that they come in by. */
  movable: readonly string[];
  /** Addresses of endpoints whose established connections are to be ended. */
  ended: readonly string[];
  /** Services and containers whose connections are remembered for another time than the node's own. */
  timed: readonly TimedService[];
}

/** Whether nothing is wanted, so that nothing of Causeway may be left. */
export function isNothing({ networks, servers }: Wanted): boolean {
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
 * @param hidden ids of nodes that are lost
 */
export function renderWanted(
  records: NodeRecords,
  node: string,
  hidden: ReadonlySet<string> = new Set(),
): Wanted {
  return new WantedPlanner(node).plan(records, hidden);
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
 * Renders what is wanted, and remembers it: the next time only that is made anew which follows from records that
 * changed. What stays the same is the same object, so that whoever compares can pass over it.
 */
export class WantedPlanner {
  readonly #node: string;
  readonly #services: ServicePlanner;

  constructor(node: string) {
    this.#node = node;
    this.#services = new ServicePlanner(node);
  }

  plan({ nodes, networks, presence, endpoints, services }: NodeRecords, hidden: ReadonlySet<string>): Wanted {
    const ways = this.#ways(nodes);
    const local = this.#local.of(endpoints);
    const joined = this.#joined.of(local);
    const active = this.#keep(this.#active(networks, this.#present.of(presence), this.#local.of(endpoints)));
    const gateways = this.#gateways(active);
    const plans = this.#services.plan(services, networks, endpoints, hidden);
    const parts = this.#parts.of(plans, gateways);
    const servers = this.#servers(parts);
    return {
      networks: this.#networks.of(active),
      endpoints: this.#endpoints.of(joined),
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
      publishers: this.#publishers.of(this.#ported.of(joined), this.#policies(services)),
      movable: this.#movable(this.#movableOf.of(servers)),
      ended: this.#ended(this.#endedOf.of(services)),
      timed: this.#timed(this.#timedServices.of(services), this.#timedContainers.of(joined)),
    };
  }

  readonly #ways = remember((nodes: readonly NodeRecord[]): Ways => {
    const self = nodes.find(({ id }) => id === this.#node);
    if (self === undefined) return { others: [], via: new Map() };
    const others = nodes.filter(({ address }) => address !== self.address);
    return { self: self.address, others, via: new Map(others.map(({ id, address }) => [id, address])) };
  });

  readonly #present = new Mapped((record: PresenceRecord) =>
    record.node === this.#node ? record : undefined,
  );
  readonly #local = new Mapped((record: EndpointRecord) => (record.node === this.#node ? record : undefined));
  readonly #joined = new Mapped((record: EndpointRecord) =>
    record.sandbox === undefined ? undefined : record,
  );

  // A network is on a node while Docker has it there. Its endpoints count too: Docker does not create a network again
  // for a plugin that was away while it was deleted.
  readonly #active = remember(
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

  readonly #gateways = remember(
    (active: readonly NetworkRecord[]): ReadonlyMap<string, string> =>
      new Map(active.map(({ id, gateway }) => [id, gateway])),
  );

  readonly #networks = new Mapped(({ subnet, gateway, internal }: NetworkRecord) => ({
    subnet,
    gateway,
    internal,
  }));
  readonly #endpoints = new Mapped(({ id, address }: EndpointRecord) => ({ id, address }));
  readonly #policies = remember(
    (services: readonly ServiceRecord[]): ReadonlyMap<string, PolicyRecord> =>
      new Map(services.map(({ id, policy = {} }) => [id, policy])),
  );
  readonly #ported = new Mapped((endpoint: EndpointRecord) =>
    endpoint.ports === undefined ? undefined : endpoint,
  );
  readonly #publishers = new Mapped(
    (
      { address, ports = [], access }: EndpointRecord,
      policies: ReadonlyMap<string, PolicyRecord>,
    ): Publisher => {
      if (access === undefined) return { address, ports };
      if (access.by === 'container') return { address, ports, access: access.policy };
      // A service that is not known yet may not let everybody in.
      const policy = access.by === 'service' ? policies.get(access.service) : undefined;
      return { address, ports, access: policy ?? 'nobody' };
    },
  );
  readonly #neighbours = new Mapped(({ address, number }: NodeRecord) => ({ address, number }));

  readonly #localRoutes = new Mapped(
    ({ id, network, address }: EndpointRecord, gateways: ReadonlyMap<string, string>): Route | undefined => {
      const source = gateways.get(network);
      if (source === undefined) return undefined;
      return { type: 'unicast', destination: address, device: vethName(id), source };
    },
  );

  readonly #remoteRoutes = new Mapped(
    (endpoint: EndpointRecord, ways: Ways, gateways: ReadonlyMap<string, string>): Route | undefined =>
      gateways.has(endpoint.network) ? remoteRoute(endpoint, ways) : undefined,
  );

  // Published ports are balanced here whether their network is here or not. Other endpoints of such a network are
  // nobody's business here, and most endpoints of a large cluster are such.
  readonly #targets = remember(
    (plans: readonly ServicePlan[], gateways: ReadonlyMap<string, string>): readonly EndpointRecord[] => [
      ...new Set(
        plans.flatMap(({ entrance, targets }) =>
          entrance === undefined || gateways.has(entrance) ? [] : targets,
        ),
      ),
    ],
  );
  readonly #targetRoutes = new Mapped(remoteRoute);

  readonly #parts = new Mapped(
    ({ vips, ports }: ServicePlan, gateways: ReadonlyMap<string, string>): ServicePart => {
      const reachable = vips.filter(({ network }) => gateways.has(network));
      return {
        servers: [...reachable.map(({ server }) => server), ...ports],
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
  readonly #vips = remember((parts: readonly ServicePart[]): readonly Route[] =>
    flat(parts.map(({ vips }) => vips)),
  );
  readonly #servers = remember((parts: readonly ServicePart[]): readonly VirtualServer[] =>
    flat(parts.map(({ servers }) => servers)),
  );
  // Of those alone that were asked to be chosen alike by every node.
  readonly #movableOf = new Mapped(({ policy, realServers }: VirtualServer): readonly string[] | undefined =>
    policy?.scheduler === 'mh' ? realServers.map(({ address }) => address) : undefined,
  );

  readonly #movable = remember((lists: readonly (readonly string[])[]) => flat(lists));

  readonly #endedOf = new Mapped(({ tasks }: ServiceRecord): readonly string[] | undefined => {
    const drained = tasks.filter((task) => task.drained === true);
    return drained.length === 0 ? undefined : drained.flatMap(({ addresses }) => Object.values(addresses));
  });
  readonly #ended = remember((lists: readonly (readonly string[])[]) => flat(lists));

  readonly #timed = remember(
    (services: readonly TimedService[], containers: readonly TimedService[]): readonly TimedService[] =>
      services.concat(containers),
  );
  readonly #timedContainers = new Mapped(({ access, address }: EndpointRecord): TimedService | undefined =>
    access?.by !== 'container' || access.policy.timeout === undefined
      ? undefined
      : { timeout: access.policy.timeout, addresses: [address] },
  );
  readonly #timedServices = new Mapped(({ policy, tasks }: ServiceRecord): TimedService | undefined =>
    policy?.timeout === undefined
      ? undefined
      : { timeout: policy.timeout, addresses: tasks.flatMap(({ addresses }) => Object.values(addresses)) },
  );

  // Gateways first: they are the source address of the routes that follow, so they must be local before.
  readonly #networkRoutes = remember((active: readonly NetworkRecord[]): readonly Route[] => [
    ...active.map(({ gateway }): Route => ({ type: 'local', destination: gateway })),
    // Without it, an address of the subnet that nobody has would be looked for on the default route, and the host
    // would answer ARP for it.
    ...active.map(({ subnet }): Route => ({ type: 'unreachable', destination: subnet })),
  ]);
  readonly #returnRoutes = new Mapped(({ address, number }: NodeRecord): Route => ({
    type: 'return',
    via: address,
    number,
  }));

  readonly #routes = remember(
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

function remoteRoute({ node, sandbox, address }: EndpointRecord, { self, via }: Ways): Route | undefined {
  const way = via.get(node);
  if (way === undefined || sandbox === undefined || self === undefined) return undefined;
  return { type: 'remote', destination: address, via: way, source: self };
}
