// Owns what this node's containers are called: it tells the others by records, and leads the questions of its sandboxes
// to the name server. Level-triggered: Docker's events are hints, its lists and the records are the truth.
// Must not answer questions, and must not be called inside a driver call.
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { readResolverPorts, redirect, undirect, type Redirection } from '../net/redirect.ts';
import type { Runner } from '../net/run.ts';
import { batches } from '../store/batches.ts';
import { nameKey, type EndpointRecord, type NameRecord, type Records } from '../store/records.ts';
import type { Op, Store } from '../store/store.ts';
import type { ContainerDetails, Docker, Event } from '../swarm/docker.ts';
import { Hints } from '../swarm/hints.ts';
import type { Log } from './log.ts';

export interface NamingOptions {
  docker: Docker;
  store: Store;
  records: Records;
  run: Runner;
  node: string;
  log: Log;
  /** UDP and TCP port of the name server; absent: Docker's resolver alone is to answer. */
  port?: number;
  /** Where the host's /run and /proc/sys/net are. */
  hostRun: string;
  sysctls: string;
}

/** What changes a container's names or health; `exec_*` comes with every health check and changes nothing. */
const telling = /^(start|die|rename|health_status|connect|disconnect)/;

/** How long without a hint until it looks all the same, in milliseconds. */
const lookEvery = 30_000;

/** A failed look is repeated after this, in milliseconds. */
const retryAfter = 1_000;

/** A sandbox that Docker has not finished is looked at again after this, in milliseconds, and so many times. */
const soon = 100;
const patience = 100;

export class Naming {
  readonly #options: NamingOptions;
  readonly #hints = new Hints();
  /** By id; what is not here is asked for. */
  readonly #containers = new Map<string, ContainerDetails>();
  /** By sandbox, what leads its questions now. */
  readonly #redirected = new Map<string, Redirection>();
  /** Sandboxes left to Docker's resolver, by the settings or after trouble that was told. */
  readonly #left = new Set<string>();
  /** How often in vain, by sandbox. */
  readonly #tries = new Map<string, number>();

  constructor(options: NamingOptions) {
    this.#options = options;
  }

  /** Runs until the signal aborts; throws nothing else. */
  async run(signal: AbortSignal): Promise<void> {
    const { log, records } = this.#options;
    const following = Promise.all([
      this.#listen(signal),
      (async () => {
        for await (const _ of records.endpoints.watch({ signal })) this.#hints.give();
      })(),
    ]);
    let quiet = true;
    while (!signal.aborted) {
      let pause = lookEvery;
      try {
        if (!(await this.#look(signal))) pause = soon;
        quiet = true;
      } catch (error) {
        if (quiet) log.warn({ error }, 'the names of this node’s containers could not be brought up to date');
        quiet = false;
        pause = retryAfter;
      }
      await this.#hints.wait(pause, signal);
    }
    await following;
  }

  async #listen(signal: AbortSignal): Promise<void> {
    const { docker, log } = this.#options;
    while (!signal.aborted) {
      try {
        // What happened while nobody listened is found by looking at everything anew.
        this.#containers.clear();
        this.#hints.give();
        for await (const event of docker.events(['container', 'network'], signal)) this.#hear(event);
      } catch (error) {
        log.debug({ error }, 'the stream of Docker events ended');
      }
      await sleep(retryAfter, undefined, { signal }).catch(() => undefined);
    }
  }

  #hear({ Type, Action, Actor }: Event): void {
    if (!telling.test(Action)) return;
    const id = Type === 'network' ? Actor?.Attributes?.['container'] : Actor?.ID;
    if (id !== undefined) this.#containers.delete(id);
    this.#hints.give();
  }

  /** @returns whether all is done that can be done now */
  async #look(signal: AbortSignal): Promise<boolean> {
    const { records, node } = this.#options;
    const { rows } = await records.endpoints.list();
    const joined = rows
      .map(({ value }) => value)
      .filter((endpoint) => endpoint.node === node && endpoint.sandbox !== undefined);
    await this.#readContainers(joined.length > 0, signal);
    await this.#publish(joined);
    return this.#lead(joined);
  }

  async #readContainers(any: boolean, signal: AbortSignal): Promise<void> {
    const { docker } = this.#options;
    // A node without endpoints of ours has nothing to ask for.
    const running = new Set(any ? await docker.containers(signal) : []);
    for (const id of this.#containers.keys()) if (!running.has(id)) this.#containers.delete(id);
    for (const id of running) {
      if (this.#containers.has(id)) continue;
      const details = await docker.container(id, signal);
      if (details !== undefined) this.#containers.set(id, details);
    }
  }

  /** Writes what this node's containers are called, where it differs. */
  async #publish(joined: readonly EndpointRecord[]): Promise<void> {
    const { store, records, node } = this.#options;
    const mine = new Map(joined.map((endpoint) => [endpoint.id, endpoint]));
    const wanted = new Map(
      [...this.#containers.values()]
        .flatMap((container) => renderNames(container, node))
        .filter(({ endpoint }) => mine.has(endpoint))
        .map((record) => [nameKey(record), record]),
    );
    const ops: Op[] = [];
    for (const { id, value } of (await records.names.list()).rows) {
      if (value.node !== node) continue;
      const record = wanted.get(id);
      if (record === undefined) ops.push(records.names.remove(id));
      else if (isDeepStrictEqual(record, value)) wanted.delete(id);
    }
    for (const [id, record] of wanted) ops.push(records.names.set(id, record));
    // Each node writes its own only, so it may while the store is away.
    for (const commit of batches(ops)) await store.commit(commit, { offline: true });
  }

  /** Leads the questions of the sandboxes of these endpoints here, and of no others. */
  async #lead(joined: readonly EndpointRecord[]): Promise<boolean> {
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
    for (const some of [this.#left, this.#tries])
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
    const path = this.#path(sandbox);
    try {
      const resolver = await readResolverPorts(run, path);
      if (resolver === undefined) throw new Error('Docker’s resolver does not listen there');
      const redirection = { sandbox: path, gateway, port, resolver };
      await redirect(run, sysctls, redirection);
      this.#redirected.set(sandbox, redirection);
      this.#left.delete(sandbox);
      this.#tries.delete(sandbox);
      return true;
    } catch (error) {
      return this.#giveUp(sandbox, error);
    }
  }

  #giveUp(sandbox: string, error: unknown): boolean {
    const tries = (this.#tries.get(sandbox) ?? 0) + 1;
    this.#tries.set(sandbox, tries);
    if (tries < patience) return false;
    if (!this.#left.has(sandbox))
      this.#options.log.warn(
        { error, sandbox },
        'a container’s questions for names are left to Docker’s resolver: its sandbox cannot be entered (the host’s ' +
          '/run has to be a shared mount)',
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

/** What a container is called on each of its networks. */
export function renderNames(container: ContainerDetails, node: string): NameRecord[] {
  const { Id, Name, Config, State, NetworkSettings } = container;
  return Object.values(NetworkSettings.Networks)
    .filter(({ EndpointID }) => EndpointID !== '')
    .map(({ NetworkID, EndpointID, Aliases }) => ({
      v: 1,
      endpoint: EndpointID,
      network: NetworkID,
      node,
      container: Id,
      names: [
        ...new Set([Name.replace(/^\//, ''), Id.slice(0, 12), Config.Hostname, ...(Aliases ?? [])]),
      ].filter(Boolean),
      unhealthy: State.Health?.Status === 'unhealthy',
    }));
}
