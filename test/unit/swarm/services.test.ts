// Owns the tests of how Swarm's services and tasks become service records.
// Must not need Docker.
import assert from 'node:assert/strict';
import type { ServiceRecord } from '../../../store/records.ts';
import type { Service, Task } from '../../../swarm/docker.ts';
import { nextDrained, renderServices, whatIsUnderWay, type Known } from '../../../swarm/services.ts';

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
  it('a service’s record has name, VIP, ports and tasks, with addresses without their prefix', () => {
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

  it('tasks that wait for their health check count where none runs, those that only begin or are to end do not', () => {
    const at = (seconds: number): Task['Status'] => ({
      State: 'starting',
      Timestamp: new Date(seconds * 1000).toISOString(),
    });
    const waiting = task('b', '10.64.0.4', { Status: at(5) });
    const others = [
      task('a', '10.64.0.3', { Status: at(9.5) }),
      task('c', '10.64.0.5', { Status: at(5), DesiredState: 'shutdown' }),
    ];
    const about = known({ now: 10_000 });
    const { tasks, starting } = render(service(), [...others, waiting], about);
    assert.deepEqual([tasks, starting], [[], [{ id: 'b', addresses: { ours: '10.64.0.4' } }]]);
    assert.equal(render(service(), [waiting, task('d', '10.64.0.6')], about).starting, undefined);
    const many = Array.from({ length: 5_000 }, (_, at) => ({ ...waiting, ID: `t${at}` }));
    assert.equal(render(service(), many, about).starting?.length, 50);
  });

  it('ports of mode=host are left to the task’s node, and ports without a number to Swarm', () => {
    const ports = [
      { Protocol: 'tcp' as const, TargetPort: 80, PublishedPort: 8080, PublishMode: 'host' },
      { Protocol: 'tcp' as const, TargetPort: 81, PublishMode: 'ingress' },
      { Protocol: 'tcp' as const, TargetPort: 82, PublishedPort: 0, PublishMode: 'ingress' },
    ];
    assert.deepEqual(render(service({ Ports: ports })).ports, []);
  });

  it('the subnet’s own address, which Swarm was given when the pool was full, counts as none', () => {
    const endpoint = { VirtualIPs: [{ NetworkID: 'ours', Addr: '10.64.0.0/20' }] };
    const { vips, tasks } = render(service(endpoint), [task('a', '10.64.0.0'), task('b', '10.64.1.0')]);
    assert.deepEqual(vips, {});
    assert.deepEqual(
      tasks.map(({ addresses }) => addresses),
      [{}, { ours: '10.64.1.0' }],
    );
  });

  it('a service with endpoint mode dnsrr is known by its networks alone', () => {
    assert.deepEqual(render(service({})).vips, {});
    assert.deepEqual(render({ ...service(), Endpoint: null }).networks, ['ours']);
  });

  it('the networks of an old client’s spec are known', () => {
    const old: Service = {
      ID: 'web-id',
      Spec: { Name: 'web', TaskTemplate: {}, Networks: [{ Target: 'ours' }] },
    };
    assert.deepEqual(render(old).networks, ['ours']);
  });

  it('a service on others’ networks only has no record', () => {
    const endpoint = { VirtualIPs: [{ NetworkID: 'ingress', Addr: '10.0.0.5/24' }] };
    assert.deepEqual(renderServices([service(endpoint, ['theirs'])], [], known()), []);
  });

  it('others’ networks, VIPs and addresses are left out of a service that is on ours too', () => {
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

  it('a VIP that Swarm has not given an address yet is left out', () => {
    assert.deepEqual(render(service({ VirtualIPs: [{ NetworkID: 'ours', Addr: '' }] })).vips, {});
  });

  it('a task gets nothing before it runs', () => {
    for (const State of ['new', 'pending', 'assigned', 'preparing', 'starting', 'failed'])
      assert.deepEqual(render(service(), [task('a', '10.64.0.3', { Status: { State } })]).tasks, [], State);
  });

  it('tasks of one service are not counted for another', () => {
    assert.deepEqual(render(service(), [task('a', '10.64.0.3', { ServiceID: 'other' })]).tasks, []);
  });

  describe('of a task that shall not run any longer', () => {
    const before = new Map([['web-id', render(service(), [task('a', '10.64.0.3')])]]);

    it('a task that shall end is kept, draining, while its endpoint is there', () => {
      const endpoints = new Set(['ours 10.64.0.3']);
      const draining = render(service(), [], known({ before, endpoints }));
      assert.deepEqual(draining.tasks, [{ id: 'a', addresses: { ours: '10.64.0.3' }, draining: true }]);
      const again = render(service(), [], known({ before: new Map([['web-id', draining]]), endpoints }));
      assert.deepEqual(again, draining, 'and goes on doing so');
    });

    it('a task that shall end is forgotten with its endpoint', () => {
      assert.deepEqual(render(service(), [], known({ before })).tasks, []);
    });

    it('a task that shall end is forgotten when another task has its address', () => {
      const endpoints = new Set(['ours 10.64.0.3']);
      const { tasks } = render(service(), [task('b', '10.64.0.3')], known({ before, endpoints }));
      assert.deepEqual(tasks, [{ id: 'b', addresses: { ours: '10.64.0.3' }, draining: false }]);
    });

    it('a task that was to end and runs again is served again', () => {
      const endpoints = new Set(['ours 10.64.0.3']);
      const draining = render(service(), [], known({ before, endpoints }));
      const about = known({ before: new Map([['web-id', draining]]), endpoints });
      assert.deepEqual(render(service(), [task('a', '10.64.0.3')], about), before.get('web-id'));
    });

    it('a draining task has the time since when, and ends when its label’s time is over', () => {
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

  it('tasks that ran before a health check was asked for count as healthy', () => {
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

  it('an update or rollback, and a task that begins, are under way', () => {
    for (const state of ['updating', 'rollback_started'])
      assert.deepEqual(
        whatIsUnderWay(during(state), being('starting')),
        { updating: ['web-id'], starting: [] },
        state,
      );
    assert.deepEqual(whatIsUnderWay([service()], being('starting')), { updating: [], starting: ['web-id'] });
  });

  it('what may last for ever, and tasks of other services, are not under way', () => {
    for (const state of ['completed', 'paused', 'rollback_completed', 'rollback_paused'])
      assert.deepEqual(whatIsUnderWay(during(state), []), nothing, state);
    for (const state of ['running', 'pending'])
      assert.deepEqual(whatIsUnderWay([service()], being(state)), nothing, state);
    assert.deepEqual(whatIsUnderWay([], being('starting')), nothing);
  });
});
