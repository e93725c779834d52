// Owns the cluster that parts of the bench do something to: a Swarm with Consul and the plugin on each node, its services,
// and when they serve.
// Must not lose anything, nor measure.
import * as z from 'zod';
import { pluginName } from '../rootfs/create.ts';
import { askFor } from '../test/lab/asking.ts';
import { loadImage, prepareImage } from '../test/lab/image.ts';
import type { Lab } from '../test/lab/lab.ts';
import type { LabNode } from '../test/lab/node.ts';
import { until } from '../test/support/until.ts';
import { enablePlugin } from '../test/lab/slow.ts';
import { slowness } from '../test/slowness.ts';

export interface ClusterOptions {
  lab: Lab;
  /** How many Consul servers, on the first nodes. */
  consuls: number;
  /** How many of the first nodes are managers. Default: all. */
  managers?: number;
  /** The nodes' data roots have the image and the plugin already. */
  prepared?: boolean;
  progress: (line: string) => void;
  signal?: AbortSignal | undefined;
}

/** How long anything may take to come about before the run has failed, in milliseconds. */
const patienceMs = 180_000 * slowness;

/** The part of `GET /status` that tells whether a node is ready. */
const status = z.object({
  nodes: z.array(z.object({ id: z.string(), name: z.string(), unreachable: z.boolean() })),
  kernel: z.object({ settled: z.boolean() }),
  store: z.object({ connected: z.boolean(), pending: z.number() }),
});
export type Status = z.infer<typeof status>;

/** A service whose tasks tell their names, published on every node. */
export interface PublishedService {
  name: string;
  network: string;
  /** Of HTTP. */
  port: number;
  /** Of UDP, that answers each datagram. */
  udpPort: number;
  replicas: number;
  /** So that a node that comes back gets its share again: Swarm moves no running task. */
  perNode: number;
  /** What a task may take to end, in seconds; default 1. */
  graceSeconds?: number;
}

/** One way to publish a service, beside which another may be measured. */
export interface Mesh {
  name: string;
  driver: 'causeway' | 'overlay';
  service: PublishedService;
}

export interface Meshes {
  causeway: Mesh;
  /** Docker's own. */
  dockers: Mesh | undefined;
  all: readonly Mesh[];
}

export interface MeshOptions {
  /** Whether Docker's own mesh works on this kernel, and is to be compared with. */
  dockersMesh: boolean;
  /** Of each service. */
  tasks: number;
  /** How many more there may be at times. */
  spare?: number;
  graceSeconds?: number;
}

export class Cluster {
  readonly lab: Lab;
  /** The image of all tasks. */
  readonly image: string;
  readonly #signal: AbortSignal | undefined;

  private constructor(lab: Lab, image: string, signal: AbortSignal | undefined) {
    this.lab = lab;
    this.image = image;
    this.#signal = signal;
  }

  /** Makes a cluster of a lab's nodes, on which nothing runs but Docker. */
  static async start(o: ClusterOptions): Promise<Cluster> {
    const { lab, consuls, managers = lab.nodes.length, prepared = false, progress, signal } = o;
    const more = { progress, ...(signal ? { signal } : {}) };
    const image = await prepareImage(more);
    const CAUSEWAY_STORE = lab.consulStoreOf(consuls);
    // Before there is anything else to do for a processor that may be slow: Docker gives a plugin twelve seconds to listen.
    for (const node of prepared ? lab.nodes : []) {
      await node.docker(['plugin', 'set', pluginName, `CAUSEWAY_STORE=${CAUSEWAY_STORE}`], { signal });
      await enablePlugin(node, pluginName, signal);
      progress(`${pluginName} is enabled on ${node.name}`);
    }
    await lab.startConsul({ servers: consuls, ...more });
    if (!prepared) {
      await Promise.all(lab.nodes.map((node) => loadImage(node, image)));
      await lab.installPlugin({ set: { CAUSEWAY_STORE }, ...more });
    }
    await lab.formSwarm({ managers, ...(signal ? { signal } : {}) });
    const cluster = new Cluster(lab, image.id, signal);
    progress('waiting for the nodes to know each other');
    await cluster.allKnown();
    return cluster;
  }

  /** Polls until it is so. @throws Error after three minutes, on a plain machine */
  until<T>(
    what: string,
    done: () => Promise<T | undefined | false>,
    instead?: () => Promise<unknown>,
  ): Promise<T> {
    const patience = { timeoutMs: patienceMs, everyMs: 300 * slowness, signal: this.#signal };
    return until(what, done, { ...patience, ...(instead && { instead }) });
  }

  async status(node: LabNode): Promise<Status> {
    return status.parse(await node.admin('/status'));
  }

  /** Resolves when every node knows every other one, and takes none for lost. */
  async allKnown(): Promise<void> {
    const { nodes } = this.lab;
    await this.until('all nodes know each other', async () => {
      const seen = await Promise.all(nodes.map((node) => this.status(node).catch(() => undefined)));
      return seen.every(
        (one) => one?.nodes.length === nodes.length && !one.nodes.some(({ unreachable }) => unreachable),
      );
    });
  }

  /** Runs `docker` on the first node, and again while the managers elect a leader. */
  async docker(...args: string[]): Promise<string> {
    return this.until(`docker ${args.slice(0, 2).join(' ')}`, async () => {
      const { failed, stdout, stderr } = await this.lab.first.docker(args, {
        reject: false,
        signal: this.#signal,
      });
      if (!failed) return { stdout };
      if (/leader|deadline|Unavailable|EOF/i.test(stderr)) return undefined;
      throw new Error(`docker ${args.join(' ')}: ${stderr}`);
    }).then(({ stdout }) => stdout);
  }

  /** A network of Causeway's, or of Docker's own overlay driver. */
  async network(name: string, driver: 'causeway' | 'overlay'): Promise<void> {
    const words =
      driver === 'overlay' ? ['overlay'] : [pluginName, '--ipam-driver', pluginName, '--scope', 'swarm'];
    await this.docker('network', 'create', '--driver', ...words, '--attachable', name);
  }

  async service({
    name,
    network,
    port,
    udpPort,
    replicas,
    perNode,
    graceSeconds = 1,
  }: PublishedService): Promise<void> {
    const create = ['service', 'create', '--detach', '--quiet', '--no-resolve-image', '--name', name];
    const spread = ['--replicas', String(replicas), '--replicas-max-per-node', String(perNode)];
    // Without it Swarm sends connections to a task whose process has not come to listen yet.
    // Each check is a few programs: where those are slow, a dozen tasks would be busy with nothing else.
    const interval = slowness === 1 ? 3 : 15 * slowness;
    const often = ['--health-interval', `${interval}s`, '--health-timeout', `${10 * slowness}s`];
    const health = ['--health-cmd', 'wget -q -O - http://127.0.0.1/', ...often];
    const ends = ['--stop-grace-period', `${graceSeconds}s`];
    const publish = ['--publish', `${port}:80`, '--publish', `${udpPort}:7/udp`];
    const rest = ['--network', network, ...publish, ...ends, this.image];
    await this.docker(...create, ...spread, ...health, ...rest);
  }

  /** A service that Causeway publishes, and one like it for Docker's own mesh. */
  meshes({ dockersMesh, tasks, spare = 0, graceSeconds }: MeshOptions): Meshes {
    const perNode = Math.ceil((tasks + spare) / this.lab.nodes.length);
    const rest = { replicas: tasks, perNode, ...(graceSeconds !== undefined && { graceSeconds }) };
    const mesh = (name: string, driver: Mesh['driver'], port: number): Mesh => ({
      name,
      driver,
      service: { name: `web-${driver}`, network: `net-${driver}`, port, udpPort: port + 1, ...rest },
    });
    const causeway = mesh('Causeway', 'causeway', 8080);
    const dockers = dockersMesh ? mesh("Docker's mesh", 'overlay', 8090) : undefined;
    return { causeway, dockers, all: dockers === undefined ? [causeway] : [causeway, dockers] };
  }

  /** Runs `work` while a mesh serves, and no other: a slow machine has enough to do with the tasks of one. */
  async serve<R>(
    { service, driver }: Mesh,
    progress: (line: string) => void,
    work: () => Promise<R>,
  ): Promise<R> {
    progress(`deploying ${service.name}`);
    await this.network(service.network, driver);
    await this.service(service);
    await this.allServe(service);
    const result = await work();
    await this.docker('service', 'rm', service.name);
    await this.until(
      `the tasks of ${service.name} have ended`,
      async () => (await this.#containers(service)) === 0,
    );
    return result;
  }

  /** Resolves when each node's port answers from all tasks of a service. */
  async allServe({ port, replicas }: PublishedService): Promise<void> {
    for (const node of this.lab.nodes) await this.serving(node, port, replicas);
  }

  /** What Swarm says of all tasks, for a person to look into. */
  async #tasks(): Promise<string[]> {
    const { first } = this.lab;
    const { stdout: services } = await first.docker(['service', 'ls', '--quiet'], { reject: false });
    const format = '{{.Name}} on {{.Node}}: shall be {{.DesiredState}}, {{.CurrentState}} {{.Error}}';
    const words = [
      'service',
      'ps',
      '--no-trunc',
      '--format',
      format,
      ...services.split('\n').filter(Boolean),
    ];
    return (await first.docker(words, { reject: false })).stdout.split('\n');
  }

  /** Replaces all tasks of a service, and resolves when the old ones have ended. */
  async update(
    { name, replicas }: Pick<PublishedService, 'name' | 'replicas'>,
    { order, parallelism }: { order: 'stop-first' | 'start-first'; parallelism: number },
  ): Promise<void> {
    const last = await this.#updateOf(name);
    const how = [
      '--update-order',
      order,
      '--update-parallelism',
      String(parallelism),
      '--update-delay',
      '0s',
    ];
    await this.docker('service', 'update', '--detach', '--quiet', '--force', ...how, name);
    await this.until(`${name} is updated`, async () => {
      const { began, state } = await this.#updateOf(name);
      if (state === 'paused')
        throw new Error(`Docker gave up updating ${name}: see docker service ps ${name}`);
      return began !== last.began && state === 'completed';
    });
    await this.until(
      `the old tasks of ${name} have ended`,
      async () => (await this.#containers({ name })) === replicas,
    );
  }

  /** How many containers of a service run on all nodes. */
  async #containers({ name }: Pick<PublishedService, 'name'>): Promise<number> {
    const filter = ['--filter', `label=com.docker.swarm.service.name=${name}`];
    const lists = await Promise.all(
      this.lab.nodes.map((node) => node.docker(['ps', '--quiet', ...filter], { signal: this.#signal })),
    );
    return lists.flatMap(({ stdout }) => stdout.split('\n').filter(Boolean)).length;
  }

  /** When a service's last update began, and its state, as Docker writes them. */
  async #updateOf(service: string): Promise<{ began: string; state: string }> {
    const format = '{{with .UpdateStatus}}{{.StartedAt}} {{.State}}{{end}}';
    // A time as Go prints it has blanks in it.
    const words = (await this.docker('service', 'inspect', '--format', format, service)).split(' ');
    return { state: words.pop() ?? '', began: words.join(' ') };
  }

  /** Resolves when a node's port answers from so many tasks, without an error. */
  async serving(node: LabNode, port: number, tasks: number): Promise<void> {
    const what = `port ${port} of ${node.name} answers from ${tasks} tasks`;
    const ask = (): ReturnType<typeof askFor> =>
      askFor(this.lab.client, `http://${node.address}:${port}/`, 4 * tasks);
    const instead = async (): Promise<unknown> => ({
      answers: await ask(),
      tasks: await this.#tasks(),
      status: await this.status(node).catch(String),
    });
    await this.until(
      what,
      async () => {
        const answers = await ask();
        return answers.failed === 0 && answers.tasks.size === tasks;
      },
      instead,
    );
  }
}
