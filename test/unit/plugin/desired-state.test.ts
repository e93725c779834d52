// Owns the tests of what a node's kernel shall hold by the records.
// Must not assert how it gets there.
import assert from 'node:assert/strict';
import { virtualServerId } from '../../../lb/model.ts';
import { formatRoute } from '../../../net/routes.ts';
import {
  isEmpty,
  planDesiredState,
  type NodeRecords,
  type DesiredState,
} from '../../../plugin/desired-state.ts';
import type { EndpointRecord } from '../../../store/records.ts';
import { example, networkId, node } from '../../scenario/example.ts';
import { nothing } from '../../support/nothing.ts';

/** The example with other networks or endpoints. */
function changed(rest: Partial<NodeRecords>): DesiredState {
  return planDesiredState({ ...example, ...rest }, node);
}

const destinations = ({ routes }: DesiredState): string[] =>
  routes.map((route) => ('destination' in route ? route.destination : 'default'));

describe('planDesiredState', () => {
  it('records that are not about this node: nothing is desired', () => {
    const desired = planDesiredState({ ...example, services: [] }, 'another node');
    assert.deepEqual(desired, nothing);
    assert.ok(isEmpty(desired));
  });

  it('a node without a service’s networks balances its published ports, without VIPs', () => {
    const desired = planDesiredState(example, 'another node');
    assert.deepEqual(desired.servers.map(virtualServerId), [
      'port-tcp-8080',
      'port-udp-5353',
      'port-tcp-9090',
    ]);
    assert.deepEqual(desired.routes, []);
    assert.ok(!isEmpty(desired));
  });

  it('gateways are local before they are the source of other routes', () => {
    const routes = changed({}).routes.map(formatRoute);
    const gateway = routes.findIndex((route) => route.startsWith('local 10.64.0.1 '));
    for (const [at, route] of routes.entries()) if (route.includes('src 10.64.0.1')) assert.ok(at > gateway);
  });

  it('an endpoint has no route before Join and after Leave', () => {
    const endpoints = example.endpoints.map(({ sandbox: _, ...rest }) => rest);
    const desired = changed({ endpoints });
    assert.deepEqual(desired.endpoints, []);
    assert.ok(!destinations(desired).includes('10.64.0.3'));
    assert.ok(destinations(desired).includes('10.64.0.1'), 'the gateway answers already');
  });

  it('endpoints of other nodes have no route', () => {
    const endpoints = example.endpoints.map((endpoint) => ({ ...endpoint, node: 'another node' }));
    assert.deepEqual(changed({ endpoints }).endpoints, []);
  });

  it('endpoints of other nodes are reached where their network is, those of published ports everywhere', () => {
    const elsewhere = (id: string, address: string, network: string): NodeRecords['endpoints'][number] => ({
      ...{
        v: 1,
        id,
        network,
        address,
        node: 'node-2',
        mac: '02:42:0a:4d:00:05',
        sandbox: '/run/docker/netns/there',
      },
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

  it('a network that only its endpoints hold here is kept: Docker does not create it twice', () => {
    const desired = changed({ presence: [] });
    assert.deepEqual(
      desired.networks.map(({ subnet }) => subnet),
      ['10.64.0.0/20', '10.64.16.0/20'],
    );
    assert.deepEqual(changed({ presence: [], endpoints: [] }).networks, []);
  });

  it('nothing is desired for a refused network', () => {
    const networks = example.networks.map((network) => ({ ...network, refused: 'overlap' }));
    assert.ok(isEmpty(changed({ networks })));
  });

  it('a container’s ports let in whom its labels or its service let in, and nobody before these are known', () => {
    const [web1] = example.endpoints;
    assert.ok(web1);
    const ports = [{ protocol: 'tcp' as const, port: 8090, targetPort: 80 }];
    const policy = { allow: ['192.0.2.0/24'] };
    const services = example.services.map((service) =>
      service.id === 'service-web' ? { ...service, policy } : service,
    );
    const accessOf = (access: EndpointRecord['access']): DesiredState['hostPorts'][number]['access'] => {
      const { hostPorts } = changed({
        endpoints: [{ ...web1, ports, ...(access && { access }) }],
        services,
      });
      assert.equal(hostPorts.length, 1);
      return hostPorts[0]?.access;
    };
    assert.equal(accessOf(undefined), undefined, 'as an earlier version wrote it');
    assert.equal(accessOf({ by: 'nobody' }), 'nobody');
    assert.deepEqual(accessOf({ by: 'container', policy }), policy);
    assert.deepEqual(accessOf({ by: 'service', service: 'service-web' }), policy);
    assert.deepEqual(accessOf({ by: 'service', service: 'service-db' }), {});
    assert.equal(accessOf({ by: 'service', service: 'of tomorrow' }), 'nobody');
  });

  it('connections of a container are remembered for as long as its labels say', () => {
    const endpoints = example.endpoints.map((endpoint) =>
      endpoint.address === '10.64.0.3'
        ? { ...endpoint, access: { by: 'container' as const, policy: { timeout: { udp: 60 } } } }
        : endpoint,
    );
    assert.deepEqual(changed({ endpoints }).flowTimeouts, [
      { timeout: { udp: 60 }, addresses: ['10.64.0.3'] },
    ]);
  });

  it('a VIP is answered only where its network is', () => {
    const presence = example.presence.filter(({ network }) => network !== networkId.back);
    const endpoints = example.endpoints.filter(({ network }) => network !== networkId.back);
    const desired = changed({ presence, endpoints });
    assert.ok(!destinations(desired).includes('10.64.16.2'));
    assert.ok(!desired.servers.some((server) => virtualServerId(server) === 'vip-10.64.16.2'));
    assert.ok(desired.servers.some((server) => virtualServerId(server) === 'vip-10.64.0.2'));
  });
});
