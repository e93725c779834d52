// Owns which sandboxes ask this node's name server, and leads their questions there.
// Must not answer them.
import { readResolverPorts, redirect, undirect, type Redirection } from '../net/redirect.ts';
import { CommandError, type Runner } from '../net/run.ts';
import type { EndpointRecord, Records } from '../store/records.ts';
import type { Log } from './log.ts';

export interface QuestionsOptions {
  records: Records;
  run: Runner;
  log: Log;
  /** UDP and TCP port of the name server; absent: Docker's resolver alone is to answer. */
  port?: number;
  /** Where the host's /run and /proc/sys/net are. */
  hostRun: string;
  sysctls: string;
  /** A monotonic clock in milliseconds. */
  now?: () => number;
}

/**
 * A sandbox that Docker has not finished is tried again after the first of these, in milliseconds, then ever more slowly up
 * to the second: each try is a process. So often in vain is told, 20 s after the first.
 */
const firstPause = 100;
const longestPause = 30_000;
const growth = 1.2;
const patience = 20;

export class Questions {
  readonly #options: QuestionsOptions;
  /** By sandbox, what leads its questions now. */
  readonly #redirected = new Map<string, Redirection>();
  /** Sandboxes left to Docker's resolver, by the settings or after trouble that was told. */
  readonly #left = new Set<string>();
  /** By sandbox, how often it was tried in vain, and when it is tried again. */
  readonly #vain = new Map<string, { tries: number; next: number }>();
  readonly #now: () => number;

  constructor(options: QuestionsOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  /**
   * Leads the questions of the sandboxes of these endpoints here, and of no others.
   * @returns false if for some it may only be too early
   */
  async lead(joined: readonly EndpointRecord[]): Promise<boolean> {
    const { records, port } = this.#options;
    const gateways = new Map(
      (await records.networks.list()).rows.map(({ id, value }) => [id, value.gateway]),
    );
    const wanted = new Map<string, string>();
    for (const { sandbox = '', network } of joined) {
      const gateway = gateways.get(network);
      // Of several networks any will do; the one that leads already goes on to.
      if (
        gateway !== undefined &&
        (!wanted.has(sandbox) || this.#redirected.get(sandbox)?.gateway === gateway)
      )
        wanted.set(sandbox, gateway);
    }
    for (const [sandbox, { sandbox: path }] of this.#redirected)
      if (!wanted.has(sandbox)) {
        this.#redirected.delete(sandbox);
        // Mostly it is gone, and took the rules along.
        await undirect(this.#options.run, path).catch(() => undefined);
      }
    for (const some of [this.#left, this.#vain])
      for (const sandbox of some.keys()) if (!wanted.has(sandbox)) some.delete(sandbox);
    let done = true;
    for (const [sandbox, gateway] of wanted) {
      if (port === undefined) await this.#leave(sandbox);
      else if (this.#redirected.get(sandbox)?.gateway !== gateway)
        done = (await this.#leadOne(sandbox, gateway, port)) && done;
    }
    return done;
  }

  /**
   * Docker tells of a sandbox before it has made it, and its resolver listens later still.
   * @returns false if it may only be too early
   */
  async #leadOne(sandbox: string, gateway: string, port: number): Promise<boolean> {
    const { run, sysctls } = this.#options;
    if (this.#now() < (this.#vain.get(sandbox)?.next ?? 0)) return this.#left.has(sandbox);
    const path = this.#path(sandbox);
    try {
      const resolver = await readResolverPorts(run, path);
      if (resolver === undefined) throw new Error('Docker’s resolver does not listen there');
      const redirection = { sandbox: path, gateway, port, resolver };
      await redirect(run, sysctls, redirection);
      this.#redirected.set(sandbox, redirection);
      this.#left.delete(sandbox);
      this.#vain.delete(sandbox);
      return true;
    } catch (error) {
      return this.#giveUp(sandbox, error);
    }
  }

  #giveUp(sandbox: string, error: unknown): boolean {
    const { tries } = this.#vain.get(sandbox) ?? { tries: 0 };
    const pause = Math.min(firstPause * growth ** tries, longestPause);
    this.#vain.set(sandbox, { tries: tries + 1, next: this.#now() + pause });
    if (tries + 1 < patience) return false;
    if (!this.#left.has(sandbox))
      this.#options.log.warn(
        { error, sandbox },
        error instanceof CommandError
          ? 'a container’s questions for names are left to Docker’s resolver: its sandbox cannot be entered (the host’s ' +
              '/run has to be a shared mount)'
          : 'a container’s questions for names do not come here: in its sandbox nothing listens at 127.0.0.11, where they are ' +
              'led from',
      );
    this.#left.add(sandbox);
    return true;
  }

  /** An earlier life of this process, with other settings, may have led it. */
  async #leave(sandbox: string): Promise<void> {
    if (this.#left.has(sandbox)) return;
    this.#left.add(sandbox);
    await undirect(this.#options.run, this.#path(sandbox)).catch(() => undefined);
  }

  /** @param sandbox as Docker calls it: /run/docker/netns/ID or /var/run/docker/netns/ID */
  #path(sandbox: string): string {
    return sandbox.replace(/^(\/var)?\/run\//, `${this.#options.hostRun}/`);
  }
}
