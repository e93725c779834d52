// Owns churn: services created, scaled and removed without a pause, through whatever manager is there.
// Must not end because a command fails: managers are lost meanwhile.
import { setTimeout as sleep } from 'node:timers/promises';
import type { Cluster } from './cluster.ts';

/** From one change to the next, in milliseconds. */
const everyMs = 1_000;
/** A manager that hangs holds up no more than this, in milliseconds. */
const commandMs = 20_000;
const atOnce = 4;
const [fewest, most] = [3, 8];
const maxReplicas = 3;

export interface ChurnReport {
  done: number;
  /** Changes that no manager took. */
  refused: number;
}

export class Churn implements AsyncDisposable {
  readonly #cluster: Cluster;
  readonly #networks: readonly string[];
  readonly #services: string[] = [];
  readonly #report: ChurnReport = { done: 0, refused: 0 };
  readonly #stop = new AbortController();
  readonly #open = new Set<Promise<void>>();
  readonly #running: Promise<void>;
  #count = 0;

  /** Begins at once. @param networks that the services are on, in turn */
  constructor(cluster: Cluster, networks: readonly string[]) {
    this.#cluster = cluster;
    this.#networks = networks;
    this.#running = this.#run();
  }

  get report(): Readonly<ChurnReport> {
    return this.#report;
  }

  /** Ends it; what is under way is waited for. */
  async stop(): Promise<ChurnReport> {
    this.#stop.abort();
    await this.#running;
    await Promise.all(this.#open);
    return this.#report;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      if (this.#open.size < atOnce) this.#change();
      await sleep(everyMs, undefined, { signal }).catch(() => undefined);
    }
  }

  #change(): void {
    const turn = this.#count++;
    const change = this.#docker(turn, this.#choose(turn)).finally(() => this.#open.delete(change));
    this.#open.add(change);
  }

  #choose(turn: number): string[] {
    const size = this.#services.length;
    const at = Math.floor(Math.random() * size);
    const replicas = String(1 + Math.floor(Math.random() * maxReplicas));
    const kind = size < fewest ? 0 : Math.random();
    if (kind < 0.35 && size < most) {
      const name = `churn-${turn}`;
      this.#services.push(name);
      const create = ['service', 'create', '--detach', '--quiet', '--no-resolve-image', '--name', name];
      const network = this.#networks[turn % this.#networks.length]!;
      const rest = ['--replicas', replicas, '--network', network, '--stop-grace-period', '1s'];
      return [...create, ...rest, '--entrypoint', '/usr/bin/sleep', this.#cluster.image, '1000000'];
    }
    if (kind < 0.65) return ['service', 'scale', '--detach', `${this.#services[at]}=${replicas}`];
    return ['service', 'rm', ...this.#services.splice(at, 1)];
  }

  /** By the managers in turn, the next one where one does not take it. */
  async #docker(turn: number, args: readonly string[]): Promise<void> {
    const { nodes } = this.#cluster.lab;
    for (let attempt = 0; attempt < nodes.length; attempt += 1) {
      const node = nodes[(turn + attempt) % nodes.length]!;
      if (!node.isOn) continue;
      const ran = await node.docker(args, { reject: false, timeout: commandMs }).catch(() => undefined);
      if (ran === undefined || ran.failed) continue;
      this.#report.done += 1;
      return;
    }
    this.#report.refused += 1;
  }
}
