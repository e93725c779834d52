// Owns the tests of the settings: defaults, and what somebody reads who set one wrong.
// Must not need the environment of the test itself.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { adminAddress } from '../../../plugin/admin.ts';
import { ConfigError, parseConfig, parseStore } from '../../../plugin/config.ts';

describe('parseConfig', () => {
  it('no setting is required', () => {
    const config = parseConfig({});
    assert.equal(config.CAUSEWAY_STORE, 'embedded');
    assert.equal(config.CAUSEWAY_LB, 'auto');
    assert.equal(config.CAUSEWAY_LOG, 'info');
    assert.equal(config.CAUSEWAY_ADMIN, 'unix:///run/causeway/admin.sock');
    assert.equal(config.CAUSEWAY_FABRIC_PORT, 4790);
    assert.equal(config.CAUSEWAY_FABRIC_VNI, 4790);
    assert.equal(config.CAUSEWAY_NODE_ADDR, '');
    assert.equal(config.CAUSEWAY_DEFAULT_POOL, '10.64.0.0/12');
  });

  it('an empty setting counts as not set, as docker plugin set leaves it', () => {
    assert.equal(parseConfig({ CAUSEWAY_LB: '', CAUSEWAY_FABRIC_PORT: '' }).CAUSEWAY_FABRIC_PORT, 4790);
  });

  it('settings that are numbers are read from text', () => {
    const config = parseConfig({ CAUSEWAY_FABRIC_VNI: '16777215', CAUSEWAY_DEFAULT_POOL_SIZE: '24' });
    assert.equal(config.CAUSEWAY_FABRIC_VNI, 16777215);
    assert.equal(config.CAUSEWAY_DEFAULT_POOL_SIZE, 24);
  });

  it('other variables of the environment are ignored', () => {
    assert.doesNotThrow(() => parseConfig({ PATH: '/bin', HOME: '/' }));
  });

  const bad: Record<string, string[]> = {
    CAUSEWAY_STORE: ['consul', 'EMBEDDED'],
    CAUSEWAY_LB: ['iptables'],
    CAUSEWAY_LOG: ['loud'],
    CAUSEWAY_ADMIN: [
      'tcp://0.0.0.0:9000',
      'tcp://203.0.113.1:9000',
      'unix://',
      'http://127.0.0.1:1',
      'on',
      'tcp://127.0.0.1:99999',
    ],
    CAUSEWAY_FABRIC_PORT: ['0', '65536', 'vxlan', '4790.5'],
    CAUSEWAY_FABRIC_VNI: ['0', '16777216', '-1'],
    CAUSEWAY_NODE_ADDR: ['eth0', '203.0.113.1/24', '::1'],
    CAUSEWAY_DEFAULT_POOL: ['10.64.0.0', '10.64.0.0/33', 'fd00::/8'],
    CAUSEWAY_DEFAULT_POOL_SIZE: ['7', '30', 'big'],
  };
  for (const [name, values] of Object.entries(bad)) {
    for (const value of values) {
      it(`the setting ${name}=${value} is refused, with what is wrong and how to set it`, () => {
        assert.throws(
          () => parseConfig({ [name]: value }),
          (error: unknown) =>
            error instanceof ConfigError &&
            error.message.startsWith(`${name}=${value}: `) &&
            error.message.endsWith(`; set it with docker plugin set PLUGIN ${name}=…`),
        );
      });
    }
  }

  it('every wrong setting is named, not only the first', () => {
    assert.throws(
      () => parseConfig({ CAUSEWAY_LB: 'x', CAUSEWAY_LOG: 'y' }),
      /CAUSEWAY_LB=x[^]*CAUSEWAY_LOG=y/,
    );
  });

  it('an unknown setting is refused, with a list of those that exist', () => {
    assert.throws(
      () => parseConfig({ CAUSEWAY_ENGINE: 'ipvs' }),
      /unknown setting CAUSEWAY_ENGINE: .*CAUSEWAY_LB/,
    );
  });

  it('every setting of config.json is accepted, with the value there', async () => {
    const file = join(import.meta.dirname, '..', '..', '..', 'config.json');
    const { env } = JSON.parse(await readFile(file, 'utf8')) as { env: { name: string; value: string }[] };
    assert.ok(env.length > 0);
    assert.doesNotThrow(() => parseConfig(Object.fromEntries(env.map(({ name, value }) => [name, value]))));
  });
});

describe('adminAddress', () => {
  it('the admin address: the host’s /run is where the plugin has it mounted', () => {
    assert.deepEqual(adminAddress('unix:///run/causeway/admin.sock', '/host/run'), {
      path: '/host/run/causeway/admin.sock',
    });
    assert.deepEqual(adminAddress('unix:///tmp/admin.sock', '/host/run'), { path: '/tmp/admin.sock' });
  });

  it('the admin address may be loopback of both families', () => {
    assert.deepEqual(adminAddress('tcp://127.0.0.1:9000', ''), { host: '127.0.0.1', port: 9000 });
    assert.deepEqual(adminAddress('tcp://[::1]:9000', ''), { host: '::1', port: 9000 });
  });

  it('a default size of which the default pool has not even one is refused', () => {
    assert.throws(
      () => parseConfig({ CAUSEWAY_DEFAULT_POOL: '10.64.0.0/24' }),
      /CAUSEWAY_DEFAULT_POOL_SIZE=20: no \/20 fits into CAUSEWAY_DEFAULT_POOL=10\.64\.0\.0\/24/,
    );
  });
});

describe('the setting of the store', () => {
  it('CAUSEWAY_STORE is `embedded` or the addresses of Consul', () => {
    assert.deepEqual(parseStore(parseConfig({}).CAUSEWAY_STORE), { kind: 'embedded' });
    const { CAUSEWAY_STORE } = parseConfig({
      CAUSEWAY_STORE: 'consul://10.0.0.1:8500,consul.example,[fd00::1]:80',
    });
    assert.deepEqual(parseStore(CAUSEWAY_STORE), {
      kind: 'consul',
      addresses: [
        { host: '10.0.0.1', port: 8500 },
        { host: 'consul.example', port: 8500 },
        { host: 'fd00::1', port: 80 },
      ],
      tls: false,
    });
    const setting = parseStore('consul+https://10.0.0.1:8501');
    assert.ok(setting.kind === 'consul' && setting.tls);
  });

  for (const text of [
    'consul://',
    'consul://a,,b',
    'consul://a/b',
    'consul://a:b',
    'etcd://10.0.0.1:2379',
    'consul://u@a',
  ])
    it(`CAUSEWAY_STORE: ${text} is refused by name`, () => {
      assert.throws(() => parseConfig({ CAUSEWAY_STORE: text }), /CAUSEWAY_STORE.*consul:\/\/HOST:PORT/);
    });

  const secret = '11111111-2222-3333-4444-555555555555';
  for (const [name, value] of [
    ['CAUSEWAY_CONSUL_KEY', `/etc/${secret}`],
    ['CAUSEWAY_CONSUL_CERT', secret],
    ['CAUSEWAY_CONSUL_CA', secret],
    ['CAUSEWAY_CONSUL_TOKEN', `${secret} `],
    ['CAUSEWAY_STORE', `consul://me:${secret}@10.0.0.1:8500`],
  ] as const)
    it(`Docker’s log does not show what is in ${name}`, () => {
      assert.throws(
        () => parseConfig({ [name]: value }),
        (error: Error) => error.message.includes(name) && !error.message.includes(secret),
      );
    });

  it('a certificate that is neither a text nor readable by the plugin is refused', () => {
    assert.throws(() => parseConfig({ CAUSEWAY_CONSUL_CA: '/etc/ssl/ca.pem' }), /below \/run/);
    assert.equal(parseConfig({ CAUSEWAY_CONSUL_CA: '/run/ca.pem' }).CAUSEWAY_CONSUL_CA, '/run/ca.pem');
  });
});
