// Owns the tests of the protocol itself: every call, formats of answers, and requests that cannot be understood.
// Must not test what calls do.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { request as httpRequest } from 'node:http';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { connectDocker } from '../../swarm/docker.ts';
import { EngineHealth } from '../../swarm/engine-health.ts';
import { runPublisher } from '../../swarm/publisher.ts';
import { FakeDockerApi } from '../fake/docker-api.ts';
import { captureLog } from '../fake/log.ts';
import { label, Node } from './node.ts';

const contentType = 'application/vnd.docker.plugins.v1.2+json';

/** Calls without arguments and their answers. */
const questions: Record<string, object> = {
  'Plugin.Activate': { Implements: ['NetworkDriver', 'IpamDriver'] },
  'NetworkDriver.GetCapabilities': { Scope: 'global', ConnectivityScope: 'global', GwAllocChecker: true },
  'IpamDriver.GetCapabilities': { RequiresMACAddress: false, RequiresRequestReplay: false },
  'IpamDriver.GetDefaultAddressSpaces': {
    LocalDefaultAddressSpace: 'causeway-local',
    GlobalDefaultAddressSpace: 'causeway-global',
  },
};

/** Calls with arguments: what each cannot do without. */
const required: Record<string, string[]> = {
  'NetworkDriver.AllocateNetwork': ['NetworkID'],
  'NetworkDriver.FreeNetwork': ['NetworkID'],
  'NetworkDriver.CreateNetwork': ['NetworkID'],
  'NetworkDriver.DeleteNetwork': ['NetworkID'],
  'NetworkDriver.CreateEndpoint': ['NetworkID', 'EndpointID'],
  'NetworkDriver.DeleteEndpoint': ['NetworkID', 'EndpointID'],
  'NetworkDriver.EndpointOperInfo': ['NetworkID', 'EndpointID'],
  'NetworkDriver.Join': ['NetworkID', 'EndpointID', 'SandboxKey'],
  'NetworkDriver.Leave': ['NetworkID', 'EndpointID'],
  'NetworkDriver.DiscoverNew': ['DiscoveryType'],
  'NetworkDriver.DiscoverDelete': ['DiscoveryType'],
  'NetworkDriver.ProgramExternalConnectivity': ['NetworkID', 'EndpointID'],
  'NetworkDriver.RevokeExternalConnectivity': ['NetworkID', 'EndpointID'],
  'IpamDriver.RequestPool': ['AddressSpace'],
  'IpamDriver.ReleasePool': ['PoolID'],
  'IpamDriver.RequestAddress': ['PoolID'],
  'IpamDriver.ReleaseAddress': ['PoolID', 'Address'],
};

describe('the plugin socket', () => {
  let node: Node;
  beforeEach(async () => {
    node = await Node.start();
  });
  afterEach(() => node.stop());

  for (const [method, answer] of Object.entries(questions)) {
    it(`${method} with an empty body is answered`, async () => {
      assert.deepEqual(await node.client.post(method), { status: 200, contentType, body: answer });
    });
  }

  it('GwAllocCheck of Docker 28 and later: the answer is that every network has an IPv4 gateway', async () => {
    const Options = { [label.internal]: true };
    assert.deepEqual(await node.client.post('NetworkDriver.GwAllocCheck', { Options }), {
      status: 200,
      contentType,
      body: { SkipIPv4: false, SkipIPv6: true },
    });
  });

  it('DiscoverNew and DiscoverDelete, Docker’s own gossip, are answered and change nothing', async () => {
    // DiscoveryType 1 is a node, 2 an encryption key (libnetwork/discoverapi).
    const found = {
      DiscoveryType: 1,
      DiscoveryData: { Address: '203.0.113.1', BindAddress: '', Self: true },
    };
    for (const method of ['NetworkDriver.DiscoverNew', 'NetworkDriver.DiscoverDelete'])
      assert.deepEqual((await node.client.post(method, found)).body, {});
  });

  it('a request of any content type, or of none, is understood', async () => {
    // PluginClient names none, as Docker.
    const status = await new Promise<number | undefined>((resolve, reject) => {
      const call = httpRequest(
        {
          socketPath: node.socket,
          path: '/NetworkDriver.GetCapabilities',
          method: 'POST',
          headers: { 'content-type': 'application/json' },
        },
        (response) => {
          response.resume();
          resolve(response.statusCode);
        },
      );
      call.on('error', reject).end('{}');
    });
    assert.equal(status, 200);
  });

  it('an idle connection of Docker’s stays open for a while', async function () {
    this.timeout(20_000);
    const socket = connect(node.socket);
    const call = 'POST /NetworkDriver.GetCapabilities HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n';
    for (const pause of [0, 8_000]) {
      await sleep(pause);
      socket.write(call);
      const [answer] = (await once(socket, 'data', { signal: AbortSignal.timeout(2_000) })) as [Buffer];
      assert.match(String(answer), /^HTTP\/1.1 200 /);
    }
    socket.destroy();
  });

  it('a call that is not known: 404, as Docker expects it', async () => {
    for (const method of ['NetworkDriver.Frobnicate', 'VolumeDriver.Create', 'toString', '__proto__', '']) {
      const answer = await node.client.post(method, {});
      assert.equal(answer.status, 404, method);
      assert.equal(answer.contentType, contentType);
      assert.equal(typeof answer.body['Err'], 'string');
    }
  });

  it('a request that is no POST: 404', async () => {
    const status = await new Promise<number | undefined>((resolve, reject) => {
      httpRequest({ socketPath: node.socket, path: '/NetworkDriver.GetCapabilities' }, (response) => {
        response.resume();
        resolve(response.statusCode);
      })
        .on('error', reject)
        .end();
    });
    assert.equal(status, 404);
  });

  for (const [method, fields] of Object.entries(required)) {
    describe(`${method} without a field that it needs`, () => {
      const cases: Record<string, unknown> = {
        'with an empty body, as from a retry whose buffer was drained': undefined,
        'with half a body': '{"NetworkID": "f',
        'with a list instead of an object': [],
        'with null': 'null',
      };
      for (const [what, body] of Object.entries(cases)) {
        it(what, async () => {
          const answer = await node.client.post(method, body);
          assert.equal(answer.status, 400);
          assert.equal(answer.contentType, contentType);
          assert.match(String(answer.body['Err']), new RegExp(`^${method.replace('.', '\\.')}: `));
        });
      }

      for (const field of fields) {
        it(`a call without ${field}: 400, and the error names the field`, async () => {
          const others = fields.filter((other) => other !== field).map((other) => [other, 'x'] as const);
          const answer = await node.client.post(method, Object.fromEntries(others));
          assert.equal(answer.status, 400);
          assert.match(String(answer.body['Err']), new RegExp(`^${method.replace('.', '\\.')}: .*${field}`));
        });
      }
    });
  }

  it('a field of the wrong type: 400', async () => {
    const answer = await node.client.post('NetworkDriver.Leave', { NetworkID: 5, EndpointID: 'e' });
    assert.equal(answer.status, 400);
    assert.match(String(answer.body['Err']), /^NetworkDriver\.Leave: .*NetworkID/);
  });

  it('a body that is too large is refused, and the next request is answered', async () => {
    const answer = await node.client.post(
      'NetworkDriver.Leave',
      JSON.stringify({ NetworkID: 'x'.repeat(5e6) }),
    );
    assert.equal(answer.status, 400);
    assert.equal((await node.client.post('NetworkDriver.GetCapabilities')).status, 200);
  });

  it('fields of a later Docker that are not known are ignored', async () => {
    const ids = { NetworkID: 'n', EndpointID: 'e', Novelty: { Deep: 1 } };
    assert.equal((await node.client.post('NetworkDriver.Leave', ids)).status, 200);
  });

  it('a refusal is answered with 200: in Err by the network driver, in Error by IPAM', async () => {
    const ids = { NetworkID: 'n', EndpointID: 'e' };
    const network = await node.client.post('NetworkDriver.EndpointOperInfo', ids);
    assert.deepEqual(
      [network.status, network.contentType, Object.keys(network.body)],
      [200, contentType, ['Err']],
    );
    const ipam = await node.client.post('IpamDriver.RequestAddress', { PoolID: 'nobody', Address: '' });
    assert.deepEqual([ipam.status, ipam.contentType, Object.keys(ipam.body)], [200, contentType, ['Error']]);
  });

  it('the log has a refusal of what a user asked for as a warning, and a failure of the plugin as an error', async () => {
    await node.client.post('NetworkDriver.EndpointOperInfo', { NetworkID: 'n', EndpointID: 'e' });
    assert.deepEqual(
      node.lines.filter(({ level }) => level !== 'debug').map(({ level }) => level),
      ['warn'],
    );
    await node.store.close();
    await node.client.post('NetworkDriver.EndpointOperInfo', { NetworkID: 'n', EndpointID: 'e' });
    assert.equal(node.lines.at(-1)?.level, 'error');
  });

  it('a Docker API that accepts and never answers, as while the daemon starts: calls are answered all the same', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'causeway-silent-'));
    const api = new FakeDockerApi();
    api.silent = true;
    await api.listen(join(directory, 'docker.sock'));
    const docker = connectDocker(join(directory, 'docker.sock'));
    const stop = new AbortController();
    const { store, records } = node;
    const observed = (): void => undefined;
    const publisher = runPublisher(
      {
        docker,
        health: new EngineHealth(captureLog().log, () => docker.engine),
        store,
        records,
        log: captureLog().log,
        now: Date.now,
        elect: (swarm) => Promise.resolve(swarm && []),
        observed,
      },
      stop.signal,
    );
    const started = performance.now();
    const network = await node.network('n');
    await node.endpoint(network, 'e');
    await node.join(network, 'e');
    // Docker's answer to any of the publisher's questions would take 5 s to be given up.
    assert.ok(performance.now() - started < 2000);
    stop.abort();
    await publisher;
    docker.close();
    await api.close();
    await rm(directory, { recursive: true });
  });
});
