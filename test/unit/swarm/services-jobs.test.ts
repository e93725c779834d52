// Owns the tests of Swarm's jobs, from services and tasks as a Docker Engine listed them: running, waiting and done.
// Must not need Docker.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ServiceRecord } from '../../../store/records.ts';
import { connectDocker, type Docker, type Service, type Task } from '../../../swarm/docker.ts';
import { renderServices, type Known } from '../../../swarm/services.ts';
import { FakeDockerApi } from '../../fake/docker-api.ts';
import recorded from '../../recorded/docker-jobs.json' with { type: 'json' };

const { services, tasks } = recorded as unknown as { services: Service[]; tasks: Task[] };
const networkOf = (name: string): string =>
  recorded.tasks
    .flatMap(({ NetworksAttachments }) => NetworksAttachments)
    .find(({ Network }) => Network.Spec.Name === name)!.Network.ID;
const back = networkOf('back');
const idOf = (name: string): string => recorded.services.find(({ Spec }) => Spec.Name === name)!.ID;

describe('jobs of Swarm', () => {
  let directory: string;
  let api: FakeDockerApi;
  let docker: Docker;
  const { signal } = new AbortController();

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'causeway-jobs-'));
    api = new FakeDockerApi();
    api.services = services;
    api.tasks = tasks;
    await api.listen(join(directory, 'docker.sock'));
    docker = connectDocker(join(directory, 'docker.sock'));
  });
  afterEach(async () => {
    docker.close();
    await api.close();
    await rm(directory, { recursive: true });
  });

  const addresses = (list: readonly Task[], service: string): string[] =>
    list
      .filter(({ ServiceID }) => ServiceID === idOf(service))
      .flatMap(({ NetworksAttachments }) => NetworksAttachments ?? [])
      .filter(({ Network }) => Network.ID === back)
      .flatMap(({ Addresses }) => Addresses ?? [])
      .sort();

  it('jobs: tasks that run or wait have their addresses, those that are done do not', async () => {
    const { rows: list } = await docker.tasks(signal);
    assert.deepEqual(addresses(list, 'job'), ['10.99.0.20/24', '10.99.0.6/24']);
    assert.deepEqual(addresses(list, 'gjob'), []);
    assert.deepEqual(addresses(list, 'late'), ['10.99.0.10/24'], 'it has no node yet');
    assert.deepEqual(addresses(list, 'quick'), ['10.99.0.21/24'], 'it failed, and is to be tried again');
    assert.deepEqual(
      addresses((await docker.tasks(signal, [idOf('job')])).rows, 'job'),
      addresses(list, 'job'),
    );
  });

  it('jobs: VIP, tasks and port while they run; a task that is done takes no new connections', async () => {
    const [ended, ...others] = ['10.99.0.5', '10.99.0.20', '10.99.0.6'];
    const known = (addresses: string[], before = new Map<string, ServiceRecord>()): Known => ({
      networks: new Set([back]),
      endpoints: new Set(addresses.map((address) => `${back} ${address}`)),
      before,
      now: 0,
    });
    const render = (list: readonly Task[], about: Known): Map<string, ServiceRecord> =>
      new Map(renderServices(services, list, about).map((record) => [record.name, record]));
    const { rows: now } = await docker.tasks(signal);
    const earlier = tasks.map((task) => ({ ...task, Status: { State: 'running' } }));
    const before = new Map([...render(earlier, known([ended, ...others])).values()].map((it) => [it.id, it]));
    const states = (records: Map<string, ServiceRecord>, service: string): [string | undefined, boolean][] =>
      records
        .get(service)!
        .tasks.map(({ addresses: { [back]: address }, draining }): [string | undefined, boolean] => [
          address,
          draining,
        ])
        .sort();
    const leaving = render(now, known([ended, ...others], before));
    const { vips, ports } = leaving.get('job')!;
    assert.deepEqual(vips, { [back]: '10.99.0.4' });
    assert.deepEqual(ports, [{ protocol: 'tcp', port: 8088, targetPort: 80 }]);
    assert.deepEqual(states(leaving, 'job'), [
      ['10.99.0.20', false],
      ['10.99.0.5', true],
      ['10.99.0.6', false],
    ]);
    const left = render(now, known(others, before));
    assert.deepEqual(states(left, 'job'), [
      ['10.99.0.20', false],
      ['10.99.0.6', false],
    ]);
    for (const waiting of ['late', 'quick', 'gjob']) assert.deepEqual(states(left, waiting), [], waiting);
  });
});
