// Owns finding what Docker forgot to take back: networks, endpoints and addresses that nobody holds any more, and nodes
// that left the Swarm. Each node looks after its own; for the cluster, the one that was elected.
// Must not free anything on one look alone, nor because somebody was silent.
import type { Ipam } from '../ipam/ipam.ts';
import { overlaps, parseSubnet } from '../ipam/subnet.ts';
import { deleteLink, isVeth, observeLinks } from '../net/links.ts';
import { linkPrefix, peerName, vethName } from '../net/names.ts';
import type { Runner } from '../net/run.ts';
import {
  endpointKey,
  presenceKey,
  unjoined,
  type EndpointRecord,
  type NetworkRecord,
  type Records,
} from '../store/records.ts';
import type { Store } from '../store/store.ts';
import type { Network } from '../swarm/docker.ts';
import type { Observation, Swarm } from '../swarm/publisher.ts';
import { forgetNode } from './former-nodes.ts';
import type { Log } from './log.ts';
import { Told } from './told.ts';

/** Names of IPAM drivers that are not ours for certain. */
const dockersOwnIpam = ['default', 'null', ''];

/**
 * In grace times. Docker takes a link into its sandbox while it starts the container, which on a node with too much to do
 * takes minutes; and it makes a network on a node before it fetches the image of the first task there.
 */
const startGraces = 10;
const prepareGraces = 60;

export interface CollectorOptions {
  store: Store;
  records: Records;
  ipam: Ipam;
  run: Runner;
  node: string;
  log: Log;
  /** Milliseconds, from whenever: no step of the clock may end a grace time. */
  now: () => number;
  /** How long something must be seen unheld before it is freed, in milliseconds. */
  grace: number;
}

/**
 * An endpoint of this node whose sandbox is missing: without a link, or `linked` to nothing. A pair whose other end is
 * still here is on its way into its sandbox, or the daemon was killed before it took it along.
 */
interface Orphan {
  endpoint: EndpointRecord;
  linked: boolean;
}

export class Collector {
  readonly #options: CollectorOptions;
  /** When each thing was first seen without a holder. */
  readonly #since = new Map<string, number>();
  readonly #told = new Told();
  readonly #toldFailures = new Told();

  constructor(options: CollectorOptions) {
    this.#options = options;
  }

  /**
   * Compares the records with one complete look at Docker and at this node's links.
   * @param elected this node looks after what belongs to the whole cluster
   */
  async collect(observation: Observation, elected: boolean): Promise<void> {
    const seen = new Set<string>();
    // An address may be that of a task which could not be read.
    const complete = observation.swarm?.unreadable.size === 0;
    const cluster = elected && complete ? observation.swarm : undefined;
    await this.#endpoints(await this.unjoin(), seen);
    await this.#links(seen);
    await this.#presence(seen);
    if (cluster !== undefined) {
      await this.#networks(observation, cluster, seen);
      await this.#reconsider(observation);
      await this.#nodes(cluster, seen);
    }
    for (const key of this.#since.keys()) if (!seen.has(key)) this.#since.delete(key);
    await this.#addresses(observation.networks, cluster);
  }

  /**
   * Tells the others at once that sandboxes of this node are gone: after a loss of power they would be sent traffic
   * again with this node's first sign of life. A link that is there belongs to a sandbox that is.
   *
   * @returns endpoints of this node whose sandbox is missing
   */
  async unjoin(): Promise<Orphan[]> {
    const { records, log } = this.#options;
    const orphans = await this.#orphans();
    for (const { endpoint, linked } of orphans) {
      if (linked || endpoint.sandbox === undefined) continue;
      await records.endpoints.update(endpointKey(endpoint), (record) => record && unjoined(record), {
        offline: true,
      });
      log.info({ endpoint: endpoint.id, address: endpoint.address }, 'endpoint without sandbox detached');
    }
    return orphans;
  }

  async #orphans(): Promise<Orphan[]> {
    const { records, run, node } = this.#options;
    // First the records: a link is made before it is in them.
    const { rows } = await records.endpoints.list();
    const links = new Set((await observeLinks(run)).map(({ name }) => name));
    return rows
      .filter(({ value, outdated }) => value.node === node && outdated === undefined)
      .map(({ value }) => value)
      .map((endpoint) => ({ endpoint, linked: links.has(vethName(endpoint.id)) }))
      .filter(({ endpoint, linked }) => !linked || links.has(peerName(endpoint.id)));
  }

  /** @returns whether it has been unheld for longer than so many grace times */
  #isOverdue(key: string, seen: Set<string>, graces = 1): boolean {
    const { now, grace } = this.#options;
    seen.add(key);
    const since = this.#since.get(key) ?? now();
    this.#since.set(key, since);
    return now() - since > graces * grace;
  }

  /** Sandboxes that ended without Leave (a daemon that was killed) take their link with them. */
  async #endpoints(orphans: readonly Orphan[], seen: Set<string>): Promise<void> {
    const { records, run, log } = this.#options;
    for (const { endpoint, linked } of orphans) {
      if (!this.#isOverdue(`endpoint ${endpoint.id}`, seen, linked ? startGraces : 1)) continue;
      if (linked) await deleteLink(run, vethName(endpoint.id));
      await records.endpoints.delete(endpointKey(endpoint), { offline: true });
      log.info({ endpoint: endpoint.id, address: endpoint.address }, 'removed stale endpoint');
    }
  }

  /** Pairs of no endpoint: Docker and this process were killed between the making of one and its record. */
  async #links(seen: Set<string>): Promise<void> {
    const { records, run, log } = this.#options;
    const names = new Set((await observeLinks(run)).map(({ name }) => name));
    const recorded = new Set((await records.endpoints.list()).rows.map(({ value }) => vethName(value.id)));
    for (const name of names) {
      const isHalf = isVeth(name) && names.has(peerName(name.slice(linkPrefix.length)));
      if (!isHalf || recorded.has(name) || !this.#isOverdue(`link ${name}`, seen, startGraces)) continue;
      await deleteLink(run, name);
      log.info({ link: name }, 'removed stale link');
    }
  }

  /** Docker has a network on a node only while something is attached there; after a crash it forgets to say so. */
  async #presence(seen: Set<string>): Promise<void> {
    const { records, ipam, node, log } = this.#options;
    const [presence, endpoints, networks] = await Promise.all([
      records.presence.list(),
      records.endpoints.list(),
      records.networks.list(),
    ]);
    const allocated = new Set(networks.rows.flatMap(({ id, value }) => (value.allocated ? id : [])));
    // Without a sandbox an endpoint uses nothing: otherwise it and its network would be waited for one after the other.
    const used = new Set([
      ...endpoints.rows
        .filter(({ value }) => value.node === node && value.sandbox !== undefined)
        .map(({ value }) => value.network),
      // Whose they are cannot be read.
      ...endpoints.corrupt.map(networkOf),
    ]);
    for (const { value, outdated } of presence.rows) {
      if (outdated === true || value.node !== node || used.has(value.network)) continue;
      const graces = allocated.has(value.network) ? prepareGraces : 1;
      if (!this.#isOverdue(`presence ${value.network}`, seen, graces)) continue;
      await records.presence.delete(presenceKey(value), { offline: true });
      await ipam.unbindPool({ space: 'local', network: value.network });
      log.info({ network: value.network }, 'removed stale network from this node');
    }
  }

  /** Networks Swarm does not have any more, and those neither Swarm nor a node has. */
  async #networks({ networks }: Observation, { nodes }: Swarm, seen: Set<string>): Promise<void> {
    const { records, ipam, log } = this.#options;
    const existing = new Set(networks.map(({ Id }) => Id));
    const known = await records.networks.list();
    // By their keys: what cannot be read is there.
    const present = new Set((await records.presence.ids()).map((key) => networkOf({ id: key })));
    for (const { id, value: network, outdated } of known.rows) {
      if (outdated === true) continue;
      const forgotten = network.allocated && !existing.has(id);
      const unused = !network.allocated && !present.has(id);
      // A Swarm that is left, or made anew, frees nothing. Whoever waits for the subnet waits for two looks only.
      const graces = nodes.length === 0 || isInTheWay(network, known.rows, existing) ? 0 : 1;
      if (!(forgotten || unused) || !this.#isOverdue(`network ${id}`, seen, graces)) continue;
      if (forgotten) await ipam.unbindPool({ space: 'global', network: id });
      await records.networks.update(id, (record) =>
        record === undefined || !present.has(id) ? undefined : { ...record, allocated: false },
      );
      log.info({ network: id }, 'removed stale network from the cluster');
    }
  }

  /** Networks that were refused their pool for a reason that is gone by now. */
  async #reconsider({ networks }: Observation): Promise<void> {
    const { records, ipam, log } = this.#options;
    const existing = new Set(networks.map(({ Id }) => Id));
    for (const { id, value } of (await records.networks.list()).rows) {
      if (!value.allocated || value.refused === undefined || !existing.has(id)) continue;
      const { subnet: pool, gateway } = value;
      if ((await ipam.ownerOf(pool)) === id) continue;
      const refused = await ipam.reconsider({ pool, network: id, gateway });
      if (refused === value.refused) continue;
      await records.networks.update(id, (record) => {
        if (record === undefined) return undefined;
        const { refused: _, ...rest } = record;
        return refused === undefined ? rest : { ...rest, refused };
      });
      if (refused === undefined) log.info({ network: id, pool }, 'refused network is usable now');
    }
  }

  /** Nodes that were in the Swarm and are not any more. One that is merely down stays, and what it holds. */
  async #nodes(swarm: Swarm, seen: Set<string>): Promise<void> {
    const { records, store, node, log } = this.#options;
    const members = new Set(swarm.nodes.map(({ ID }) => ID));
    if (members.size === 0) return;
    for (const { id, value, outdated } of (await records.nodes.list()).rows) {
      if (outdated === true || id === node || value.swarm === undefined || members.has(value.swarm)) continue;
      if (!this.#isOverdue(`node ${id}`, seen)) continue;
      if (!(await forgetNode({ store, records }, value))) continue;
      log.info({ node: id, name: value.name }, 'removed node that left the Swarm');
    }
  }

  async #addresses(existing: readonly Network[], cluster: Swarm | undefined): Promise<void> {
    const { records, ipam, node, log, grace } = this.#options;
    const [networks, presence, endpoints, nodes] = await Promise.all([
      records.networks.list(),
      records.presence.list(),
      records.endpoints.list(),
      records.nodes.list(),
    ]);
    const local = Map.groupBy(
      endpoints.rows.map(({ value }) => value).filter((endpoint) => endpoint.node === node),
      ({ network }) => network,
    );
    const here = new Set([
      ...presence.rows.filter(({ value }) => value.node === node).map(({ value }) => value.network),
      ...local.keys(),
    ]);
    const pools = (
      mine: (id: string, allocated: boolean) => boolean,
      addresses: Map<string, { address: string }[]>,
    ) =>
      networks.rows
        .filter(({ id, value }) => mine(id, value.allocated))
        .map(({ id, value }) => ({
          pool: value.subnet,
          network: id,
          gateway: value.gateway,
          // Swarm writes addresses with the prefix of their network.
          ...heldOf((addresses.get(id) ?? []).map(({ address }) => address.split('/', 1)[0] ?? '')),
        }));
    // A network of another driver may have its addresses from us: which of them are in use is not known here.
    const known = new Set(networks.rows.map(({ id }) => id));
    const isForeign = ({ Id, IPAM }: Network): boolean =>
      !known.has(Id) && !dockersOwnIpam.includes(IPAM?.Driver ?? '');
    // Nor what is in a record that cannot be read.
    const unreadable = [networks, presence, endpoints, nodes].some(({ corrupt }) => corrupt.length > 0);
    const truth =
      unreadable || existing.some(isForeign)
        ? {}
        : {
            local: pools((id) => here.has(id), local),
            ...(cluster && {
              global: pools((_, allocated) => allocated, addressesOf(cluster)),
              nodes: new Set(nodes.rows.map(({ id }) => id)),
            }),
          };
    const report = await ipam.collect({ ...truth, graceMs: grace });
    const { freed, adopted, failed, corrupt } = report;
    if (freed.length > 0) log.info({ freed }, 'released stale leases and pools');
    if (adopted.length > 0) log.info({ adopted }, 'recovered leases for addresses in use');
    for (const failure of this.#toldFailures.news(failed.map((one) => JSON.stringify(one))))
      log.error({ failed: JSON.parse(failure) as unknown }, 'cannot recover a lease that is in use');
    const errors = new Map(corrupt.map((error) => [error.message, error]));
    for (const message of this.#told.news([...errors.keys()]))
      log.error({ error: errors.get(message) }, 'unreadable record ignored');
  }
}

function heldOf(list: readonly string[]): { addresses: ReadonlySet<string>; shared: ReadonlySet<string> } {
  const addresses = new Set<string>();
  const shared = new Set<string>();
  for (const address of list) (addresses.has(address) ? shared : addresses).add(address);
  return { addresses, shared };
}

/** Whether another network, which Swarm has, was refused a subnet that overlaps that of this one. */
function isInTheWay(
  { id, subnet }: NetworkRecord,
  networks: readonly { value: NetworkRecord }[],
  existing: ReadonlySet<string>,
): boolean {
  const own = parseSubnet(subnet);
  return networks.some(
    ({ value }) =>
      value.id !== id &&
      value.refused !== undefined &&
      existing.has(value.id) &&
      overlaps(parseSubnet(value.subnet), own),
  );
}

/** Of a record's key: NETWORK/… */
function networkOf({ id }: { id: string }): string {
  return id.split('/', 1)[0] ?? '';
}

/** What Swarm has given to services and tasks, by network. */
function addressesOf({ services, tasks }: Swarm): Map<string, { address: string }[]> {
  const vips = services.flatMap(({ Endpoint }) => Endpoint?.VirtualIPs ?? []);
  const attachments = tasks.flatMap(({ NetworksAttachments }) => NetworksAttachments ?? []);
  return Map.groupBy(
    [
      ...vips.map(({ NetworkID, Addr }) => ({ network: NetworkID, address: Addr })),
      ...attachments.flatMap(({ Network, Addresses }) =>
        (Addresses ?? []).map((address) => ({ network: Network.ID, address })),
      ),
    ],
    ({ network }) => network,
  );
}
