// Owns the tests of the publisher: what a Docker Engine that speaks, is silent or knows nothing does to the records.
// Must not test how records are rendered; test/unit/swarm/services.test.ts does.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { openEmbedded } from '../../../store/embedded.ts';
import { openRecords, type Records } from '../../../store/records.ts';
import type { Op, Store } from '../../../store/store.ts';
import { connectDocker, type Docker, type Service, type Task } from '../../../swarm/docker.ts';
import { runPublisher, type Observation, type Swarm } from '../../../swarm/publisher.ts';
import { EngineHealth } from '../../../swarm/engine-health.ts';
import { FakeDockerApi } from '../../fake/docker-api.ts';
import { captureLog, type LogLine } from '../../fake/log.ts';
import { eventually } from '../../support/until.ts';

function service(id: string): Service {
  return { ID: id, Spec: { Name: `name of ${id}`, TaskTemplate: { Networks: [{ Target: 'ours' }] } } };
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
  let health: EngineHealth;
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
    health = new EngineHealth(captured.log, () => engine.engine);
    running = runPublisher(
      { docker: engine, health, store, records, log: captured.log, elect, observed, now: Date.now },
      stop.signal,
    );
  }

  /** Resolves after a whole look, before the next of which there is a second without a hint. */
  async function looksAreRare(): Promise<void> {
    let seen = { looks: observations.length, at: performance.now() };
    await eventually(
      () => {
        const now = { looks: observations.length, at: performance.now() };
        if (now.looks === seen.looks) return false;
        const pause = now.at - seen.at;
        seen = now;
        return pause > 450;
      },
      { timeoutMs: 10_000 },
    );
  }

  afterEach(async () => {
    stop.abort();
    await running;
    docker.close();
    await api.close();
    await store.close();
    await rm(directory, { recursive: true });
  });

  it('the publisher writes what Swarm lists, removes what it no longer lists, and passes the whole look on', async () => {
    start();
    await eventually(async () => (await ids()).length === 1);
    await eventually(() => observations.length > 0);
    assert.deepEqual(
      observations[0]?.swarm?.services.map(({ ID }) => ID),
      ['web'],
    );
    api.services = [service('api')];
    api.hint();
    await eventually(async () => (await ids()).join() === 'api');
  });

  it('the name of our network, and whether it is internal, is written before a service on it is published', async () => {
    const [seen] = api.networks;
    assert.ok(seen);
    api.networks = [
      { ...seen, Internal: true },
      { ...seen, Id: 'of another' },
    ];
    const commit = store.commit.bind(store);
    let known: object | undefined;
    store.commit = async (ops, ...rest) => {
      if (ops.some(({ key }) => key.startsWith('services/')))
        known ??= (await records.networks.get('ours'))?.value;
      return commit(ops, ...rest);
    };
    start();
    await eventually(async () => (await ids()).length === 1);
    const { name, internal } = known as { name?: string; internal?: boolean };
    assert.deepEqual([name, internal], ['front', true]);
    assert.equal(await records.networks.get('of another'), undefined);
  });

  it('a store that does not take the names of networks holds no service up', async () => {
    records.networks.update = () => new Promise(() => undefined);
    start();
    await eventually(async () => (await ids()).length === 1);
  });

  it('more services than fit into one commit are published', async () => {
    api.services = Array.from({ length: 150 }, (_, at) => service(`service-${at}`));
    start();
    await eventually(async () => (await ids()).length === 150);
  });

  it('services that are too large for one commit together are published', async () => {
    const port = (at: number) =>
      ({ Protocol: 'tcp', TargetPort: at, PublishedPort: at, PublishMode: 'ingress' }) as const;
    const Ports = Array.from({ length: 200 }, (_, at) => port(at + 1));
    api.services = Array.from({ length: 60 }, (_, at) => ({
      ...service(`service-${at}`),
      Endpoint: { Ports },
    }));
    start();
    await eventually(async () => (await ids()).length === 60);
  });

  const published = (count: number, shift: number) =>
    Array.from({ length: count }, (_, at) => ({
      Protocol: 'udp' as const,
      TargetPort: 10_000 + at * shift,
      PublishedPort: 10_000 + at,
      PublishMode: 'ingress',
    }));
  const manyTasks = Array.from({ length: 5_000 }, (_, at): Task => ({
    ...{ ID: `task-${at}-of-web-2345678901`, ServiceID: 'pbx', NodeID: 'node', DesiredState: 'running' },
    Status: { State: 'running' },
    NetworksAttachments: [{ Network: { ID: 'ours' }, Addresses: [`10.64.${at >> 8}.${at & 255}/16`] }],
  }));
  const odd = { ...service('pbx'), Endpoint: { Ports: [{ TargetPort: 'x' }] } } as unknown as Service;
  const huge: Record<string, [Service, Task[], RegExp | undefined]> = {
    '8,001 ports': [{ ...service('pbx'), Endpoint: { Ports: published(8_001, 1) } }, [], undefined],
    '8,001 ports in no order': [
      { ...service('pbx'), Endpoint: { Ports: published(8_001, 0) } },
      [],
      /of its published ports are left to Docker’s own mesh/,
    ],
    '5,000 tasks': [service('pbx'), manyTasks, /of its tasks get no connections/],
    'a label of a megabyte': [
      { ...service('pbx'), Spec: { ...service('pbx').Spec, Labels: { 'causeway.x': 'x'.repeat(1e6) } } },
      [],
      /too long/,
    ],
  };
  for (const [what, [pbx, tasks, problem]] of Object.entries(huge))
    it(`a service with ${what} is published as far as possible, and all others`, async () => {
      api.services = [service('a'), pbx, service('z')];
      api.tasks = tasks;
      start();
      await eventually(async () => (await ids()).join() === 'a,pbx,z');
      const { value } = (await records.services.get('pbx'))!;
      if (problem === undefined) assert.equal(value.ports.length, 8_001);
      else assert.match(value.problems?.join() ?? '', problem);
    });

  it('a service that cannot be read stays as it was, with the reason in its record, and others are published', async () => {
    api.services = [service('a'), service('pbx')];
    start();
    await eventually(async () => (await ids()).join() === 'a,pbx');
    api.services = [service('b'), odd];
    api.hint();
    await eventually(async () => (await ids()).join() === 'b,pbx');
    const { value } = (await records.services.get('pbx'))!;
    assert.match(value.problems?.join() ?? '', /Docker’s answer cannot be read.*TargetPort/);
    assert.equal(lines.filter(({ level }) => level === 'error').length, 1);
    api.services = [service('b'), service('pbx')];
    api.hint();
    await eventually(async () => (await records.services.get('pbx'))?.value.problems === undefined);
  });

  it('a hint causes a look long before the next turn, and again soon after', async () => {
    start();
    await looksAreRare();
    api.services = [];
    api.hint();
    await eventually(async () => (await ids()).length === 0, { timeoutMs: 600 });
    // The state of a task follows its container's event, without one of its own.
    await sleep(50);
    api.services = [service('web')];
    await eventually(async () => (await ids()).length === 1, { timeoutMs: 1500 });
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

  it('an update: its services are looked at several times a second, and all else stays', async () => {
    api.services = [updating('web'), service('api')];
    const [old, next] = [
      task('old', 'running', 'running', '10.64.0.3'),
      task('next', 'running', 'running', '10.64.0.4'),
    ];
    const other = task('other', 'running', 'running', '10.64.0.5', 'api');
    api.tasks = [old, other];
    start();
    await eventually(async () => (await served()).join() === 'old,other');
    await looksAreRare();
    const whole = observations.length;
    for (const tasks of [[old, next], [next]]) {
      api.tasks = [...tasks, other];
      const ids = api.tasks.map(({ ID }) => ID).sort();
      await eventually(async () => (await served()).join() === ids.join(), { timeoutMs: 600 });
    }
    assert.equal(observations.length, whole, 'whole looks');
    // One that fails is no reason to wait.
    await api.close();
    await eventually(() => lines.some(({ msg }) => msg.startsWith('cannot update services')));
    api = new FakeDockerApi();
    await api.listen(socket());
    await eventually(() => observations.length > whole, { timeoutMs: 600 });
  });

  it('a glance writes with the fence of the current leadership', async () => {
    const lead = async (): Promise<void> => {
      await store.commit([{ op: 'set', key: 'leader', value: performance.now() }]);
      fence = [{ op: 'check', key: 'leader', version: (await store.get('leader'))!.version }];
    };
    await lead();
    api.services = [updating('web')];
    start();
    await eventually(async () => (await ids()).length === 1);
    await looksAreRare();
    const whole = observations.length;
    await lead();
    api.tasks = [task('next', 'running', 'running', '10.64.0.4')];
    await eventually(async () => (await served()).join() === 'next', { timeoutMs: 600 });
    assert.equal(observations.length, whole, 'whole looks');
  });

  it('a service of a glance is gone: everything is looked at', async () => {
    api.services = [updating('web'), service('api')];
    start();
    await looksAreRare();
    api.services = [service('api')];
    await eventually(async () => (await ids()).join() === 'api', { timeoutMs: 600 });
    assert.deepEqual(
      lines.filter(({ level }) => level === 'warn'),
      [],
    );
  });

  it('after a look the publisher rests for as long as it took, however many hints there are', async () => {
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

  it('tasks that have an address before they run are known, and served when they run', async () => {
    api.tasks = [
      task('running', 'running', 'running', '10.64.0.3'),
      // It waits for the end of another, or for its restart delay.
      task('waiting', 'ready', 'ready', '10.64.0.4'),
      task('ended', 'shutdown', 'complete', '10.64.0.5'),
    ];
    start();
    await eventually(async () => (await ids()).length === 1);
    assert.deepEqual(
      observations.at(-1)?.swarm?.tasks.map(({ ID }) => ID),
      ['running', 'waiting'],
    );
    assert.deepEqual(await served(), ['running']);
  });

  it('nothing changed: nothing is written', async () => {
    start();
    await eventually(() => observations.length >= 1);
    const { index } = await store.list('');
    await eventually(() => observations.length >= 3);
    assert.equal((await store.list('')).index, index);
  });

  it('a silent Docker: nothing is deleted, it is logged once, and publishing goes on when it answers', async () => {
    start();
    await eventually(async () => (await ids()).length === 1);
    await api.close();
    await eventually(() => lines.some(({ msg }) => msg.startsWith('cannot update services')));
    await sleep(1200);
    assert.deepEqual(await ids(), ['web']);
    assert.equal(lines.filter(({ level }) => level === 'warn').length, 1);
    api = new FakeDockerApi();
    api.services = [service('web'), service('api')];
    await api.listen(socket());
    await eventually(async () => (await ids()).length === 2);
    assert.ok(lines.some(({ msg }) => msg.startsWith('services updated again')));
  });

  it('Docker refuses: reported once with its reason, and once when it is over', async () => {
    api.refusal = 'authorization denied by plugin';
    start();
    const told = (): string[] =>
      lines
        .filter(({ msg, level }) => level === 'error' || msg.includes('usable again'))
        .map(({ msg }) => msg);
    await eventually(() => told().length > 0);
    await sleep(1200);
    assert.deepEqual(told(), ['Docker API unusable: nothing new is published or named']);
    assert.match(health.state.error ?? '', /refuses with 403.*authorization denied by plugin/);
    api.refusal = undefined;
    await eventually(async () => (await ids()).length === 1);
    assert.deepEqual(told().slice(1), ['Docker API usable again']);
    assert.deepEqual(health.state, { version: '28.5.2', api: '1.51' });
  });

  it('another manager has taken over: nothing is written', async () => {
    await records.networks.update('ours', (network) => network && { ...network, name: 'front' });
    const { index } = await store.list('');
    fence = [{ op: 'check', key: 'leader', version: 7 }];
    start();
    await eventually(() => observations.length >= 2);
    assert.equal((await store.list('')).index > index, false);
    assert.deepEqual(await ids(), []);
  });

  it('a new endpoint on any node causes a look', async () => {
    start();
    await eventually(async () => (await ids()).length === 1);
    await looksAreRare();
    api.services = [service('web'), service('api')];
    await records.endpoints.put('ours/far', {
      v: 1,
      id: 'far',
      network: 'ours',
      node: 'node-2',
      address: '10.64.0.9',
      mac: '02:42:0a:4d:00:05',
      sandbox: '/run/docker/netns/there',
    });
    await eventually(async () => (await ids()).length === 2, { timeoutMs: 600 });
  });

  it('where another manager leads, no lists of services and tasks are asked for; once this one leads, all', async () => {
    await records.services.put('gone', record('gone'));
    const asked: string[] = [];
    const counting: Docker = {
      ...docker,
      services: (...args) => (asked.push('services'), docker.services(...args)),
      tasks: (...args) => (asked.push('tasks'), docker.tasks(...args)),
    };
    const led = (Leader: boolean) => [{ ID: 'node', Status: { State: 'ready' }, ManagerStatus: { Leader } }];
    api.nodes = led(false);
    start(counting);
    await eventually(() => observations.length >= 2);
    assert.deepEqual(asked, []);
    assert.ok(observations.every(({ swarm }) => swarm === undefined));
    assert.deepEqual(await ids(), ['gone']);
    api.nodes = led(true);
    api.hint({ Type: 'node', Action: 'update' });
    await eventually(async () => (await ids()).join() === 'web');
  });

  it('a worker, which cannot know, deletes nothing', async () => {
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

  it('a node without a Swarm any more deletes all services', async () => {
    await records.services.put('web', record('web'));
    api.manager = false;
    api.swarm = 'inactive';
    start();
    await eventually(async () => (await ids()).length === 0);
    await eventually(() => observations.length > 0);
    assert.deepEqual(
      observations[0]?.networks.map(({ Id }) => Id),
      ['ours'],
    );
  });

  it('a Docker that accepts and never answers does not keep the publisher from ending', async () => {
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
