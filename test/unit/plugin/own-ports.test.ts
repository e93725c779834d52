// Owns the tests of which ports and addresses nodes keep for themselves, by the settings.
// Must not test how they are kept (test/kernel/attacks.test.ts does).
import assert from 'node:assert/strict';
import { parseConfig } from '../../../plugin/config.ts';
import { clusterInUse, controlPorts, hostRules, portName, reservedPorts } from '../../../plugin/own-ports.ts';

const names = (environment: Record<string, string>): string[] =>
  controlPorts(parseConfig(environment)).map(portName).sort();

const swarms = ['2377/tcp', '4789/udp', '7946/tcp', '7946/udp'];

describe('ports that nodes have for themselves', () => {
  it('with the embedded store, the node’s own ports are Causeway’s and Swarm’s', () => {
    assert.deepEqual(
      names({}),
      ['4790/udp', '4793/tcp', '4793/udp', '4795/tcp', '4795/udp', ...swarms].sort(),
    );
  });

  it('the node’s own ports follow the settings, with Consul’s', () => {
    const own = names({
      CAUSEWAY_STORE: 'consul://127.0.0.1:8501,203.0.113.1:8500',
      CAUSEWAY_FABRIC_PORT: '5790',
      CAUSEWAY_PEER_PORT: '5793',
      CAUSEWAY_DNS_PORT: '5795',
    });
    for (const port of ['8500/tcp', '8501/tcp', '8300/tcp', '8301/udp', '5790/udp', '5793/tcp', '5795/udp'])
      assert.ok(own.includes(port), port);
    assert.ok(!own.includes('4790/udp'));
  });

  it('the node’s own ports cannot be published, nor the admin API’s on loopback', () => {
    const reserved = reservedPorts(parseConfig({ CAUSEWAY_ADMIN: 'tcp://127.0.0.1:4791' }));
    assert.match(reserved.get('4791/tcp') ?? '', /CAUSEWAY_ADMIN/);
    assert.match(reserved.get('4790/udp') ?? '', /CAUSEWAY_FABRIC_PORT/);
    assert.equal(reserved.get('4790/tcp'), undefined);
    assert.equal(reserved.get('8500/tcp'), undefined, 'without Consul it is free');
  });

  it('the node’s own ports leave resolvers to sandboxes, unless the setting says otherwise', () => {
    const rules = hostRules(parseConfig({ CAUSEWAY_STORE: 'consul://198.51.100.9:8500' }));
    assert.deepEqual(rules.openPorts.map(portName), ['53/tcp', '53/udp']);
    assert.deepEqual(rules.stores, [{ address: '198.51.100.9', port: 8500 }]);
    assert.equal(rules.access, false);
    assert.equal(hostRules(parseConfig({ CAUSEWAY_HOST_ACCESS: 'on' })).access, true);
  });

  it('a subnet with an address of a node or of Consul is refused', () => {
    const config = parseConfig({
      CAUSEWAY_STORE: 'consul://127.0.0.1,198.51.100.9:8500,consul.example:8500',
    });
    const fabric = { port: 4790, vni: 4790 };
    const node = {
      v: 1,
      id: 'b',
      name: 'two',
      address: '203.0.113.2',
      mtu: 1500,
      fabric,
      number: 2,
    } as const;
    assert.deepEqual(clusterInUse(config, [node]), [
      { cidr: '203.0.113.2/32', what: 'address of the node two' },
      { cidr: '198.51.100.9/32', what: 'address of Consul, CAUSEWAY_STORE' },
    ]);
  });
});
