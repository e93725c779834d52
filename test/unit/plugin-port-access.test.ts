// Owns the tests of who is told that may use a container's ports.
// Must not test how labels are read (swarm-policy.test.ts), nor who is kept out.
import assert from 'node:assert/strict';
import { openPorts, readAccess } from '../../plugin/port-access.ts';
import type { Sight } from '../../plugin/containers.ts';
import { openEmbedded } from '../../store/embedded.ts';
import { endpointKey, openRecords, type EndpointRecord } from '../../store/records.ts';
import type { ContainerDetails } from '../../swarm/docker.ts';
import { captureLog } from '../fake/log.ts';

const endpoint: EndpointRecord = {
  ...{ v: 1, id: 'e', network: 'n', node: 'here', address: '10.64.0.3', mac: '', sandbox: 'there' },
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
  it('are opened to those whom the container’s labels say, or its service', () => {
    assert.deepEqual(readAccess(container({})), { by: 'container', policy: {} });
    assert.deepEqual(readAccess(container({ 'causeway.publish.allow': '192.0.2.1' })), {
      by: 'container',
      policy: { allow: ['192.0.2.1/32'] },
    });
    const ofTask = { 'com.docker.swarm.service.id': 's', 'causeway.publish.allow': '192.0.2.1' };
    assert.deepEqual(readAccess(container(ofTask)), { by: 'service', service: 's' });
  });

  it('stay closed until the container is known, and are told once', async () => {
    const store = openEmbedded(':memory:');
    const records = openRecords(store);
    const { log, lines } = captureLog();
    const key = endpointKey(endpoint);
    const follow = openPorts({ records, log });
    const look = async (containers: Sight['containers']): Promise<EndpointRecord['access']> => {
      const joined = (await records.endpoints.list()).rows.map(({ value }) => value);
      assert.ok(await follow({ joined, containers }));
      return (await records.endpoints.get(key))?.value.access;
    };
    await records.endpoints.put(key, endpoint);
    const others = container({}, 'another endpoint');
    assert.deepEqual(await look([others]), { by: 'nobody' });
    const bad = container({ 'causeway.publish.deny': 'them' });
    const problems = [
      'causeway.publish.deny=them: them is neither an IPv4 address nor a subnet like 10.0.0.0/8',
    ];
    assert.deepEqual(await look([others, bad]), { by: 'container', policy: {}, problems });
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
