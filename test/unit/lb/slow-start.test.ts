// Owns the tests of shares that grow, by a clock of their own.
// Must not know an engine.
import assert from 'node:assert/strict';
import { ServicePlanner } from '../../../lb/plan.ts';
import { begunOf, sharesOf } from '../../../lb/slow-start.ts';
import type { EndpointRecord, NetworkRecord, ServiceRecord } from '../../../store/records.ts';

describe('shares of tasks that start slowly', () => {
  it('a share grows from a tenth to the whole in ten steps, and each step says when the next one is', () => {
    const begun = new Map([
      ['old', -Infinity],
      ['new', 1_000],
    ]);
    const at = (now: number) => {
      const { factors, nextChangeAt } = sharesOf(begun, 30_000, now);
      return [factors.get('old'), factors.get('new'), nextChangeAt];
    };
    assert.deepEqual(at(1_000), [10, 1, 4_000]);
    assert.deepEqual(at(3_999), [10, 1, 4_000]);
    assert.deepEqual(at(4_000), [10, 2, 7_000]);
    assert.deepEqual(at(27_999), [10, 9, 28_000]);
    assert.deepEqual(at(28_000), [1, 1, Infinity]);
  });

  it('tasks that began together have equal shares', () => {
    const together = new Map([
      ['a', 500],
      ['b', 500],
    ]);
    const { factors, nextChangeAt } = sharesOf(together, 30_000, 600);
    assert.deepEqual([...factors.values(), nextChangeAt], [1, 1, Infinity]);
    assert.deepEqual(sharesOf(new Map(), 30_000, 0), { factors: new Map(), nextChangeAt: Infinity });
  });

  it('a task that was away begins anew', () => {
    let begun = begunOf(['a', 'b'], undefined, 0);
    assert.deepEqual([...begun.values()], [-Infinity, -Infinity], 'nobody is new where nothing was known');
    begun = begunOf(['a'], begun, 1_000);
    begun = begunOf(['a', 'b'], begun, 2_000);
    assert.deepEqual(
      [...begun],
      [
        ['a', -Infinity],
        ['b', 2_000],
      ],
    );
  });
});

describe('the planner of services, with causeway.lb.slow-start', () => {
  const network: NetworkRecord = {
    ...{ v: 1, id: 'a', name: 'a', subnet: '10.64.0.0/20', gateway: '10.64.0.1' },
    ...{ internal: false, allocated: true },
  };
  const endpointAt = (address: string, rest: Partial<EndpointRecord> = {}): EndpointRecord => ({
    ...{ v: 1, id: address, network: 'a', node: 'n', address, mac: '02:42:0a:4d:00:05', sandbox: '/run/s' },
    ...rest,
  });
  const [one, two] = [endpointAt('10.64.0.3'), endpointAt('10.64.0.4')];
  const serviceOf = (rest: Partial<ServiceRecord> = {}, ...addresses: string[]): ServiceRecord => ({
    ...{ v: 1, id: 's', name: 's', vips: { a: '10.64.0.2' }, networks: ['a'] },
    ports: [{ protocol: 'tcp', port: 8080, targetPort: 80 }],
    policy: { slowStart: 10 },
    tasks: addresses.map((address) => ({ id: address, addresses: { a: address }, draining: false })),
    ...rest,
  });

  class Planned {
    readonly planner = new ServicePlanner('n');
    services: ServiceRecord[] = [];
    endpoints = [one, two];
    unreachable = new Set<string>();

    /** The weights of the VIP's real servers, which are those of the port's. */
    at(now: number): number[] {
      const [plan] = this.planner.plan(this.services, networks, this.endpoints, this.unreachable, now);
      const weights = [...(plan?.vips.map(({ server }) => server) ?? []), ...(plan?.ports ?? [])].map(
        ({ realServers }) => realServers.map(({ weight }) => weight),
      );
      assert.deepEqual(weights[0], weights[1]);
      return weights[0] ?? [];
    }
  }
  const networks = [network];

  it('a task that joins others has a tenth of its share, times its weight, and is planned anew when that grows', () => {
    const planned = new Planned();
    planned.services = [serviceOf({}, one.address)];
    assert.deepEqual(planned.at(0), [1]);
    assert.equal(planned.planner.nextChangeAt, Infinity);
    const both = serviceOf({}, one.address, two.address);
    planned.services = [both];
    assert.deepEqual(planned.at(1_000), [10, 1]);
    assert.equal(planned.planner.nextChangeAt, 2_000);
    assert.deepEqual(planned.at(1_500), [10, 1]);
    assert.deepEqual(planned.at(2_000), [10, 2]);
    // The record changes meanwhile.
    planned.services = [{ ...both, tasks: both.tasks.map((task) => ({ ...task, weight: 3 })) }];
    assert.deepEqual(planned.at(5_000), [30, 15]);
    assert.deepEqual(planned.at(10_000), [3, 3]);
    assert.equal(planned.planner.nextChangeAt, Infinity);
  });

  it('a task whose node was unreachable grows anew, and so does another sandbox at its address', () => {
    const planned = new Planned();
    planned.services = [serviceOf({}, one.address, two.address)];
    planned.endpoints = [one, { ...two, node: 'far' }];
    assert.deepEqual(planned.at(0), [1, 1]);
    planned.unreachable = new Set(['far']);
    assert.deepEqual(planned.at(100_000), [1]);
    planned.unreachable = new Set();
    assert.deepEqual(planned.at(101_000), [10, 1]);
    assert.deepEqual(planned.at(200_000), [1, 1]);
    planned.endpoints = [one, { ...two, node: 'far', sandbox: '/run/other' }];
    assert.deepEqual(planned.at(201_000), [10, 1]);
  });

  it('a service that is gone, or has no such label any more, changes nothing by itself', () => {
    const planned = new Planned();
    planned.services = [serviceOf({}, one.address)];
    planned.at(0);
    planned.services = [serviceOf({}, one.address, two.address)];
    assert.deepEqual(planned.at(1_000), [10, 1]);
    planned.services = [serviceOf({ policy: {} }, one.address, two.address)];
    assert.deepEqual(planned.at(1_100), [1, 1]);
    assert.equal(planned.planner.nextChangeAt, Infinity);
    planned.services = [];
    planned.at(1_200);
    assert.equal(planned.planner.nextChangeAt, Infinity);
  });
});
