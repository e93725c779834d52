// Owns the tests of what is known of a node's containers while Docker cannot tell of one of them.
// Must not test who uses it.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Containers, type ContainerSnapshot } from '../../../plugin/containers.ts';
import { nameContainers } from '../../../plugin/naming.ts';
import { openEmbedded } from '../../../store/embedded.ts';
import { endpointKey, openRecords, type Records } from '../../../store/records.ts';
import type { Store } from '../../../store/store.ts';
import { connectDocker, type ContainerDetails, type Docker } from '../../../swarm/docker.ts';
import { FakeDockerApi } from '../../fake/docker-api.ts';
import { captureLog, type LogLine } from '../../fake/log.ts';
import { eventually } from '../../support/until.ts';

const container = (id: string): ContainerDetails => ({
  Id: id,
  Name: `/${id}`,
  Config: { Hostname: id, Labels: null },
  State: { Running: true },
  NetworkSettings: { Networks: { front: { NetworkID: 'front', EndpointID: `of-${id}` } } },
});

describe('a container that Docker cannot inspect', () => {
  let directory: string;
  let api: FakeDockerApi;
  let docker: Docker;
  let store: Store;
  let records: Records;
  let lines: LogLine[];
  let sights: ContainerSnapshot[];
  let stop: AbortController;
  let running: Promise<void>;

  const names = async (): Promise<string> =>
    (await records.names.list()).rows.map(({ value }) => value.container).join();

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'causeway-containers-'));
    api = new FakeDockerApi();
    await api.listen(join(directory, 'docker.sock'));
    docker = connectDocker(join(directory, 'docker.sock'));
    store = openEmbedded(':memory:');
    records = openRecords(store);
    sights = [];
    for (const [at, id] of ['bad', 'good', 'later'].entries()) {
      const endpoint = {
        v: 1,
        id: `of-${id}`,
        network: 'front',
        node: 'n1',
        mac: '02:42:0a:4d:00:05',
        sandbox: `/run/docker/netns/${id}`,
      } as const;
      await records.endpoints.put(endpointKey(endpoint), { ...endpoint, address: `10.64.0.${at + 2}` });
    }
    api.containers = [container('bad'), container('good')];
  });

  function start(): void {
    const captured = captureLog();
    ({ lines } = captured);
    stop = new AbortController();
    const naming = nameContainers({ store, records, node: 'n1' });
    const followers = [
      naming,
      (sight: ContainerSnapshot) => {
        sights.push(sight);
        return Promise.resolve(true);
      },
    ];
    const containers = new Containers({ docker, records, node: 'n1', log: captured.log, followers });
    running = containers.run(stop.signal);
  }

  afterEach(async () => {
    stop.abort();
    await running;
    docker.close();
    await api.close();
    await store.close();
    await rm(directory, { recursive: true });
  });

  for (const how of ['fails', 'hangs'] as const) {
    it(`inspecting one container ${how}: all others are named, also those that come later`, async () => {
      api.untold.set('bad', how);
      start();
      await eventually(async () => (await names()) === 'good');
      api.containers.push(container('later'));
      api.hint({ Type: 'container', Action: 'start' });
      await eventually(async () => (await names()) === 'good,later');
      assert.deepEqual(sights.at(-1)?.untold, new Set(['bad']));
      await eventually(() => lines.some(({ msg }) => msg.startsWith('cannot inspect a container')));
      assert.equal(lines.filter(({ level }) => level === 'warn').length, 1);
    });

    it(`inspecting one container ${how}: it keeps the names that it had`, async () => {
      start();
      await eventually(async () => (await names()) === 'bad,good');
      stop.abort();
      await running;
      api.untold.set('bad', how);
      start();
      await eventually(() => sights.at(-1)?.untold.has('bad') === true);
      assert.equal(await names(), 'bad,good');
    });
  }
});
