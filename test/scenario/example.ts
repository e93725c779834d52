// Owns the example that the golden texts are made of: two networks and four services on a node and its neighbour.
// Must not hold expectations.
import type {
  EndpointRecord,
  NetworkRecord,
  NodeRecord,
  PresenceRecord,
  ServiceRecord,
} from '../../store/records.ts';
import type { NodeRecords } from '../../plugin/desired-state.ts';

export const node = 'node-1';

const underlay = { mtu: 1500, fabric: { port: 4790, vni: 4790 } };
const nodes: NodeRecord[] = [
  { v: 1, id: node, name: 'one', address: '203.0.113.1', number: 1, ...underlay },
  { v: 1, id: 'node-2', name: 'two', address: '203.0.113.2', number: 2, ...underlay },
];

/** Ids as long as Docker's, told apart by their beginning. */
export const networkId = { front: 'f'.repeat(64), back: 'b'.repeat(64) };

const front: NetworkRecord = {
  v: 1,
  id: networkId.front,
  name: 'front',
  subnet: '10.64.0.0/20',
  gateway: '10.64.0.1',
  internal: false,
  allocated: true,
};

/** The next subnet of the default pool: adjacent ranges in one nft set are the usual case. */
const back: NetworkRecord = {
  v: 1,
  id: networkId.back,
  name: 'back',
  subnet: '10.64.16.0/20',
  gateway: '10.64.16.1',
  internal: true,
  allocated: true,
};

const presence = [front, back].map((network): PresenceRecord => ({ v: 1, network: network.id, node }));

function endpoint(digits: string, network: NetworkRecord, address: string, home = node): EndpointRecord {
  const id = digits.repeat(32);
  const sandbox = `/var/run/docker/netns/${digits}`;
  return { v: 1, id, network: network.id, node: home, address, mac: '02:42:0a:40:00:00', sandbox };
}

const web1 = endpoint('e1', front, '10.64.0.3');
const web2 = endpoint('e2', front, '10.64.0.4');
const old = endpoint('e3', front, '10.64.0.5');
const db = endpoint('e4', back, '10.64.16.3');
const remote = endpoint('e5', front, '10.64.0.7', 'node-2');

function task({ id, network, address }: EndpointRecord, draining = false): ServiceRecord['tasks'][number] {
  return { id: `task-${id.slice(0, 2)}`, addresses: { [network]: address }, draining };
}

/** Two tasks here and one on the other node take connections, a fourth one only finishes those it has. */
const web: ServiceRecord = {
  v: 1,
  id: 'service-web',
  name: 'web',
  vips: { [front.id]: '10.64.0.2' },
  networks: [front.id],
  ports: [
    { protocol: 'tcp', port: 8080, targetPort: 80 },
    { protocol: 'udp', port: 5353, targetPort: 53 },
  ],
  tasks: [task(web1), task(web2), task(remote), task(old, true)],
};

const database: ServiceRecord = {
  v: 1,
  id: 'service-db',
  name: 'db',
  vips: { [back.id]: '10.64.16.2' },
  networks: [back.id],
  ports: [],
  tasks: [task(db)],
};

/** Scaled to zero. */
const idle: ServiceRecord = {
  v: 1,
  id: 'service-idle',
  name: 'idle',
  vips: { [front.id]: '10.64.0.6' },
  networks: [front.id],
  ports: [{ protocol: 'tcp', port: 9090, targetPort: 90 }],
  tasks: [],
};

export const example: NodeRecords = {
  nodes,
  networks: [front, back],
  presence,
  endpoints: [web1, web2, old, db, remote],
  services: [web, database, idle],
};

/** Those of the node itself, which have a link there. */
export const localEndpoints = example.endpoints.filter((endpoint) => endpoint.node === node);

/** The moment after: the draining task is gone, and so is a task of `web` that took connections. */
export const afterwards: NodeRecords = {
  nodes,
  networks: [front, back],
  presence,
  endpoints: [web1, db, remote],
  services: [{ ...web, tasks: [task(web1), task(remote)] }, database, idle],
};
