// Owns which tasks of this node are checked, and tells all nodes what was found.
// Must not check by itself (health/), and must not check what is not this node's.
import { Prober, type Target } from '../health/prober.ts';
import { probe } from '../health/probe.ts';
import { endpointKey, type EndpointRecord, type Records, type ServiceRecord } from '../store/records.ts';
import type { Log } from './log.ts';

export interface HealthChecksOptions {
  records: Records;
  /** This node's id in records. */
  node: string;
  log: Log;
}

/** Where the labels say nothing: docs/policy.md. */
const defaults = { interval: 2, rise: 1, fall: 3 };

/** Checks the tasks of services that want it. */
export class HealthChecks {
  readonly #options: HealthChecksOptions;
  readonly #prober: Prober;
  /** By target. */
  readonly #endpoints = new Map<string, EndpointRecord>();

  constructor(options: HealthChecksOptions) {
    this.#options = options;
    this.#prober = new Prober({
      probe,
      onVerdict: (target, healthy, why) => this.#tell(target, healthy, why),
    });
  }

  /** Follows the records until the signal aborts. */
  async run(signal: AbortSignal): Promise<void> {
    const { services, endpoints } = this.#options.records;
    await Promise.all(
      [services, endpoints].map(async (table) => {
        for await (const _ of table.watch({ signal })) await this.#look();
      }),
    );
    this.#prober.watch([]);
  }

  async #look(): Promise<void> {
    const { records, node, log } = this.#options;
    try {
      const services = await records.services.list();
      const wanting = services.rows.map(({ value }) => value).filter(({ policy }) => policy?.health);
      // Most clusters have thousands of endpoints before they have a check.
      const { rows } = wanting.length === 0 ? { rows: [] } : await records.endpoints.list();
      const joined = rows
        .map(({ value }) => value)
        .filter((endpoint) => endpoint.node === node && endpoint.sandbox !== undefined);
      this.#endpoints.clear();
      this.#prober.watch(this.#targets(wanting, joined));
    } catch (error) {
      log.debug({ error }, 'which tasks are to be checked could not be read');
    }
  }

  #targets(services: readonly ServiceRecord[], joined: readonly EndpointRecord[]): Target[] {
    const at = new Map(joined.map((endpoint) => [`${endpoint.network} ${endpoint.address}`, endpoint]));
    return services.flatMap(({ tasks, policy }) =>
      tasks
        .filter(({ draining }) => !draining)
        .flatMap(({ addresses }) => Object.entries(addresses))
        .flatMap(([network, address]): Target | [] => {
          const endpoint = at.get(`${network} ${address}`);
          if (endpoint === undefined || policy?.health === undefined) return [];
          const id = `${endpointKey(endpoint)} ${endpoint.sandbox ?? ''}`;
          this.#endpoints.set(id, endpoint);
          return {
            id,
            address,
            check: policy.health,
            intervalMs: 1000 * (policy.healthInterval ?? defaults.interval),
            rise: policy.healthRise ?? defaults.rise,
            fall: policy.healthFall ?? defaults.fall,
            healthy: endpoint.healthy,
          };
        }),
    );
  }

  async #tell({ id, address, check }: Target, healthy: boolean, why: string | undefined): Promise<void> {
    const { records, log } = this.#options;
    const endpoint = this.#endpoints.get(id);
    if (endpoint === undefined) return;
    await records.endpoints.update(
      endpointKey(endpoint),
      // Another sandbox may have joined since, of which nothing is known.
      (record) =>
        record === undefined || record.sandbox !== endpoint.sandbox || record.healthy === healthy
          ? record
          : { ...record, healthy },
      { offline: true },
    );
    const { protocol, port } = check;
    if (healthy) log.info({ address, protocol, port }, 'a task is healthy');
    else log.warn({ address, protocol, port, why }, 'a task is not healthy: it gets no new connections');
  }
}
