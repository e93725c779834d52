// Owns the tests of which flows lead where no new connection would.
// Must not forget any.
import assert from 'node:assert/strict';
import type { HostPortContainer } from '../../../lb/host-ports.ts';
import type { Protocol, VirtualServer } from '../../../lb/model.ts';
import { StaleFlows } from '../../../lb/stale-flows.ts';

function port(protocol: Protocol, number: number, to: readonly string[], targetPort = 80): VirtualServer {
  const realServers = to.map((address) => ({ address, weight: 1 }));
  return { kind: 'port', protocol, port: number, targetPort, realServers };
}

function vip(address: string, to: readonly string[]): VirtualServer {
  return { kind: 'vip', address, realServers: to.map((one) => ({ address: one, weight: 1 })) };
}

function publisher(address: string, ...ports: [Protocol, number, string?][]): HostPortContainer {
  return {
    address,
    ports: ports.map(([protocol, number, at]) => ({
      ...{ protocol, port: number, targetPort: 80, ...(at !== undefined && { address: at }) },
    })),
  };
}

describe('StaleFlows', () => {
  let staleFlows: StaleFlows;
  const next = (servers: VirtualServer[], publishers: HostPortContainer[] = []) =>
    staleFlows.update(servers, publishers);
  const nothing = { addresses: [], ways: [], opened: [] };
  beforeEach(() => {
    staleFlows = new StaleFlows();
  });

  it('the first state counts as the state before: no flow is stale', () => {
    assert.deepEqual(next([port('udp', 53, ['a'])], [publisher('b', ['udp', 54])]), nothing);
  });

  it('at the start, flows from before that would lead elsewhere now are stale', () => {
    const flow = (address: string, port: number, to: string, targetPort: number) => ({
      ...{ address, port, to, targetPort },
    });
    const servers = [port('udp', 53, ['a', 'b']), port('udp', 54, ['a']), vip('v', ['a'])];
    const publishers = [publisher('c', ['udp', 90, 'host'])];
    assert.ok(staleFlows.isNew);
    const found = [
      // As it would begin now.
      ...[flow('host', 53, 'a', 80), flow('v', 9, 'a', 9), flow('host', 90, 'c', 80)],
      flow('host', 22, 'host', 22),
      // By a task that has left, a port that leads to others, another port of the task, an address that is not led.
      ...[flow('host', 53, 'gone', 80), flow('host', 54, 'b', 80), flow('host', 54, 'a', 81)],
      flow('other', 90, 'c', 80),
      // Before it was published.
      flow('host', 54, 'host', 54),
    ];
    const way = (address: string, at: number, to: string) => ({
      ...{ protocol: 'udp', address, port: at, to },
    });
    const stale = staleFlows.update(servers, publishers, found);
    assert.deepEqual(stale, {
      addresses: ['gone'],
      ways: [...[way('host', 54, 'b'), way('host', 54, 'a'), way('other', 90, 'c')], way('host', 54, 'host')],
      opened: [],
    });
    assert.ok(!staleFlows.isNew);
    staleFlows.flushed(stale);
    assert.deepEqual(next(servers, publishers), nothing);
  });

  it('flows to an address that takes nothing any more are stale until forgotten, or until it serves again', () => {
    next([port('udp', 53, ['a', 'b']), vip('v', ['a', 'b'])]);
    const stale = next([port('udp', 53, ['b']), vip('v', ['b'])]);
    assert.deepEqual(stale, { ...nothing, addresses: ['a'] });
    assert.deepEqual(next([port('udp', 53, ['b']), vip('v', ['b'])]).addresses, ['a']);
    staleFlows.flushed(stale);
    assert.deepEqual(next([port('udp', 53, ['b'])]).addresses, []);
    next([port('udp', 53, ['c'])]);
    assert.deepEqual(next([port('udp', 53, ['b', 'c'])]).addresses, []);
  });

  it('flows to a port that left an address are stale, to its other ports not', () => {
    next([port('udp', 53, ['a']), port('udp', 54, ['a']), port('tcp', 80, ['a'])]);
    const stale = next([port('udp', 54, ['a']), port('tcp', 80, ['b'])]);
    assert.deepEqual(stale, {
      ...nothing,
      ways: [
        { protocol: 'udp', port: 53, to: 'a' },
        { protocol: 'tcp', port: 80, to: 'a' },
      ],
    });
    staleFlows.flushed(stale);
    assert.deepEqual(next([port('udp', 54, ['a'])]).ways, []);
  });

  it('flows to a port whose target port changed are stale', () => {
    next([port('udp', 53, ['a']), port('udp', 54, ['a'])]);
    const { ways } = next([port('udp', 53, ['a'], 5353), port('udp', 54, ['a'])]);
    assert.deepEqual(ways, [{ protocol: 'udp', port: 53, to: 'a' }]);
  });

  it('flows to ports of containers go stale as those of services', () => {
    next([], [publisher('a', ['udp', 514], ['udp', 515, '203.0.113.1'])]);
    assert.deepEqual(next([], [publisher('a', ['udp', 514])]).ways, [
      { protocol: 'udp', port: 515, address: '203.0.113.1', to: 'a' },
    ]);
    // The next container.
    assert.deepEqual(next([], [publisher('b', ['udp', 514])]), { ...nothing, addresses: ['a'] });
  });

  it('UDP flows to a port that leads somewhere again are stale', () => {
    next([port('udp', 53, []), port('udp', 54, ['a']), port('tcp', 80, [])]);
    const servers = [port('udp', 53, ['a']), port('udp', 54, ['a']), port('tcp', 80, ['a'])];
    const stale = next(servers, [publisher('b', ['udp', 514, '203.0.113.1'])]);
    assert.deepEqual(stale, {
      ...nothing,
      opened: [
        { protocol: 'udp', port: 53 },
        { protocol: 'udp', port: 514, address: '203.0.113.1' },
      ],
    });
    staleFlows.flushed(stale);
    assert.deepEqual(next(servers), { ...nothing, addresses: ['b'] });
  });
});
