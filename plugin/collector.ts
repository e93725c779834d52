// Owns finding what Docker forgot to take back: networks, endpoints and addresses that nobody holds any more, and nodes
// that left the Swarm. Each node looks after its own; for the cluster, the one that was elected.
// Must not free anything on one look alone, nor because somebody was silent.
import type { Ipam } from '../ipam/ipam.ts';
import { deleteLink, observeLinks } from '../net/links.ts';
import { peerName, vethName } from '../net/names.ts';
import type { Runner } from '../net/run.ts';
import { batches } from '../store/batches.ts';
import { endpointKey, presenceKey, unjoined, type EndpointRecord, type Records } from '../store/records.ts';
import type { Op, Store } from '../store/store.ts';
import type { Network } from '../swarm/docker.ts';
import type { Observation, Swarm } from '../swarm/publisher.ts';
import type { Log } from './log.ts';

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
  /** Milliseconds since the epoch. */
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

  constructor(options: CollectorOptions) {
    this.#options = options;
  }

  /**
   * Compares the records with one complete look at Docker and at this node's links.
   * @param elected this node looks after what belongs to the whole cluster
   */
  async collect(observation: Observation, elected: boolean): Promise<void> {
    const seen = new Set<string>();
    const cluster = elected ? observation.swarm : undefined;
    await this.#endpoints(await this.unjoin(), seen);
    await this.#presence(seen);
    if (cluster !== undefined) {
      await this.#networks(observation, seen);
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
      log.info({ endpoint: endpoint.id, address: endpoint.address }, 'an endpoint lost its sandbox');
    }
    return orphans;
  }

  async #orphans(): Promise<Orphan[]> {
    const { records, run, node } = this.#options;
    // First the records: a link is made before it is in them.
    const { rows } = await records.endpoints.list();
    const links = new Set((await observeLinks(run)).map(({ name }) => name));
    return rows
      .map(({ value }) => value)
      .filter((endpoint) => endpoint.node === node)
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
      log.info(
        { endpoint: endpoint.id, address: endpoint.address },
        'forgot an endpoint whose sandbox is gone',
      );
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
    const used = new Set(
      endpoints.rows
        .filter(({ value }) => value.node === node && value.sandbox !== undefined)
        .map(({ value }) => value.network),
    );
    for (const { value } of presence.rows) {
      if (value.node !== node || used.has(value.network)) continue;
      const graces = allocated.has(value.network) ? prepareGraces : 1;
      if (!this.#isOverdue(`presence ${value.network}`, seen, graces)) continue;
      await records.presence.delete(presenceKey(value), { offline: true });
      await ipam.unbindPool({ space: 'local', network: value.network });
      log.info({ network: value.network }, 'let go of a network that Docker does not have here any more');
    }
  }

  /** Networks Swarm does not have any more, and those neither Swarm nor a node has. */
  async #networks({ networks }: Observation, seen: Set<string>): Promise<void> {
    const { records, ipam, log } = this.#options;
    const existing = new Set(networks.map(({ Id }) => Id));
    const known = await records.networks.list();
    const present = new Set((await records.presence.list()).rows.map(({ value }) => value.network));
    for (const { id, value: network } of known.rows) {
      const forgotten = network.allocated && !existing.has(id);
      const unused = !network.allocated && !present.has(id);
      if (!(forgotten || unused) || !this.#isOverdue(`network ${id}`, seen)) continue;
      if (forgotten) await ipam.unbindPool({ space: 'global', network: id });
      await records.networks.update(id, (record) =>
        record === undefined || !present.has(id) ? undefined : { ...record, allocated: false },
      );
      log.info({ network: id }, 'let go of a network that Swarm does not have any more');
    }
  }

  /** Nodes that were in the Swarm and are not any more. One that is merely down stays, and what it holds. */
  async #nodes(swarm: Swarm, seen: Set<string>): Promise<void> {
    const { records, store, node, log } = this.#options;
    const members = new Set(swarm.nodes.map(({ ID }) => ID));
    if (members.size === 0) return;
    const [nodes, presence, endpoints] = await Promise.all([
      records.nodes.list(),
      records.presence.list(),
      records.endpoints.list(),
    ]);
    for (const { id, value } of nodes.rows) {
      if (id === node || value.swarm === undefined || members.has(value.swarm)) continue;
      if (!this.#isOverdue(`node ${id}`, seen)) continue;
      const ops: Op[] = [
        ...endpoints.rows
          .filter((row) => row.value.node === id)
          .map((row) => records.endpoints.remove(row.id, row.version)),
        ...presence.rows
          .filter((row) => row.value.node === id)
          .map((row) => records.presence.remove(row.id, row.version)),
        // Last: as long as it is there, the rest is tried again.
        records.numbers.remove(String(value.number)),
        records.nodes.remove(id),
      ];
      for (const commit of batches(ops)) if (!(await store.commit(commit)).ok) break;
      log.info({ node: id, name: value.name }, 'forgot a node that left the Swarm');
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
          addresses: new Set((addresses.get(id) ?? []).map(({ address }) => address.split('/', 1)[0] ?? '')),
        }));
    // A network of another driver may have its addresses from us: which of them are in use is not known here.
    const known = new Set(networks.rows.map(({ id }) => id));
    const isForeign = ({ Id, IPAM }: Network): boolean =>
      !known.has(Id) && !dockersOwnIpam.includes(IPAM?.Driver ?? '');
    const truth = existing.some(isForeign)
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
    if (freed.length > 0) log.info({ freed }, 'freed what Docker forgot to release');
    if (adopted.length > 0) log.info({ adopted }, 'took back into the records what is in use');
    if (failed.length > 0)
      log.error({ failed }, 'addresses are in use that cannot be recorded: see the reasons');
    for (const error of corrupt) log.error({ error }, 'a record cannot be read and was left alone');
  }
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
