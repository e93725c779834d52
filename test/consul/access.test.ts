// Owns what a token and TLS are good for, with Consul's own ACLs and certificates.
// Must not test outages: outages.test.ts.
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { openConsul } from '../../store/consul.ts';
import { StoreError } from '../../store/errors.ts';
import type { Op, Store } from '../../store/store.ts';
import { consulProgram, prepareConsul, startConsul, type Consul } from '../lab/consul.ts';

const rootToken = '11111111-2222-3333-4444-555555555555';
const set: Op = { op: 'set', key: 'a', value: 1 };

/** What the README tells to put into the policy. */
const policy = 'key_prefix "causeway/" { policy = "write" } session_prefix "" { policy = "write" }';

describe('access to Consul', function () {
  this.timeout(120_000);

  describe('with ACLs that deny what is not allowed', () => {
    let consul: Consul;
    let token: string;
    const stores: Store[] = [];
    const open = (o: { token?: string; prefix?: string }): Store => {
      const store = openConsul({ addresses: [consul.at], ...o });
      stores.push(store);
      return store;
    };
    before(async () => {
      const acl = `acl { enabled = true default_policy = "deny" tokens { master = "${rootToken}" } }`;
      consul = await startConsul({ config: [acl] });
      token = await createToken(consul, policy);
    });
    afterEach(() => Promise.all(stores.splice(0).map((store) => store.close())));
    after(() => consul[Symbol.asyncDispose]());

    it('does everything with the policy of store/README.md', async () => {
      const store = open({ token });
      assert.ok((await store.commit([set, { op: 'check', key: 'b', version: 0 }])).ok);
      assert.equal((await store.get('a'))?.value, 1);
      assert.equal((await store.list('')).entries.length, 1);
      assert.deepEqual((await store.list('none/')).entries, []);
      const lock = await store.lock('k', 1);
      const other = await open({ token }).lock('k', 2, { takeOver: true });
      await other.release();
      await lock.release();
    });

    for (const [what, o] of [
      ['without a token', () => ({})],
      ['with a token that Consul does not know', () => ({ token: '99999999-9999-9999-9999-999999999999' })],
      ['outside of its prefix', () => ({ token, prefix: 'other/' })],
    ] as const)
      it(`is refused ${what}: forbidden, and never empty`, async () => {
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
    const open = (tls: { ca?: string; cert?: string; key?: string; serverName?: string }): Store =>
      openConsul({ addresses: [{ host: consul.address, port: 8501 }], tls });

    it('works with the authority, and a certificate of ours', async () => {
      const store = open({ ca, cert, key, serverName });
      assert.ok((await store.commit([set])).ok);
      const lock = await store.lock('k', 1);
      await lock.release();
      await store.close();
    });

    it('is unavailable to and by those who cannot prove who they are', async () => {
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

async function createToken({ address }: Consul, rules: string): Promise<string> {
  const call = async (path: string, body: object): Promise<{ ID: string; SecretID: string }> => {
    const response = await fetch(`http://${address}:8500/v1/acl/${path}`, {
      method: 'PUT',
      headers: { 'X-Consul-Token': rootToken },
      body: JSON.stringify(body),
    });
    assert.ok(response.ok, await response.clone().text());
    return (await response.json()) as { ID: string; SecretID: string };
  };
  await call('policy', { Name: 'causeway', Rules: rules });
  return (await call('token', { Policies: [{ Name: 'causeway' }] })).SecretID;
}
