// Owns random histories of records, which a seed makes anew: networks, nodes, endpoints and services come, change and go.
// Must not assert anything.
import type { NodeRecords } from '../../plugin/desired-state.ts';
import type { EndpointRecord, NetworkRecord, ServiceRecord } from '../../store/records.ts';
import type { Random } from '../support/random.ts';

export const nodeIds = ['node-1', 'node-2', 'node-3', 'node-4'];
export const netIds = ['na', 'nb', 'nc'];
/** The last digit of an endpoint's id; the first one is its network's place in {@link netIds}. */
export const digits = '0123456789ab';

const networkOf = (at: number): NetworkRecord => ({
  v: 1,
  id: netIds[at]!,
  name: netIds[at]!,
  subnet: `10.64.${at * 16}.0/20`,
  gateway: `10.64.${at * 16}.1`,
  internal: at === 1,
  allocated: true,
});

const nodeOf = (id: string, at: number) =>
  ({ v: 1, id, name: id, address: `203.0.113.${at + 1}`, number: at + 1, mtu: 1450, fabric }) as const;
export const fabric = { port: 4790, vni: 4790 };

/** Endpoints 0 to 11 on each of the networks, each on some node, joined or not, now and then two at one address. */
function endpointOf(net: number, at: number, random: Random): EndpointRecord {
  const id = `${net}${digits[at] ?? ''}`.padEnd(32, 'e');
  const record = {
    v: 1,
    id,
    network: netIds[net]!,
    node: nodeIds[random(4)]!,
    mac: '02:42:0a:4d:00:05',
  } as const;
  const address = `10.64.${net * 16}.${10 + (random(15) === 0 ? 0 : at)}`;
  return {
    ...record,
    address,
    ...(random(4) === 0 ? {} : { sandbox: '/run/docker/netns/there' }),
    ...(random(3) === 0 && { healthy: random(2) === 0 }),
    ...(random(6) === 0 && { failing: true as const }),
  };
}

function serviceOf(at: number, random: Random): ServiceRecord {
  const networks = netIds.filter(() => random(2) === 0);
  const tasks = Array.from({ length: random(4) }, (_, task) => ({
    id: `task-${at}-${task}`,
    addresses: Object.fromEntries(
      networks.map((id) => [id, `10.64.${netIds.indexOf(id) * 16}.${10 + random(12)}`]),
    ),
    draining: random(5) === 0,
    ...(random(12) === 0 && { draining: true, drained: true as const }),
    ...(random(6) === 0 && { assumed: true as const }),
  }));
  return {
    v: 1,
    id: `service-${at}`,
    name: `service-${at}`,
    networks,
    // Of two services that claim the same, one must be heard.
    vips: Object.fromEntries(
      networks.map((id) => [id, `10.64.${netIds.indexOf(id) * 16}.${100 + random(7)}`]),
    ),
    ports: random(3) === 0 ? [] : [{ protocol: 'tcp', port: 8000 + random(7), targetPort: 80 + random(2) }],
    tasks,
    ...(random(3) === 0 && { policy: { health: { protocol: 'tcp' as const, port: 80 } } }),
  };
}

/** Replaces, adds or removes one record of a list that is kept in order. */
export function change<T>(
  list: readonly T[],
  key: (item: T) => string,
  id: string,
  next: T | undefined,
): readonly T[] {
  const rest = list.filter((item) => key(item) !== id);
  return next === undefined ? rest : [...rest, next].sort((a, b) => (key(a) < key(b) ? -1 : 1));
}

export class History {
  records: NodeRecords = {
    nodes: nodeIds.map(nodeOf),
    networks: netIds.map((_, at) => networkOf(at)),
    presence: [],
    endpoints: [],
    services: [],
  };
  unreachable = new Set<string>();
  readonly #random: Random;

  constructor(random: Random) {
    this.#random = random;
  }

  step(): void {
    const random = this.#random;
    const { nodes, networks, presence, endpoints, services } = this.records;
    const byId = ({ id }: { id: string }): string => id;
    const some = random(3) > 0;
    switch (random(12)) {
      case 0: {
        const at = random(4);
        const node = some ? nodeOf(nodeIds[at]!, at) : undefined;
        this.records = { ...this.records, nodes: change(nodes, byId, nodeIds[at]!, node) };
        return;
      }
      case 1: {
        const network = networkOf(random(3));
        const next = { ...network, ...(some ? {} : { refused: 'overlap' }) };
        this.records = { ...this.records, networks: change(networks, byId, network.id, next) };
        return;
      }
      case 2: {
        const record = { v: 1, network: netIds[random(3)]!, node: nodeIds[random(2)]! } as const;
        const key = ({ network, node }: typeof record): string => `${network} ${node}`;
        const next = some ? record : undefined;
        this.records = { ...this.records, presence: change(presence as never, key, key(record), next) };
        return;
      }
      case 3: {
        this.unreachable = new Set(nodeIds.filter(() => random(4) === 0));
        return;
      }
      case 4:
      case 5:
      case 6:
      case 7: {
        const record = serviceOf(random(8), random);
        this.records = {
          ...this.records,
          services: change(services, byId, record.id, some ? record : undefined),
        };
        return;
      }
      default: {
        const record = endpointOf(random(3), random(12), random);
        this.records = {
          ...this.records,
          endpoints: change(endpoints, byId, record.id, some ? record : undefined),
        };
      }
    }
  }

  steps(): void {
    for (let left = this.#random(4); left >= 0; left -= 1) this.step();
  }
}
