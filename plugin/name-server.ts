// Owns the name server's life in the plugin: what it answers from, who may ask, and where the rest goes.
// Must not know names or messages: dns/ does.
import { setTimeout as sleep } from 'node:timers/promises';
import { Forwarder, type Upstream } from '../dns/forward.ts';
import type { Asker } from '../dns/resolve.ts';
import { DnsServer } from '../dns/server.ts';
import { ZoneBuilder, type Zone } from '../dns/zone.ts';
import type { EndpointRecord, Records } from '../store/records.ts';
import type { Log } from './log.ts';

export interface NameServerOptions {
  records: Records;
  node: string;
  /** UDP and TCP. */
  port: number;
  /** Ids of nodes that are lost now. */
  hidden: () => ReadonlySet<string>;
  log: Log;
}

/** Changes that come together make one zone, after this many milliseconds, or as many as the last one took. */
const gather = 10;

/** What could not be read is read again after so many milliseconds. */
const retryMs = 1_000;

const nothing = { networks: [], services: [], endpoints: [], names: [] };

export class NameServer {
  readonly #options: NameServerOptions;
  readonly #forwarder = new Forwarder();
  readonly #server: DnsServer;
  readonly #builder = new ZoneBuilder();
  #zone: Zone = this.#builder.build(nothing, new Set());
  /** This node's joined endpoints by address, and its gateways' addresses. */
  #askers: ReadonlyMap<string, { asker: Asker; upstream?: Upstream }> = new Map();
  #timer: NodeJS.Timeout | undefined;
  /** Milliseconds. */
  #took = 0;

  constructor(options: NameServerOptions) {
    this.#options = options;
    this.#server = new DnsServer({
      port: options.port,
      zone: () => this.#zone,
      identify: (address) => this.#identify(address),
      forwarder: this.#forwarder,
      log: options.log,
    });
  }

  /**
   * Listens, but not before it knows what there is: as long as there is no socket, Docker's resolver is asked.
   *
   * @throws {DnsUnavailable} when the port is taken
   */
  async start(signal: AbortSignal): Promise<void> {
    while (!signal.aborted && !(await this.#build()))
      await sleep(retryMs, undefined, { signal }).catch(() => undefined);
    if (!signal.aborted) await this.#server.start();
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
    const { records, hidden, log } = this.#options;
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
        hidden(),
      );
      this.#askers = this.#findAskers(
        values(endpoints),
        new Set(networks.rows.map(({ value }) => value.gateway)),
      );
      this.#server.forget();
      return true;
    } catch (error) {
      log.warn({ error }, 'the names could not be brought up to date');
      return false;
    }
  }

  #findAskers(
    endpoints: readonly EndpointRecord[],
    gateways: ReadonlySet<string>,
  ): Map<string, { asker: Asker; upstream?: Upstream }> {
    const local = endpoints.filter(
      ({ node, sandbox }) => node === this.#options.node && sandbox !== undefined,
    );
    const networksOf = new Map<string, Set<string>>();
    for (const { sandbox = '', network } of local)
      networksOf.set(sandbox, (networksOf.get(sandbox) ?? new Set()).add(network));
    return new Map<string, { asker: Asker; upstream?: Upstream }>([
      // The node's own questions to one of its gateways come from it.
      ...[...gateways].map((address) => [address, { asker: { kind: 'host' } }] as const),
      ...local.map(({ address, sandbox = '' }) => {
        const asker = { kind: 'container', networks: networksOf.get(sandbox) ?? new Set<string>() } as const;
        // Its own port leads on to Docker's resolver, which has the upstreams the container would have: net/redirect.ts.
        const upstream = { key: sandbox, addresses: [{ address, port: this.#options.port }] };
        return [address, { asker, upstream }] as const;
      }),
    ]);
  }

  #identify(address: string): { asker: Asker; upstream?: Upstream } | undefined {
    return address.startsWith('127.') ? { asker: { kind: 'host' } } : this.#askers.get(address);
  }
}
