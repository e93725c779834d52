// Owns the tests of how Swarm's services and tasks become service records.
// Must not need Docker.
import assert from 'node:assert/strict';
import type { ServiceRecord } from '../../store/records.ts';
import type { Service, Task } from '../../swarm/docker.ts';
import { nextDrained, renderServices, whatIsUnderWay, type Known } from '../../swarm/services.ts';

function service(rest: Partial<NonNullable<Service['Endpoint']>> = {}, networks = ['ours']): Service {
  return {
    ID: 'web-id',
    Spec: { Name: 'web', TaskTemplate: { Networks: networks.map((Target) => ({ Target })) } },
    Endpoint: rest,
  };
}

function task(id: string, address: string, rest: Partial<Task> = {}): Task {
  return {
    ID: id,
    ServiceID: 'web-id',
    NodeID: 'node',
    DesiredState: 'running',
    Status: { State: 'running' },
    NetworksAttachments: [{ Network: { ID: 'ours' }, Addresses: [`${address}/20`] }],
    ...rest,
  };
}

function known(rest: Partial<Known> = {}): Known {
  return { networks: new Set(['ours']), endpoints: new Set(), before: new Map(), now: 0, ...rest };
}

/** @returns the one record */
function render(of: Service, tasks: Task[] = [], about: Known = known()): ServiceRecord {
  const [record, ...others] = renderServices([of], tasks, about);
  assert.ok(record);
  assert.deepEqual(others, []);
  return record;
}

describe('renderServices', () => {
  it('takes name, VIP, ports and tasks, addresses without their prefix', () => {
    const endpoint = {
      Ports: [{ Protocol: 'udp' as const, TargetPort: 53, PublishedPort: 5353, PublishMode: 'ingress' }],
      VirtualIPs: [{ NetworkID: 'ours', Addr: '10.64.0.2/20' }],
    };
    assert.deepEqual(render(service(endpoint), [task('b', '10.64.0.4'), task('a', '10.64.0.3')]), {
      v: 1,
      id: 'web-id',
      name: 'web',
      vips: { ours: '10.64.0.2' },
      networks: ['ours'],
      ports: [{ protocol: 'udp', port: 5353, targetPort: 53 }],
      tasks: [
        { id: 'a', addresses: { ours: '10.64.0.3' }, draining: false },
        { id: 'b', addresses: { ours: '10.64.0.4' }, draining: false },
      ],
    });
  });

  it('leaves ports of mode=host to the node of the task, and ports without a number to Swarm', () => {
    const ports = [
      { Protocol: 'tcp' as const, TargetPort: 80, PublishedPort: 8080, PublishMode: 'host' },
      { Protocol: 'tcp' as const, TargetPort: 81, PublishMode: 'ingress' },
      { Protocol: 'tcp' as const, TargetPort: 82, PublishedPort: 0, PublishMode: 'ingress' },
    ];
    assert.deepEqual(render(service({ Ports: ports })).ports, []);
  });

  it('knows a service with endpoint mode dnsrr by its networks alone', () => {
    assert.deepEqual(render(service({})).vips, {});
    assert.deepEqual(render({ ...service(), Endpoint: null }).networks, ['ours']);
  });

  it("knows the networks of an old client's spec", () => {
    const old: Service = {
      ID: 'web-id',
      Spec: { Name: 'web', TaskTemplate: {}, Networks: [{ Target: 'ours' }] },
    };
    assert.deepEqual(render(old).networks, ['ours']);
  });

  it("has no record of a service on others' networks only", () => {
    const endpoint = { VirtualIPs: [{ NetworkID: 'ingress', Addr: '10.0.0.5/24' }] };
    assert.deepEqual(renderServices([service(endpoint, ['theirs'])], [], known()), []);
  });

  it("leaves out others' networks, VIPs and addresses of a service that is on ours too", () => {
    const endpoint = {
      VirtualIPs: [
        { NetworkID: 'ingress', Addr: '10.0.0.5/24' },
        { NetworkID: 'ours', Addr: '10.64.0.2/20' },
      ],
    };
    const both = task('a', '10.64.0.3', {
      NetworksAttachments: [
        { Network: { ID: 'ingress' }, Addresses: ['10.0.0.6/24'] },
        { Network: { ID: 'ours' }, Addresses: ['10.64.0.3/20'] },
      ],
    });
    const record = render(service(endpoint, ['ours', 'theirs']), [both]);
    assert.deepEqual(record.networks, ['ours']);
    assert.deepEqual(record.vips, { ours: '10.64.0.2' });
    assert.deepEqual(record.tasks[0]?.addresses, { ours: '10.64.0.3' });
  });

  it('passes over a VIP that Swarm has not given an address yet', () => {
    assert.deepEqual(render(service({ VirtualIPs: [{ NetworkID: 'ours', Addr: '' }] })).vips, {});
  });

  it('sends nothing to a task before it runs', () => {
    for (const State of ['new', 'pending', 'assigned', 'preparing', 'starting', 'failed'])
      assert.deepEqual(render(service(), [task('a', '10.64.0.3', { Status: { State } })]).tasks, [], State);
  });

  it('does not take the tasks of one service for those of another', () => {
    assert.deepEqual(render(service(), [task('a', '10.64.0.3', { ServiceID: 'other' })]).tasks, []);
  });

  describe('of a task that shall not run any longer', () => {
    const before = new Map([['web-id', render(service(), [task('a', '10.64.0.3')])]]);

    it('keeps it, draining, while its endpoint is there', () => {
      const endpoints = new Set(['ours 10.64.0.3']);
      const draining = render(service(), [], known({ before, endpoints }));
      assert.deepEqual(draining.tasks, [{ id: 'a', addresses: { ours: '10.64.0.3' }, draining: true }]);
      const again = render(service(), [], known({ before: new Map([['web-id', draining]]), endpoints }));
      assert.deepEqual(again, draining, 'and goes on doing so');
    });

    it('forgets it with its endpoint', () => {
      assert.deepEqual(render(service(), [], known({ before })).tasks, []);
    });

    it('forgets it when another task has its address', () => {
      const endpoints = new Set(['ours 10.64.0.3']);
      const { tasks } = render(service(), [task('b', '10.64.0.3')], known({ before, endpoints }));
      assert.deepEqual(tasks, [{ id: 'b', addresses: { ours: '10.64.0.3' }, draining: false }]);
    });

    it('takes it back when it runs again', () => {
      const endpoints = new Set(['ours 10.64.0.3']);
      const draining = render(service(), [], known({ before, endpoints }));
      const about = known({ before: new Map([['web-id', draining]]), endpoints });
      assert.deepEqual(render(service(), [task('a', '10.64.0.3')], about), before.get('web-id'));
    });

    it('says since when, and when its time is over, where a label says how long that may be', () => {
      const spec = service();
      spec.Spec.Labels = { 'causeway.lb.drain': '5' };
      const endpoints = new Set(['ours 10.64.0.3']);
      const first = render(spec, [], known({ before, endpoints, now: 1_000 }));
      assert.deepEqual([first.tasks[0]?.since, first.tasks[0]?.drained], [1_000, undefined]);
      assert.equal(nextDrained([first]), 6_000);
      const again = (record: ServiceRecord, now: number): ServiceRecord =>
        render(spec, [], known({ before: new Map([['web-id', record]]), endpoints, now }));
      assert.deepEqual(again(first, 5_999), first);
      const over = again(first, 6_000);
      assert.deepEqual([over.tasks[0]?.since, over.tasks[0]?.drained], [1_000, true]);
      assert.equal(nextDrained([over]), Infinity);
      assert.deepEqual(again(over, 9_000), over, 'for as long as its endpoint is there');
    });
  });

  it('takes those tasks for healthy that ran before anybody asked', () => {
    const plain = render(service(), [task('a', '10.64.0.3')], known());
    const spec = service();
    spec.Spec.Labels = { 'causeway.health': 'tcp:80' };
    const both = [task('a', '10.64.0.3'), task('b', '10.64.0.4')];
    const assumed = (before: ServiceRecord): unknown[] => {
      const record = render(spec, both, known({ before: new Map([['web-id', before]]) }));
      return [...record.tasks.map((one) => one.assumed), ...(before === plain ? assumed(record) : [])];
    };
    assert.deepEqual(assumed(plain), [true, undefined, true, undefined]);
  });
});

describe('whatIsUnderWay', () => {
  const during = (State: string) => [{ ...service(), UpdateStatus: { State } }];
  const being = (State: string) => [{ ...task('a', '10.64.0.3'), Status: { State } }];

  const nothing = { updating: [], starting: [] };

  it('is so while Swarm updates a service or rolls it back, and while a task begins', () => {
    for (const state of ['updating', 'rollback_started'])
      assert.deepEqual(
        whatIsUnderWay(during(state), being('starting')),
        { updating: ['web-id'], starting: [] },
        state,
      );
    assert.deepEqual(whatIsUnderWay([service()], being('starting')), { updating: [], starting: ['web-id'] });
  });

  it('is not for what may last for ever, nor for the tasks of other services', () => {
    for (const state of ['completed', 'paused', 'rollback_completed', 'rollback_paused'])
      assert.deepEqual(whatIsUnderWay(during(state), []), nothing, state);
    for (const state of ['running', 'pending'])
      assert.deepEqual(whatIsUnderWay([service()], being(state)), nothing, state);
    assert.deepEqual(whatIsUnderWay([], being('starting')), nothing);
  });
});
