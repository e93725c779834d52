// Owns the part `ports`: what thousands of published ports cost, to bring into the kernel and per connection.
// Must not use Docker, whose own mesh takes a process or more for each of so many ports.
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { runCommand, startCommand, type Command, type Host, type Running } from '../test/lab/node.ts';
import { nodeAddress, World, type Namespace } from '../test/kernel/world.ts';
import { newConnections, webServer } from './load.ts';
import { slowness } from '../test/slowness.ts';
import type { Finding } from './report.ts';
import { interleave, median, ratio } from './rounds.ts';

export interface PortsOptions {
  engine: 'nft' | 'ipvs';
  rounds: number;
  seconds: number;
  progress: (line: string) => void;
  signal?: AbortSignal;
}

const one = ['8080:80'];
/** Of which the one in the middle is measured. */
const first = 20_000;
// Reading thousands of chains back takes an emulated processor longer than any command is given.
const part = slowness === 1 ? 1 : 5;
const many = Array.from({ length: 2_000 / part }, (_, at) => `${first + at}:80`);
/** A service that comes later: `--publish 30000-30999:…`. */
const range = Array.from({ length: 1_000 / part }, (_, at) => `${30_000 + at}:80`);

const costGoal = 1.05;
const programGoalMs = 3_000 * slowness;

export async function measurePorts(o: PortsOptions): Promise<Finding[]> {
  const { engine, rounds, seconds, progress, signal } = o;
  const directory = await mkdtemp(join(tmpdir(), 'causeway-ports-'));
  await writeFile(join(directory, '1k'), 'x'.repeat(1_000));
  await using few = await Site.start(engine, directory);
  await using full = await Site.start(engine, directory);
  await few.publish('web', one);
  const times: number[] = [];
  const later: number[] = [];
  for (let round = 1; round <= Math.min(rounds, 5); round += 1) {
    signal?.throwIfAborted();
    progress(`publishing ${many.length} ports, and ${range.length} more, round ${round}`);
    if (round > 1) await full.clear();
    times.push(await full.publish('web', many));
    later.push(await full.publish('range', range));
  }
  const way = (name: string, site: Site, port: number) => ({
    name,
    measure: () => newConnections(site.client, `${nodeAddress}:${port}`, { seconds, signal }),
  });
  // The kernel balances by itself. A plugin that looks after it meanwhile has a slow processor for seconds, now and then.
  few.pause();
  full.pause();
  const ways = ['one port', `${many.length + range.length} ports`] as const;
  const samples = await interleave(
    [way(ways[0], few, 8080), way(ways[1], full, first + many.length / 2)],
    rounds,
    (round) => progress(`new connections, round ${round} of ${rounds}`),
  );
  await rm(directory, { recursive: true });
  const [alone, among] = ways.map((name) => samples.get(name) ?? []) as [number[], number[]];
  const cost = ratio(alone, among);
  return [
    figure(`${many.length} published ports of one service, from Swarm's word to the kernel`, times),
    figure(`a service with a range of ${range.length} ports beside them`, later),
    {
      what: 'cost of a connection among so many ports ÷ with one port',
      value: cost.value,
      unit: 'ratio',
      interval: [cost.low, cost.high],
      goal: { atMost: costGoal },
      detail: `${median(alone).toFixed(0)} and ${median(among).toFixed(0)} new connections a second, engine ${engine}`,
      samples: Object.fromEntries(samples),
    },
  ];
}

function figure(what: string, samples: number[]): Finding {
  const detail = `median of ${samples.map((value) => value.toFixed(0)).join(', ')}`;
  return {
    what,
    value: median(samples),
    unit: 'ms',
    goal: { atMost: programGoalMs },
    detail,
    samples: { ms: samples },
  };
}

/** A node with the plugin, one task that serves files, and a client. */
class Site implements AsyncDisposable {
  readonly client: Pick<Host, 'exec'>;
  readonly #world: World;
  readonly #server: Running;
  readonly #task: Awaited<ReturnType<World['attach']>>;
  readonly #services: Awaited<ReturnType<World['service']>>[] = [];

  private constructor(world: World, server: Running, task: Awaited<ReturnType<World['attach']>>) {
    this.#world = world;
    this.#server = server;
    this.#task = task;
    this.client = { exec: (command, options) => runCommand(inside(world.client, command), options) };
  }

  /** @param directory whose files are served */
  static async start(engine: PortsOptions['engine'], directory: string): Promise<Site> {
    const world = await World.up({ env: () => ({ CAUSEWAY_LB: engine }) });
    const task = await world.attach(await world.network('front'));
    const server = startCommand(inside(task.sandbox, await webServer(directory)));
    server.catch(() => undefined);
    return new Site(world, server, task);
  }

  /** @param ports as `PUBLISHED:TARGET`. @returns milliseconds until the kernel has them */
  async publish(name: string, ports: string[]): Promise<number> {
    const network = this.#task.network;
    const began = performance.now();
    this.#services.push(await this.#world.service(name, network, ports, [this.#task]));
    return performance.now() - began;
  }

  async clear(): Promise<void> {
    for (const service of this.#services.splice(0)) await this.#world.removeService(service);
  }

  /** Stops the plugin where it is, until the end. */
  pause(): void {
    process.kill(this.#world.plugin.pid, 'SIGSTOP');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    process.kill(this.#world.plugin.pid, 'SIGCONT');
    // Not KILL: its worker would go on, with what it writes to, and this program with it.
    this.#server.kill('SIGTERM');
    await this.#server;
    await this.#world.down();
  }
}

function inside({ path }: Namespace, command: Command): Command {
  return ['setpriv', '--pdeathsig', 'KILL', '--', 'nsenter', `--net=${path}`, ...command];
}
