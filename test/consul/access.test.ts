// Owns what a token and TLS are good for, with Consul's own ACLs and certificates.
// Must not test outages: outages.test.ts.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { execa } from 'execa';
import { openConsul } from '../../store/consul.ts';
import { StoreError } from '../../store/errors.ts';
import type { LockOptions, Op, SharedStore } from '../../store/store.ts';
import { consulProgram, prepareConsul, startConsul, startConsuls, type Consul } from '../lab/consul.ts';

const rootToken = '11111111-2222-3333-4444-555555555555';
const set: Op = { op: 'set', key: 'a', value: 1 };

/** What the README tells to put into the policy. */
const rules = [
  ...readFileSync(join(import.meta.dirname, '../../store/README.md'), 'utf8').matchAll(
    /^ {4}(\w+_prefix .*)$/gm,
  ),
].map(([, rule = '']) => rule);

describe('access to Consul', function () {
  this.timeout(120_000);

  describe('with ACLs that deny what is not allowed', () => {
    let consul: Consul;
    let other: Consul;
    let token: string;
    const stores: SharedStore[] = [];
    const open = (o: { token?: string; prefix?: string }, { at } = consul): SharedStore => {
      const store = openConsul({ addresses: [at], ...o });
      stores.push(store);
      return store;
    };
    before(async () => {
      const acl = `acl { enabled = true default_policy = "deny" tokens { master = "${rootToken}" } }`;
      const consuls = await startConsuls(2, { config: [acl] });
      [consul, other] = [consuls[0]!, consuls[1]!];
      token = await createToken(consul, rules);
    });
    afterEach(() => Promise.all(stores.splice(0).map((store) => store.close())));
    after(() => Promise.all([consul, other].map((one) => one[Symbol.asyncDispose]())));

    /** A lock is waited for patiently, also by who is refused. */
    const insisting = (): LockOptions => ({
      signal: AbortSignal.timeout(20_000),
      onError: (error) => {
        if (error.code === 'forbidden') throw error;
      },
    });

    /** All that Causeway does with Consul: it reads, waits for changes, writes, and takes locks over that are of another agent. */
    async function everything(token: string): Promise<void> {
      const store = open({ token });
      await store.commit([
        { op: 'delete', key: 'a' },
        { op: 'delete', key: 'b' },
      ]);
      const { index } = await store.list('');
      const changed = store.list('', { after: index });
      assert.ok(
        (
          await store.commit([
            { ...set, version: 0 },
            { op: 'check', key: 'b', version: 0 },
          ])
        ).ok,
      );
      assert.equal((await changed).entries.length, 1);
      const entry = await store.get('a');
      assert.equal(entry?.value, 1);
      assert.ok((await store.commit([{ op: 'delete', key: 'a', version: entry.version }])).ok);
      assert.deepEqual((await store.list('none/')).entries, []);
      const lock = await store.lock('k', 1, insisting());
      // Longer than a session lives without being renewed at once.
      await sleep(3_500);
      assert.ok(!lock.lost.aborted);
      const heir = await open({ token }, other).lock('k', 2, { takeOver: true, ...insisting() });
      await heir.release();
      await lock.release();
    }

    it('with the policy of store/README.md, Causeway’s token does everything that the store needs', async () => {
      assert.equal(rules.length, 2);
      await everything(token);
    });

    it('sessions of the agents alone that are asked are enough for the store', async () => {
      const [keys = ''] = rules;
      const sessions = ['consul-1', 'consul-2'].map((name) => `session "${name}" { policy = "write" }`);
      await everything(await createToken(consul, [keys, ...sessions]));
    });

    const lesser: Record<string, (keys: string, sessions: string) => string[]> = {
      keys: (_, sessions) => [sessions],
      'writing keys': (keys, sessions) => [keys.replace('write', 'read'), sessions],
      sessions: (keys) => [keys],
      'writing sessions': (keys, sessions) => [keys, sessions.replace('write', 'read')],
      'sessions of the other agents': (keys) => [keys, 'session "consul-1" { policy = "write" }'],
    };
    for (const [what, without] of Object.entries(lesser))
      it(`the store cannot do without ${what}`, async () => {
        const [keys = '', sessions = ''] = rules;
        await assert.rejects(everything(await createToken(consul, without(keys, sessions))), {
          name: 'StoreError',
          code: 'forbidden',
        });
      });

    const closed: [method: string, path: string, body?: unknown][] = [
      ['GET', 'kv/other/x'],
      ['PUT', 'kv/other/x'],
      ['DELETE', 'kv/other/x'],
      ['PUT', 'kv/causeway'],
      ['PUT', 'kv/causeway2/x'],
      ['DELETE', 'kv/?recurse'],
      ['GET', 'agent/self'],
      ['GET', 'agent/metrics'],
      ['PUT', 'agent/token/agent', { Token: rootToken }],
      ['PUT', 'agent/maintenance?enable=true'],
      ['PUT', 'agent/reload'],
      ['PUT', 'agent/leave'],
      ['PUT', 'agent/force-leave/consul-2'],
      ['PUT', 'agent/service/register', { Name: 'x' }],
      ['PUT', 'agent/check/register', { Name: 'x', TTL: '10s' }],
      ['PUT', 'catalog/register', { Node: 'x', Address: '192.0.2.1' }],
      ['PUT', 'catalog/deregister', { Node: 'consul-2' }],
      ['PUT', 'event/fire/x'],
      ['POST', 'query', { Name: 'x', Service: { Service: 'x' } }],
      ['PUT', 'config', { Kind: 'service-defaults', Name: 'x' }],
      ['GET', 'operator/raft/configuration'],
      ['GET', 'operator/keyring'],
      ['GET', 'snapshot'],
      ['GET', 'acl/tokens'],
      ['GET', 'acl/policies'],
      ['PUT', 'acl/token', { Policies: [] }],
      ['PUT', 'acl/policy', { Name: 'x', Rules: 'acl = "write"' }],
      ['PUT', 'acl/bootstrap'],
    ];
    for (const [method, path, body] of closed)
      it(`the token has nothing of Consul but its keys and sessions: no ${method} ${path}`, async () => {
        const response = await fetch(`http://${consul.address}:8500/v1/${path}`, {
          method,
          headers: { 'X-Consul-Token': token },
          ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        });
        const text = await response.text();
        // Of the keyring Consul says so with status 500.
        assert.ok(response.status === 403 || text.endsWith('denied by ACLs'), `${response.status}: ${text}`);
      });

    it('the token sees of all keys its own', async () => {
      const put = (key: string): Promise<Response> =>
        fetch(`http://${consul.address}:8500/v1/kv/${key}`, {
          method: 'PUT',
          headers: { 'X-Consul-Token': rootToken },
          body: '1',
        });
      for (const key of ['secret/x', 'causeway/x']) assert.ok((await put(key)).ok);
      const response = await fetch(`http://${consul.address}:8500/v1/kv/?keys`, {
        headers: { 'X-Consul-Token': token },
      });
      assert.deepEqual(await response.json(), ['causeway/x']);
      await open({ token }).commit([{ op: 'delete', key: 'x' }]);
    });

    for (const [what, o] of [
      ['without a token', () => ({})],
      ['with a token that Consul does not know', () => ({ token: '99999999-9999-9999-9999-999999999999' })],
      ['outside of its prefix', () => ({ token, prefix: 'other/' })],
    ] as const)
      it(`access ${what} is refused: forbidden, and never empty`, async () => {
        const store = open(o());
        const forbidden = (error: unknown): true => {
          assert.ok(error instanceof StoreError && error.code === 'forbidden', String(error));
          assert.match(error.message, /(Permission denied|ACL not found).*Give Causeway a token.*key_prefix/);
          return true;
        };
        await assert.rejects(store.get('a'), forbidden);
        await assert.rejects(store.list(''), forbidden);
        await assert.rejects(store.commit([set]), forbidden);
        await assert.rejects(store.commit([{ ...set, version: 0 }]), forbidden);
      });
  });

  describe('with TLS', () => {
    let consul: Consul;
    let directory: string;
    let ca: string;
    let cert: string;
    let key: string;
    const serverName = 'server.dc1.consul';
    before(async () => {
      await prepareConsul();
      directory = await mkdtemp(join(tmpdir(), 'causeway-tls-'));
      const tls = (...args: string[]): Promise<unknown> =>
        execa(consulProgram, ['tls', ...args], { cwd: directory });
      const file = (name: string): string => join(directory, name);
      await tls('ca', 'create');
      await tls('cert', 'create', '-server');
      await tls('cert', 'create', '-client');
      [ca, cert, key] = (await Promise.all(
        ['consul-agent-ca.pem', 'dc1-client-consul-0.pem', 'dc1-client-consul-0-key.pem'].map((name) =>
          readFile(file(name), 'utf8'),
        ),
      )) as [string, string, string];
      const config = [
        'ports { https = 8501 }',
        'verify_incoming_https = true',
        `ca_file = "${file('consul-agent-ca.pem')}"`,
        `cert_file = "${file('dc1-server-consul-0.pem')}"`,
        `key_file = "${file('dc1-server-consul-0-key.pem')}"`,
      ];
      consul = await startConsul({ config });
    });
    after(async () => {
      await consul[Symbol.asyncDispose]();
      await rm(directory, { recursive: true });
    });
    const open = (tls: { ca?: string; cert?: string; key?: string; serverName?: string }): SharedStore =>
      openConsul({ addresses: [{ host: consul.address, port: 8501 }], tls });

    it('the store works over TLS with the authority, and a certificate of ours', async () => {
      const store = open({ ca, cert, key, serverName });
      assert.ok((await store.commit([set])).ok);
      const lock = await store.lock('k', 1);
      await lock.release();
      await store.close();
    });

    it('the store over TLS is unavailable to and by those who cannot prove who they are', async () => {
      for (const tls of [
        { cert, key, serverName },
        { ca, cert, key, serverName: 'other' },
        { ca, serverName },
      ]) {
        const store = open(tls);
        await assert.rejects(store.commit([set]), { code: 'unavailable', message: /certificate/ });
        await store.close();
      }
    });
  });
});

let policies = 0;

async function createToken({ address }: Consul, rules: readonly string[]): Promise<string> {
  const call = async (path: string, body: object): Promise<{ ID: string; SecretID: string }> => {
    const response = await fetch(`http://${address}:8500/v1/acl/${path}`, {
      method: 'PUT',
      headers: { 'X-Consul-Token': rootToken },
      body: JSON.stringify(body),
    });
    assert.ok(response.ok, await response.clone().text());
    return (await response.json()) as { ID: string; SecretID: string };
  };
  const Name = `causeway-${policies++}`;
  await call('policy', { Name, Rules: rules.join('\n') });
  return (await call('token', { Policies: [{ Name }] })).SecretID;
}
