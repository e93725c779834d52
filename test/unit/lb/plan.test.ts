// Owns the tests of the decision which virtual servers there are and who serves them.
// Must not know an engine.
import assert from 'node:assert/strict';
import { virtualServerId, type VirtualServer } from '../../../lb/model.ts';
import { ServicePlanner } from '../../../lb/plan.ts';
import type { EndpointRecord, NetworkRecord, ServiceRecord } from '../../../store/records.ts';

function network(id: string, rest: Partial<NetworkRecord> = {}): NetworkRecord {
  const subnet = '10.64.0.0/20';
  return { v: 1, id, name: id, subnet, gateway: '10.64.0.1', internal: false, allocated: true, ...rest };
}

function endpoint(net: string, address: string): EndpointRecord {
  return {
    v: 1,
    id: `${net}-${address}`,
    network: net,
    node: 'any',
    address,
    mac: '02:42:0a:4d:00:05',
    sandbox: '/run/docker/netns/sandbox',
  };
}

function service(rest: Partial<ServiceRecord>): ServiceRecord {
  return { v: 1, id: 's', name: 's', vips: {}, networks: ['a'], ports: [], tasks: [], ...rest };
}

function task(addresses: Record<string, string>, draining = false): ServiceRecord['tasks'][number] {
  return { id: JSON.stringify(addresses), addresses, draining };
}

/** The node that balances. */
const here = 'here';

const web: ServiceRecord['ports'][number] = { protocol: 'tcp', port: 8080, targetPort: 80 };

/** Id to addresses with their weight. */
function summary(servers: readonly VirtualServer[]): Record<string, string[]> {
  return Object.fromEntries(
    servers.map((server) => [
      virtualServerId(server),
      server.realServers.map(({ address, weight }) => `${address}*${weight}`),
    ]),
  );
}

function planVirtualServers(
  services: readonly ServiceRecord[],
  networks: readonly NetworkRecord[],
  endpoints: readonly EndpointRecord[],
  node: string,
  unreachable: ReadonlySet<string> = new Set(),
): VirtualServer[] {
  const plans = new ServicePlanner(node).plan(services, networks, endpoints, unreachable, 0);
  return plans.flatMap(({ vips, ports }) => [...vips.map(({ server }) => server), ...ports]);
}

describe('the planner of services', () => {
  for (const [what, shift, expected] of [
    [
      'one for a long row of ports that are the same on the tasks, but for one that another service has',
      0,
      3,
    ],
    ['one for each port of a long row that are others there', 1, 141],
  ] as const)
    it(`planVirtualServers makes ${what}`, () => {
      const row = Array.from({ length: 141 }, (_, at) => ({
        protocol: 'udp' as const,
        port: 100 + at,
        targetPort: 100 + at + shift,
      }));
      const other = service({ id: 't', ports: [{ protocol: 'udp', port: 170, targetPort: 1 }] });
      const ids = Object.keys(
        summary(planVirtualServers([service({ ports: row }), other], [network('a')], [], here)),
      );
      assert.equal(ids.length, expected);
      if (shift === 0) assert.deepEqual(ids, ['port-udp-100-169', 'port-udp-171-240', 'port-udp-170']);
    });

  it('a virtual server for each VIP and each published port', () => {
    const tasks = [task({ a: '10.64.0.3', b: '10.65.0.3' }), task({ a: '10.64.0.4', b: '10.65.0.4' })];
    const endpoints = tasks.flatMap(({ addresses }) =>
      Object.entries(addresses).map(([net, address]) => endpoint(net, address)),
    );
    const ports = [web, { protocol: 'udp', port: 53, targetPort: 53 } as const];
    const record = service({ vips: { a: '10.64.0.2', b: '10.65.0.2' }, networks: ['a', 'b'], ports, tasks });
    assert.deepEqual(summary(planVirtualServers([record], [network('a'), network('b')], endpoints, here)), {
      'vip-10.64.0.2': ['10.64.0.3*1', '10.64.0.4*1'],
      'vip-10.65.0.2': ['10.65.0.3*1', '10.65.0.4*1'],
      'port-tcp-8080': ['10.64.0.3*1', '10.64.0.4*1'],
      'port-udp-53': ['10.64.0.3*1', '10.64.0.4*1'],
    });
  });

  it('a service without a VIP (dnsrr) is published, too', () => {
    const record = service({ ports: [web], tasks: [task({ a: '10.64.0.3' })] });
    assert.deepEqual(
      summary(planVirtualServers([record], [network('a')], [endpoint('a', '10.64.0.3')], here)),
      {
        'port-tcp-8080': ['10.64.0.3*1'],
      },
    );
  });

  it('only healthy tasks get connections where a check is wanted, and none that has drained', () => {
    const [a, b, c, d] = ['10.64.0.3', '10.64.0.4', '10.64.0.5', '10.64.0.6'] as const;
    const tasks = [
      task({ a }),
      task({ a: b }),
      { ...task({ a: c }), assumed: true as const },
      { ...task({ a: d }, true), drained: true as const },
    ];
    const endpoints = [
      { ...endpoint('a', a), healthy: true },
      endpoint('a', b),
      endpoint('a', c),
      endpoint('a', d),
    ];
    const plan = (rest: Partial<ServiceRecord>, list = endpoints): string[] | undefined =>
      summary(
        planVirtualServers(
          [service({ vips: { a: '10.64.0.2' }, tasks, ...rest })],
          [network('a')],
          list,
          here,
        ),
      )['vip-10.64.0.2'];
    assert.deepEqual(plan({}), [`${a}*1`, `${b}*1`, `${c}*1`]);
    const policy = { health: { protocol: 'tcp', port: 80 } } as const;
    assert.deepEqual(plan({ policy }), [`${a}*1`, `${b}*0`, `${c}*1`]);
    const sick = endpoints.map((one) => ({ ...one, healthy: false }));
    assert.deepEqual(plan({ policy }, sick), [`${a}*0`, `${b}*0`, `${c}*0`]);
    // In an update that does not wait: whoever is replaced serves until the new tasks are healthy.
    const replaced = [{ ...task({ a }, true) }, task({ a: b })];
    assert.deepEqual(plan({ policy, tasks: replaced }), [`${a}*1`, `${b}*0`]);
    const [ready] = endpoints.map((one) => ({ ...one, address: b, id: one.id + 'b', healthy: true }));
    assert.deepEqual(plan({ policy, tasks: replaced }, [endpoints[0]!, ready!]), [`${a}*0`, `${b}*1`]);
    assert.deepEqual(plan({ policy, tasks: replaced.slice(0, 1) }), [`${a}*0`], 'scaled to zero');
  });

  it('a draining task gets no new connections, and keeps those it has', () => {
    const record = service({ vips: { a: '10.64.0.2' }, tasks: [task({ a: '10.64.0.3' }, true)] });
    assert.deepEqual(
      summary(planVirtualServers([record], [network('a')], [endpoint('a', '10.64.0.3')], here)),
      {
        'vip-10.64.0.2': ['10.64.0.3*0'],
      },
    );
  });

  it('a task on a lost node gets no new connections, unless all are on such nodes', () => {
    const tasks = [task({ a: '10.64.0.3' }), task({ a: '10.64.0.4' }), task({ a: '10.64.0.5' }, true)];
    const endpoints = [
      { ...endpoint('a', '10.64.0.3'), node: 'one' },
      { ...endpoint('a', '10.64.0.4'), node: 'two' },
      { ...endpoint('a', '10.64.0.5'), node: 'three' },
    ];
    const plan = (...unreachable: string[]): Record<string, string[]> =>
      summary(
        planVirtualServers(
          [service({ ports: [web], tasks })],
          [network('a')],
          endpoints,
          here,
          new Set(unreachable),
        ),
      );
    assert.deepEqual(plan('two')['port-tcp-8080'], ['10.64.0.3*1', '10.64.0.5*0']);
    assert.deepEqual(plan('one', 'two')['port-tcp-8080'], ['10.64.0.3*1', '10.64.0.4*1', '10.64.0.5*0']);
  });

  it('a task gets the share that its weight asks for, and none while it drains', () => {
    const tasks = [
      { ...task({ a: '10.64.0.3' }), weight: 3 },
      { ...task({ a: '10.64.0.4' }, true), weight: 5 },
    ];
    const endpoints = [endpoint('a', '10.64.0.3'), endpoint('a', '10.64.0.4')];
    const servers = planVirtualServers([service({ ports: [web], tasks })], [network('a')], endpoints, here);
    assert.deepEqual(summary(servers)['port-tcp-8080'], ['10.64.0.3*3', '10.64.0.4*0']);
  });

  it('lb.locality: tasks of this node alone, or first', () => {
    const tasks = [task({ a: '10.64.0.3' }), task({ a: '10.64.0.4' })];
    const plan = (locality: 'any' | 'prefer-local' | 'local', ...nodes: [string, string]): string[] => {
      const endpoints = tasks.map((_, at) => ({
        ...endpoint('a', `10.64.0.${3 + at}`),
        node: nodes[at] ?? '',
      }));
      const record = service({ vips: { a: '10.64.0.2' }, tasks, policy: { locality } });
      return summary(planVirtualServers([record], [network('a')], endpoints, here))['vip-10.64.0.2'] ?? [];
    };
    assert.deepEqual(plan('any', here, 'there'), ['10.64.0.3*1', '10.64.0.4*1']);
    for (const locality of ['prefer-local', 'local'] as const)
      assert.deepEqual(plan(locality, here, 'there'), ['10.64.0.3*1', '10.64.0.4*0']);
    assert.deepEqual(plan('prefer-local', 'there', 'there'), ['10.64.0.3*1', '10.64.0.4*1']);
    assert.deepEqual(plan('local', 'there', 'there'), ['10.64.0.3*0', '10.64.0.4*0']);
  });

  it('tasks without an endpoint, or one that has not joined or has left, get no connections', () => {
    const tasks = [task({ a: '10.64.0.3' }), task({ a: '10.64.0.4' }), task({})];
    const record = service({ vips: { a: '10.64.0.2' }, tasks });
    const { sandbox: _, ...left } = endpoint('a', '10.64.0.3');
    assert.deepEqual(summary(planVirtualServers([record], [network('a')], [left], here)), {
      'vip-10.64.0.2': [],
    });
  });

  it('one address on two networks is two different tasks', () => {
    const record = service({ vips: { a: '10.64.0.2' }, tasks: [task({ a: '10.64.0.3' })] });
    assert.deepEqual(
      summary(planVirtualServers([record], [network('a')], [endpoint('b', '10.64.0.3')], here)),
      {
        'vip-10.64.0.2': [],
      },
    );
  });

  it('no virtual servers for networks that are refused or unknown', () => {
    const record = service({ vips: { a: '10.64.0.2', x: '10.99.0.2' }, networks: ['a', 'x'], ports: [web] });
    assert.deepEqual(planVirtualServers([record], [network('a', { refused: 'overlap' })], [], here), []);
  });

  describe('a service on several networks lets outside clients in by', () => {
    /** @returns the network through which a service on all of these is published */
    function entrance(...networks: NetworkRecord[]): string | undefined {
      const addresses = Object.fromEntries(networks.map(({ id }) => [id, `10.64.0.${id.charCodeAt(0)}`]));
      const record = service({
        networks: networks.map(({ id }) => id),
        ports: [web],
        tasks: [task(addresses)],
      });
      const endpoints = Object.entries(addresses).map(([net, address]) => endpoint(net, address));
      const [server] = planVirtualServers([record], networks, endpoints, here);
      return networks.find(({ id }) => addresses[id] === server?.realServers[0]?.address)?.id;
    }

    it('outside clients come in by the network whose name is first in order', () => {
      assert.equal(entrance(network('x', { name: 'zeta' }), network('y', { name: 'alpha' })), 'y');
    });

    it('outside clients come in by a network that is not internal, whatever its name', () => {
      assert.equal(
        entrance(network('x', { name: 'alpha', internal: true }), network('y', { name: 'zeta' })),
        'y',
      );
    });

    it('outside clients come in by an internal network where there is no other', () => {
      assert.equal(entrance(network('x', { internal: true })), 'x');
    });
  });
});
