// Owns the tests of what is told of Docker's own health checks.
// Must not test what is made of it (scenario/serving.test.ts, kernel/policy.test.ts).
import assert from 'node:assert/strict';
import { tellContainerHealth } from '../../../plugin/container-health.ts';
import { openEmbedded } from '../../../store/embedded.ts';
import { endpointKey, openRecords, type EndpointRecord } from '../../../store/records.ts';
import type { ContainerDetails } from '../../../swarm/docker.ts';

const endpoint: EndpointRecord = {
  v: 1,
  id: 'e',
  network: 'n',
  node: 'here',
  address: '10.64.0.3',
  mac: '02:42:0a:4d:00:05',
  sandbox: '/run/docker/netns/there',
};

function container(Status: string | undefined): ContainerDetails {
  return {
    ...{ Id: 'c', Name: '/web', Config: { Hostname: 'web' } },
    State: { Running: true, ...(Status !== undefined && { Health: { Status } }) },
    NetworkSettings: { Networks: { front: { NetworkID: endpoint.network, EndpointID: endpoint.id } } },
  };
}

describe('the health of a container in the record of its endpoint', () => {
  it('an endpoint is failing while Docker calls its container unhealthy, and is written only when that changes', async () => {
    const store = openEmbedded(':memory:');
    const records = openRecords(store);
    const key = endpointKey(endpoint);
    const follow = tellContainerHealth({ records });
    const look = async (containers: ContainerDetails[], untold: string[] = []) => {
      const joined = (await records.endpoints.list()).rows.map(({ value }) => value);
      assert.ok(await follow({ joined, containers, untold: new Set(untold) }));
      const row = await records.endpoints.get(key);
      return { failing: row?.value.failing, version: row?.version };
    };
    await records.endpoints.put(key, endpoint);
    const first = await look([container(undefined)]);
    assert.equal(first.failing, undefined);
    assert.deepEqual(await look([container('starting')]), first);
    assert.deepEqual(await look([container('healthy')]), first);
    const sick = await look([container('unhealthy')]);
    assert.equal(sick.failing, true);
    assert.deepEqual(await look([container('unhealthy')]), sick);
    assert.deepEqual(await look([], ['c']), sick, 'a container that Docker does not tell of');
    assert.equal((await look([container('healthy')])).failing, undefined);
    await store.close();
  });

  it('an endpoint that another sandbox joined meanwhile is not called failing', async () => {
    const store = openEmbedded(':memory:');
    const records = openRecords(store);
    const key = endpointKey(endpoint);
    const other = { ...endpoint, sandbox: '/run/docker/netns/other' };
    await records.endpoints.put(key, other);
    const follow = tellContainerHealth({ records });
    await follow({ joined: [endpoint], containers: [container('unhealthy')], untold: new Set() });
    assert.deepEqual((await records.endpoints.get(key))?.value, other);
    await store.close();
  });
});
