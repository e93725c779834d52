// Owns the tests of how the Docker Engine is spoken to: which API version, and what is told when it cannot be used.
// Must not test what is done with its answers; the publisher's tests do.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connectDocker, DockerError, type Docker } from '../../../swarm/docker.ts';
import { EngineHealth } from '../../../swarm/engine-health.ts';
import { FakeDockerApi } from '../../fake/docker-api.ts';
import { captureLog, type LogLine } from '../../fake/log.ts';

const { signal } = new AbortController();

const engines = {
  '20.10.24': { ApiVersion: '1.41', MinAPIVersion: '1.12' },
  '26.1.5': { ApiVersion: '1.45', MinAPIVersion: '1.24' },
  '28.5.2': { ApiVersion: '1.51', MinAPIVersion: '1.24' },
  '28.5.2 with DOCKER_MIN_API_VERSION': { ApiVersion: '1.51', MinAPIVersion: '1.44' },
  '29.2.1': { ApiVersion: '1.53', MinAPIVersion: '1.44' },
  '29.10.0': { ApiVersion: '1.57', MinAPIVersion: '1.40' },
  'one to come': { ApiVersion: '1.70', MinAPIVersion: '1.60' },
};

describe('the API version', () => {
  let directory: string;
  let api: FakeDockerApi;
  let docker: Docker;

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'causeway-docker-'));
    api = new FakeDockerApi();
    await api.listen(join(directory, 'docker.sock'));
    docker = connectDocker(join(directory, 'docker.sock'));
  });
  afterEach(async () => {
    docker.close();
    await api.close();
    await rm(directory, { recursive: true });
  });

  const spoken = ['1.41', '1.45', '1.51', '1.51', '1.51', '1.51', '1.60'];
  for (const [index, [name, versions]] of Object.entries(engines).entries())
    it(`Docker ${name}: API version ${spoken[index]}, asked for once`, async () => {
      api.engine = { Version: name, ...versions };
      await docker.info(signal);
      await docker.networks(signal);
      assert.deepEqual(api.asked, ['/version', `/v${spoken[index]}/info`, `/v${spoken[index]}/networks`]);
      assert.deepEqual(docker.engine, { version: name, api: spoken[index] });
    });

  it('the API version is found anew when the engine refuses the one of before', async () => {
    api.engine = { Version: '20.10.24', ...engines['20.10.24'] };
    await docker.info(signal);
    api.engine = { Version: '29.2.1', ...engines['29.2.1'] };
    await docker.info(signal);
    api.engine = { Version: '20.10.24', ...engines['20.10.24'] };
    await docker.info(signal);
    const asked = api.asked.filter((path) => path.endsWith('/info'));
    assert.deepEqual(asked, ['/v1.41/info', '/v1.41/info', '/v1.51/info', '/v1.51/info', '/v1.41/info']);
  });

  it('the API version is found anew after the engine was away', async () => {
    await docker.info(signal);
    await api.close();
    await assert.rejects(docker.info(signal), DockerError);
    assert.equal(docker.engine, undefined);
    api = new FakeDockerApi();
    api.engine = { Version: '26.1.5', ...engines['26.1.5'] };
    await api.listen(join(directory, 'docker.sock'));
    await docker.info(signal);
    assert.deepEqual(docker.engine, { version: '26.1.5', api: '1.45' });
  });

  it('the API version is found anew when the event stream ended, as with a new engine', async () => {
    const events = docker.events(['service'], signal)[Symbol.asyncIterator]();
    const next = events.next();
    await docker.info(signal);
    await api.close();
    await next.catch(() => undefined);
    assert.equal(docker.engine, undefined);
  });

  // What changed between 1.41 and 1.57 of all that is read.
  for (const [version, of] of Object.entries({
    '1.41': { Aliases: ['web', '0123456789ab'] },
    '1.45': { Aliases: ['web'], DNSNames: ['app', 'web', '0123456789ab'] },
    '1.52': { Aliases: ['web'], DNSNames: ['app'], GwPriority: 0 },
  }))
    it(`a container is read as API version ${version} and later describe it`, async () => {
      const settings = { NetworkID: 'front', EndpointID: 'endpoint', ...of };
      api.containers = [
        {
          Id: '0123456789abcdef',
          Name: '/app',
          Config: { Hostname: '0123456789ab', Labels: null },
          State: { Running: true, Health: null },
          NetworkSettings: { Networks: { front: settings } },
        },
      ];
      const [id] = await docker.containers(signal);
      const { Networks } = (await docker.container(id!, signal))!.NetworkSettings;
      assert.deepEqual(Networks['front']!.Aliases, of.Aliases);
    });
});

describe('the health of the engine', () => {
  let engine: Docker['engine'];
  let now: number;
  let health: EngineHealth;
  let lines: LogLine[];

  beforeEach(() => {
    engine = { version: '28.5.2', api: '1.51' };
    now = 0;
    const captured = captureLog();
    ({ lines } = captured);
    health = new EngineHealth(
      captured.log,
      () => engine,
      () => now,
    );
  });

  it('an engine that starts, or whose managers elect a leader, is no trouble', () => {
    for (const status of [undefined, 500]) {
      health.failed(new DockerError('GET /info: not now', status));
      now += 9_000;
      health.failed(new DockerError('GET /info: not now', status));
      health.answered();
    }
    assert.deepEqual(health.state, engine);
    assert.deepEqual(lines, []);
  });

  it('trouble with the engine is reported once it lasts, with the current reason, and its end once', () => {
    health.failed(new DockerError('GET /info: no answer from the Docker Engine at /run/docker.sock'));
    now += 10_000;
    assert.match(health.state.error ?? '', /^Docker does not answer: .*; see if dockerd runs$/);
    for (const reason of ['one', 'two']) health.failed(new DockerError(reason, 500));
    assert.match(health.state.error ?? '', /refuses with 500: two/);
    health.answered();
    health.answered();
    assert.deepEqual(
      lines.map(({ level }) => level),
      ['error', 'info'],
    );
    assert.equal(health.state.error, undefined);
  });

  for (const [what, error] of Object.entries({
    'refuses the version of its API': new DockerError('GET /info: client version 1.41 is too old', 400),
    'answers what cannot be read': new SyntaxError('Unexpected token'),
  }))
    it(`trouble is reported at once when the engine ${what}`, () => {
      health.failed(error);
      assert.ok(health.state.error?.includes(error.message));
      assert.equal(lines[0]?.level, 'error');
    });

  for (const version of ['29.0.0', '29.0.1', '29.0.2-1'])
    it(`Docker ${version}, which ends with a crash, is warned of`, () => {
      engine = { version, api: '1.51' };
      for (let look = 0; look < 3; look += 1) health.answered();
      assert.match(health.state.error ?? '', /update Docker to 29\.0\.3 or later$/);
      assert.equal(lines.filter(({ level }) => level === 'error').length, 1);
    });

  for (const version of ['28.5.2+dfsg4', '29.0.3', '29.0.20', '29.10.0'])
    it(`Docker ${version} is not warned of`, () => {
      engine = { version, api: '1.51' };
      health.answered();
      assert.equal(health.state.error, undefined);
      assert.deepEqual(lines, []);
    });
});
