// Owns the tests of who is told that may use a container's ports.
// Must not test how labels are read (test/unit/swarm/policy.test.ts), nor who is kept out.
import assert from 'node:assert/strict';
import { openPorts, readAccess } from '../../../plugin/port-access.ts';
import type { ContainerSnapshot } from '../../../plugin/containers.ts';
import { openEmbedded } from '../../../store/embedded.ts';
import { endpointKey, openRecords, type EndpointRecord } from '../../../store/records.ts';
import type { ContainerDetails } from '../../../swarm/docker.ts';
import { captureLog } from '../../fake/log.ts';

const endpoint: EndpointRecord = {
  ...{
    v: 1,
    id: 'e',
    network: 'n',
    node: 'here',
    address: '10.64.0.3',
    mac: '02:42:0a:4d:00:05',
    sandbox: '/run/docker/netns/there',
  },
  ports: [{ protocol: 'tcp', port: 8090, targetPort: 80 }],
  access: { by: 'nobody' },
};

function container(Labels: Record<string, string>, EndpointID = endpoint.id): ContainerDetails {
  return {
    ...{ Id: 'c', Name: '/web', Config: { Hostname: 'web', Labels }, State: { Running: true } },
    NetworkSettings: { Networks: { front: { NetworkID: endpoint.network, EndpointID } } },
  };
}

describe('the ports of this node’s containers', () => {
  it('a container’s ports are open to whom its labels, or its service’s, let in', () => {
    assert.deepEqual(readAccess(container({})), { by: 'container', policy: {} });
    assert.deepEqual(readAccess(container({ 'causeway.publish.allow': '192.0.2.1' })), {
      by: 'container',
      policy: { allow: ['192.0.2.1/32'] },
    });
    const ofTask = { 'com.docker.swarm.service.id': 's', 'causeway.publish.allow': '192.0.2.1' };
    assert.deepEqual(readAccess(container(ofTask)), { by: 'service', service: 's' });
  });

  it('a container’s ports stay closed until it is known, and the log says so once', async () => {
    const store = openEmbedded(':memory:');
    const records = openRecords(store);
    const { log, lines } = captureLog();
    const key = endpointKey(endpoint);
    const follow = openPorts({ records, log });
    const look = async (containers: ContainerSnapshot['containers']): Promise<EndpointRecord['access']> => {
      const joined = (await records.endpoints.list()).rows.map(({ value }) => value);
      assert.ok(await follow({ joined, containers, untold: new Set() }));
      return (await records.endpoints.get(key))?.value.access;
    };
    await records.endpoints.put(key, endpoint);
    const others = container({}, 'another endpoint');
    assert.deepEqual(await look([others]), { by: 'nobody' });
    const bad = container({ 'causeway.publish.deny': 'them' });
    const problems = [
      'causeway.publish.deny=them: them is neither an IPv4 address nor a subnet like 10.0.0.0/8. ' +
        'Published ports are closed to everybody until it is put right',
    ];
    assert.deepEqual(await look([others, bad]), { by: 'container', policy: { closed: true }, problems });
    const { version } = (await records.endpoints.get(key)) ?? {};
    await look([bad]);
    assert.equal((await records.endpoints.get(key))?.version, version);
    assert.deepEqual(
      lines.map((line) => [line['container'], line['problems']]),
      [['web', problems]],
    );
    await store.close();
  });
});
