// Owns clusters of any size as their records say: nodes, networks, endpoints and services, and one task more or less.
// Must not measure anything.
import { SortedEntries, frozenEntry } from '../store/replica-entries.ts';
import { endpointKey, openRecords, presenceKey, type Records } from '../store/records.ts';
import type { EndpointRecord, NodeRecord, ServiceRecord } from '../store/records.ts';
import type { CommitResult, Entry, Lock, Op, Snapshot, Store } from '../store/store.ts';

export interface Size {
  nodes: number;
  services: number;
}

export const tasksPerService = 10;
/** As one stack would have it. */
const servicesPerNetwork = 100;

/** The node that is measured: the first. */
export const here = nodeId(0);

/** Entries in memory, handed out as a replica does: the same frozen object until the key changes. */
class Memory implements Store {
  readonly #entries = new SortedEntries();
  #index = 0;

  get(key: string): Promise<Entry | undefined> {
    return Promise.resolve(this.#entries.get(key));
  }

  list(prefix: string): Promise<Snapshot> {
    return Promise.resolve({ index: this.#index, entries: this.#entries.under(prefix) });
  }

  commit(ops: readonly Op[]): Promise<CommitResult> {
    this.#index += 1;
    for (const op of ops) {
      if (op.op === 'set')
        this.#entries.put(frozenEntry({ key: op.key, value: op.value, version: this.#index }));
      if (op.op === 'delete') this.#entries.remove(op.key);
    }
    return Promise.resolve({ ok: true, index: this.#index });
  }

  lock(): Promise<Lock> {
    return Promise.reject(new Error('Nobody else is there.'));
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

/**
 * Services of {@link tasksPerService} tasks on all nodes in turn, each with a VIP and a published port; every network is
 * on every node, which is the most a node can have to do.
 */
export class ScaleCluster {
  readonly records: Records;
  /** Of the endpoints on the measured node. */
  readonly localIds: readonly string[];
  readonly endpoints: number;
  readonly #store = new Memory();
  readonly #services: ServiceRecord[];

  private constructor(size: Size) {
    this.records = openRecords(this.#store);
    this.#services = Array.from({ length: size.services }, (_, at) => service(at));
    this.endpoints = size.services * tasksPerService;
    this.localIds = Array.from({ length: this.endpoints }, (_, at) => at)
      .filter((at) => at % size.nodes === 0)
      .map(endpointId);
  }

  static async make(size: Size): Promise<ScaleCluster> {
    const cluster = new ScaleCluster(size);
    await cluster.#fill(size);
    return cluster;
  }

  async #fill({ nodes, services }: Size): Promise<void> {
    const { records } = this;
    const ids = Array.from({ length: nodes }, (_, at) => nodeId(at));
    const ops: Op[] = ids.map((id, at) => records.nodes.set(id, node(id, at)));
    for (let at = 0; at < Math.ceil(services / servicesPerNetwork); at += 1) {
      const id = networkId(at);
      const addresses = { subnet: `${subnetBase(at)}.0/20`, gateway: addressIn(at, 1) };
      ops.push(
        records.networks.set(id, { v: 1, id, name: id, ...addresses, internal: false, allocated: true }),
      );
      for (const home of ids) {
        const presence = { v: 1, network: id, node: home } as const;
        ops.push(records.presence.set(presenceKey(presence), presence));
      }
    }
    for (let at = 0; at < this.endpoints; at += 1) {
      const record = endpoint(at, nodes);
      ops.push(records.endpoints.set(endpointKey(record), record));
    }
    for (const record of this.#services) ops.push(records.services.set(record.id, record));
    ops.sort((a, b) => (a.key < b.key ? -1 : 1));
    await this.#store.commit(ops);
  }

  /** Has one task of a service join or leave on another node, as its endpoint and the publisher say it. */
  async toggle(at: number, nodes: number): Promise<void> {
    const { records } = this;
    const record = this.#services[at]!;
    const changed = endpoint(at * tasksPerService + 1, nodes);
    const isHere = record.tasks.some(({ id }) => id === changed.id);
    const tasks = isHere
      ? record.tasks.filter(({ id }) => id !== changed.id)
      : [
          ...record.tasks,
          { id: changed.id, addresses: { [changed.network]: changed.address }, draining: false },
        ];
    this.#services[at] = { ...record, tasks };
    await this.#store.commit([
      isHere
        ? records.endpoints.remove(endpointKey(changed))
        : records.endpoints.set(endpointKey(changed), changed),
      records.services.set(record.id, this.#services[at]),
    ]);
  }
}

function nodeId(at: number): string {
  return `node-${String(at).padStart(4, '0')}`;
}

/** Networks are those of services in turn; each has 4,093 addresses for its 100 services and their 1,000 tasks. */
function networkId(at: number): string {
  return `network-${String(at).padStart(4, '0')}`.padEnd(25, 'x');
}

function subnetBase(network: number): string {
  return `10.${network >> 4}.${(network & 15) * 16}`;
}

function addressIn(network: number, host: number): string {
  return `10.${network >> 4}.${(network & 15) * 16 + (host >> 8)}.${host & 255}`;
}

function endpointId(at: number): string {
  return at.toString(16).padStart(8, '0').padEnd(64, '0');
}

function node(id: string, at: number): NodeRecord {
  const fabric = { port: 4790, vni: 4790 };
  return {
    v: 1,
    id,
    name: id,
    address: `203.0.${112 + (at >> 8)}.${at & 255}`,
    number: at + 1,
    mtu: 1450,
    fabric,
  };
}

function endpoint(at: number, nodes: number): EndpointRecord {
  const serviceAt = Math.floor(at / tasksPerService);
  const network = Math.floor(serviceAt / servicesPerNetwork);
  return {
    v: 1,
    id: endpointId(at),
    network: networkId(network),
    node: nodeId(at % nodes),
    address: addressIn(network, 256 + (at % (servicesPerNetwork * tasksPerService))),
    mac: '02:42:0a:00:00:00',
    sandbox: `/var/run/docker/netns/${at}`,
  };
}

function service(at: number): ServiceRecord {
  const network = Math.floor(at / servicesPerNetwork);
  const tasks = Array.from({ length: tasksPerService }, (_, task) => {
    const { id, address } = endpoint(at * tasksPerService + task, 1);
    return { id, addresses: { [networkId(network)]: address }, draining: false };
  });
  return {
    v: 1,
    id: `service-${String(at).padStart(5, '0')}`,
    name: `service-${at}`,
    vips: { [networkId(network)]: addressIn(network, 2 + (at % servicesPerNetwork)) },
    networks: [networkId(network)],
    ports: [{ protocol: 'tcp', port: 10_000 + at, targetPort: 80 }],
    tasks,
  };
}
