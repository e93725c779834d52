// Owns the tests of what a record may hold, and of what holds in place of one that cannot be read.
// Must not test what is made of records.
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openEmbedded } from '../../../store/embedded.ts';
import { openKeepsake } from '../../../store/keepsake.ts';
import {
  ClusterRecord,
  EndpointRecord,
  NetworkRecord,
  NodeRecord,
  openRecords,
  PolicyRecord,
  ServiceRecord,
} from '../../../store/records.ts';
import type { Store } from '../../../store/store.ts';
import { example } from '../../scenario/example.ts';

const [endpoint] = example.endpoints;
const [network] = example.networks;
const [service] = example.services;
const [node] = example.nodes;
assert.ok(endpoint && network && service && node);

describe('records', () => {
  it('records are read as Causeway writes them', () => {
    for (const one of example.endpoints) EndpointRecord.parse(one);
    for (const one of example.networks) NetworkRecord.parse(one);
    for (const one of example.services) ServiceRecord.parse(one);
    for (const one of example.nodes) NodeRecord.parse(one);
    for (const sandbox of [
      '/var/run/docker/netns/1a2b',
      '/run/docker/netns/1a2b',
      '/run/netns/one',
      '/srv/docker-2/netns/a.b',
    ])
      EndpointRecord.parse({ ...endpoint, sandbox });
  });

  const injected: Record<string, () => unknown> = {
    'a MAC address with line breaks': () =>
      EndpointRecord.parse({ ...endpoint, mac: '02:42:00:00:00:01 mtu 1450\nnetns exec x id' }),
    'an id with spaces': () => EndpointRecord.parse({ ...endpoint, id: 'a b' }),
    'an id that is an option': () => EndpointRecord.parse({ ...endpoint, id: '-batch' }),
    'the namespace of the host as a sandbox': () =>
      EndpointRecord.parse({ ...endpoint, sandbox: '/proc/1/ns/net' }),
    'a sandbox by a way round': () =>
      EndpointRecord.parse({ ...endpoint, sandbox: '/run/docker/netns/../../proc/1/ns/netns/x' }),
    'a port that is none': () =>
      EndpointRecord.parse({ ...endpoint, ports: [{ protocol: 'tcp', port: 0, targetPort: 80 }] }),
    'a port beyond all': () =>
      ServiceRecord.parse({ ...service, ports: [{ protocol: 'tcp', port: 65_536, targetPort: 80 }] }),
    'an id of a network with syntax': () =>
      ServiceRecord.parse({ ...service, vips: { 'x; flush ruleset': '10.64.0.9' } }),
    'a subnet that is none': () => NetworkRecord.parse({ ...network, subnet: '10.0.0.0/33' }),
    'an MTU without room for IPv4': () => NetworkRecord.parse({ ...network, mtu: 1 }),
    'a node’s MTU that is negative': () => NodeRecord.parse({ ...node, mtu: -1 }),
    'a fabric without a port': () => NodeRecord.parse({ ...node, fabric: { port: 0, vni: 4790 } }),
    'a secret that makes a key of no bytes': () => ClusterRecord.parse({ v: 1, secret: 'zz' }),
    'a weight that fills the memory': () =>
      ServiceRecord.parse({
        ...service,
        tasks: [{ id: 't', addresses: {}, draining: false, weight: 1_000_000_000 }],
      }),
    'a device with the rest of a rule': () =>
      PolicyRecord.parse({ bind: ['x" } accept\nadd table inet pwned #'] }),
    'nobody’s subnet': () => PolicyRecord.parse({ allow: ['10.0.0.0/33'] }),
    'no subnet at all': () => PolicyRecord.parse({ deny: [] }),
    'a path with a line break': () =>
      PolicyRecord.parse({ health: { protocol: 'http', port: 80, path: '/\r\nX: y' } }),
  };
  for (const [what, parse] of Object.entries(injected))
    it(`a record cannot hold ${what}`, () => assert.throws(parse, { name: /ZodError/ }));
});

describe('a record that cannot be read any more', () => {
  let directory: string;
  let store: Store;
  const file = (): string => join(directory, 'unreadable.json');
  const open = () =>
    openRecords(
      store,
      openKeepsake(file(), () => assert.fail()),
    );
  const newer = { ...network, v: 2, form: 'newer' };
  const key = `networks/${network.id}`;

  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'records-'));
    store = openEmbedded(':memory:');
  });
  afterEach(async () => {
    await store.close();
    rmSync(directory, { recursive: true });
  });

  it('a record that became unreadable counts as it was, over a restart too, until it can be read or is gone', async () => {
    const records = open();
    await records.networks.put(network.id, network);
    assert.equal((await records.networks.list()).rows[0]?.outdated, undefined);
    assert.ok(!existsSync(file()), 'nothing is kept while all can be read');
    await store.commit([{ op: 'set', key, value: newer }]);
    for (const tables of [() => records, open]) {
      const { rows, corrupt } = await tables().networks.list();
      assert.deepEqual(
        rows.map(({ value, outdated }) => [value, outdated]),
        [[network, true]],
      );
      assert.deepEqual(
        corrupt.map(({ id }) => id),
        [network.id],
      );
      await assert.rejects(
        tables().networks.get(network.id),
        { code: 'corrupt' },
        'nobody writes on that ground',
      );
    }
    const again = open();
    await store.commit([{ op: 'set', key, value: { ...network, name: 'again' } }]);
    assert.deepEqual(
      (await again.networks.list()).rows.map(({ value, outdated }) => [value.name, outdated]),
      [['again', undefined]],
    );
    assert.ok(!existsSync(file()));
    await store.commit([{ op: 'set', key, value: newer }]);
    assert.equal((await again.networks.list()).rows.length, 1);
    await store.commit([{ op: 'delete', key }]);
    assert.deepEqual((await again.networks.list()).rows, []);
    assert.deepEqual((await open().networks.list()).rows, []);
  });

  it('a record that was never readable counts for nothing', async () => {
    await store.commit([{ op: 'set', key, value: newer }]);
    const { rows, corrupt } = await open().networks.list();
    assert.deepEqual([rows.length, corrupt.length], [0, 1]);
  });
});
