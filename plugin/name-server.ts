// Owns the name server's life in the plugin: what it answers from, who may ask, and where the rest goes.
// Must not know names or messages: dns/ does.
import { closeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { duplicate } from '../dns/descriptor.ts';
import { Forwarder } from '../dns/forward.ts';
import { DnsServer, type Identity } from '../dns/server.ts';
import { ZoneBuilder, type Zone } from '../dns/zone.ts';
import { openNameSockets, openResolverSocket, resolverAddress, stopTaking } from '../net/name-sockets.ts';
import type { EndpointRecord, NetworkRecord, Records } from '../store/records.ts';
import type { Log } from './log.ts';

export interface NameServerOptions {
  records: Records;
  node: string;
  /** UDP and TCP, at 127.0.0.1, where the node itself asks. */
  port: number;
  /** Ids of unreachable nodes. */
  unreachable: () => ReadonlySet<string>;
  /** Called whenever {@link NameServer.sandboxes} may have changed. */
  onChange: () => void;
  log: Log;
}

/** Changes that come together make one zone, after this many milliseconds, or as many as the last one took. */
const gather = 10;

/** What could not be read is read again after so many milliseconds. */
const retryMs = 1_000;

/** At the end: for what was asked before Docker's resolver was left to answer, in milliseconds. */
const lastMs = 200;

/** Who asks at 127.0.0.1; a sandbox goes by its path. */
const host = 'host';

const nothing = { networks: [], services: [], endpoints: [], names: [] };

export class NameServer {
  readonly #options: NameServerOptions;
  readonly #forwarder = new Forwarder();
  readonly #server: DnsServer;
  readonly #builder = new ZoneBuilder();
  #zone: Zone = this.#builder.build(nothing, new Set());
  /** By sandbox, as Docker calls it. */
  #askers: ReadonlyMap<string, Identity> = new Map();
  /** Of the sandboxes that are answered: where they are, and their sockets once more, whoever reads them. */
  readonly #open = new Map<string, { path: string; udp: number; tcp: number }>();
  #timer: NodeJS.Timeout | undefined;
  /** Milliseconds. */
  #took = 0;

  constructor(options: NameServerOptions) {
    this.#options = options;
    this.#server = new DnsServer({
      zone: () => this.#zone,
      identify: (asker) => (asker === host ? { asker: { kind: 'host' } } : this.#askers.get(asker)),
      forwarder: this.#forwarder,
      log: options.log,
    });
  }

  /** Resolves when it knows what there is: until then Docker's resolver is to be asked. */
  async start(signal: AbortSignal): Promise<void> {
    while (!signal.aborted && !(await this.#build()))
      await sleep(retryMs, undefined, { signal }).catch(() => undefined);
    if (signal.aborted) return;
    const { log, port } = this.#options;
    await this.#server
      .listen(host, { port, address: '127.0.0.1' })
      .catch((error: unknown) =>
        log.error(
          { error },
          `names can be asked for in containers, but not by the node itself at 127.0.0.1: free port ${port}, or set another with ` +
            'docker plugin set PLUGIN CAUSEWAY_DNS_PORT=…',
        ),
      );
  }

  /** Those of this node that it can answer: it knows which networks they are on. */
  get sandboxes(): ReadonlySet<string> {
    return new Set(this.#askers.keys());
  }

  /**
   * Answers a sandbox from now on, at sockets inside.
   * @param path of its network namespace
   * @returns the port there
   * @throws {NamespaceError} when it cannot be entered (yet)
   */
  open(sandbox: string, path: string): number {
    const { port, ...sockets } = openNameSockets(path);
    const [udp, tcp] = [duplicate(sockets.udp), duplicate(sockets.tcp)];
    this.#open.set(sandbox, { path, udp, tcp });
    this.#server.open(sandbox, sockets);
    return port;
  }

  async shut(sandbox: string): Promise<void> {
    const open = this.#open.get(sandbox);
    if (open === undefined) return;
    this.#open.delete(sandbox);
    closeSync(open.udp);
    closeSync(open.tcp);
    await this.#server.shut(sandbox);
  }

  /** Follows the records until the signal aborts. */
  async run(signal: AbortSignal): Promise<void> {
    const { networks, services, endpoints, names } = this.#options.records;
    await Promise.all(
      [networks, services, endpoints, names].map(async (table) => {
        for await (const _ of table.watch({ signal })) this.refresh();
      }),
    );
    clearTimeout(this.#timer);
    for (const sockets of this.#open.values()) stopTaking(sockets);
    await sleep(lastMs);
    await Promise.all([...this.#open.keys()].map((sandbox) => this.shut(sandbox)));
    await this.#server.close();
    this.#forwarder.close();
  }

  /** To be called when a node is lost or back; changes of records are seen by themselves. */
  refresh(): void {
    this.#timer ??= setTimeout(
      () => {
        this.#timer = undefined;
        const began = performance.now();
        void this.#build().then(() => (this.#took = performance.now() - began));
      },
      Math.max(gather, this.#took),
    );
  }

  /** @returns whether it could */
  async #build(): Promise<boolean> {
    const { records, unreachable, onChange, log } = this.#options;
    try {
      const [networks, services, endpoints, names] = await Promise.all([
        records.networks.list(),
        records.services.list(),
        records.endpoints.list(),
        records.names.list(),
      ]);
      const values = <T>({ rows }: { rows: readonly { value: T }[] }): T[] => rows.map(({ value }) => value);
      this.#zone = this.#builder.build(
        {
          networks: values(networks),
          services: values(services),
          endpoints: values(endpoints),
          names: values(names),
        },
        unreachable(),
      );
      this.#askers = this.#findAskers(values(endpoints), orderAsDocker(values(networks)));
      this.#server.forget();
      onChange();
      return true;
    } catch (error) {
      log.warn({ error }, 'the names could not be brought up to date');
      return false;
    }
  }

  /** @param order of the ids of networks: those of an asker are asked in it */
  #findAskers(
    endpoints: readonly EndpointRecord[],
    order: ReadonlyMap<string, number>,
  ): Map<string, Identity> {
    const networksOf = new Map<string, Set<string>>();
    for (const { node, sandbox, network } of endpoints)
      if (node === this.#options.node && sandbox !== undefined)
        networksOf.set(sandbox, (networksOf.get(sandbox) ?? new Set()).add(network));
    return new Map(
      [...networksOf].map(([sandbox, ids]) => {
        const place = (id: string): number => order.get(id) ?? Infinity;
        const networks = new Set([...ids].sort((one, other) => place(one) - place(other)));
        const server = {
          ...resolverAddress,
          open: (protocol: 'udp' | 'tcp') => openResolverSocket(this.#pathOf(sandbox), protocol),
        };
        // Which has the upstreams the container would have, and asks them from where they are meant to be asked from.
        return [
          sandbox,
          { asker: { kind: 'container', networks }, upstream: { key: sandbox, addresses: [server] } },
        ];
      }),
    );
  }

  #pathOf(sandbox: string): string {
    const path = this.#open.get(sandbox)?.path;
    if (path === undefined) throw new Error(`${sandbox} has no sockets any more`);
    return path;
  }
}

/**
 * In which order Docker's resolver looks for a name on a container's networks (libnetwork's Endpoint.Less): internal ones last, else
 * by name, byte for byte.
 */
function orderAsDocker(networks: readonly NetworkRecord[]): Map<string, number> {
  const name = (network: NetworkRecord): Buffer => Buffer.from(network.name ?? network.id);
  const ordered = networks.toSorted(
    (one, other) => Number(one.internal) - Number(other.internal) || Buffer.compare(name(one), name(other)),
  );
  return new Map(ordered.map(({ id }, place) => [id, place]));
}
