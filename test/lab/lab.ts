// Owns a lab as a whole: N Docker nodes on an underlay, and a client outside the cluster, up and down.
// Must not install anything, nor change the machine's own network, Docker or mounts.
import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, rename, rm, rmdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createPlugin, pluginName } from '../../rootfs/create.ts';
import { groupOf, processesOf, removeGroup } from './cgroups.ts';
import { consulPort, consulServer, prepareConsul } from './consul.ts';
import { defaultEngine, prepareEngine, type EngineName } from './engines.ts';
import { LabNode, runCommand, startCommand } from './node.ts';
import type { Command, DockerdSettings, Host, NodePlace, Ran, RunOptions, Running } from './node.ts';
import { slowness } from '../slowness.ts';
import { endAll, processesIn } from './processes.ts';
import { until } from '../support/until.ts';
import { enablePlugin } from './slow.ts';
import { prepareTools } from './tools.ts';
import {
  clientAddress,
  Namespaces,
  nodeAddress,
  planAddresses,
  routerAddress,
  unwireNode,
  wire,
  wireNode,
  type Plan,
} from './underlay.ts';
import { cutWire, cutWires, healWire, separate, unite } from './wires.ts';

/** Holds a directory per lab that is up. */
export const labsDir = join(import.meta.dirname, '../../build/lab');

export interface LabOptions {
  /** Tells labs apart; several may be up at once. Lower case letters, digits and dashes. */
  name: string;
  /** How many Docker nodes, called n1, n2, … */
  nodes?: number;
  /** Default: what CAUSEWAY_TEST_ENGINE says, or 20.10. */
  engine?: EngineName;
  /** How each engine is started. */
  dockerd?: DockerdSettings;
  /** Data roots prepared for the nodes, in their order, in place of empty ones. They are used, and not removed. */
  data?: readonly string[];
  progress?: (line: string) => void;
  signal?: AbortSignal;
}

/** What is written down, for another process to take over: `npm run lab -- exec`. */
interface LabRecord {
  plan: Plan;
  /** The names of the nodes that have been made. Whether they are on is in their own directories. */
  nodes: string[];
  engine: EngineName;
  dockerd: DockerdSettings;
}

/** A namespace with a network of its own and nothing else of its own. */
class Bystander implements Host {
  readonly address: string;
  readonly #namespace: string;

  constructor(address: string, namespace: string) {
    this.address = address;
    this.#namespace = namespace;
  }

  exec(command: Command, options?: RunOptions): Promise<Ran> {
    return runCommand(this.commandLine(command), options);
  }

  start(command: Command): Running {
    return startCommand(this.commandLine(command));
  }

  commandLine(command: Command): Command {
    return ['nsenter', `--net=${this.#namespace}`, '--', ...command];
  }
}

export class Lab implements AsyncDisposable {
  readonly name: string;
  readonly nodes: readonly LabNode[];
  /** A machine outside the cluster, on a subnet of its own behind the underlay's router. */
  readonly client: Bystander;
  /** What ties nodes and client together, by the side the nodes see. */
  readonly router: Bystander;
  readonly #plan: Plan;
  readonly #spaces: Namespaces;

  private constructor(name: string, plan: Plan, nodes: LabNode[]) {
    this.name = name;
    this.nodes = nodes;
    this.#plan = plan;
    this.#spaces = spacesOf(name);
    this.client = new Bystander(clientAddress(plan), this.#spaces.path('client'));
    this.router = new Bystander(routerAddress(plan), this.#spaces.path('router'));
  }

  /**
   * Brings a lab up: tools, wires, and a Docker Engine on each node, all at once. Nothing is left behind when it
   * fails or is aborted.
   *
   * @throws Error a lab of that name exists; or not root, offline, or a daemon that does not start.
   */
  static async up(o: LabOptions): Promise<Lab> {
    const { name, nodes: count = 1, data = [], progress = () => {}, signal } = o;
    const engines = { engine: o.engine ?? defaultEngine(), dockerd: o.dockerd ?? {} };
    if (!/^[a-z0-9-]{1,20}$/.test(name)) throw new Error(`${name} is no lab name: use a-z, 0-9 and dashes.`);
    if (process.getuid?.() !== 0)
      throw new Error('A lab needs root: it makes namespaces and runs Docker Engines.');
    await mkdir(labsDir, { recursive: true });
    await prepareTools({ progress, ...(signal ? { signal } : {}) });
    await prepareEngine(engines.engine, { progress, ...(signal ? { signal } : {}) });
    await mkdir(join(labsDir, name)).catch((error: unknown) => {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      throw new Error(`Lab ${name} exists. End it first: npm run lab -- down --name ${name}`);
    });
    try {
      const names = Array.from({ length: count }, (_, index) => `n${index + 1}`);
      const plan = await planAddresses();
      const spaces = spacesOf(name);
      await mkdir(spaces.dir);
      progress(`wiring ${count} node${count === 1 ? '' : 's'} and a client`);
      await wire(spaces, plan, names);
      signal?.throwIfAborted();

      const nodes: LabNode[] = [];
      for (const [index, nodeName] of names.entries()) {
        const place = placeOf(name, plan, nodeName, engines);
        await mkdir(place.dir);
        const prepared = data[index];
        if (prepared !== undefined) await symlink(prepared, join(place.dir, 'docker'));
        const node = new LabNode(place);
        await node.boot(signal);
        nodes.push(node);
        await writeRecord(name, { plan, nodes: nodes.map((each) => each.name), ...engines });
      }
      progress('starting Docker');
      // dockerd gives containerd 15 s to start, which two at once exceed on a slow processor.
      if (slowness > 1) for (const node of nodes) await node.startDocker(signal);
      else await Promise.all(nodes.map((node) => node.startDocker(signal)));
      return new Lab(name, plan, nodes);
    } catch (error) {
      await Lab.down(name);
      throw error;
    }
  }

  /** Takes over a lab that another process brought up. @throws Error when there is none of that name. */
  static async attach(name: string): Promise<Lab> {
    const text = await readFile(recordFile(name), 'utf8').catch(() => undefined);
    if (text === undefined)
      throw new Error(`There is no lab ${name}. Start it: npm run lab -- up --name ${name}`);
    const { plan, nodes, ...engines } = JSON.parse(text) as LabRecord;
    const places = nodes.map((node) => placeOf(name, plan, node, engines));
    return new Lab(name, plan, await Promise.all(places.map((place) => LabNode.attach(place))));
  }

  /** @returns the names of all labs that are up, or have left something behind. */
  static async list(): Promise<string[]> {
    return readdir(labsDir).catch(() => []);
  }

  /**
   * Ends a lab and everything in it, by force; also one whose creator was killed at any moment. It goes by what
   * the kernel knows (who is in the lab's namespaces and control groups), not by what was written down, so that
   * there is no moment at which something could be missed. Does nothing when there is no such lab.
   */
  static async down(name: string): Promise<void> {
    const dir = join(labsDir, name);
    if (!existsSync(dir)) return;
    const spaces = spacesOf(name);
    const netns = await spaces.inodes();
    // The end of a node's process 1 takes all in its pid namespace along, and its mounts go with the last.
    await endAll(`all processes of lab ${name} end`, async () => [
      ...(await processesIn(netns)),
      ...(await processesOf(groupOf(name))),
    ]);
    await spaces.removeAll();
    await removeGroup(groupOf(name));
    const mounts = await readFile('/proc/self/mounts', 'utf8');
    const mounted = mounts.split('\n').find((line) => line.split(' ')[1]?.startsWith(`${dir}/`));
    if (mounted !== undefined) throw new Error(`Not deleting ${dir}: something is mounted there: ${mounted}`);
    await rm(dir, { recursive: true, force: true });
    // Fails while another lab is up.
    await rmdir(labsDir).catch(() => {});
  }

  async down(): Promise<void> {
    await Lab.down(this.name);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.down();
  }

  /** The first node. */
  get first(): LabNode {
    return this.nodes[0]!;
  }

  /** @throws Error when there is no node of that name. */
  node(name: string): LabNode {
    const node = this.nodes.find((each) => each.name === name);
    if (!node) {
      throw new Error(
        `Lab ${this.name} has no node ${name}; it has ${this.nodes.map((each) => each.name).join(', ')}.`,
      );
    }
    return node;
  }

  /** Pulls a node's cable at the router. The node goes on by itself, without a carrier. */
  async cut(node: LabNode): Promise<void> {
    node.assertOn();
    await cutWire(this.#spaces, node.name);
  }

  /** Plugs a node's cable in again; without a node, all of them, and ends all partitions. */
  async heal(node?: LabNode): Promise<void> {
    node?.assertOn();
    const nodes = node ? [node] : this.nodes.filter(({ isOn }) => isOn);
    for (const { name } of nodes) await healWire(this.#spaces, name);
    if (!node) await unite(this.#spaces);
  }

  /** @returns the nodes whose cable is pulled. */
  async cutNodes(): Promise<LabNode[]> {
    return (await cutWires(this.#spaces)).map((name) => this.node(name));
  }

  /** Lets nothing pass between the nodes of two sets, until `heal()`; all still reach the client, and it them. */
  async partition(left: readonly LabNode[], right: readonly LabNode[]): Promise<void> {
    const names = (nodes: readonly LabNode[]): string[] => nodes.map(({ name }) => name);
    await separate(this.#spaces, names(left), names(right));
  }

  /**
   * Cuts a node's power: wire, processes, containers and kernel objects are gone at once, without a goodbye on the
   * wire. Its disk stays.
   */
  async kill(node: LabNode): Promise<void> {
    node.assertOn();
    await unwireNode(this.#spaces, node.name);
    await node.powerOff();
    await this.#spaces.remove(node.name);
  }

  /**
   * Turns a killed node on again: the same address and disk, an empty /run, Docker, and the daemons that ran. Resolves
   * once Docker answers; Swarm, plugins and tasks come back by themselves from then on.
   */
  async boot(node: LabNode, signal?: AbortSignal): Promise<void> {
    if (node.isOn) throw new Error(`Node ${node.name} is on.`);
    await wireNode(this.#spaces, this.#plan, node.name);
    await node.boot(signal);
    await node.startDocker(signal);
  }

  /**
   * Makes one Swarm of all nodes, the first `managers` of them managers, and waits until all are ready.
   * @throws Error when a node does not become ready within a minute.
   */
  async formSwarm(o: { managers?: number; signal?: AbortSignal } = {}): Promise<void> {
    const { managers = 1, signal } = o;
    const [first, ...others] = this.nodes as [LabNode, ...LabNode[]];
    // By three missed ones a node is lost, and its tasks run elsewhere.
    const heartbeat = ['--dispatcher-heartbeat', `${5 * slowness}s`];
    await first.docker(['swarm', 'init', '--advertise-addr', first.address, ...heartbeat]);
    for (const [index, node] of others.entries()) {
      const role = index + 1 < managers ? 'manager' : 'worker';
      const { stdout: token } = await first.docker(['swarm', 'join-token', '--quiet', role]);
      await node.docker(['swarm', 'join', '--token', token, '--advertise-addr', node.address, first.address]);
    }
    await until(
      'all nodes of the Swarm are ready',
      async () => {
        const { stdout } = await first.docker(['node', 'ls', '--format', '{{.Status}}']);
        return stdout.split('\n').filter((status) => status === 'Ready').length === this.nodes.length;
      },
      { timeoutMs: 60_000, everyMs: 300, signal },
    );
  }

  /**
   * Starts a Consul server in the network of each of the first nodes, and waits until all know their leader. Those
   * that run already go on. They come back when their node is booted.
   * @param o.servers default: as many as there were, or one
   */
  async startConsul(
    o: { servers?: number; progress?: (line: string) => void; signal?: AbortSignal } = {},
  ): Promise<void> {
    const { servers = this.#consulNodes.length || 1, progress = () => {}, signal } = o;
    await prepareConsul({ progress, ...(signal ? { signal } : {}) });
    const nodes = this.nodes.slice(0, servers);
    const peers = nodes.map(({ address }) => address);
    const stopped: LabNode[] = [];
    for (const node of nodes) if (node.isOn && !(await node.hasDaemon('consul'))) stopped.push(node);
    for (const node of stopped) {
      const { name, address } = node;
      const dataDir = consulData(node);
      await mkdir(dataDir, { recursive: true });
      // Also on loopback, as a person on the node expects it.
      const config = [`addresses { http = "${address} 127.0.0.1" }`];
      const server = { name, address, dataDir, join: peers, expect: servers, config };
      await node.startDaemon('consul', consulServer(server));
    }
    progress(`waiting for the leader of ${servers} Consul server${servers === 1 ? '' : 's'}`);
    await Promise.all(
      stopped.map((node) =>
        until(`Consul on ${node.name} has a leader, see ${node.dir}/consul.log`, () => hasLeader(node), {
          timeoutMs: 60_000,
          signal,
        }),
      ),
    );
  }

  /** Stops the Consul server of a node, or of all; `kill` for a crash. What they know stays. */
  async stopConsul(node?: LabNode, o: { kill?: boolean } = {}): Promise<void> {
    await Promise.all((node ? [node] : this.#consulNodes).map((each) => each.stopDaemon('consul', o)));
  }

  /** The nodes that have been given a Consul server, whether it runs or not. */
  get #consulNodes(): LabNode[] {
    return this.nodes.filter((node) => existsSync(consulData(node)));
  }

  /** The value of CAUSEWAY_STORE that leads to all Consul servers. @throws Error when there is none. */
  get consulStore(): string {
    const nodes = this.#consulNodes;
    if (nodes.length === 0) throw new Error(`Lab ${this.name} has no Consul server.`);
    return consulStoreOn(nodes);
  }

  /** What {@link consulStore} will be once so many servers are started. */
  consulStoreOf(servers: number): string {
    return consulStoreOn(this.nodes.slice(0, servers));
  }

  /**
   * Creates and enables the plugin, which must have been built, on every node; half a minute on three.
   * @param o.set settings that differ from their defaults, such as CAUSEWAY_STORE
   */
  async installPlugin(
    o: {
      set?: Readonly<Record<string, string>>;
      progress?: (line: string) => void;
      signal?: AbortSignal;
    } = {},
  ): Promise<void> {
    const { set = {}, progress = () => {}, signal } = o;
    progress(`creating ${pluginName} on each node`);
    const settings = Object.entries(set).map(([name, value]) => `${name}=${value}`);
    await Promise.all(
      this.nodes.map(async (node) => {
        await createPlugin((args) => node.docker(args, { signal }));
        if (settings.length > 0) await node.docker(['plugin', 'set', pluginName, ...settings], { signal });
        await enablePlugin(node, pluginName, signal);
        progress(`${pluginName} is enabled on ${node.name}`);
      }),
    );
  }
}

const consulData = (node: LabNode) => join(node.dir, 'consul');

async function hasLeader(node: LabNode): Promise<boolean> {
  const script = `fetch("http://127.0.0.1:${consulPort}/v1/status/leader").then((answer) => answer.json())
    .then((leader) => process.exit(leader === "" ? 1 : 0), () => process.exit(1))`;
  return !(await node.exec([process.execPath, '-e', script], { reject: false })).failed;
}

const spacesOf = (lab: string) => new Namespaces(join(labsDir, lab, 'ns'));
const recordFile = (lab: string) => join(labsDir, lab, 'lab.json');

function placeOf(
  lab: string,
  plan: Plan,
  name: string,
  engines: Pick<LabRecord, 'engine' | 'dockerd'>,
): NodePlace {
  const dir = join(labsDir, lab, name);
  return {
    lab,
    name,
    address: nodeAddress(plan, name),
    dir,
    spaces: spacesOf(lab),
    nameserver: routerAddress(plan),
    ...engines,
  };
}

async function writeRecord(lab: string, record: LabRecord): Promise<void> {
  const file = recordFile(lab);
  await writeFile(`${file}.new`, JSON.stringify(record, null, 2));
  await rename(`${file}.new`, file);
}

function consulStoreOn(nodes: readonly LabNode[]): string {
  return `consul://${nodes.map(({ address }) => `${address}:${consulPort}`).join(',')}`;
}
