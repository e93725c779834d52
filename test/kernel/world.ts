// Owns a small world of real network namespaces around plugin processes: nodes on one wire, a client beside them, and
// sandboxes, with the test playing Docker's part in the order Docker was measured to keep. The first node is the manager.
// Must not assert anything.
import { isDeepStrictEqual } from 'node:util';
import { randomBytes } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { request, Agent } from 'undici';
import { FakeDockerApi } from '../fake/docker-api.ts';
import { PluginProcess } from '../lab/plugin-process.ts';
import type { JoinAnswer } from '../../plugin/join-answer.ts';
import { readAccess } from '../../plugin/port-access.ts';
import type { PolicyRecord, PortAccess } from '../../store/records.ts';
import { slowness } from '../slowness.ts';
import { startPeer, type Peer } from './peer.ts';
import { until } from '../support/until.ts';

/** Of the first node. */
export const nodeAddress = '203.0.113.1';
export const secondNodeAddress = '203.0.113.3';
export const clientAddress = '203.0.113.2';
/** Where programs that serve all nodes run: on the wire itself. */
export const wireAddress = '203.0.113.254';
/**
 * A bridge takes the lowest address of its ports unless told. With a port that comes or goes it would have another one, and who
 * knows the one before would send to nobody, for half a minute.
 */
export const bridgeMac = '02:00:00:00:00:fe';

/** Runs a command to its end. @throws when it fails */
async function sh(file: string, ...args: string[]): Promise<string> {
  return (await execa(file, args)).stdout;
}

/** A named network namespace. */
export class Namespace {
  readonly name: string;

  constructor(name: string) {
    this.name = name;
  }

  static async make(name: string): Promise<Namespace> {
    await sh('ip', 'netns', 'add', name);
    await sh('ip', '-n', name, 'link', 'set', 'lo', 'up');
    return new Namespace(name);
  }

  get path(): string {
    return `/run/netns/${this.name}`;
  }

  /** `ip` in this namespace, in words. */
  ip(...args: string[]): Promise<string> {
    return sh('ip', '-n', this.name, ...args);
  }

  /** Runs a command in this namespace to its end. @throws when it fails */
  run(file: string, ...args: string[]): Promise<string> {
    return sh('nsenter', `--net=${this.path}`, file, ...args);
  }

  async remove(): Promise<void> {
    await sh('ip', 'netns', 'del', this.name);
  }
}

/** A node: its namespace, its plugin, and the Docker that the plugin sees. */
export class TestNode {
  readonly namespace: Namespace;
  /** In the underlay. */
  readonly address: string;
  readonly docker: FakeDockerApi;
  readonly plugin: PluginProcess;

  constructor(namespace: Namespace, address: string, docker: FakeDockerApi, plugin: PluginProcess) {
    this.namespace = namespace;
    this.address = address;
    this.docker = docker;
    this.plugin = plugin;
  }

  /** The admin API's word. */
  async status(): Promise<Status> {
    return (await this.admin('/status')) as Status;
  }

  /** @throws when the answer is not 200 */
  async admin(path: string): Promise<unknown> {
    const agent = new Agent({ connect: { socketPath: this.plugin.adminSocket } });
    try {
      const { statusCode, body } = await request(`http://admin${path}`, { dispatcher: agent });
      const answer = await body.json();
      if (statusCode !== 200) throw new Error(`${path}: ${JSON.stringify(answer)}`);
      return answer;
    } finally {
      await agent.close();
    }
  }

  /** Everything in the node's kernel that Causeway could have put there, as text to compare. */
  async kernelState(): Promise<string> {
    const nft = await this.plugin.tool('nft', ['list', 'ruleset']);
    const ipvs = await this.plugin.tool('ipvsadm', ['--save', '-n']).catch(() => '');
    const routes = await this.namespace.ip('-4', 'route', 'show', 'table', 'all');
    const rules = await this.namespace.ip('-4', 'rule', 'show');
    const links = (await this.namespace.ip('-br', 'link')).replaceAll(/@\S+/g, '');
    return [nft, ipvs, routes, rules, links].join('\n---\n');
  }
}

export interface TestNetwork {
  id: string;
  name: string;
  subnet: string;
  gateway: string;
  /** The pool's ids on either side. */
  globalPool: string;
  localPool: string;
  options: Record<string, string>;
  internal: boolean;
}

export interface TestEndpoint {
  id: string;
  network: TestNetwork;
  address: string;
  sandbox: Namespace;
  node: TestNode;
}

export interface TestService {
  id: string;
  name: string;
  vip: string;
  network: TestNetwork;
}

interface PoolData {
  AddressSpace: string;
  Pool: string;
  Gateway: string;
}

const id = (): string => randomBytes(32).toString('hex');

export interface WorldOptions {
  nodes?: number;
  /** Settings of all plugins, given the namespace of the wire, where a shared store may have been started. */
  env?: (wire: Namespace) => Promise<Record<string, string>> | Record<string, string>;
  /** What a node has before its plugin is started. */
  prepare?: (node: Namespace) => Promise<void>;
}

export class World {
  readonly nodes: readonly TestNode[];
  readonly client: Namespace;
  /** The switch that nodes and client are plugged into. */
  readonly wire: Namespace;
  /** What is attached now. */
  readonly endpoints: TestEndpoint[] = [];
  readonly #sandboxes: Namespace[] = [];
  /** How many sandboxes there have been. */
  #made = 0;
  readonly #peers: Peer[] = [];

  private constructor(nodes: TestNode[], client: Namespace, wire: Namespace) {
    this.nodes = nodes;
    this.client = client;
    this.wire = wire;
  }

  static async up({ nodes: count = 1, env = () => ({}), prepare }: WorldOptions = {}): Promise<World> {
    const prefix = `cwt${randomBytes(3).toString('hex')}`;
    const wire = await Namespace.make(`${prefix}w`);
    await wire.ip('link', 'add', 'wire', 'address', bridgeMac, 'type', 'bridge');
    await wire.ip('address', 'add', `${wireAddress}/24`, 'dev', 'wire');
    await wire.ip('link', 'set', 'wire', 'up');
    const client = await Namespace.make(`${prefix}c`);
    await plug(wire, client, [clientAddress]);
    const settings = await env(wire);
    const nodes: TestNode[] = [];
    for (let index = 0; index < count; index += 1) {
      const namespace = await Namespace.make(`${prefix}n${index}`);
      // As a host is before Docker came; a new namespace takes it from the machine's own, whatever that has.
      await namespace.run('sh', '-c', 'echo 0 > /proc/sys/net/ipv4/ip_forward');
      const address = index === 0 ? nodeAddress : `203.0.113.${10 + index}`;
      await plug(wire, namespace, index === 0 ? [nodeAddress, secondNodeAddress] : [address]);
      await namespace.ip('route', 'add', 'default', 'via', clientAddress);
      await prepare?.(namespace);
      const plugin = await PluginProcess.start({ netns: namespace.path, env: settings });
      const docker = new FakeDockerApi();
      docker.manager = index === 0;
      // Each is a node of its own in the Swarm, and the first one leads it.
      if (index > 0) {
        docker.id = `node${index}`;
        nodes[0]?.docker.nodes.push({ ID: docker.id, Status: { State: 'ready' } });
      }
      await mkdir(join(plugin.directory, 'run'), { recursive: true });
      await docker.listen(join(plugin.directory, 'run', 'docker.sock'));
      nodes.push(new TestNode(namespace, address, docker, plugin));
    }
    return new World(nodes, client, wire);
  }

  async down(): Promise<void> {
    for (const peer of this.#peers) await peer.stop();
    for (const { plugin, docker } of this.nodes) {
      await plugin.stop();
      await docker.close();
    }
    const spaces = this.nodes.map(({ namespace }) => namespace);
    for (const namespace of [...this.#sandboxes, this.client, ...spaces, this.wire]) await namespace.remove();
  }

  /** The first node, which is Swarm's leader. */
  get first(): TestNode {
    const [first] = this.nodes;
    if (first === undefined) throw new Error('a world without nodes');
    return first;
  }

  get node(): Namespace {
    return this.first.namespace;
  }

  get plugin(): PluginProcess {
    return this.first.plugin;
  }

  get docker(): FakeDockerApi {
    return this.first.docker;
  }

  /** What Swarm's leader does for `docker network create`. */
  async allocateNetwork(
    name: string,
    options: { subnet?: string; internal?: boolean; driver?: Record<string, string> } = {},
  ) {
    const { client } = this.plugin;
    const { PoolID, Pool } = (await client.call('IpamDriver.RequestPool', {
      AddressSpace: 'causeway-global',
      Pool: options.subnet ?? '',
      SubPool: '',
      Options: null,
      V6: false,
    })) as { PoolID: string; Pool: string };
    const gateway = await this.requestAddress(PoolID, '', {
      RequestAddressType: 'com.docker.network.gateway',
    });
    const network: TestNetwork = {
      id: id(),
      name,
      subnet: Pool,
      gateway: bare(gateway),
      globalPool: PoolID,
      localPool: '',
      options: {},
      internal: options.internal ?? false,
    };
    const allocated = await client.call('NetworkDriver.AllocateNetwork', {
      NetworkID: network.id,
      Options: options.driver ?? {},
      IPv4Data: [poolData('causeway-global', Pool, gateway)],
      IPv6Data: null,
    });
    network.options = allocated['Options'] as Record<string, string>;
    this.docker.networks.push({
      Id: network.id,
      Name: name,
      Driver: 'causeway',
      Internal: network.internal,
      Scope: 'swarm',
    });
    return network;
  }

  /** What a node does when the first task of a network comes to it. */
  async createNetwork(network: TestNetwork, { plugin: { client } } = this.first): Promise<void> {
    const { PoolID } = (await client.call('IpamDriver.RequestPool', {
      AddressSpace: 'causeway-local',
      Pool: network.subnet,
      SubPool: '',
      Options: null,
      V6: false,
    })) as { PoolID: string };
    network.localPool = PoolID;
    const { Address: gateway } = (await client.call('IpamDriver.RequestAddress', {
      PoolID,
      Address: network.gateway,
      Options: { RequestAddressType: 'com.docker.network.gateway' },
    })) as { Address: string };
    await client.call('NetworkDriver.CreateNetwork', {
      NetworkID: network.id,
      Options: {
        'com.docker.network.enable_ipv6': false,
        'com.docker.network.generic': network.options,
        ...(network.internal ? { 'com.docker.network.internal': true } : {}),
      },
      IPv4Data: [poolData('causeway-local', network.subnet, gateway)],
      IPv6Data: [],
    });
  }

  async network(name: string, options: Parameters<World['allocateNetwork']>[1] = {}): Promise<TestNetwork> {
    const network = await this.allocateNetwork(name, options);
    await this.createNetwork(network);
    return network;
  }

  /** What a node does when the last task of a network has left it. */
  async deleteNetwork(network: TestNetwork, { plugin: { client } } = this.first): Promise<void> {
    await client.call('IpamDriver.ReleaseAddress', { PoolID: network.localPool, Address: network.gateway });
    await client.call('NetworkDriver.DeleteNetwork', { NetworkID: network.id });
    await client.call('IpamDriver.ReleasePool', { PoolID: network.localPool });
  }

  /** What nodes and leader do at `docker network rm`. */
  async removeNetwork(network: TestNetwork, on: readonly TestNode[] = [this.first]): Promise<void> {
    for (const node of on) await this.deleteNetwork(network, node);
    const { client } = this.plugin;
    this.docker.networks = this.docker.networks.filter(({ Id }) => Id !== network.id);
    await client.call('NetworkDriver.FreeNetwork', { NetworkID: network.id });
    await client.call('IpamDriver.ReleaseAddress', { PoolID: network.globalPool, Address: network.gateway });
    await client.call('IpamDriver.ReleasePool', { PoolID: network.globalPool });
  }

  async requestAddress(
    pool: string,
    address = '',
    options: Record<string, string> | null = null,
  ): Promise<string> {
    const answer = await this.plugin.client.call('IpamDriver.RequestAddress', {
      PoolID: pool,
      Address: address,
      Options: options,
    });
    return answer['Address'] as string;
  }

  /**
   * The container behind an endpoint runs: Docker lists it, with these labels. Waits until its node knows who may use its
   * ports.
   */
  async startContainer(endpoint: TestEndpoint, labels: Record<string, string> = {}): Promise<void> {
    const { id: EndpointID, node } = endpoint;
    this.listContainer(endpoint, labels);
    const access = readAccess({ Config: { Hostname: '', Labels: labels } });
    await this.everywhere(
      ({ endpoints, kernel }) =>
        kernel.settled &&
        endpoints.some((one) => one.id === EndpointID && isDeepStrictEqual(one.access, access)),
      [node],
    );
  }

  /**
   * The container behind an endpoint runs: Docker lists it, with these labels.
   * @param health what its own health check says, if it has one
   */
  listContainer(
    { id: EndpointID, network, node }: TestEndpoint,
    labels: Record<string, string> = {},
    health?: 'starting' | 'healthy' | 'unhealthy',
  ): void {
    const { containers } = node.docker;
    node.docker.containers = containers.filter(({ Name }) => Name !== `/${EndpointID}`);
    const networks = { [network.name]: { NetworkID: network.id, EndpointID } };
    node.docker.containers.push({
      Id: id(),
      Name: `/${EndpointID}`,
      Config: { Hostname: EndpointID.slice(0, 12), Labels: labels },
      State: { Running: true, ...(health !== undefined && { Health: { Status: health } }) },
      NetworkSettings: { Networks: networks },
    });
    node.docker.hint({ Type: 'container', Action: 'start' });
  }

  /** `docker run -p`, of a container that is attached and does not run yet. @param ports as `8080:80/udp` or `192.0.2.1:8080:80` */
  async publish({ id: EndpointID, network, node }: TestEndpoint, ports: readonly string[]): Promise<void> {
    const portMap = ports.map((text) => {
      const [, HostIP = '', published = '', target = '', protocol = 'tcp'] =
        /^(?:([\d.]+):)?(\d+):(\d+)(?:\/(.+))?$/.exec(text) ?? [];
      const HostPort = Number(published);
      const Proto = protocol === 'udp' ? 17 : 6;
      return { Proto, IP: '', Port: Number(target), HostIP, HostPort, HostPortEnd: HostPort };
    });
    await node.plugin.client.call('NetworkDriver.ProgramExternalConnectivity', {
      NetworkID: network.id,
      EndpointID,
      Options: { 'com.docker.network.portmap': portMap },
    });
  }

  /**
   * A sandbox with one endpoint, set up as libnetwork does after Join.
   * @param requested its address, when Swarm's leader has requested one already
   * @param sandbox that of another endpoint, as `docker network connect` has it
   * @param asBefore with the prefix of its subnet, as nodes gave it in version 0.1
   */
  async attach(
    network: TestNetwork,
    node = this.first,
    requested?: string,
    sandbox?: Namespace,
    asBefore = false,
  ): Promise<TestEndpoint> {
    const { client } = node.plugin;
    const address = requested ?? (await this.requestAddress(network.globalPool));
    const { Address: own } = (await client.call('IpamDriver.RequestAddress', {
      PoolID: network.localPool,
      Address: bare(address),
      Options: null,
    })) as { Address: string };
    const endpoint: TestEndpoint = {
      id: id(),
      network,
      address: bare(address),
      sandbox: sandbox ?? (await this.sandbox()),
      node,
    };
    const ids = { NetworkID: network.id, EndpointID: endpoint.id };
    const created = await client.call('NetworkDriver.CreateEndpoint', {
      ...ids,
      Interface: { Address: asBefore ? address : own, AddressIPv6: '', MacAddress: '' },
      Options: { 'com.docker.network.endpoint.exposedports': [], 'com.docker.network.portmap': [] },
    });
    const joined = (await client.call('NetworkDriver.Join', {
      ...ids,
      SandboxKey: endpoint.sandbox.path,
      Options: { 'com.docker.network.endpoint.exposedports': [], 'com.docker.network.portmap': [] },
    })) as unknown as JoinAnswer;
    const { SrcName, DstPrefix } = joined.InterfaceName;
    const others = this.endpoints.filter((other) => other.sandbox === endpoint.sandbox);
    const name = `${DstPrefix}${others.length}`;
    await node.namespace.ip('link', 'set', SrcName, 'netns', endpoint.sandbox.name, 'name', name);
    const mac = (created['Interface'] as { MacAddress: string }).MacAddress;
    await endpoint.sandbox.ip('link', 'set', name, 'address', mac);
    await endpoint.sandbox.ip('address', 'add', asBefore ? address : own, 'dev', name);
    await endpoint.sandbox.ip('link', 'set', name, 'up');
    for (const { Destination, NextHop } of joined.StaticRoutes ?? [])
      await endpoint.sandbox.ip(
        ...['route', 'add', Destination],
        ...(NextHop === undefined ? ['dev', name, 'scope', 'link'] : ['via', NextHop, 'dev', name]),
      );
    if (joined.Gateway !== undefined) {
      const ways = others.filter((other) => !other.network.internal).map((other) => other.network.name);
      // libnetwork's order.
      if (ways.every((other) => network.name < other))
        await endpoint.sandbox.ip('route', 'replace', 'default', 'via', joined.Gateway);
    }
    await client.call('NetworkDriver.ProgramExternalConnectivity', {
      ...ids,
      Options: { 'com.docker.network.portmap': [] },
    });
    this.endpoints.push(endpoint);
    return endpoint;
  }

  /** @param goesOn the sandbox stays without any endpoint, as of `docker network disconnect` */
  async detach(endpoint: TestEndpoint, { goesOn = false } = {}): Promise<void> {
    const { id: EndpointID, network, address, sandbox, node } = endpoint;
    const { client } = node.plugin;
    this.endpoints.splice(this.endpoints.indexOf(endpoint), 1);
    const ids = { NetworkID: network.id, EndpointID };
    await client.call('NetworkDriver.Leave', ids);
    if (goesOn || this.endpoints.some((other) => other.sandbox === sandbox)) {
      const [{ ifname } = { ifname: '' }] = JSON.parse(
        await sandbox.ip('-j', 'address', 'show', 'to', `${address}/32`),
      ) as { ifname: string }[];
      await sandbox.ip('link', 'del', ifname);
      const [way] = this.endpoints
        .filter((other) => other.sandbox === sandbox && !other.network.internal)
        .sort((a, b) => (a.network.name < b.network.name ? -1 : 1));
      if (way !== undefined) await sandbox.ip('route', 'replace', 'default', 'via', way.network.gateway);
    } else {
      await sandbox.remove();
      this.#sandboxes.splice(this.#sandboxes.indexOf(sandbox), 1);
    }
    await client.call('NetworkDriver.DeleteEndpoint', ids);
    await client.call('IpamDriver.ReleaseAddress', { PoolID: network.localPool, Address: address });
    await this.plugin.client.call('IpamDriver.ReleaseAddress', {
      PoolID: network.globalPool,
      Address: address,
    });
  }

  async sandbox(): Promise<Namespace> {
    this.#made += 1;
    const namespace = await Namespace.make(`${this.node.name}s${this.#made}`);
    this.#sandboxes.push(namespace);
    return namespace;
  }

  /** Starts the peer program, which serves and asks, in a namespace. */
  peer(namespace: Namespace, how: Parameters<typeof startPeer>[1] = {}): Peer {
    const peer = startPeer(namespace.path, how);
    this.#peers.push(peer);
    return peer;
  }

  /**
   * A Swarm service as its manager lists it, with these endpoints as its running tasks.
   * @param ports as `8080:80/tcp`
   */
  async service(
    name: string,
    network: TestNetwork,
    ports: string[],
    tasks: TestEndpoint[],
    labels: Record<string, string> = {},
  ): Promise<TestService> {
    const vip = bare(await this.requestAddress(network.globalPool));
    const service: TestService = { id: id(), name, vip, network };
    this.docker.services.push({
      ID: service.id,
      Spec: { Name: name, Labels: labels, TaskTemplate: { Networks: [{ Target: network.id }] } },
      Endpoint: {
        Ports: ports.map((text) => {
          const [, published = '', target = '', protocol = 'tcp'] =
            /^(\d+):(\d+)(?:\/(.+))?$/.exec(text) ?? [];
          return {
            Protocol: protocol as 'tcp',
            PublishedPort: Number(published),
            TargetPort: Number(target),
            PublishMode: 'ingress',
          };
        }),
        VirtualIPs: [{ NetworkID: network.id, Addr: `${vip}/16` }],
      },
    });
    await this.scale(service, tasks);
    return service;
  }

  /** `docker service update --label-add …`, as far as these labels are all it has. Waits until all nodes know. */
  async label(service: TestService, labels: Record<string, string>): Promise<void> {
    const listed = this.docker.services.find(({ ID }) => ID === service.id);
    if (listed === undefined) throw new Error(`${service.name} is not listed`);
    const before = (await this.status()).services.find(({ id }) => id === service.id);
    listed.Spec.Labels = labels;
    this.docker.hint();
    await this.everywhere(({ services, kernel }) => {
      const record = services.find(({ id }) => id === service.id);
      return kernel.settled && record !== undefined && !isDeepStrictEqual(record, before);
    });
  }

  /**
   * Makes these endpoints the running tasks of the service, and waits until all nodes balance over them.
   * @param weights by `--container-label causeway.lb.weight`
   */
  async scale(service: TestService, tasks: TestEndpoint[], weights: readonly number[] = []): Promise<void> {
    this.docker.tasks = this.docker.tasks.filter(({ ServiceID }) => ServiceID !== service.id);
    for (const [at, endpoint] of tasks.entries()) {
      const weight = weights[at];
      this.docker.tasks.push({
        ...(weight !== undefined && {
          Spec: { ContainerSpec: { Labels: { 'causeway.lb.weight': String(weight) } } },
        }),
        ID: endpoint.id.slice(0, 25),
        ServiceID: service.id,
        NodeID: endpoint.node.docker.id,
        DesiredState: 'running',
        Status: { State: 'running' },
        NetworksAttachments: [{ Network: { ID: service.network.id }, Addresses: [`${endpoint.address}/16`] }],
      });
    }
    this.docker.hint();
    const wanted = tasks.map(({ address }) => address).sort();
    await this.everywhere(({ services, kernel, endpoints }) => {
      const record = services.find(({ id }) => id === service.id);
      const serving = record?.tasks
        .filter(({ draining }) => !draining)
        .flatMap(({ addresses }) => Object.values(addresses));
      const known = new Set(endpoints.map(({ address }) => address));
      return (
        kernel.settled &&
        JSON.stringify(serving?.sort()) === JSON.stringify(wanted) &&
        JSON.stringify(record?.tasks.flatMap(({ weight }) => weight ?? []).sort()) ===
          JSON.stringify([...weights].sort()) &&
        wanted.every((address) => known.has(address))
      );
    });
  }

  /** Waits until the status of every node fulfils this. */
  async everywhere(condition: (status: Status) => boolean, nodes = this.nodes): Promise<void> {
    const fulfils = (node: TestNode): Promise<boolean> => node.status().then(condition, () => false);
    for (const node of nodes) await this.until(() => fulfils(node));
  }

  /** Waits for a pass of every node that reads its kernel anew. */
  async pass(): Promise<void> {
    for (const { plugin } of this.nodes) {
      // What it wrote is kept up to a length, so its end is remembered.
      const end = plugin.output.slice(-500);
      const since = (): string => plugin.output.slice(plugin.output.lastIndexOf(end) + end.length);
      await this.until(() => Promise.resolve(since().includes('nft -j list table')));
    }
    await this.everywhere(({ kernel }) => kernel.settled);
  }

  async removeService(service: TestService): Promise<void> {
    this.docker.services = this.docker.services.filter(({ ID }) => ID !== service.id);
    this.docker.tasks = this.docker.tasks.filter(({ ServiceID }) => ServiceID !== service.id);
    this.docker.hint();
    await this.everywhere(({ services }) => !services.some(({ id }) => id === service.id));
    await this.plugin.client.call('IpamDriver.ReleaseAddress', {
      PoolID: service.network.globalPool,
      Address: service.vip,
    });
  }

  /** What the first node says of itself. */
  status(): Promise<Status> {
    return this.first.status();
  }

  /** @throws after a minute, or more on a slow machine: the plugin looks after the kernel every 5 s, or 30 s under load */
  async until(condition: () => Promise<boolean>): Promise<void> {
    await until(String(condition), condition, {
      timeoutMs: 60_000 * slowness,
      // Each question is work for the node, too.
      everyMs: 25 * slowness,
      instead: () => `the plugin said:\n${this.plugin.output.slice(-5000)}`,
    });
  }

  /** See {@link TestNode.kernelState}, of the first node. */
  kernelState(): Promise<string> {
    return this.first.kernelState();
  }
}

/** Ties a namespace to the wire by its eth0. */
async function plug(wire: Namespace, namespace: Namespace, addresses: string[]): Promise<void> {
  const port = namespace.name.slice(-12);
  await wire.ip('link', 'add', port, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', namespace.name);
  await wire.ip('link', 'set', port, 'master', 'wire', 'up');
  for (const address of addresses) await namespace.ip('address', 'add', `${address}/24`, 'dev', 'eth0');
  await namespace.ip('link', 'set', 'eth0', 'up');
}

export interface Status {
  nodes: { id: string; address: string; unreachable: boolean }[];
  engine: { name: string; why: string };
  kernel: { settled: boolean; error?: string };
  services: {
    id: string;
    networks: string[];
    tasks: { draining: boolean; addresses: Record<string, string>; weight?: number }[];
    problems?: string[];
    policy?: PolicyRecord;
  }[];
  virtualServers: { id: string; unsupported: string[] }[];
  endpoints: { id: string; address: string; access?: PortAccess }[];
  networks: { id: string; refused?: string }[];
}

function bare(address: string): string {
  return address.split('/', 1)[0] ?? '';
}

function poolData(space: string, pool: string, gateway: string): PoolData {
  return { AddressSpace: space, Pool: pool, Gateway: gateway };
}
