// Owns the tests of what a node's kernel shall hold by the records.
// Must not assert how it gets there.
import assert from 'node:assert/strict';
import { virtualServerId } from '../../lb/model.ts';
import { formatRoute } from '../../net/routes.ts';
import { isNothing, renderWanted, type NodeRecords, type Wanted } from '../../plugin/wanted.ts';
import type { EndpointRecord } from '../../store/records.ts';
import { example, networkId, node } from '../scenario/example.ts';

/** The example with other networks or endpoints. */
function changed(rest: Partial<NodeRecords>): Wanted {
  return renderWanted({ ...example, ...rest }, node);
}

const destinations = ({ routes }: Wanted): string[] =>
  routes.map((route) => ('destination' in route ? route.destination : 'default'));

describe('renderWanted', () => {
  it('wants nothing of records that are not about this node', () => {
    const wanted = renderWanted({ ...example, services: [] }, 'another node');
    assert.deepEqual(wanted, {
      neighbours: [],
      networks: [],
      endpoints: [],
      routes: [],
      servers: [],
      publishers: [],
      movable: [],
      ended: [],
      timed: [],
    });
    assert.ok(isNothing(wanted));
  });

  it('balances the published ports on a node that has no network of theirs, without VIPs', () => {
    const wanted = renderWanted(example, 'another node');
    assert.deepEqual(wanted.servers.map(virtualServerId), [
      'port-tcp-8080',
      'port-udp-5353',
      'port-tcp-9090',
    ]);
    assert.deepEqual(wanted.routes, []);
    assert.ok(!isNothing(wanted));
  });

  it('makes gateways local before they are the source of other routes', () => {
    const routes = changed({}).routes.map(formatRoute);
    const gateway = routes.findIndex((route) => route.startsWith('local 10.64.0.1 '));
    for (const [at, route] of routes.entries()) if (route.includes('src 10.64.0.1')) assert.ok(at > gateway);
  });

  it('has a route to no endpoint before Join and after Leave', () => {
    const endpoints = example.endpoints.map(({ sandbox: _, ...rest }) => rest);
    const wanted = changed({ endpoints });
    assert.deepEqual(wanted.endpoints, []);
    assert.ok(!destinations(wanted).includes('10.64.0.3'));
    assert.ok(destinations(wanted).includes('10.64.0.1'), 'the gateway answers already');
  });

  it('has no route to the endpoints of other nodes', () => {
    const endpoints = example.endpoints.map((endpoint) => ({ ...endpoint, node: 'another node' }));
    assert.deepEqual(changed({ endpoints }).endpoints, []);
  });

  it('reaches endpoints of other nodes where their network is, and those behind published ports everywhere', () => {
    const elsewhere = (id: string, address: string, network: string): NodeRecords['endpoints'][number] => ({
      ...{ v: 1, id, network, address, node: 'node-2', mac: '', sandbox: 'there' },
    });
    const endpoints = [
      elsewhere('e5', '10.64.0.7', networkId.front),
      elsewhere('e6', '10.64.0.8', networkId.front),
      elsewhere('e7', '10.64.16.8', networkId.back),
    ];
    assert.ok(
      ['10.64.0.7', '10.64.0.8', '10.64.16.8'].every((to) =>
        destinations(changed({ endpoints })).includes(to),
      ),
    );
    // Of these, 10.64.0.7 alone is a task of a service with a port.
    assert.deepEqual(destinations(changed({ endpoints, presence: [] })), ['10.64.0.7', 'default']);
  });

  it('keeps a network that only its endpoints hold here: Docker does not create it a second time', () => {
    const wanted = changed({ presence: [] });
    assert.deepEqual(
      wanted.networks.map(({ subnet }) => subnet),
      ['10.64.0.0/20', '10.64.16.0/20'],
    );
    assert.deepEqual(changed({ presence: [], endpoints: [] }).networks, []);
  });

  it('has nothing of a network that is refused', () => {
    const networks = example.networks.map((network) => ({ ...network, refused: 'overlap' }));
    assert.ok(isNothing(changed({ networks })));
  });

  it('lets in by the ports of a container whom its labels or its service let in, and nobody while neither is known', () => {
    const [web1] = example.endpoints;
    assert.ok(web1);
    const ports = [{ protocol: 'tcp' as const, port: 8090, targetPort: 80 }];
    const policy = { allow: ['192.0.2.0/24'] };
    const services = example.services.map((service) =>
      service.id === 'service-web' ? { ...service, policy } : service,
    );
    const accessOf = (access: EndpointRecord['access']): Wanted['publishers'][number]['access'] => {
      const { publishers } = changed({
        endpoints: [{ ...web1, ports, ...(access && { access }) }],
        services,
      });
      assert.equal(publishers.length, 1);
      return publishers[0]?.access;
    };
    assert.equal(accessOf(undefined), undefined, 'as an earlier version wrote it');
    assert.equal(accessOf({ by: 'nobody' }), 'nobody');
    assert.deepEqual(accessOf({ by: 'container', policy }), policy);
    assert.deepEqual(accessOf({ by: 'service', service: 'service-web' }), policy);
    assert.deepEqual(accessOf({ by: 'service', service: 'service-db' }), {});
    assert.equal(accessOf({ by: 'service', service: 'of tomorrow' }), 'nobody');
  });

  it('remembers connections of a container for as long as its labels say', () => {
    const endpoints = example.endpoints.map((endpoint) =>
      endpoint.address === '10.64.0.3'
        ? { ...endpoint, access: { by: 'container' as const, policy: { timeout: { udp: 60 } } } }
        : endpoint,
    );
    assert.deepEqual(changed({ endpoints }).timed, [{ timeout: { udp: 60 }, addresses: ['10.64.0.3'] }]);
  });

  it('answers for a VIP only where its network is', () => {
    const presence = example.presence.filter(({ network }) => network !== networkId.back);
    const endpoints = example.endpoints.filter(({ network }) => network !== networkId.back);
    const wanted = changed({ presence, endpoints });
    assert.ok(!destinations(wanted).includes('10.64.16.2'));
    assert.ok(!wanted.servers.some((server) => virtualServerId(server) === 'vip-10.64.16.2'));
    assert.ok(wanted.servers.some((server) => virtualServerId(server) === 'vip-10.64.0.2'));
  });
});
