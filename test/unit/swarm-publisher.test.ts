// Owns the tests of the publisher: what a Docker Engine that speaks, is silent or knows nothing does to the records.
// Must not test how records are rendered; swarm-services.test.ts does.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { openEmbedded } from '../../store/embedded.ts';
import { openRecords, type Records } from '../../store/records.ts';
import type { Op, Store } from '../../store/store.ts';
import { connectDocker, type Docker, type Service, type Task } from '../../swarm/docker.ts';
import { describeNetworks, runPublisher, type Observation, type Swarm } from '../../swarm/publisher.ts';
import { FakeDockerApi } from '../fake/docker-api.ts';
import { captureLog, type LogLine } from '../fake/log.ts';

function service(id: string): Service {
  return { ID: id, Spec: { Name: `name of ${id}`, TaskTemplate: { Networks: [{ Target: 'ours' }] } } };
}

async function until(condition: () => Promise<boolean> | boolean, milliseconds = 5000): Promise<void> {
  const deadline = performance.now() + milliseconds;
  while (!(await condition())) {
    assert.ok(performance.now() < deadline, 'it did not come to pass');
    await sleep(5);
  }
}

describe('the publisher', () => {
  let directory: string;
  let api: FakeDockerApi;
  let docker: Docker;
  let store: Store;
  let records: Records;
  let lines: LogLine[];
  let observations: Observation[];
  let stop: AbortController;
  let running: Promise<void>;
  /** What a commit of an elected manager carries. */
  let fence: Op[];

  const ids = async (): Promise<string[]> => (await records.services.list()).rows.map(({ id }) => id);
  const socket = (): string => join(directory, 'docker.sock');

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'causeway-publisher-'));
    api = new FakeDockerApi();
    api.networks = [{ Id: 'ours', Name: 'front', Driver: 'causeway', Internal: false, Scope: 'swarm' }];
    api.services = [service('web')];
    await api.listen(socket());
    docker = connectDocker(socket());
    store = openEmbedded(':memory:');
    records = openRecords(store);
    const addresses = { subnet: '10.64.0.0/20', gateway: '10.64.0.1', internal: false };
    await records.networks.put('ours', { v: 1, id: 'ours', ...addresses, allocated: true });
    observations = [];
    fence = [];
    stop = new AbortController();
  });

  function start(engine = docker): void {
    const captured = captureLog();
    ({ lines } = captured);
    const elect = (swarm: Swarm | undefined) => Promise.resolve(swarm && fence);
    const observed = (observation: Observation): void => void observations.push(observation);
    running = runPublisher(
      { docker: engine, store, records, log: captured.log, elect, observed, now: Date.now },
      stop.signal,
    );
  }

  /** Resolves after a whole look, before the next of which there is a second without a hint. */
  async function looksAreRare(): Promise<void> {
    let seen = { looks: observations.length, at: performance.now() };
    await until(() => {
      const now = { looks: observations.length, at: performance.now() };
      if (now.looks === seen.looks) return false;
      const pause = now.at - seen.at;
      seen = now;
      return pause > 450;
    }, 10_000);
  }

  afterEach(async () => {
    stop.abort();
    await running;
    docker.close();
    await api.close();
    await store.close();
    await rm(directory, { recursive: true });
  });

  it('writes what Swarm lists, takes away what it lists no longer, and passes on the whole look', async () => {
    start();
    await until(async () => (await ids()).length === 1);
    await until(() => observations.length > 0);
    assert.deepEqual(
      observations[0]?.swarm?.services.map(({ ID }) => ID),
      ['web'],
    );
    api.services = [service('api')];
    api.hint();
    await until(async () => (await ids()).join() === 'api');
  });

  it('knows the name of a network of ours, and whether it is internal', async () => {
    const seen = { Id: 'ours', Name: 'front', Driver: 'causeway', Internal: true, Scope: 'swarm' };
    await describeNetworks(records, [seen, { ...seen, Id: 'of another' }]);
    const { name, internal } = (await records.networks.get('ours'))?.value ?? {};
    assert.deepEqual([name, internal], ['front', true]);
    assert.equal(await records.networks.get('of another'), undefined);
  });

  it('writes more services than one commit holds', async () => {
    api.services = Array.from({ length: 150 }, (_, at) => service(`service-${at}`));
    start();
    await until(async () => (await ids()).length === 150);
  });

  it('writes services that are too large for one commit together', async () => {
    const port = (at: number) =>
      ({ Protocol: 'tcp', TargetPort: at, PublishedPort: at, PublishMode: 'ingress' }) as const;
    const Ports = Array.from({ length: 200 }, (_, at) => port(at + 1));
    api.services = Array.from({ length: 60 }, (_, at) => ({
      ...service(`service-${at}`),
      Endpoint: { Ports },
    }));
    start();
    await until(async () => (await ids()).length === 60);
  });

  it('looks at a hint long before its next turn, and again soon after', async () => {
    start();
    await looksAreRare();
    api.services = [];
    api.hint();
    await until(async () => (await ids()).length === 0, 600);
    // The state of a task follows its container's event, without one of its own.
    await sleep(50);
    api.services = [service('web')];
    await until(async () => (await ids()).length === 1, 1500);
  });

  const updating = (id: string): Service => ({ ...service(id), UpdateStatus: { State: 'updating' } });
  const task = (
    ID: string,
    DesiredState: string,
    State: string,
    address: string,
    ServiceID = 'web',
  ): Task => ({
    ...{ ID, ServiceID, NodeID: 'node', DesiredState, Status: { State } },
    NetworksAttachments: [{ Network: { ID: 'ours' }, Addresses: [`${address}/20`] }],
  });
  const served = async (): Promise<string[]> =>
    (await records.services.list()).rows.flatMap(({ value }) => value.tasks.map(({ id }) => id)).sort();

  it('glances at the services of an update several times a second, and takes all else as it was', async () => {
    api.services = [updating('web'), service('api')];
    const [old, next] = [
      task('old', 'running', 'running', '10.64.0.3'),
      task('next', 'running', 'running', '10.64.0.4'),
    ];
    const other = task('other', 'running', 'running', '10.64.0.5', 'api');
    api.tasks = [old, other];
    start();
    await until(async () => (await served()).join() === 'old,other');
    await looksAreRare();
    const whole = observations.length;
    for (const tasks of [[old, next], [next]]) {
      api.tasks = [...tasks, other];
      const ids = api.tasks.map(({ ID }) => ID).sort();
      await until(async () => (await served()).join() === ids.join(), 600);
    }
    assert.equal(observations.length, whole, 'whole looks');
    // One that fails is no reason to wait.
    await api.close();
    await until(() => lines.some(({ msg }) => msg.startsWith('Docker does not tell its services')));
    api = new FakeDockerApi();
    await api.listen(socket());
    await until(() => observations.length > whole, 600);
  });

  it('glances with the word that it has now to write for the cluster', async () => {
    const lead = async (): Promise<void> => {
      await store.commit([{ op: 'set', key: 'leader', value: performance.now() }]);
      fence = [{ op: 'check', key: 'leader', version: (await store.get('leader'))!.version }];
    };
    await lead();
    api.services = [updating('web')];
    start();
    await until(async () => (await ids()).length === 1);
    await looksAreRare();
    const whole = observations.length;
    await lead();
    api.tasks = [task('next', 'running', 'running', '10.64.0.4')];
    await until(async () => (await served()).join() === 'next', 600);
    assert.equal(observations.length, whole, 'whole looks');
  });

  it('looks at all when one of the services that it glances at is gone', async () => {
    api.services = [updating('web'), service('api')];
    start();
    await looksAreRare();
    api.services = [service('api')];
    await until(async () => (await ids()).join() === 'api', 600);
    assert.deepEqual(
      lines.filter(({ level }) => level === 'warn'),
      [],
    );
  });

  it('rests after a look for as long as it took, however many hints there are', async () => {
    let looks = 0;
    const slow: Docker = {
      ...docker,
      services: async (signal) => {
        looks += 1;
        await sleep(200);
        return docker.services(signal);
      },
    };
    const hints = setInterval(() => api.hint(), 10);
    start(slow);
    await sleep(1300);
    clearInterval(hints);
    assert.ok(looks >= 2 && looks <= 4, `${looks} looks`);
  });

  it('hears of tasks that have an address before they are to run, and serves them when they do', async () => {
    api.tasks = [
      task('running', 'running', 'running', '10.64.0.3'),
      // It waits for the end of another, or for its restart delay.
      task('waiting', 'ready', 'ready', '10.64.0.4'),
      task('ended', 'shutdown', 'complete', '10.64.0.5'),
    ];
    start();
    await until(async () => (await ids()).length === 1);
    assert.deepEqual(
      observations.at(-1)?.swarm?.tasks.map(({ ID }) => ID),
      ['running', 'waiting'],
    );
    assert.deepEqual(await served(), ['running']);
  });

  it('writes nothing when nothing changed', async () => {
    start();
    await until(() => observations.length >= 1);
    const { index } = await store.list('');
    await until(() => observations.length >= 3);
    assert.equal((await store.list('')).index, index);
  });

  it('deletes nothing because Docker is silent, says so once, and goes on when it answers again', async () => {
    start();
    await until(async () => (await ids()).length === 1);
    await api.close();
    await until(() => lines.some(({ msg }) => msg.startsWith('Docker does not tell its services')));
    await sleep(1200);
    assert.deepEqual(await ids(), ['web']);
    assert.equal(lines.filter(({ level }) => level === 'warn').length, 1);
    api = new FakeDockerApi();
    api.services = [service('web'), service('api')];
    await api.listen(socket());
    await until(async () => (await ids()).length === 2);
    assert.ok(lines.some(({ msg }) => msg.startsWith('Docker answers again')));
  });

  it('writes nothing once another manager has taken over', async () => {
    const { index } = await store.list('');
    fence = [{ op: 'check', key: 'leader', version: 7 }];
    start();
    await until(() => observations.length >= 2);
    assert.equal((await store.list('')).index > index, false);
    assert.deepEqual(await ids(), []);
  });

  it('looks when an endpoint comes, wherever it is', async () => {
    start();
    await until(async () => (await ids()).length === 1);
    await looksAreRare();
    api.services = [service('web'), service('api')];
    await records.endpoints.put('ours/far', {
      v: 1,
      id: 'far',
      network: 'ours',
      node: 'node-2',
      address: '10.64.0.9',
      mac: '',
      sandbox: 'there',
    });
    await until(async () => (await ids()).length === 2, 600);
  });

  it('deletes nothing on a node that cannot know, a worker', async () => {
    await records.services.put('web', record('web'));
    api.manager = false;
    start();
    await sleep(300);
    assert.deepEqual(await ids(), ['web']);
    assert.ok(observations.every(({ swarm }) => swarm === undefined));
    assert.deepEqual(
      lines.filter(({ level }) => level === 'warn'),
      [],
    );
  });

  it('deletes all services where there is no Swarm any more', async () => {
    await records.services.put('web', record('web'));
    api.manager = false;
    api.swarm = 'inactive';
    start();
    await until(async () => (await ids()).length === 0);
    await until(() => observations.length > 0);
    assert.deepEqual(
      observations[0]?.networks.map(({ Id }) => Id),
      ['ours'],
    );
  });

  it('ends when it is told to, though Docker accepts and never answers', async () => {
    api.silent = true;
    start();
    await sleep(50);
    const started = performance.now();
    stop.abort();
    await running;
    assert.ok(performance.now() - started < 1000);
  });
});

function record(id: string) {
  return { v: 1 as const, id, name: id, vips: {}, networks: ['ours'], ports: [], tasks: [] };
}
