// Owns Docker's network driver: what each of its calls means for the records and the endpoints' links.
// Must not call Docker, whose locks are held meanwhile, and must not know HTTP.
import { isDeepStrictEqual } from 'node:util';
import { fabricOverhead } from '../net/fabric.ts';
import { createVeth, deleteLink, observeLinks } from '../net/links.ts';
import { vethName } from '../net/names.ts';
import type { Runner } from '../net/run.ts';
import type { Sysctl } from '../net/sysctl.ts';
import type { Ipam } from '../ipam/ipam.ts';
import {
  endpointKey,
  presenceKey,
  unjoined,
  type EndpointRecord,
  type HostPort,
  type NetworkRecord,
  type Records,
} from '../store/records.ts';
import type * as z from 'zod';
import type { Datapath } from './datapath.ts';
import { RequestError } from './errors.ts';
import { chooseHostPorts, type PortProbe } from './host-ports.ts';
import { joinAnswer } from './join-answer.ts';
import type { Log } from './log.ts';
import { parseNetworkOptions, refusedOption } from './options.ts';
import type * as protocol from './protocol.ts';
import { label } from './protocol.ts';
import type { Reconciler } from './reconciler.ts';

export interface NetworkDriverOptions {
  records: Records;
  ipam: Ipam;
  reconciler: Reconciler;
  datapath: Datapath;
  run: Runner;
  sysctl: Sysctl;
  /** This node's id in records. */
  node: string;
  /** Whether networks of this node's Swarm are allocated by nodes whose store this one does not see. */
  apart: () => boolean;
  /** Whether the node gives a port to a container. */
  tryPort: PortProbe;
  log: Log;
}

/** Of a network that a Swarm has; Docker's own ids are longer. */
const swarmsId = /^[0-9a-z]{25}$/;

/** What only this node says of itself is said also while the store is away. */
const own = { offline: true };

type Request<S extends z.ZodType> = z.infer<S>;

export class NetworkDriver {
  readonly #options: NetworkDriverOptions;
  /**
   * Endpoints that have no sandbox: those that Docker has made and not yet joined, and those that left. Others have no use for
   * them, so they are in no record: each commit is one that a container would wait for, and that wakes every node. Docker
   * joins what it makes at once, and after a restart of ours is told to start the container again.
   */
  readonly #created = new Map<string, EndpointRecord>();
  #publishing = Promise.resolve();

  constructor(options: NetworkDriverOptions) {
    this.#options = options;
  }

  /** `global`: Swarm's leader asks for allocation. A `local` driver gets neither VIPs nor cluster-wide addresses. */
  capabilities() {
    return { Scope: 'global', ConnectivityScope: 'global', GwAllocChecker: true };
  }

  /** Every Causeway network has a gateway: published ports answer through it even on an internal one. */
  checkGatewayAllocation() {
    return { SkipIPv4: false, SkipIPv6: true };
  }

  /** On Swarm's leader, for a new network and again at every election. @returns the options for CreateNetwork */
  async allocateNetwork(
    request: Request<typeof protocol.AllocateNetwork>,
  ): Promise<{ Options: Record<string, string> }> {
    const { NetworkID } = request;
    const { ipam, records } = this.#options;
    // Swarm adds what it was answered before to what it asks with: a reason of then may be gone by now.
    const { [refusedOption]: _, ...options } = request.Options;
    const impossible = troubleOf(() => addressing(request));
    if (impossible !== undefined) return { Options: { ...options, [refusedOption]: impossible } };
    const { subnet, gateway } = addressing(request);
    const refused =
      (await ipam.refusal(subnet)) ??
      (await ipam.bindPool({ space: 'global', pool: subnet, network: NetworkID, gateway })) ??
      troubleOf(() => parseNetworkOptions(options));
    const mtu = refused === undefined ? parseNetworkOptions(options).mtu : undefined;
    await records.networks.update(NetworkID, (before) => {
      const next: NetworkRecord = {
        v: 1,
        id: NetworkID,
        subnet,
        gateway,
        ...(mtu === undefined ? {} : { mtu }),
        internal: before?.internal ?? false,
        ...(before?.name === undefined ? {} : { name: before.name }),
        ...(refused === undefined ? {} : { refused }),
        allocated: true,
      };
      // A replay at the election of a leader, which must succeed while the store is away.
      return isDeepStrictEqual(before, next) ? before : next;
    });
    return { Options: { ...options, ...(refused === undefined ? {} : { [refusedOption]: refused }) } };
  }

  async freeNetwork({ NetworkID }: Request<typeof protocol.NetworkOnly>): Promise<void> {
    const { records } = this.#options;
    await records.networks.update(NetworkID, (record) => record && { ...record, allocated: false });
    await this.#forgetUnused(NetworkID);
    await this.#options.ipam.unbindPool({ space: 'global', network: NetworkID });
  }

  /** On a node, with the first task of the network there. */
  async createNetwork(request: Request<typeof protocol.CreateNetwork>): Promise<void> {
    const { NetworkID, Options } = request;
    const { datapath, reconciler, records, ipam, node } = this.#options;
    const generic = (Options[label.generic] ?? {}) as Record<string, unknown>;
    const refused = generic[refusedOption];
    if (typeof refused === 'string') await this.#assertStillRefused(NetworkID, refused);
    await this.#assertShared(NetworkID);
    if (Options[label.enableIPv6] === true) {
      throw new RequestError(
        'no-ipv6',
        'IPv6 is not available on Causeway networks yet: create the network without --ipv6',
      );
    }
    if (Options[label.enableIPv4] === false) {
      throw new RequestError(
        'no-ipv4',
        'a Causeway network needs IPv4: create the network without --ipv4=false',
      );
    }
    const { mtu } = parseNetworkOptions(generic);
    const { subnet, gateway } = addressing(request);
    const { device } = await datapath.readUnderlay();
    const sandboxMtu = await this.#sandboxMtu();
    if (mtu !== undefined && mtu > sandboxMtu) {
      throw new RequestError(
        'mtu-too-large',
        `network option ${label.mtu}=${mtu} is larger than ${sandboxMtu}, what is left behind the fabric of the smallest MTU ` +
          `between the nodes (here ${device}): lower it, or raise the MTU of the underlay`,
      );
    }
    const taken = await ipam.bindPool({ space: 'local', pool: subnet, network: NetworkID, gateway });
    if (taken !== undefined) throw new RequestError('pool-taken', taken);
    const before = await records.presence.get(presenceKey({ network: NetworkID, node }));
    const known = await records.networks.get(NetworkID);
    const as: NetworkRecord = {
      v: 1,
      id: NetworkID,
      subnet,
      gateway,
      ...(mtu === undefined ? {} : { mtu }),
      internal: Options[label.internal] === true,
      ...(known?.value.name === undefined ? {} : { name: known.value.name }),
      allocated: known?.value.allocated ?? false,
    };
    await records.networks.update(
      NetworkID,
      (record) => (isDeepStrictEqual(record, as) ? record : { ...as, allocated: record?.allocated ?? false }),
      own,
    );
    await records.presence.put(
      presenceKey({ network: NetworkID, node }),
      { v: 1, network: NetworkID, node },
      own,
    );
    try {
      await reconciler.pass();
    } catch (error) {
      if (before === undefined) await this.deleteNetwork({ NetworkID }).catch(() => undefined);
      throw error;
    }
  }

  /**
   * Swarm keeps the reason for as long as the network is there, or until the next election. Whether it still holds, the
   * record tells, at which the elected manager looks again (plugin/collector.ts).
   * @throws {RequestError} if it does
   */
  async #assertStillRefused(id: string, reason: string): Promise<void> {
    const network = (await this.#options.records.networks.get(id))?.value;
    if (network?.allocated === true && network.refused === undefined) return;
    throw new RequestError('refused', network?.refused ?? reason);
  }

  /**
   * Where each node keeps its records to itself, a network works on the one alone that has allocated it.
   * @throws {RequestError} elsewhere
   */
  async #assertShared(id: string): Promise<void> {
    if (!this.#options.apart() || !swarmsId.test(id)) return;
    if ((await this.#options.records.networks.get(id))?.value.allocated === true) return;
    throw new RequestError(
      'store-not-shared',
      `this node keeps Causeway's records to itself (CAUSEWAY_STORE=embedded), and network ${id} was allocated by another node ` +
        'of the Swarm: set CAUSEWAY_STORE to one Consul on all nodes',
    );
  }

  async deleteNetwork({ NetworkID }: Request<typeof protocol.NetworkOnly>): Promise<void> {
    const { records, ipam, reconciler, node } = this.#options;
    await records.presence.delete(presenceKey({ network: NetworkID, node }), own);
    await this.#forgetUnused(NetworkID);
    await ipam.unbindPool({ space: 'local', network: NetworkID });
    await reconciler.pass();
  }

  /** @returns the fields of the interface that Docker left to us */
  async createEndpoint(
    request: Request<typeof protocol.CreateEndpoint>,
  ): Promise<{ Interface: { MacAddress?: string } }> {
    const { NetworkID, EndpointID, Interface } = request;
    const { records, node } = this.#options;
    const network = await this.#network(NetworkID);
    const [address = '', prefix = '32'] = Interface?.Address.split('/') ?? [];
    if (address === '') {
      throw new RequestError(
        'no-address',
        'the endpoint has no IPv4 address: create the network with --ipam-driver set to this plugin too',
      );
    }
    await this.#assertFree(address, EndpointID, network);
    const wanted = Interface?.MacAddress ?? '';
    const mac = wanted === '' ? macOf(address) : wanted;
    const record: EndpointRecord = {
      v: 1,
      id: EndpointID,
      network: NetworkID,
      node,
      address,
      prefix: Number(prefix),
      mac,
    };
    const key = endpointKey(record);
    if ((await records.endpoints.get(key)) === undefined) this.#created.set(key, record);
    else await records.endpoints.update(key, (before) => ({ ...record, ...joined(before) }), own);
    return { Interface: wanted === '' ? { MacAddress: mac } : {} };
  }

  async deleteEndpoint({ NetworkID, EndpointID }: Request<typeof protocol.EndpointOnly>): Promise<void> {
    const { records, reconciler, run } = this.#options;
    const key = endpointKey({ network: NetworkID, id: EndpointID });
    this.#created.delete(key);
    // One that left is in no record any more.
    if ((await records.endpoints.ids(key)).includes(key)) await records.endpoints.delete(key, own);
    await deleteLink(run, vethName(EndpointID));
    await reconciler.pass();
  }

  async operationalInfo({ NetworkID, EndpointID }: Request<typeof protocol.EndpointOnly>) {
    const { mac } = await this.#endpoint(NetworkID, EndpointID);
    return { Value: { 'com.docker.network.endpoint.macaddress': mac } };
  }

  /** Makes the link Docker moves into the sandbox; when this returns, the endpoint's routes and rules are in place. */
  async join({ NetworkID, EndpointID, SandboxKey }: Request<typeof protocol.Join>) {
    const { records, ipam, reconciler, datapath, run, sysctl } = this.#options;
    const network = await this.#network(NetworkID);
    const endpoint = await this.#endpoint(NetworkID, EndpointID);
    // Again: of two endpoints that were created with one address, the first to join has it.
    await this.#assertFree(endpoint.address, EndpointID, network);
    const mtu = network.mtu ?? (await this.#sandboxMtu());
    await createVeth(run, sysctl, { endpointId: EndpointID, mac: endpoint.mac, mtu });
    // Asked a second time, because the answer was lost: with the first link the kernel dropped the route over it.
    if (endpoint.sandbox !== undefined) datapath.invalidate();
    const key = endpointKey(endpoint);
    try {
      // The address was given before its lease was in the store: nobody is told of it before it is certain.
      await ipam.settled({ pool: network.subnet, address: endpoint.address });
      await records.endpoints.update(
        key,
        (record = endpoint) => {
          // Of another sandbox nothing is known yet.
          const { healthy: _, failing: __, ...rest } = record;
          return record.sandbox === SandboxKey ? record : { ...rest, sandbox: SandboxKey };
        },
        own,
      );
      await reconciler.pass();
      this.#created.delete(key);
    } catch (error) {
      await this.leave({ NetworkID, EndpointID }).catch(() => undefined);
      await deleteLink(run, vethName(EndpointID));
      throw error;
    }
    return joinAnswer(endpoint, network);
  }

  async leave({ NetworkID, EndpointID }: Request<typeof protocol.EndpointOnly>): Promise<void> {
    const { records, reconciler } = this.#options;
    const key = endpointKey({ network: NetworkID, id: EndpointID });
    const row = await records.endpoints.get(key);
    if (row !== undefined) {
      this.#created.set(key, unjoined(row.value));
      await records.endpoints.delete(key, own);
    }
    await reconciler.pass();
  }

  /**
   * Asked for the endpoint that is the sandbox's gateway, with the ports its container publishes by itself.
   * @throws {RequestError} when one of them cannot be had; then none is
   */
  programExternalConnectivity(request: Request<typeof protocol.ProgramExternalConnectivity>): Promise<void> {
    // One after the other: two containers that start now must not both find the same port free.
    const publishing = this.#publishing.then(() => this.#publish(request));
    this.#publishing = publishing.catch(() => undefined);
    return publishing;
  }

  async #publish({
    NetworkID,
    EndpointID,
    Options: bindings,
  }: Request<typeof protocol.ProgramExternalConnectivity>): Promise<void> {
    const { records, node, run, tryPort, log } = this.#options;
    if (bindings.length === 0) {
      await this.#setPorts(NetworkID, EndpointID, []);
      return;
    }
    await this.#endpoint(NetworkID, EndpointID);
    const { rows } = await records.endpoints.list();
    const others = rows
      .map(({ value }) => value)
      .filter((other) => other.node === node && other.id !== EndpointID);
    // After a crash of Docker those that were are still in the records, and come back with the same ports.
    const links = new Set((await observeLinks(run)).map(({ name }) => name));
    const taken = [
      ...others
        .filter(({ id }) => links.has(vethName(id)))
        .flatMap(({ ports = [] }) =>
          ports.map((port) => ({ ...port, by: 'another container on this node' })),
        ),
      // Where Docker's own mesh works it holds these as well, with a socket each.
      ...(await records.services.list()).rows.flatMap(({ value: { name, ports } }) =>
        ports.map(({ protocol, port }) => ({ protocol, port, by: `service ${name}` })),
      ),
    ];
    const ports = await chooseHostPorts(bindings, taken, tryPort);
    await this.#setPorts(NetworkID, EndpointID, ports);
    log.info({ endpoint: EndpointID, ports }, 'host ports published');
  }

  async revokeExternalConnectivity({
    NetworkID,
    EndpointID,
  }: Request<typeof protocol.EndpointOnly>): Promise<void> {
    await this.#setPorts(NetworkID, EndpointID, []);
  }

  async #setPorts(network: string, id: string, ports: readonly HostPort[]): Promise<void> {
    const { records, reconciler } = this.#options;
    const key = endpointKey({ network, id });
    const row = await records.endpoints.get(key);
    if (isDeepStrictEqual(row?.value.ports ?? [], ports)) return;
    await records.endpoints.update(
      key,
      (record) => {
        if (record === undefined) return undefined;
        const { ports: _, access: __, ...rest } = record;
        // Docker is not asked here for the labels: whoever follows its events does so.
        return ports.length === 0 ? rest : { ...rest, ports: [...ports], access: { by: 'nobody' } };
      },
      own,
    );
    await reconciler.pass();
  }

  /** What every node of the cluster can carry: a larger packet would be lost on its way to the others. */
  async #sandboxMtu(): Promise<number> {
    const { records, datapath } = this.#options;
    const nodes = (await records.nodes.list()).rows.map(({ value }) => value.mtu - fabricOverhead);
    return Math.min(await datapath.sandboxMtu(), ...nodes);
  }

  /** Deletes the record of a network that neither Swarm nor any node has. */
  async #forgetUnused(id: string): Promise<void> {
    const { records } = this.#options;
    if ((await records.presence.ids(`${id}/`)).length > 0) return;
    await records.networks.update(id, (record) => (record?.allocated === true ? record : undefined), own);
  }

  async #network(id: string): Promise<NetworkRecord> {
    const row = await this.#options.records.networks.get(id);
    if (row !== undefined) return row.value;
    throw new RequestError(
      'unknown-network',
      `network ${id} is not known to Causeway on this node: remove it and create it again (its state was lost)`,
    );
  }

  async #endpoint(network: string, id: string): Promise<EndpointRecord> {
    const key = endpointKey({ network, id });
    const endpoint = (await this.#options.records.endpoints.get(key))?.value ?? this.#created.get(key);
    if (endpoint !== undefined) return endpoint;
    throw new RequestError(
      'unknown-endpoint',
      `endpoint ${id} is not known to Causeway on this node: start its container again`,
    );
  }

  /** @throws {RequestError} when another endpoint of the network has the address and its sandbox is alive */
  async #assertFree(address: string, endpointId: string, { id, name = id }: NetworkRecord): Promise<void> {
    const { rows } = await this.#options.records.endpoints.list(`${id}/`);
    const created = [...this.#created.values()].filter(({ network }) => network === id);
    const twin = [...rows.map(({ value }) => value), ...created].find(
      (other) => other.address === address && other.id !== endpointId,
    );
    if (twin === undefined || (twin.node === this.#options.node && !(await this.#isAlive(twin)))) return;
    throw new RequestError(
      'address-in-use',
      `address ${address} is in use by endpoint ${twin.id.slice(0, 12)} on network ${name}: choose another --ip, or none`,
    );
  }

  async #isAlive({ id }: EndpointRecord): Promise<boolean> {
    this.#options.datapath.invalidate();
    return (await this.#options.datapath.links([])).has(vethName(id));
  }
}

/** What Join and later calls have added to the record. */
function joined({ sandbox, ports, access, healthy, failing }: Partial<EndpointRecord> = {}): Pick<
  EndpointRecord,
  'sandbox' | 'ports' | 'access' | 'healthy' | 'failing'
> {
  return {
    ...(sandbox !== undefined && { sandbox }),
    ...(ports !== undefined && { ports }),
    ...(access !== undefined && { access }),
    ...(healthy !== undefined && { healthy }),
    ...(failing !== undefined && { failing }),
  };
}

/** @throws {RequestError} unless there is exactly one IPv4 subnet with a gateway */
function addressing({
  IPv4Data,
  IPv6Data,
}: Pick<Request<typeof protocol.CreateNetwork>, 'IPv4Data' | 'IPv6Data'>) {
  const [data, ...others] = IPv4Data;
  // The leader is told of an IPv6 subnet as of one more.
  if (IPv4Data.some(({ Pool }) => Pool.includes(':'))) {
    throw new RequestError(
      'no-ipv6',
      'IPv6 is not available on Causeway networks yet: create the network without --ipv6, and with an IPv4 --subnet or none',
    );
  }
  if (data === undefined || others.length > 0 || IPv6Data.length > 0) {
    throw new RequestError(
      'one-subnet',
      'a Causeway network has exactly one IPv4 subnet: give --subnet once, or not at all',
    );
  }
  const gateway = data.Gateway.split('/', 1)[0] ?? '';
  if (gateway === '') {
    throw new RequestError(
      'no-gateway',
      'the network has no gateway: create it with --ipam-driver set to this plugin too',
    );
  }
  return { subnet: data.Pool, gateway };
}

/** @returns what is wrong with the request, in words for the user; undefined if nothing is */
function troubleOf(check: () => unknown): string | undefined {
  try {
    check();
    return undefined;
  } catch (error) {
    if (error instanceof RequestError) return error.message;
    throw error;
  }
}

/** A locally administered unicast address made of the IPv4 address, so that a neighbour's cache survives a restart. */
function macOf(address: string): string {
  const octets = address.split('.').map((octet) => Number(octet).toString(16).padStart(2, '0'));
  return ['02', '42', ...octets].join(':');
}
