// Owns the tests of the admin API and of the sockets it and Docker's calls come by.
// Must not test what is reported; the reconciler's and the balancer's tests do.
import type { PeerView } from '../../peers/peers.ts';
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import type { Server } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Agent, request } from 'undici';
import { createAdminServer } from '../../plugin/admin.ts';
import { close, listen } from '../../plugin/listen.ts';
import { readNodeId } from '../../plugin/node-id.ts';
import type { PassReport } from '../../plugin/reconciler.ts';
import { openEmbedded } from '../../store/embedded.ts';
import { openRecords, type Records } from '../../store/records.ts';
import type { Store } from '../../store/store.ts';
import { example } from '../scenario/example.ts';

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'causeway-admin-'));
});
afterEach(() => rm(directory, { recursive: true }));

describe('the admin API', () => {
  let store: Store;
  let records: Records;
  let server: Server;
  let report: PassReport;
  let agent: Agent;

  beforeEach(async () => {
    store = openEmbedded(':memory:');
    records = openRecords(store);
    const facts = {
      version: '1.2.3',
      node: 'node-1',
      engine: { name: 'nft', why: 'so' },
      shortcomings: () => ['none'],
      portShortcomings: () => ['no clock'],
      report: () => report,
      hidden: () => new Set<string>(),
      store: () => 'embedded' as const,
      compare: () => Promise.resolve({ missing: ['a'], extra: [], different: [] }),
      peers: () => new Map<string, PeerView>(),
    };
    const path = join(directory, 'deep', 'admin.sock');
    server = await listen(createAdminServer(facts, records), { path });
    agent = new Agent({ connect: { socketPath: path } });
  });
  afterEach(async () => {
    await agent.close();
    await close(server);
    await store.close();
  });

  async function get(path: string): Promise<{ status: number; body: Record<string, unknown> }> {
    const response = await request(`http://admin${path}`, { dispatcher: agent });
    return { status: response.statusCode, body: (await response.body.json()) as Record<string, unknown> };
  }

  it('says why it cannot tell, in JSON too', async () => {
    await store.close();
    const { status, body } = await get('/status');
    assert.equal(status, 503);
    assert.match(String(body['error']), /closed/);
  });

  it('compares with the shared store', async () => {
    assert.deepEqual((await get('/diff')).body, { missing: ['a'], extra: [], different: [] });
  });

  it('is healthy while the kernel is as wanted, and says why when it is not', async () => {
    report = { settled: true };
    assert.equal((await get('/healthz')).status, 200);
    report = { settled: false, error: 'the kernel refused' };
    assert.deepEqual(await get('/healthz'), { status: 503, body: report });
  });

  it('tells records, virtual servers and who serves them', async () => {
    report = { settled: true };
    for (const network of example.networks) await records.networks.put(network.id, network);
    for (const endpoint of example.endpoints)
      await records.endpoints.put(`${endpoint.network}/${endpoint.id}`, endpoint);
    for (const service of example.services) await records.services.put(service.id, service);
    const { body } = await get('/status');
    assert.equal(body['version'], '1.2.3');
    assert.equal((body['networks'] as unknown[]).length, 2);
    assert.equal((body['endpoints'] as unknown[]).length, 5);
    assert.deepEqual(
      (body['virtualServers'] as { id: string }[]).map(({ id }) => id),
      ['vip-10.64.16.2', 'vip-10.64.0.6', 'port-tcp-9090', 'vip-10.64.0.2', 'port-tcp-8080', 'port-udp-5353'],
    );
  });

  it('is not settled in /status before the kernel has the records that are told there', async () => {
    report = { settled: true, revision: 'of earlier' };
    assert.partialDeepStrictEqual((await get('/status')).body, { kernel: { settled: false } });
  });

  it('names a record it cannot read, and tells the others', async () => {
    report = { settled: true };
    await store.commit([{ op: 'set', key: 'networks/broken', value: { v: 7 } }]);
    const { status, body } = await get('/status');
    assert.equal(status, 200);
    assert.match(String((body['corrupt'] as string[])[0]), /networks\/broken/);
  });
});

describe('listen', () => {
  it('replaces a socket that an earlier life left behind, and lets nobody else use its own', async () => {
    const path = join(directory, 'left.sock');
    await writeFile(path, '');
    const server = await listen(() => undefined, { path });
    assert.equal((await stat(path)).mode & 0o777, 0o600);
    await close(server);
  });

  it('fails by the name of the trouble where a port is taken', async () => {
    const first = await listen(() => undefined, { host: '127.0.0.1', port: 0 });
    const address = first.address();
    assert.ok(typeof address === 'object' && address !== null);
    await assert.rejects(
      listen(() => undefined, { host: '127.0.0.1', port: address.port }),
      { code: 'EADDRINUSE' },
    );
    await close(first);
  });
});

describe("the node's id", () => {
  it('is chosen once and kept', async () => {
    const data = join(directory, 'data');
    const id = await readNodeId(data);
    assert.match(id, /^[\da-f-]{36}$/);
    assert.equal(await readNodeId(data), id);
    assert.equal(await readFile(join(data, 'node-id'), 'utf8'), `${id}\n`);
  });
});
