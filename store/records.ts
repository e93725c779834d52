// Owns the shape of the records that tell a node what its network shall be: networks, endpoints, services.
// Must not know who writes them or what is made of them. (Pools and leases are ipam/'s own.)
import * as z from 'zod';
import { memoByObject } from '../delta/list.ts';
import { foldPorts, unfoldPorts } from './port-ranges.ts';
import type { Store } from './store.ts';
import { Table, type Keepsake, type Rows } from './table.ts';

// Whoever may write to the store could otherwise say in a record what the kernel's tools are told: all that gets there is
// as strict here as where it is read from its user.

/** IPv4 address without prefix. */
const address = z.ipv4();
/** Of whatever Docker or Causeway gives ids. */
const id = z.string().regex(/^\w[\w.-]{0,127}$/);
const port = z.number().int().min(1).max(65_535);
/** Bytes. What is less than 68 is no IPv4. */
const mtu = z.number().int().min(68).max(65_535);
/** The file of a network namespace among Docker's or iproute2's, wherever they have their directory. */
const sandbox = z.string().regex(/^\/(?!(?:[^/]*\/)*\.{1,2}(?:\/|$))(?:[\w.-]+\/)*netns\/[\w.-]+$/);
const device = z.string().regex(/^[a-zA-Z][a-zA-Z0-9._@-]{0,14}$/);
const seconds = (max: number) => z.number().int().min(0).max(max);

/** How many neighbouring ports one stands for: see port-ranges.ts. */
const count = z.number().int().min(1).max(65_536).optional();

/** `nodes/ID`: a node of the cluster, as the others need to know it. */
export const NodeRecord = z.object({
  v: z.literal(1),
  id,
  /** The host's name, for people. */
  name: z.string(),
  /** In the underlay. */
  address,
  /** Unique in the cluster, from 1: names what belongs to this node in the kernels of the others. */
  number: z.number().int().min(1).max(0xffffff),
  /** Of the device with the address, in bytes. */
  mtu,
  /** UDP port and VXLAN network identifier of its fabric: nodes where they differ do not hear each other. */
  fabric: z.object({ port, vni: z.number().int().min(1).max(0xffffff) }),
  /** Swarm's id of the node, once it is in a Swarm. */
  swarm: id.optional(),
  /** It is not in that Swarm any more, and says so itself. */
  left: z.literal(true).optional(),
});
export type NodeRecord = z.infer<typeof NodeRecord>;

/** Is made when the first node comes, and stays for as long as the cluster is there. */
export const clusterKey = 'cluster/secret';

/** {@link clusterKey}: by which nodes know each other's heartbeats. */
export const ClusterRecord = z.object({ v: z.literal(1), secret: z.string().regex(/^[0-9a-f]{64}$/) });
export type ClusterRecord = z.infer<typeof ClusterRecord>;

/** `cluster/swarm`: the one Swarm whose records these are. */
export const SwarmRecord = z.object({
  v: z.literal(1),
  /** Swarm's id of the cluster. */
  id,
  /** Swarm's ids of its managers, by which its workers know it. */
  managers: z.array(id),
});
export type SwarmRecord = z.infer<typeof SwarmRecord>;

/** `node-numbers/N`: which node has the number. Two nodes cannot create the same key. */
export const NodeNumberRecord = z.object({ v: z.literal(1), node: id });
export type NodeNumberRecord = z.infer<typeof NodeNumberRecord>;

/** `networks/ID`: a network that Docker allocated (Swarm's leader) or created (a node). */
export const NetworkRecord = z.object({
  v: z.literal(1),
  id,
  /** CIDR. */
  subnet: z.cidrv4(),
  gateway: address,
  /** Bytes, of the links in the sandboxes; absent: derived from the underlay. */
  mtu: mtu.optional(),
  /** No way in or out but through published ports. */
  internal: z.boolean(),
  /** Docker's name, once its API was read. */
  name: z.string().optional(),
  /** Why no endpoint may join it, in words for the user: see docs/adr/0003-ipam.md. */
  refused: z.string().optional(),
  /** Swarm has it, until FreeNetwork. Nodes that have it say so by a {@link PresenceRecord} each. */
  allocated: z.boolean(),
});
export type NetworkRecord = z.infer<typeof NetworkRecord>;

/** `presence/NETWORK/NODE`: Docker has the network on the node, until DeleteNetwork. */
export const PresenceRecord = z.object({ v: z.literal(1), network: id, node: id });
export type PresenceRecord = z.infer<typeof PresenceRecord>;

/** A port of the node that leads to one container on it (docker run -p, mode=host). */
export const HostPort = z.object({
  protocol: z.enum(['tcp', 'udp', 'sctp']),
  /** Of the node; absent: all of them. */
  address: address.optional(),
  port,
  targetPort: port,
});
const StoredHostPort = HostPort.extend({ count });
export type HostPort = z.infer<typeof HostPort>;

export const schedulers = ['rr', 'wrr', 'lc', 'wlc', 'sh', 'mh'] as const;
export const localities = ['any', 'prefer-local', 'local'] as const;

/** What a healthy task answers: a connection, or a request by a status from 200 to 399. */
export const HealthCheck = z.object({
  protocol: z.enum(['tcp', 'http']),
  port,
  /** Of http; with its leading slash. */
  path: z
    .string()
    .regex(/^\/[\x21-\x7e]*$/)
    .optional(),
});
export type HealthCheck = z.infer<typeof HealthCheck>;

/** Seconds after which a silent connection is forgotten; what is absent is as the node has it. */
export const Timeouts = z.object({
  tcp: seconds(2_592_000).optional(),
  /** Of TCP, when one side has closed. */
  fin: seconds(2_592_000).optional(),
  udp: seconds(2_592_000).optional(),
});
export type Timeouts = z.infer<typeof Timeouts>;

/**
 * How a service wants to be balanced and published, as its labels say (docs/policy.md), or of a container what concerns
 * its own ports. What is absent is as by default.
 */
export const PolicyRecord = z.object({
  scheduler: z.enum(schedulers).optional(),
  /** A client stays with its task for so many seconds after its last connection. */
  affinity: seconds(86_400).optional(),
  locality: z.enum(localities).optional(),
  /** Where its ports are published: addresses of nodes, and names of their devices. */
  bind: z
    .array(z.union([address, device]))
    .min(1)
    .optional(),
  /** CIDR, none within another: who may connect to its published ports. */
  allow: z.array(z.cidrv4()).min(1).optional(),
  /** CIDR, none within another: who may not. */
  deny: z.array(z.cidrv4()).min(1).optional(),
  /** A label that was to say so cannot be read: nobody may. */
  closed: z.literal(true).optional(),
  /** Seconds after which the connections of a draining task are ended; absent: they go on until it ends. */
  drain: seconds(86_400).optional(),
  timeout: Timeouts.optional(),
  /** Seconds in which the share of a task grows that has only begun to take connections; absent: it has the whole at once. */
  slowStart: seconds(3_600).optional(),
  /** How its tasks are checked; absent: not at all. */
  health: HealthCheck.optional(),
  /** Seconds from one check to the next. */
  healthInterval: z.number().int().min(1).max(3_600).optional(),
  /** Checks in a row until a task is healthy, or is so no longer. */
  healthRise: z.number().int().min(1).max(100).optional(),
  healthFall: z.number().int().min(1).max(100).optional(),
});
export type PolicyRecord = z.infer<typeof PolicyRecord>;

/** Who may use the ports that an endpoint's container publishes by itself. */
export const PortAccess = z.discriminatedUnion('by', [
  /** The container's labels are not known yet: nobody. */
  z.object({ by: z.literal('nobody') }),
  /** As the Swarm service with this id says. */
  z.object({ by: z.literal('service'), service: id }),
  /** As the container's own labels say. */
  z.object({
    by: z.literal('container'),
    policy: PolicyRecord,
    /** As of a service. */
    problems: z.array(z.string()).optional(),
  }),
]);
export type PortAccess = z.infer<typeof PortAccess>;

/** `endpoints/NETWORK/ID`: a sandbox's attachment to a network. */
export const EndpointRecord = z.object({
  v: z.literal(1),
  id,
  network: id,
  /** The node it is on. */
  node: id,
  address,
  /** Of the address in its sandbox; absent in records that an earlier version wrote: as its subnet has it. */
  prefix: z.number().int().optional(),
  mac: z.string().regex(/^([0-9a-f]{2}:){5}[0-9a-f]{2}$/i),
  /** The sandbox that joined it; absent before Join and after Leave. */
  sandbox: sandbox.optional(),
  /** Published on its node, as long as this endpoint is the sandbox's way out. */
  ports: z
    .array(StoredHostPort)
    .transform(unfoldPorts<HostPort>)
    .optional(),
  /** Who may use them; absent in records that an earlier version wrote: everybody. */
  access: PortAccess.optional(),
  /** What its node's checks say, if its service wants any; absent until they say anything. */
  healthy: z.boolean().optional(),
  /** Docker's own health check of its container fails. */
  failing: z.literal(true).optional(),
});
export type EndpointRecord = z.infer<typeof EndpointRecord>;

/** The endpoint as it is when no sandbox has joined it. */
export function unjoined({
  sandbox: _,
  ports: __,
  access: ___,
  healthy: ____,
  failing: _____,
  ...endpoint
}: EndpointRecord): EndpointRecord {
  return endpoint;
}

/** `names/NETWORK/ENDPOINT`: what a running container is called on a network; written by its own node. */
export const NameRecord = z.object({
  v: z.literal(1),
  endpoint: id,
  network: id,
  /** The node it is on. */
  node: id,
  /** Docker's id of the container. */
  container: id,
  /** The container's name, its short id, its hostname, its aliases on the network; as Docker writes them. */
  names: z.array(z.string()),
  /** Its health check fails; for nodes of an earlier version, who look here and not at the endpoint. */
  unhealthy: z.boolean(),
});
export type NameRecord = z.infer<typeof NameRecord>;

/** A port that leads to a service on every node. */
const ServicePort = z.object({
  protocol: z.enum(['tcp', 'udp', 'sctp']),
  port,
  targetPort: port,
  /** As the user called it. */
  name: z.string().optional(),
});
export type ServicePort = z.infer<typeof ServicePort>;

/** `services/ID`: a Swarm service on at least one of our networks. */
export const ServiceRecord = z.object({
  v: z.literal(1),
  id,
  name: z.string(),
  /** Network to VIP. Empty with endpoint mode dnsrr. */
  vips: z.record(id, address),
  /** Networks of ours the service is on. */
  networks: z.array(id),
  /** Network to the service's other names on it. */
  aliases: z.record(id, z.array(z.string())).optional(),
  /** Ports published by the mesh (mode=ingress). */
  ports: z.array(ServicePort.extend({ count })).transform(unfoldPorts<ServicePort>),
  tasks: z.array(
    z.object({
      id,
      /** Network to address. */
      addresses: z.record(id, address),
      /** It shall not run any longer: no new connections, established ones go on. */
      draining: z.boolean(),
      /** When that began, in milliseconds of Unix time; only where the policy says how long it may take. */
      since: z.number().optional(),
      /** It has drained for as long as the policy says: established connections are to be ended. */
      drained: z.literal(true).optional(),
      /** It ran before its service had a health check: it counts as healthy until the check says otherwise. */
      assumed: z.literal(true).optional(),
      /** Its share of new connections, in proportion; absent: 1. */
      weight: z.number().int().min(1).max(100).optional(),
    }),
  ),
  /**
   * While no task runs, those whose health check has not succeeded yet: no balancer's, but they may need to find each other.
   * Not among the tasks, because an earlier version would send connections to all that are.
   */
  starting: z.array(z.object({ id, addresses: z.record(id, address) })).optional(),
  policy: PolicyRecord.optional(),
  /** Labels that cannot be read, each with the reason, in words for the user. */
  problems: z.array(z.string()).optional(),
});
export type ServiceRecord = z.infer<typeof ServiceRecord>;

/** The tables of these records in one store. */
export interface Records {
  cluster: Table<ClusterRecord>;
  /** Not to be listed: the cluster's other record is beside it. */
  swarm: Table<SwarmRecord>;
  nodes: Table<NodeRecord>;
  numbers: Table<NodeNumberRecord>;
  networks: Table<NetworkRecord>;
  presence: Table<PresenceRecord>;
  endpoints: Table<EndpointRecord>;
  services: Table<ServiceRecord>;
  names: Table<NameRecord>;
}

/** @param keepsake of what nodes, networks and services were, for records that cannot be read any more */
export function openRecords(store: Store, keepsake: Keepsake = inMemory): Records {
  const kept = { keepsake };
  return {
    cluster: new Table(store, 'cluster/', ClusterRecord),
    swarm: new Table(store, 'cluster/', SwarmRecord),
    nodes: new Table(store, 'nodes/', NodeRecord, kept),
    numbers: new Table(store, 'node-numbers/', NodeNumberRecord),
    networks: new Table(store, 'networks/', NetworkRecord, kept),
    presence: new Table(store, 'presence/', PresenceRecord, kept),
    endpoints: new Table(store, 'endpoints/', EndpointRecord, { ...kept, stored: storedEndpoint }),
    services: new Table(store, 'services/', ServiceRecord, { ...kept, stored: storedService }),
    names: new Table(store, 'names/', NameRecord, kept),
  };
}

/** Each table remembers by itself, for as long as it is there. */
const inMemory: Keepsake = { recall: () => undefined, keep: () => undefined };

/** Records as they are written. */
function storedEndpoint(record: EndpointRecord): unknown {
  return record.ports === undefined ? record : { ...record, ports: foldPorts(record.ports) };
}
export function storedService(record: ServiceRecord) {
  return { ...record, ports: foldPorts(record.ports) };
}

export function endpointKey({ network, id }: { network: string; id: string }): string {
  return `${network}/${id}`;
}

export function nameKey({ network, endpoint }: { network: string; endpoint: string }): string {
  return `${network}/${endpoint}`;
}

export function presenceKey({ network, node }: { network: string; node: string }): string {
  return `${network}/${node}`;
}

/** Small enough for sums of two to be exact, and a prime. */
const modulus = 4_294_967_291;

/** Tells whether two readings of the same tables are of the same state: any change gives another text. */
export function revisionOf(tables: readonly Pick<Rows<unknown>, 'rows'>[]): string {
  // Whatever is written gets a version above all others, and what is deleted is missing from the count. While the store
  // is away a replica gives versions of its own, which are exchanged for smaller ones later: the sum shows that.
  let [max, count, sum] = [0, 0, 0];
  for (const { rows } of tables) {
    const versions = versionsOf(rows);
    max = Math.max(max, versions.max);
    count += rows.length;
    sum = (sum + versions.sum) % modulus;
  }
  return `${max}/${count}/${sum}`;
}

/** A table that did not change is not read again. */
const versionsOf = memoByObject((rows: readonly { version: number }[]) => {
  let [max, sum] = [0, 0];
  for (const { version } of rows) {
    max = Math.max(max, version);
    sum = (sum + (version % modulus)) % modulus;
  }
  return { max, sum };
});
