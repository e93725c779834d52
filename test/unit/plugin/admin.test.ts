// Owns the tests of the admin API and of the sockets it and Docker's calls come by.
// Must not test what is reported; the reconciler's and the balancer's tests do.
import type { PeerView } from '../../../peers/peers.ts';
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import type { Server } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Agent, request } from 'undici';
import { createAdminServer } from '../../../plugin/admin.ts';
import { close, listen } from '../../../plugin/listen.ts';
import { readNodeId } from '../../../plugin/node-id.ts';
import type { PassReport } from '../../../plugin/reconciler.ts';
import { openEmbedded } from '../../../store/embedded.ts';
import type { EngineState } from '../../../swarm/engine-health.ts';
import { openRecords, type Records } from '../../../store/records.ts';
import type { Store } from '../../../store/store.ts';
import { planDesiredState } from '../../../plugin/desired-state.ts';
import { example } from '../../scenario/example.ts';

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
  let docker: EngineState;
  let warnings: string[];
  let foreign: string | undefined;
  let agent: Agent;

  beforeEach(async () => {
    warnings = [];
    foreign = undefined;
    docker = { version: '28.5.2', api: '1.51' };
    store = openEmbedded(':memory:');
    records = openRecords(store);
    const facts = {
      version: '1.2.3',
      node: 'node-1',
      engine: { name: 'nft', why: 'so' },
      unsupported: () => ['none'],
      unsupportedByHostPorts: () => ['no clock'],
      report: () => report,
      servers: () => planDesiredState(example, 'node-1').servers,
      host: () => [],
      unreachable: () => new Set<string>(),
      store: () => 'embedded' as const,
      docker: () => docker,
      compare: () => Promise.resolve({ missing: ['a'], extra: [], different: [] }),
      names: () => ({ led: 0, left: [] }),
      peers: () => new Map<string, PeerView>(),
      usage: () => Promise.resolve({ used: 3, size: 14 }),
      warnings: () => warnings,
      foreign: () => foreign,
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

  it('the admin API: an answer that cannot be given has its reason, in JSON too', async () => {
    await store.close();
    const { status, body } = await get('/status');
    assert.equal(status, 503);
    assert.match(String(body['error']), /closed/);
  });

  it('the admin API compares the replica with the shared store', async () => {
    assert.deepEqual((await get('/diff')).body, { missing: ['a'], extra: [], different: [] });
  });

  it('/healthz: 200 while the kernel is as desired, else 503 with the reason', async () => {
    report = { settled: true };
    assert.equal((await get('/healthz')).status, 200);
    report = { settled: false, error: 'the kernel refused' };
    assert.deepEqual(await get('/healthz'), { status: 503, body: { ...report, docker } });
    report = { settled: true };
    warnings = ['set CAUSEWAY_STORE'];
    assert.deepEqual(await get('/healthz'), { status: 200, body: { ...report, docker, warnings } });
  });

  it('/healthz: 503 while Docker cannot be used, with the reason in /status too', async () => {
    report = { settled: true };
    docker = { error: 'Docker refuses' };
    assert.deepEqual(await get('/healthz'), { status: 503, body: { ...report, docker } });
    assert.deepEqual((await get('/status')).body['docker'], docker);
  });

  it('/status has records, virtual servers and who serves them', async () => {
    report = { settled: true };
    for (const network of example.networks) await records.networks.put(network.id, network);
    for (const endpoint of example.endpoints)
      await records.endpoints.put(`${endpoint.network}/${endpoint.id}`, endpoint);
    for (const service of example.services) await records.services.put(service.id, service);
    const { body } = await get('/status');
    assert.equal(body['version'], '1.2.3');
    assert.deepEqual(
      (body['networks'] as { addresses: unknown }[]).map(({ addresses }) => addresses),
      Array(2).fill({ used: 3, size: 14 }),
    );
    assert.equal((body['endpoints'] as unknown[]).length, 5);
    assert.deepEqual(
      (body['virtualServers'] as { id: string }[]).map(({ id }) => id),
      ['vip-10.64.0.2', 'port-tcp-8080', 'port-udp-5353', 'vip-10.64.16.2', 'vip-10.64.0.6', 'port-tcp-9090'],
    );
  });

  it('/status is not settled before the kernel has the records that it shows', async () => {
    report = { settled: true, revision: 'of earlier' };
    assert.partialDeepStrictEqual((await get('/status')).body, { kernel: { settled: false } });
  });

  it('/status names a record that cannot be read, and shows the others', async () => {
    report = { settled: true };
    await store.commit([{ op: 'set', key: 'networks/broken', value: { v: 7 } }]);
    const { status, body } = await get('/status');
    assert.equal(status, 200);
    assert.match(String((body['corrupt'] as string[])[0]), /networks\/broken/);
  });
});

describe('listen', () => {
  it('listen replaces a socket that an earlier life left, and nobody else can use its own', async () => {
    const path = join(directory, 'left.sock');
    await writeFile(path, '');
    const server = await listen(() => undefined, { path });
    assert.equal((await stat(path)).mode & 0o777, 0o600);
    await close(server);
  });

  it('listen on a port that is taken: the error names the trouble', async () => {
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
  it('the node’s id is chosen once and kept', async () => {
    const data = join(directory, 'data');
    const id = await readNodeId(data);
    assert.match(id, /^[\da-f-]{36}$/);
    assert.equal(await readNodeId(data), id);
    assert.equal(await readFile(join(data, 'node-id'), 'utf8'), `${id}\n`);
  });
});
