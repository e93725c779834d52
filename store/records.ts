// Owns the shape of the records that tell a node what its network shall be: networks, endpoints, services.
// Must not know who writes them or what is made of them. (Pools and leases are ipam/'s own.)
import { z } from 'zod';
import { once } from '../delta/list.ts';
import type { Store } from './store.ts';
import { Table, type Rows } from './table.ts';

/** IPv4 address without prefix. */
const address = z.ipv4();

/** `nodes/ID`: a node of the cluster, as the others need to know it. */
export const NodeRecord = z.object({
  v: z.literal(1),
  id: z.string(),
  /** The host's name, for people. */
  name: z.string(),
  /** In the underlay. */
  address,
  /** Unique in the cluster, from 1: names what belongs to this node in the kernels of the others. */
  number: z.number().int().min(1).max(0xffffff),
  /** Of the device with the address, in bytes. */
  mtu: z.number().int(),
  /** UDP port and VXLAN network identifier of its fabric: nodes where they differ do not hear each other. */
  fabric: z.object({ port: z.number().int(), vni: z.number().int() }),
  /** Swarm's id of the node, once it is in a Swarm. */
  swarm: z.string().optional(),
});
export type NodeRecord = z.infer<typeof NodeRecord>;

/** Is made when the first node comes, and stays for as long as the cluster is there. */
export const clusterKey = 'cluster/secret';

/** {@link clusterKey}: by which nodes know each other's heartbeats. */
export const ClusterRecord = z.object({ v: z.literal(1), secret: z.string() });
export type ClusterRecord = z.infer<typeof ClusterRecord>;

/** `node-numbers/N`: which node has the number. Two nodes cannot create the same key. */
export const NodeNumberRecord = z.object({ v: z.literal(1), node: z.string() });
export type NodeNumberRecord = z.infer<typeof NodeNumberRecord>;

/** `networks/ID`: a network that Docker allocated (Swarm's leader) or created (a node). */
export const NetworkRecord = z.object({
  v: z.literal(1),
  id: z.string(),
  /** CIDR. */
  subnet: z.cidrv4(),
  gateway: address,
  /** Bytes, of the links in the sandboxes; absent: derived from the underlay. */
  mtu: z.number().int().optional(),
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
export const PresenceRecord = z.object({ v: z.literal(1), network: z.string(), node: z.string() });
export type PresenceRecord = z.infer<typeof PresenceRecord>;

/** A port of the node that leads to one container on it (docker run -p, mode=host). */
export const HostPort = z.object({
  protocol: z.enum(['tcp', 'udp', 'sctp']),
  /** Of the node; absent: all of them. */
  address: address.optional(),
  port: z.number().int(),
  targetPort: z.number().int(),
});
export type HostPort = z.infer<typeof HostPort>;

export const schedulers = ['rr', 'wrr', 'lc', 'wlc', 'sh', 'mh'] as const;
export const localities = ['any', 'prefer-local', 'local'] as const;

/** What a healthy task answers: a connection, or a request by a status from 200 to 399. */
export const HealthCheck = z.object({
  protocol: z.enum(['tcp', 'http']),
  port: z.number().int(),
  /** Of http; with its leading slash. */
  path: z.string().optional(),
});
export type HealthCheck = z.infer<typeof HealthCheck>;

/** Seconds after which a silent connection is forgotten; what is absent is as the node has it. */
export const Timeouts = z.object({
  tcp: z.number().int().optional(),
  /** Of TCP, when one side has closed. */
  fin: z.number().int().optional(),
  udp: z.number().int().optional(),
});
export type Timeouts = z.infer<typeof Timeouts>;

/**
 * How a service wants to be balanced and published, as its labels say (docs/policy.md), or of a container what concerns
 * its own ports. What is absent is as by default.
 */
export const PolicyRecord = z.object({
  scheduler: z.enum(schedulers).optional(),
  /** A client stays with its task for so many seconds after its last connection. */
  affinity: z.number().int().optional(),
  locality: z.enum(localities).optional(),
  /** Where its ports are published: addresses of nodes, and names of their devices. */
  bind: z.array(z.string()).optional(),
  /** CIDR, none within another: who may connect to its published ports. */
  allow: z.array(z.string()).optional(),
  /** CIDR, none within another: who may not. */
  deny: z.array(z.string()).optional(),
  /** Seconds after which the connections of a draining task are ended; absent: they go on until it ends. */
  drain: z.number().int().optional(),
  timeout: Timeouts.optional(),
  /** How its tasks are checked; absent: not at all. */
  health: HealthCheck.optional(),
  /** Seconds from one check to the next. */
  healthInterval: z.number().int().optional(),
  /** Checks in a row until a task is healthy, or is so no longer. */
  healthRise: z.number().int().optional(),
  healthFall: z.number().int().optional(),
});
export type PolicyRecord = z.infer<typeof PolicyRecord>;

/** Who may use the ports that an endpoint's container publishes by itself. */
export const PortAccess = z.discriminatedUnion('by', [
  /** The container's labels are not known yet: nobody. */
  z.object({ by: z.literal('nobody') }),
  /** As the Swarm service with this id says. */
  z.object({ by: z.literal('service'), service: z.string() }),
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
  id: z.string(),
  network: z.string(),
  /** The node it is on. */
  node: z.string(),
  address,
  mac: z.string(),
  /** The sandbox that joined it; absent before Join and after Leave. */
  sandbox: z.string().optional(),
  /** Published on its node, as long as this endpoint is the sandbox's way out. */
  ports: z.array(HostPort).optional(),
  /** Who may use them; absent in records that an earlier version wrote: everybody. */
  access: PortAccess.optional(),
  /** What its node's checks say, if its service wants any; absent until they say anything. */
  healthy: z.boolean().optional(),
});
export type EndpointRecord = z.infer<typeof EndpointRecord>;

/** The endpoint as it is when no sandbox has joined it. */
export function unjoined({
  sandbox: _,
  ports: __,
  access: ___,
  healthy: ____,
  ...endpoint
}: EndpointRecord): EndpointRecord {
  return endpoint;
}

/** `names/NETWORK/ENDPOINT`: what a running container is called on a network; written by its own node. */
export const NameRecord = z.object({
  v: z.literal(1),
  endpoint: z.string(),
  network: z.string(),
  /** The node it is on. */
  node: z.string(),
  /** Docker's id of the container. */
  container: z.string(),
  /** The container's name, its short id, its hostname, its aliases on the network; as Docker writes them. */
  names: z.array(z.string()),
  /** Its health check fails. */
  unhealthy: z.boolean(),
});
export type NameRecord = z.infer<typeof NameRecord>;

/** `services/ID`: a Swarm service on at least one of our networks. */
export const ServiceRecord = z.object({
  v: z.literal(1),
  id: z.string(),
  name: z.string(),
  /** Network to VIP. Empty with endpoint mode dnsrr. */
  vips: z.record(z.string(), address),
  /** Networks of ours the service is on. */
  networks: z.array(z.string()),
  /** Network to the service's other names on it. */
  aliases: z.record(z.string(), z.array(z.string())).optional(),
  /** Ports published by the mesh (mode=ingress). */
  ports: z.array(
    z.object({
      protocol: z.enum(['tcp', 'udp', 'sctp']),
      port: z.number().int(),
      targetPort: z.number().int(),
      /** As the user called it. */
      name: z.string().optional(),
    }),
  ),
  tasks: z.array(
    z.object({
      id: z.string(),
      /** Network to address. */
      addresses: z.record(z.string(), address),
      /** It shall not run any longer: no new connections, established ones go on. */
      draining: z.boolean(),
      /** When that began, in milliseconds of Unix time; only where the policy says how long it may take. */
      since: z.number().optional(),
      /** It has drained for as long as the policy says: established connections are to be ended. */
      drained: z.literal(true).optional(),
      /** It ran before its service had a health check: it counts as healthy until the check says otherwise. */
      assumed: z.literal(true).optional(),
      /** Its share of new connections, in proportion; absent: 1. */
      weight: z.number().int().optional(),
    }),
  ),
  policy: PolicyRecord.optional(),
  /** Labels that are left out of account, each with the reason, in words for the user. */
  problems: z.array(z.string()).optional(),
});
export type ServiceRecord = z.infer<typeof ServiceRecord>;

/** The tables of these records in one store. */
export interface Records {
  cluster: Table<ClusterRecord>;
  nodes: Table<NodeRecord>;
  numbers: Table<NodeNumberRecord>;
  networks: Table<NetworkRecord>;
  presence: Table<PresenceRecord>;
  endpoints: Table<EndpointRecord>;
  services: Table<ServiceRecord>;
  names: Table<NameRecord>;
}

export function openRecords(store: Store): Records {
  return {
    cluster: new Table(store, 'cluster/', ClusterRecord),
    nodes: new Table(store, 'nodes/', NodeRecord),
    numbers: new Table(store, 'node-numbers/', NodeNumberRecord),
    networks: new Table(store, 'networks/', NetworkRecord),
    presence: new Table(store, 'presence/', PresenceRecord),
    endpoints: new Table(store, 'endpoints/', EndpointRecord),
    services: new Table(store, 'services/', ServiceRecord),
    names: new Table(store, 'names/', NameRecord),
  };
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
const versionsOf = once((rows: readonly { version: number }[]) => {
  let [max, sum] = [0, 0];
  for (const { version } of rows) {
    max = Math.max(max, version);
    sum = (sum + (version % modulus)) % modulus;
  }
  return { max, sum };
});
