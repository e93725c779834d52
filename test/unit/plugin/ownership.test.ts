// Owns the tests of whose the records are: one shared store, and Swarms that were given it, each told by its Docker API.
// Must not test what is published or collected; the publisher's and the collector's tests do.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Ipam } from '../../../ipam/ipam.ts';
import { Collector } from '../../../plugin/collector.ts';
import { Membership } from '../../../plugin/membership.ts';
import { Ownership } from '../../../plugin/ownership.ts';
import { openEmbedded } from '../../../store/embedded.ts';
import { gated, gatedLock } from '../../../store/gate.ts';
import { openRecords, type Records } from '../../../store/records.ts';
import type { Store } from '../../../store/store.ts';
import { connectDocker, type Docker } from '../../../swarm/docker.ts';
import { EngineHealth } from '../../../swarm/engine-health.ts';
import { runPublisher } from '../../../swarm/publisher.ts';
import { withLocks } from '../../fake/locks.ts';
import { FakeDockerApi } from '../../fake/docker-api.ts';
import { FakeKernel } from '../../fake/kernel.ts';
import { captureLog, type LogLine } from '../../fake/log.ts';
import { eventually } from '../../support/until.ts';

const fabric = { port: 4790, vni: 4790 };

/** One node: its Docker, and what of the plugin writes to the shared store. */
interface Member {
  api: FakeDockerApi;
  docker: Docker;
  ownership: Ownership;
  membership: Membership;
  store: Store;
  ipam: Ipam;
  lines: LogLine[];
  stop: AbortController;
  running: Promise<unknown>[];
}

describe('the records of a store that nodes share', () => {
  let directory: string;
  let shared: Store;
  let records: Records;
  let members: Member[];
  /** For grace times. */
  let now: number;

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'causeway-ownership-'));
    shared = openEmbedded(':memory:');
    records = openRecords(shared);
    members = [];
    now = 0;
  });
  afterEach(async () => {
    await Promise.all(members.map(end));
    await shared.close();
    await rm(directory, { recursive: true });
  });

  async function end({ stop, running, docker, api }: Member): Promise<void> {
    stop.abort();
    await Promise.all(running);
    docker.close();
    await api.close();
  }

  /** A node of Causeway's with this id, whose engine says that it is `ID of SWARM`; as main.ts puts it together. */
  async function arrive(
    node: string,
    of: Partial<FakeDockerApi>,
    { embedded = false }: { embedded?: boolean } = {},
  ): Promise<Member> {
    const api = new FakeDockerApi();
    const id = `swarm-${node}`;
    Object.assign(api, {
      id,
      nodes: [{ ID: id, Status: { State: 'ready' }, ManagerStatus: { Leader: true } }],
      networks: [{ Id: 'ours', Name: 'front', Driver: 'causeway', Internal: false, Scope: 'swarm' }],
      ...of,
    });
    const path = join(directory, `${node}-${members.length}.sock`);
    await api.listen(path);
    const docker = connectDocker(path);
    const { log, lines } = captureLog();
    const ownership: Ownership = new Ownership({
      records,
      node,
      shared: embedded ? undefined : 'causeway/',
      log,
      onChange: () => membership.hint(),
    });
    const store = gated(
      shared,
      () => ownership.foreign,
      (key) => key === `nodes/${node}`,
    );
    const own = openRecords(store);
    const membership = new Membership({
      store,
      records: own,
      docker,
      node,
      name: node,
      address: '',
      fabric,
      ownership,
      readUnderlay: () => Promise.resolve({ address: '198.51.100.1', device: 'eth0', mtu: 1500 }),
      readLinks: () => Promise.resolve(new Set<string>()),
      log,
    });
    const ipam = new Ipam(store, {
      defaultPool: '10.64.0.0/12',
      defaultSize: 20,
      nodeId: node,
      inUse: () => Promise.resolve([]),
      taken: () => Promise.resolve([]),
      avoided: () => Promise.resolve([]),
      serviceAt: () => Promise.resolve(undefined),
      onFailure: () => undefined,
      now: () => now,
    });
    const { run } = new FakeKernel();
    const collector = new Collector({ store, records: own, ipam, run, node, log, now: () => now, grace: 50 });
    const stop = new AbortController();
    await ownership.recall();
    const member: Member = { api, docker, ownership, membership, store, ipam, lines, stop, running: [] };
    members.push(member);
    member.running = [
      membership.run(stop.signal),
      runPublisher(
        {
          docker,
          health: new EngineHealth(log, () => docker.engine),
          store,
          records: own,
          log,
          belongs: (seen) => ownership.judge(seen),
          elect: (swarm) => Promise.resolve(swarm?.leader === true ? [] : undefined),
          observed: (observation, elected) => void collector.collect(observation, elected),
          now: Date.now,
        },
        stop.signal,
      ),
    ];
    return member;
  }

  const owner = async (): Promise<string | undefined> => (await records.swarm.get('swarm'))?.value.id;
  const errors = ({ lines }: Member): string[] =>
    lines
      .filter(({ level }) => level === 'error')
      .map(({ reason, msg }) => (typeof reason === 'string' ? reason : msg));
  const service = (id: string) => ({
    ID: id,
    Spec: { Name: id, TaskTemplate: { Networks: [{ Target: 'ours' }] } },
  });
  /** What Swarm A has there, with an endpoint of node a1. */
  async function fill(): Promise<void> {
    const network = { subnet: '10.64.0.0/20', gateway: '10.64.0.1', internal: false, allocated: true };
    await records.networks.put('ours', { v: 1, id: 'ours', ...network });
    const endpoint = {
      id: 'e1',
      network: 'ours',
      node: 'a1',
      address: '10.64.0.9',
      mac: '02:42:0a:40:00:09',
    };
    await records.endpoints.put('ours/e1', { v: 1, ...endpoint });
  }
  const contents = async (): Promise<unknown> =>
    (await shared.list('')).entries.map(({ key, value }) => [key, value]);

  it('shared records belong to the first Swarm whose leader comes, even records older than that', async () => {
    await fill();
    await arrive('a1', { cluster: 'A', services: [service('web')] });
    await eventually(async () => (await owner()) === 'A');
    await eventually(async () => (await records.services.ids()).length === 1);
  });

  it('a leader of another Swarm neither writes nor collects shared records, and says so once with the remedy', async () => {
    await fill();
    const a = await arrive('a1', { cluster: 'A', services: [service('web')] });
    await eventually(async () => (await records.services.ids()).length === 1);
    await eventually(async () => (await records.nodes.ids()).length === 1);
    await end(a);
    const before = await contents();
    const b = await arrive('b1', { cluster: 'B', services: [service('other')] });
    await eventually(() => b.ownership.foreign?.includes('Swarm A') === true);
    for (let looks = 0; looks < 20; looks += 1) {
      now += 1_000;
      b.api.hint();
      await sleep(20);
    }
    assert.deepEqual(await contents(), before);
    assert.deepEqual(errors(b), [b.ownership.foreign]);
    assert.match(
      b.ownership.foreign ?? '',
      /of which a1 is left.*this node is in Swarm B.*CAUSEWAY_CONSUL_PREFIX.*delete the key causeway\/cluster\/swarm/,
    );
  });

  it('a node of another Swarm gets no pool and no address, with the reason', async () => {
    await fill();
    await arrive('a1', { cluster: 'A' });
    await eventually(async () => (await owner()) === 'A');
    const worker = { manager: false, remoteManagers: ['swarm-b9'] };
    const b = await arrive('b1', worker);
    await eventually(() => b.ownership.foreign?.includes('is in another one') === true);
    const request = { pool: '10.9.0.0/16', subPool: '', v6: false };
    await assert.rejects(
      b.ipam.requestPool({ space: 'local', ...request }),
      /those of Swarm A.*nothing is written/,
    );
    assert.deepEqual(await records.nodes.ids(), ['a1']);
  });

  it('a worker belongs to the Swarm of its managers, and is not foreign before they are known', async () => {
    await arrive('a1', { cluster: 'A' });
    await eventually(async () => (await owner()) === 'A');
    const worker = await arrive('a2', { manager: false, remoteManagers: ['swarm-a1', 'swarm-a3'] });
    await eventually(async () => (await records.nodes.ids()).length === 2);
    assert.equal(worker.ownership.foreign, undefined);
    assert.deepEqual(errors(worker), []);
  });

  it('a node that is not known leaves shared records alone until Docker has named its Swarm', async () => {
    await arrive('a1', { cluster: 'A' });
    await eventually(async () => (await owner()) === 'A');
    const b = await arrive('b1', { cluster: 'A', silent: true });
    assert.match(b.ownership.foreign ?? '', /not known yet/);
    await assert.rejects(b.store.commit([{ op: 'set', key: 'nodes/b1', value: 1 }]), { code: 'forbidden' });
    b.api.silent = false;
    await eventually(async () => (await records.nodes.ids()).includes('b1'));
    assert.deepEqual(errors(b), []);
  });

  it('all nodes moved to the next Swarm: it gets the shared records', async () => {
    await fill();
    const one = await arrive('a1', { cluster: 'A' });
    const two = await arrive('a2', { manager: false, remoteManagers: ['swarm-a1'] });
    await eventually(async () => (await owner()) === 'A');
    await eventually(async () => (await records.nodes.ids()).length === 2);
    // The first leaves, and makes a Swarm of its own; the second is in the old one still.
    const node = { ID: 'new-1', Status: { State: 'ready' }, ManagerStatus: { Leader: true } };
    Object.assign(one.api, { id: 'new-1', cluster: 'B', nodes: [node] });
    one.api.hint();
    await eventually(() => one.ownership.foreign?.includes('a2 is left') === true);
    Object.assign(two.api, { id: '', swarm: 'inactive', remoteManagers: [] });
    two.api.hint();
    await eventually(async () => (await owner()) === 'B');
    await eventually(async () => (await records.nodes.get('a1'))?.value.swarm === 'new-1');
    Object.assign(two.api, { id: 'new-2', swarm: 'active', remoteManagers: ['new-1'] });
    two.api.hint();
    await eventually(async () => {
      const { swarm, left } = (await records.nodes.get('a2'))?.value ?? {};
      return swarm === 'new-2' && left === undefined;
    });
    assert.equal(one.ownership.foreign, undefined);
  });

  it('a single node moves to the next Swarm: its records move at once', async () => {
    const one = await arrive('a1', { cluster: 'A' }, { embedded: true });
    await eventually(async () => (await owner()) === 'A');
    const node = { ID: 'new-1', Status: { State: 'ready' }, ManagerStatus: { Leader: true } };
    Object.assign(one.api, { id: 'new-1', cluster: 'B', nodes: [node] });
    one.api.hint();
    await eventually(async () => (await owner()) === 'B');
    assert.deepEqual(errors(one), []);
  });

  it('the ownership key was deleted: the leader’s Swarm owns the records again', async () => {
    await arrive('a1', { cluster: 'A' });
    await eventually(async () => (await owner()) === 'A');
    await eventually(async () => (await records.nodes.ids()).length === 1);
    await end(members.pop()!);
    const b = await arrive('b1', { cluster: 'B' });
    await eventually(() => b.ownership.foreign?.includes('Swarm A') === true);
    await shared.commit([{ op: 'delete', key: 'cluster/swarm' }]);
    await eventually(async () => (await owner()) === 'B');
    await eventually(async () => (await records.nodes.ids()).includes('b1'));
  });
});

describe('a store behind the gate', () => {
  let store: Store;
  let behind: Store;
  beforeEach(() => {
    store = openEmbedded(':memory:');
    behind = gated(
      store,
      () => 'not yours',
      (key) => key === 'nodes/me',
    );
  });
  afterEach(() => store.close());

  it('a closed gate accepts what removes, and refuses what adds', async () => {
    for (const key of ['a', 'nodes/me', 'nodes/other']) await store.commit([{ op: 'set', key, value: 1 }]);
    const refused = { code: 'forbidden', message: 'not yours' };
    const set = (key: string) => ({ op: 'set', key, value: 2 }) as const;
    await assert.rejects(behind.commit([set('new')], { offline: true }), refused);
    await assert.rejects(behind.commit([set('nodes/other')]), refused);
    const lock = gatedLock(withLocks(store), () => 'not yours');
    await assert.rejects(lock('leader', 1, { takeOver: true }), refused);
    assert.ok((await behind.commit([set('nodes/me')])).ok);
    assert.ok((await behind.commit([set('a')], { offline: true })).ok);
    assert.ok((await behind.commit([{ op: 'delete', key: 'a' }])).ok);
    assert.equal((await behind.list('')).entries.length, 2);
  });
});
