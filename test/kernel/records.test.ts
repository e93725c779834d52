// Owns the tests of records that cannot be used, in a real Consul and before a real kernel: each costs only itself.
// Must not test which records those are (unit/store/records.test.ts).
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { consulPort, consulServer, prepareConsul } from '../lab/consul.ts';
import { startCommand, type Running } from '../lab/node.ts';
import { slowness } from '../slowness.ts';
import { askMany } from './ask.ts';
import type { Peer } from './peer.ts';
import {
  nodeAddress,
  wireAddress,
  World,
  type Namespace,
  type TestEndpoint,
  type TestNetwork,
  type TestService,
} from './world.ts';

const engine = process.env['CAUSEWAY_TEST_LB'] ?? 'nft';

describe(`records that cannot be used, engine ${engine}`, function () {
  this.timeout(240_000 * slowness);
  let directory: string;
  let consul: Running;
  let world: World;
  let front: TestNetwork;
  let service: TestService;
  let client: Peer;
  let asker: Peer;
  const web: TestEndpoint[] = [];

  const curl = async (...args: string[]): Promise<string> =>
    world.wire.run('curl', '-sf', '-m', '10', ...args);
  const url = (key: string): string => `http://${wireAddress}:${consulPort}/v1/kv/causeway/${key}`;
  const read = async (key: string): Promise<Record<string, unknown>> =>
    JSON.parse(await curl(`${url(key)}?raw`)) as Record<string, unknown>;
  const write = (key: string, value: unknown): Promise<string> =>
    curl('-X', 'PUT', '-d', JSON.stringify(value), url(key));
  const remove = (key: string): Promise<string> => curl('-X', 'DELETE', url(key));
  const health = async (): Promise<{ settled: boolean; degraded?: string[] }> =>
    (await world.first.admin('/healthz')) as { settled: boolean; degraded?: string[] };
  const degraded = (what: RegExp): Promise<void> =>
    world.until(async () => {
      const { settled, degraded: texts } = await health().catch(() => ({ settled: false, degraded: [] }));
      return settled && what.test(texts?.join('\n') ?? '');
    });
  const served = async (): Promise<void> => {
    assert.deepEqual((await askMany(client, nodeAddress, 8080, 6)).servers, ['web0', 'web1']);
    assert.deepEqual((await askMany(asker, service.vip, 80, 6)).servers, ['web0', 'web1']);
  };

  before(async () => {
    await prepareConsul();
    directory = await mkdtemp(join(tmpdir(), 'causeway-records-'));
    world = await World.up({
      env: (wire: Namespace) => {
        const server = consulServer({
          name: 'wire',
          address: wireAddress,
          dataDir: join(directory, 'consul'),
        });
        const inside = ['nsenter', `--net=${wire.path}`, ...server];
        consul = startCommand(['setpriv', '--pdeathsig', 'KILL', '--', ...inside]);
        return { CAUSEWAY_LB: engine, CAUSEWAY_STORE: `consul://${wireAddress}:${consulPort}` };
      },
    });
    await world.everywhere(({ nodes }) => nodes.length === 1);
    front = await world.network('front', { subnet: '10.77.0.0/16' });
    for (const name of ['web0', 'web1']) {
      const endpoint = await world.attach(front);
      await world.peer(endpoint.sandbox).serve({ name, tcp: 80 });
      web.push(endpoint);
    }
    asker = world.peer((await world.attach(front)).sandbox);
    client = world.peer(world.client);
    service = await world.service('web', front, ['8080:80'], web);
  });
  after(async () => {
    await world.down();
    consul.kill('SIGKILL');
    await consul;
    await rm(directory, { recursive: true });
  });

  it('a record of a newer form takes nothing away, over a restart too, and /healthz tells', async () => {
    const [node] = (await world.status()).nodes;
    const keys = [
      `networks/${front.id}`,
      `nodes/${node?.id ?? ''}`,
      `endpoints/${front.id}/${web[0]?.id ?? ''}`,
      `services/${service.id}`,
    ];
    // No manager writes it anew meanwhile.
    world.docker.manager = false;
    await served();
    for (const key of keys) {
      const before = await read(key);
      await write(key, { ...before, v: 2, form: 'newer' });
      await degraded(new RegExp(`${key} cannot be read.*counts as it was before`, 's'));
      await served();
      await world.plugin.kill('SIGKILL');
      await world.plugin.start();
      await degraded(new RegExp(`${key} cannot be read.*counts as it was before`, 's'));
      await served();
      await write(key, before);
      await world.until(
        async () => (await health().catch(() => ({ degraded: ['?'] }))).degraded === undefined,
      );
      await served();
    }
    world.docker.manager = true;
    world.docker.hint();
  });

  it('a record with the syntax of a tool in it is no command, and takes nothing from others', async () => {
    const record = await read(`services/${service.id}`);
    const pwned = join(directory, 'pwned');
    const policies = [
      { bind: ['x" } accept\nadd table inet pwned #'] },
      { allow: ['10.0.0.0/33'] },
      { deny: ['0.0.0.0/0 } accept; add table inet pwned; #'] },
    ];
    world.docker.manager = false;
    for (const [at, policy] of policies.entries())
      await write(`services/evil${at}`, {
        ...record,
        id: `evil${at}`,
        vips: { [front.id]: `10.77.9.${at}` },
        ports: [{ protocol: 'tcp', port: 9000 + at, targetPort: 80 }],
        policy,
      });
    const endpoint = await read(`endpoints/${front.id}/${web[0]?.id ?? ''}`);
    await write(`endpoints/${front.id}/evil`, {
      ...endpoint,
      id: 'evil',
      address: '10.77.9.9',
      mac: `02:42:00:00:00:01\nnetns exec ${world.node.name} touch ${pwned}`,
    });
    await degraded(/services\/evil0 cannot be read/);
    await degraded(/endpoints\/.*\/evil cannot be read/);
    await served();
    assert.doesNotMatch(await world.plugin.tool('nft', ['list', 'tables']), /pwned/);
    assert.ok(!existsSync(pwned));
    for (const at of policies.keys()) await remove(`services/evil${at}`);
    await remove(`endpoints/${front.id}/evil`);
    await world.until(async () => (await health()).degraded === undefined);
  });
});
