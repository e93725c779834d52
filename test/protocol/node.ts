// Owns a node of the protocol tests: the plugin's server and drivers on a unix socket, over a fake kernel and a store
// in memory, and Docker's calls in the order they were measured. Must not assert anything.
import { mkdtemp, rm } from 'node:fs/promises';
import type { Server } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Ipam } from '../../ipam/ipam.ts';
import { nftEngine } from '../../lb/nft.ts';
import { observeInUse } from '../../net/host.ts';
import { Datapath } from '../../plugin/datapath.ts';
import { IpamDriver } from '../../plugin/ipam-driver.ts';
import { close, listen } from '../../plugin/listen.ts';
import { NetworkDriver } from '../../plugin/network-driver.ts';
import { Reconciler } from '../../plugin/reconciler.ts';
import { createPluginServer, pluginMethods } from '../../plugin/server.ts';
import { openEmbedded } from '../../store/embedded.ts';
import { openRecords, type Records } from '../../store/records.ts';
import type { Store } from '../../store/store.ts';
import { FakeKernel } from '../fake/kernel.ts';
import { captureLog, type LogLine } from '../fake/log.ts';
import { PluginClient } from '../fake/plugin-client.ts';

export const label = {
  generic: 'com.docker.network.generic',
  internal: 'com.docker.network.internal',
  ipv4: 'com.docker.network.enable_ipv4',
  ipv6: 'com.docker.network.enable_ipv6',
  mtu: 'com.docker.network.driver.mtu',
  ports: 'com.docker.network.endpoint.exposedports',
  portMap: 'com.docker.network.portmap',
};

export const gatewayOptions = { RequestAddressType: 'com.docker.network.gateway' };
/** Where AllocateNetwork leaves the reason for CreateNetwork. */
export const refusedOption = 'causeway.refused';

const socketName = 'causeway.sock';

export interface NodeOptions {
  kernel?: FakeKernel;
  /** Of an earlier life, which is then not closed by {@link Node.stop}. */
  store?: Store;
}

/** What Docker knows of a network. */
export interface DockerNetwork {
  id: string;
  subnet: string;
  /** With prefix, as IPAM gave it. */
  gateway: string;
  /** As AllocateNetwork returned them. */
  options: Record<string, string>;
  globalPool: string;
  localPool: string;
}

export class Node {
  readonly kernel: FakeKernel;
  readonly store: Store;
  readonly records: Records;
  readonly ipam: Ipam;
  readonly client: PluginClient;
  readonly lines: LogLine[];
  readonly reconciler: Reconciler;
  readonly datapath: Datapath;
  /** `PORT/PROTOCOL` at which other programs of the node listen. */
  readonly portsInUse: Set<string>;
  /** What Docker has for networks of its own. */
  readonly taken: { cidr: string; what: string }[];
  readonly #parts: { apart: boolean };
  readonly #server: Server;
  readonly #directory: string;
  readonly #ownsStore: boolean;

  private constructor(
    parts: Pick<
      Node,
      | 'kernel'
      | 'store'
      | 'records'
      | 'ipam'
      | 'client'
      | 'lines'
      | 'reconciler'
      | 'datapath'
      | 'portsInUse'
      | 'taken'
    > & { apart: boolean },
    [server, directory, ownsStore]: [Server, string, boolean],
  ) {
    ({
      kernel: this.kernel,
      store: this.store,
      records: this.records,
      ipam: this.ipam,
      client: this.client,
      lines: this.lines,
      reconciler: this.reconciler,
      datapath: this.datapath,
      portsInUse: this.portsInUse,
      taken: this.taken,
    } = parts);
    this.#parts = parts;
    this.#server = server;
    this.#directory = directory;
    this.#ownsStore = ownsStore;
  }

  static async start({ kernel = new FakeKernel(), store: given }: NodeOptions = {}): Promise<Node> {
    const directory = await mkdtemp(join(tmpdir(), 'causeway-protocol-'));
    const store = given ?? openEmbedded(':memory:');
    const records = openRecords(store);
    const { run, conntrack, sysctl } = kernel;
    const { log, lines } = captureLog();
    const node = 'node-1';
    const fabric = { port: 4790, vni: 4790 };
    const datapath = new Datapath({
      run,
      conntrack,
      sysctl,
      engine: nftEngine,
      fabric,
      nodeAddress: () => '',
    });
    const reconciler = new Reconciler({ records, datapath, node, log, unreachable: () => new Set() });
    const taken: { cidr: string; what: string }[] = [];
    const ipam = new Ipam(store, {
      defaultPool: '10.64.0.0/12',
      defaultSize: 20,
      nodeId: node,
      inUse: () => observeInUse(run),
      taken: () => Promise.resolve(taken),
      avoided: () => Promise.resolve([]),
      serviceAt: async (network, address) =>
        (await records.services.list()).rows.find(({ value }) => value.vips[network] === address)?.value.name,
      onFailure: (lease, error) => log.warn({ lease, error }, 'not in the records'),
      now: Date.now,
    });
    const portsInUse = new Set<string>();
    const driver = new NetworkDriver({
      records,
      ipam,
      reconciler,
      datapath,
      run,
      sysctl,
      node,
      apart: () => parts.apart,
      tryPort: (protocol, _, port) =>
        Promise.resolve(portsInUse.has(`${port}/${protocol}`) ? 'EADDRINUSE' : undefined),
      log,
    });
    const path = join(directory, socketName);
    const server = await listen(createPluginServer(pluginMethods(driver, new IpamDriver(ipam, log)), log), {
      path,
    });
    const client = new PluginClient(path);
    const parts = {
      ...{ kernel, store, records, ipam, client, lines, reconciler, datapath, portsInUse, taken },
      apart: false,
    };
    return new Node(parts, [server, directory, given === undefined]);
  }

  /** Says that other nodes allocate networks, of which this node's store does not know. */
  keepApart(): void {
    this.#parts.apart = true;
  }

  get socket(): string {
    return join(this.#directory, socketName);
  }

  async stop(): Promise<void> {
    await this.client.close();
    await close(this.#server);
    await this.ipam.idle();
    if (this.#ownsStore) await this.store.close();
    await rm(this.#directory, { recursive: true });
  }

  /** Everything in the store but hints and counters, as text to compare. */
  async state(): Promise<string> {
    await this.ipam.idle();
    const { entries } = await this.store.list('');
    return entries
      .filter(({ key }) => !/^ipam\/(guard|cursors)\//.test(key))
      .map(({ key, value }) => `${key} ${JSON.stringify(value)}`)
      .join('\n');
  }

  /** A call that must be refused. @returns the words that Docker shows */
  async refusal(method: string, body: unknown): Promise<string> {
    const answer = await this.client.post(method, body);
    const error = answer.body[method.startsWith('IpamDriver.') ? 'Error' : 'Err'];
    if (answer.status !== 200 || typeof error !== 'string')
      throw new Error(`${method} was not refused: ${answer.status} ${JSON.stringify(answer.body)}`);
    return error;
  }

  async address(pool: string, Address = '', Options: Record<string, string> | null = null): Promise<string> {
    const answer = await this.client.call('IpamDriver.RequestAddress', { PoolID: pool, Address, Options });
    return answer['Address'] as string;
  }

  async pool(space: 'global' | 'local', Pool = ''): Promise<{ id: string; subnet: string }> {
    const AddressSpace = `causeway-${space}`;
    const body = { AddressSpace, Pool, SubPool: '', Options: null, V6: false };
    const answer = await this.client.call('IpamDriver.RequestPool', body);
    return { id: answer['PoolID'] as string, subnet: answer['Pool'] as string };
  }

  /** On Swarm's leader: `docker network create`. */
  async allocate(
    id: string,
    { subnet = '', options = {} }: { subnet?: string; options?: Record<string, string> } = {},
  ): Promise<DockerNetwork> {
    const pool = await this.pool('global', subnet);
    const gateway = await this.address(pool.id, '', gatewayOptions);
    const answer = await this.client.call('NetworkDriver.AllocateNetwork', {
      NetworkID: id,
      Options: options,
      IPv4Data: [
        { AddressSpace: 'causeway-global', Pool: pool.subnet, Gateway: gateway, AuxAddresses: null },
      ],
      IPv6Data: null,
    });
    return {
      id,
      subnet: pool.subnet,
      gateway,
      options: answer['Options'] as Record<string, string>,
      globalPool: pool.id,
      localPool: '',
    };
  }

  /** The request of CreateNetwork, on the node of a task, after its pool and gateway were requested. */
  async creation(network: DockerNetwork, options: Record<string, unknown> = {}) {
    const { id, subnet, gateway } = network;
    const pool = await this.pool('local', subnet);
    network.localPool = pool.id;
    await this.address(pool.id, bare(gateway), gatewayOptions);
    return {
      NetworkID: id,
      Options: { [label.ipv6]: false, [label.generic]: network.options, ...options },
      IPv4Data: [{ AddressSpace: 'causeway-local', Pool: subnet, Gateway: gateway, AuxAddresses: {} }],
      IPv6Data: [],
    };
  }

  /** A network on leader and node. */
  async network(id: string, rest?: Parameters<Node['allocate']>[1]): Promise<DockerNetwork> {
    const network = await this.allocate(id, rest);
    await this.client.call('NetworkDriver.CreateNetwork', await this.creation(network));
    return network;
  }

  /** An address for a task, from leader and node, and its endpoint. @returns the address, with prefix */
  async endpoint(network: DockerNetwork, id: string): Promise<string> {
    const address = await this.address(network.globalPool);
    await this.address(network.localPool, bare(address));
    await this.client.call('NetworkDriver.CreateEndpoint', endpointRequest(network, id, address));
    return address;
  }

  /** Join and what Docker does then: the sandbox's end of the link leaves the host. */
  async join(network: DockerNetwork, id: string): Promise<Record<string, unknown>> {
    const answer = await this.client.call('NetworkDriver.Join', joinRequest(network, id));
    this.kernel.host.moveToSandbox((answer['InterfaceName'] as { SrcName: string }).SrcName);
    return answer;
  }

  /** The end of a container. */
  async remove(network: DockerNetwork, id: string, address: string): Promise<void> {
    const ids = { NetworkID: network.id, EndpointID: id };
    await this.client.call('NetworkDriver.Leave', ids);
    await this.client.call('NetworkDriver.DeleteEndpoint', ids);
    for (const PoolID of [network.localPool, network.globalPool])
      await this.client.call('IpamDriver.ReleaseAddress', { PoolID, Address: bare(address) });
  }

  /** On the node, with the last task. */
  async deleteNetwork({ id, gateway, localPool }: DockerNetwork): Promise<void> {
    await this.client.call('IpamDriver.ReleaseAddress', { PoolID: localPool, Address: bare(gateway) });
    await this.client.call('IpamDriver.ReleasePool', { PoolID: localPool });
    await this.client.call('NetworkDriver.DeleteNetwork', { NetworkID: id });
  }

  /** On the leader: `docker network rm`. */
  async free({ id, gateway, globalPool }: DockerNetwork): Promise<void> {
    await this.client.call('NetworkDriver.FreeNetwork', { NetworkID: id });
    await this.client.call('IpamDriver.ReleaseAddress', { PoolID: globalPool, Address: bare(gateway) });
    await this.client.call('IpamDriver.ReleasePool', { PoolID: globalPool });
  }
}

export function endpointRequest(
  network: Pick<DockerNetwork, 'id'>,
  EndpointID: string,
  Address: string,
  MacAddress = '',
) {
  return {
    NetworkID: network.id,
    EndpointID,
    Interface: { Address, AddressIPv6: '', MacAddress },
    Options: { [label.ports]: [{ Proto: 6, Port: 80 }], [label.portMap]: [] },
  };
}

export function joinRequest(network: Pick<DockerNetwork, 'id'>, EndpointID: string) {
  return {
    NetworkID: network.id,
    EndpointID,
    SandboxKey: '/var/run/docker/netns/0123456789ab',
    Options: { [label.ports]: [], [label.portMap]: [] },
  };
}

export function bare(address: string): string {
  return address.split('/', 1)[0] ?? '';
}
