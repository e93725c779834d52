// Owns the tests of what a name stands for, and of who is answered what.
// Must not know packets or sockets.
import assert from 'node:assert/strict';
import { resolve, type Asker, type Resolution } from '../../../dns/resolve.ts';
import { TYPE } from '../../../dns/types.ts';
import { ZoneBuilder, type Zone, type ZoneRecords } from '../../../dns/zone.ts';
import type { EndpointRecord, NameRecord, NetworkRecord, ServiceRecord } from '../../../store/records.ts';
import { seeded } from '../../support/random.ts';

function network(id: string, subnet: string, rest: Partial<NetworkRecord> = {}): NetworkRecord {
  const gateway = subnet.replace(/\.0\/.*/, '.1');
  return { v: 1, id, name: `${id}-net`, subnet, gateway, internal: false, allocated: true, ...rest };
}

function endpoint(net: string, address: string, rest: Partial<EndpointRecord> = {}): EndpointRecord {
  return {
    v: 1,
    id: `e-${address}`,
    network: net,
    node: 'n1',
    address,
    mac: '02:42:0a:4d:00:05',
    sandbox: '/run/docker/netns/s',
    ...rest,
  };
}

function name(net: string, address: string, names: string[]): NameRecord {
  return {
    v: 1,
    endpoint: `e-${address}`,
    network: net,
    node: 'n1',
    container: 'c',
    names,
    unhealthy: false,
  };
}

function service(rest: Partial<ServiceRecord>): ServiceRecord {
  return { v: 1, id: rest.name ?? 's', name: 's', vips: {}, networks: ['a'], ports: [], tasks: [], ...rest };
}

function task(net: string, address: string, draining = false): ServiceRecord['tasks'][number] {
  return { id: address, addresses: { [net]: address }, draining };
}

const a = network('a', '10.0.0.0/24');
const b = network('b', '10.0.1.0/24');
const onA: Asker = { kind: 'container', networks: new Set(['a']) };
const onB: Asker = { kind: 'container', networks: new Set(['b']) };
const onBoth: Asker = { kind: 'container', networks: new Set(['a', 'b']) };
const onBothOtherwise: Asker = { kind: 'container', networks: new Set(['b', 'a']) };
const host: Asker = { kind: 'host' };

function zoneOf(records: Partial<ZoneRecords>, ...unreachable: string[]): Zone {
  return new ZoneBuilder().build(
    { networks: [a, b], services: [], endpoints: [], names: [], ...records },
    new Set(unreachable),
  );
}

/** A service `web` with three tasks on network a, a container `db` there, and one of that name on b. */
const records = {
  networks: [a, b],
  services: [
    service({
      name: 'web',
      vips: { a: '10.0.0.2' },
      aliases: { a: ['www'] },
      ports: [{ protocol: 'tcp', port: 8080, targetPort: 80, name: 'http' }],
      tasks: [task('a', '10.0.0.3'), task('a', '10.0.0.4'), task('a', '10.0.0.5')],
    }),
    service({ name: 'rr', tasks: [task('a', '10.0.0.6'), task('a', '10.0.0.7')] }),
  ],
  endpoints: [
    endpoint('a', '10.0.0.3'),
    endpoint('a', '10.0.0.4', { node: 'n2' }),
    endpoint('a', '10.0.0.5'),
    endpoint('a', '10.0.0.6'),
    endpoint('a', '10.0.0.7'),
    endpoint('a', '10.0.0.8'),
    endpoint('b', '10.0.1.8'),
  ],
  names: [name('a', '10.0.0.8', ['db', 'shared']), name('b', '10.0.1.8', ['DB', 'shared'])],
} satisfies ZoneRecords;

/** The same endpoints, when Docker's health check of the container at this address fails. */
function failingAt(address: string): EndpointRecord[] {
  return records.endpoints.map((record) => ({
    ...record,
    ...(record.network === 'a' && record.address === address && { failing: true as const }),
  }));
}

function ask(zone: Zone, asker: Asker, asked: string, type: number = TYPE.A): Resolution {
  return resolve(zone, asker, { name: asked, type });
}

/** @returns sorted addresses, or the kind of the resolution */
function addresses(zone: Zone, asker: Asker, asked: string): string[] | string {
  const resolution = ask(zone, asker, asked);
  if (resolution.kind !== 'answer') return resolution.kind;
  return resolution.records.map((record) => (record.type === TYPE.A ? record.address : '?')).sort();
}

function texts(zone: Zone, asker: Asker, asked: string): string[] | string {
  const resolution = ask(zone, asker, asked, TYPE.TXT);
  if (resolution.kind !== 'answer') return resolution.kind;
  return resolution.records.map((record) => (record.type === TYPE.TXT ? record.text : '?'));
}

function located(zone: Zone, asker: Asker, asked: string): string[] | string {
  const resolution = ask(zone, asker, asked, TYPE.SRV);
  if (resolution.kind !== 'answer') return resolution.kind;
  return resolution.records
    .map((record) =>
      record.type === TYPE.SRV ? `${record.priority} ${record.weight} ${record.port} ${record.target}` : '?',
    )
    .sort();
}

function pointer(zone: Zone, asker: Asker, address: string): string {
  const resolution = ask(zone, asker, `${address.split('.').reverse().join('.')}.in-addr.arpa`, TYPE.PTR);
  if (resolution.kind !== 'answer') return resolution.kind;
  const [record] = resolution.records;
  return record?.type === TYPE.PTR ? record.target : '?';
}

function ttl(zone: Zone, asker: Asker, asked: string): number | undefined {
  const resolution = ask(zone, asker, asked);
  return resolution.kind === 'answer' ? resolution.records[0]?.ttl : undefined;
}

describe('DNS: names of services', () => {
  const zone = zoneOf(records);

  it('name and alias of a service: the VIP', () => {
    assert.deepEqual(addresses(zone, onA, 'web'), ['10.0.0.2']);
    assert.deepEqual(addresses(zone, onA, 'www'), ['10.0.0.2']);
  });

  it('a service without VIP: the addresses of its tasks', () => {
    assert.deepEqual(addresses(zone, onA, 'rr'), ['10.0.0.6', '10.0.0.7']);
  });

  it('tasks.NAME and tasks.ALIAS: the addresses of the tasks', () => {
    assert.deepEqual(addresses(zone, onA, 'tasks.web'), ['10.0.0.3', '10.0.0.4', '10.0.0.5']);
    assert.deepEqual(addresses(zone, onA, 'tasks.www'), ['10.0.0.3', '10.0.0.4', '10.0.0.5']);
  });

  it('an alias is known on its network only', () => {
    const both = zoneOf({
      ...records,
      services: [
        service({
          name: 'web',
          networks: ['a', 'b'],
          vips: { a: '10.0.0.2', b: '10.0.1.2' },
          aliases: { b: ['www'] },
          tasks: [{ id: 't', addresses: { a: '10.0.0.3', b: '10.0.1.8' }, draining: false }],
        }),
      ],
    });
    assert.deepEqual(addresses(both, onA, 'www'), 'forward');
    assert.deepEqual(addresses(both, onBoth, 'www'), ['10.0.1.2']);
    assert.deepEqual(addresses(both, onBoth, 'web'), ['10.0.0.2']);
    assert.deepEqual(addresses(both, onBothOtherwise, 'web'), ['10.0.1.2']);
    assert.deepEqual(addresses(both, host, 'web.causeway.internal'), ['10.0.0.2', '10.0.1.2']);
  });

  it('a name of several networks is answered from the first that knows it, never mixed with another stack’s', () => {
    const twice = zoneOf({
      ...records,
      services: [
        service({ id: 's1', name: 'api', vips: { a: '10.0.0.2' }, tasks: [task('a', '10.0.0.3')] }),
        service({
          ...{ id: 's2', name: 'api', networks: ['b'], vips: { b: '10.0.1.2' } },
          tasks: [task('b', '10.0.1.8')],
        }),
      ],
    });
    for (const [asker, vip, tasks] of [
      [onBoth, '10.0.0.2', '10.0.0.3'],
      [onBothOtherwise, '10.0.1.2', '10.0.1.8'],
    ] as const)
      for (let turn = 0; turn < 20; turn += 1) {
        assert.deepEqual(addresses(twice, asker, 'api'), [vip]);
        assert.deepEqual(addresses(twice, asker, 'tasks.api'), [tasks]);
        assert.equal(texts(twice, asker, 'api').length, 2);
      }
    // A service of ours without a live task is not another one's to answer.
    const gone = zoneOf({
      ...records,
      services: [
        service({ id: 's1', name: 'api' }),
        service({ id: 's2', name: 'api', networks: ['b'], tasks: [task('b', '10.0.1.8')] }),
      ],
    });
    assert.equal(addresses(gone, onBoth, 'api'), 'nodata');
    assert.deepEqual(addresses(gone, onBoth, 'api.b-net'), ['10.0.1.8']);
  });

  it('no task is live: NODATA, also with a VIP', () => {
    const empty = zoneOf({ ...records, endpoints: [] });
    for (const asked of ['web', 'www', 'tasks.web', 'rr'])
      assert.equal(addresses(empty, onA, asked), 'nodata', asked);
  });

  it('all tasks of a service seem lost: they are named all the same, as the balancer does', () => {
    const alone = zoneOf(records, 'n1', 'n2', 'n3');
    assert.deepEqual(addresses(alone, onA, 'tasks.web'), ['10.0.0.3', '10.0.0.4', '10.0.0.5']);
    assert.deepEqual(addresses(alone, onA, 'web'), addresses(zoneOf(records), onA, 'web'));
  });

  it('tasks that drain, have no sandbox or endpoint, are lost or unhealthy are not named', () => {
    const only = ['10.0.0.3', '10.0.0.4', '10.0.0.5'];
    const without = (change: Partial<ZoneRecords>, ...unreachable: string[]): string[] | string =>
      addresses(zoneOf({ ...records, ...change }, ...unreachable), onA, 'tasks.web');
    assert.deepEqual(without({}), only);
    const services = [
      service({
        name: 'web',
        tasks: [task('a', '10.0.0.3', true), task('a', '10.0.0.4'), task('a', '10.0.0.5')],
      }),
    ];
    assert.deepEqual(without({ services }), ['10.0.0.4', '10.0.0.5'], 'draining');
    const { sandbox: _, ...left } = endpoint('a', '10.0.0.3');
    assert.deepEqual(
      without({ endpoints: [left, endpoint('a', '10.0.0.4')] }),
      ['10.0.0.4'],
      'one without a sandbox, one without an endpoint',
    );
    assert.deepEqual(without({}, 'n2'), ['10.0.0.3', '10.0.0.5'], 'unreachable');
    assert.deepEqual(without({ endpoints: failingAt('10.0.0.3') }), ['10.0.0.4', '10.0.0.5'], 'unhealthy');
    const checked = service({
      name: 'web',
      tasks: [task('a', '10.0.0.3'), task('a', '10.0.0.4'), { ...task('a', '10.0.0.5'), assumed: true }],
      policy: { health: { protocol: 'tcp', port: 80 } },
    });
    const found = { ...endpoint('a', '10.0.0.3'), healthy: true };
    assert.deepEqual(
      without({
        services: [checked],
        endpoints: [found, endpoint('a', '10.0.0.4'), endpoint('a', '10.0.0.5')],
      }),
      ['10.0.0.3', '10.0.0.5'],
      'not found healthy by the check of its service',
    );
    const replaced = service({ ...checked, tasks: [task('a', '10.0.0.3', true), task('a', '10.0.0.4')] });
    assert.deepEqual(
      without({ services: [replaced], endpoints: [found, endpoint('a', '10.0.0.4')] }),
      ['10.0.0.3'],
      'one that is replaced, while the new one is not healthy yet',
    );
    const failing = { ...endpoint('a', '10.0.0.4', { node: 'n2' }), healthy: false };
    assert.deepEqual(
      without({ services: [replaced], endpoints: [found, failing] }, 'n2'),
      ['10.0.0.3'],
      'one that is replaced, while the new one is not healthy, and its node does not answer',
    );
    assert.deepEqual(
      without({ endpoints: [endpoint('b', '10.0.0.3'), endpoint('a', '10.0.0.4')] }),
      ['10.0.0.4'],
      'an endpoint of another network',
    );
  });

  it('nobody serves yet: starting tasks are named, so that cluster members find each other, and the VIP is not', () => {
    const starting = [task('a', '10.0.0.4'), task('a', '10.0.0.5')].map(({ id, addresses: at }) => ({
      id,
      addresses: at,
    }));
    const with_ = (rest: Partial<ServiceRecord>, ...unreachable: string[]): Zone =>
      zoneOf({ ...records, services: [service({ name: 'web', starting, ...rest })] }, ...unreachable);
    const [all, vips] = [['10.0.0.4', '10.0.0.5'], { a: '10.0.0.2' }];
    assert.deepEqual(addresses(with_({}), onA, 'web'), all, 'dnsrr');
    assert.deepEqual(addresses(with_({ vips }), onA, 'tasks.web'), all);
    assert.deepEqual(addresses(with_({ vips }), onA, 'web'), 'nodata');
    assert.deepEqual(located(with_({}), onA, '_80._tcp.web').length, 2);
    assert.deepEqual(addresses(with_({}), onA, '10-0-0-4.web'), ['10.0.0.4']);
    const serves = { tasks: [task('a', '10.0.0.3')] };
    assert.deepEqual(addresses(with_(serves), onA, 'web'), ['10.0.0.3'], 'somebody serves');
    const lost = { tasks: [task('a', '10.0.0.4')], starting: [starting[1]!] };
    assert.deepEqual(addresses(with_(lost, 'n2'), onA, 'web'), ['10.0.0.5'], 'who serves is lost');
    assert.deepEqual(addresses(with_({ ...lost, vips }, 'n2'), onA, 'web'), ['10.0.0.2']);
    const { sandbox: _, ...left } = endpoint('a', '10.0.0.4');
    const endpoints = [left, endpoint('a', '10.0.0.5')];
    const services = [service({ name: 'web', starting })];
    assert.deepEqual(addresses(zoneOf({ ...records, services, endpoints }), onA, 'web'), ['10.0.0.5']);
  });

  it('of two endpoints of a task the one with a sandbox counts, else the balancer’s choice', () => {
    const { sandbox: _, ...left } = endpoint('a', '10.0.0.3', { id: 'z', node: 'n2' });
    const two = [endpoint('a', '10.0.0.3'), endpoint('a', '10.0.0.3', { id: 'z', node: 'n2' })];
    const node = (endpoints: EndpointRecord[]): string | undefined =>
      texts(zoneOf({ ...records, endpoints }), onA, 'tasks.web')[1];
    assert.equal(node([endpoint('a', '10.0.0.3'), left]), 'task=10.0.0.3 node=n1');
    assert.equal(node(two), 'task=10.0.0.3 node=n2');
    assert.equal(node(two.reverse()), 'task=10.0.0.3 node=n2');
  });

  it('a new task with the address of an old one that drains: the address is the new task’s', () => {
    const services = [
      service({ name: 'web', tasks: [task('a', '10.0.0.3')] }),
      service({ name: 'old', tasks: [task('a', '10.0.0.3', true)] }),
    ];
    const shared = zoneOf({ ...records, services, names: [name('a', '10.0.0.3', ['web.1'])] });
    assert.deepEqual(addresses(shared, onA, 'tasks.web'), ['10.0.0.3']);
    assert.deepEqual(addresses(shared, onA, 'web.1'), ['10.0.0.3']);
    assert.deepEqual(addresses(shared, onA, 'tasks.old'), 'nodata');
  });

  it('a service’s name wins over a container’s on the same network', () => {
    const names = [name('a', '10.0.0.8', ['web', 'tasks.web']), name('b', '10.0.1.8', ['web'])];
    const both = zoneOf({ ...records, names });
    assert.deepEqual(addresses(both, onA, 'web'), ['10.0.0.2']);
    assert.deepEqual(addresses(both, onA, 'tasks.web'), ['10.0.0.3', '10.0.0.4', '10.0.0.5']);
    assert.deepEqual(addresses(both, onBoth, 'web'), ['10.0.0.2']);
    assert.deepEqual(addresses(both, onBothOtherwise, 'web'), ['10.0.1.8']);
    assert.deepEqual(addresses(both, onB, 'web'), ['10.0.1.8']);
  });

  it('names of refused networks are not known', () => {
    const refused = zoneOf({ ...records, networks: [{ ...a, refused: 'it overlaps' }] });
    assert.equal(addresses(refused, onA, 'web'), 'forward');
    assert.equal(refused.isStale('10.0.0.99'), false);
  });
});

describe('DNS: names of containers', () => {
  const zone = zoneOf(records);

  it('each name of a container has its address', () => {
    assert.deepEqual(addresses(zone, onA, 'db'), ['10.0.0.8']);
    assert.deepEqual(addresses(zone, onA, 'shared'), ['10.0.0.8']);
  });

  it('a container that is not live: NODATA', () => {
    const sick = zoneOf({ ...records, endpoints: failingAt('10.0.0.8') });
    assert.equal(addresses(sick, onA, 'db'), 'nodata');
    assert.equal(addresses(zoneOf(records, 'n1'), onA, 'db'), 'nodata');
    const { sandbox: _, ...left } = endpoint('a', '10.0.0.8');
    assert.equal(addresses(zoneOf({ ...records, endpoints: [left] }), onA, 'db'), 'nodata');
    const services = [service({ name: 'x', tasks: [task('a', '10.0.0.8', true)] })];
    assert.equal(addresses(zoneOf({ ...records, services }), onA, 'db'), 'nodata');
  });

  it('an alias that containers share: the addresses of those that are live', () => {
    const names = ['10.0.0.6', '10.0.0.7', '10.0.0.8'].map((address) => name('a', address, ['pool']));
    const endpoints = failingAt('10.0.0.7');
    const answer = addresses(zoneOf({ ...records, names, endpoints }), onA, 'pool');
    assert.deepEqual(answer, ['10.0.0.6', '10.0.0.8']);
  });

  it('a container on several networks: the address on the asker’s first network that knows the name', () => {
    assert.deepEqual(addresses(zone, onBoth, 'shared'), ['10.0.0.8']);
    assert.deepEqual(addresses(zone, onBothOtherwise, 'shared'), ['10.0.1.8']);
    assert.deepEqual(addresses(zone, onB, 'shared'), ['10.0.1.8']);
    assert.equal(addresses(zone, onB, 'web'), 'forward');
    assert.equal(addresses(zone, { kind: 'container', networks: new Set(['gone']) }, 'shared'), 'forward');
  });

  it('container names that DNS cannot write are left out', () => {
    const odd = ['', 'a..b', 'x'.repeat(64), 'Kelvin\u212A', 'back\\slash', `${'y'.repeat(63)}.`.repeat(4)];
    const strange = zoneOf({ ...records, names: [name('a', '10.0.0.8', [...odd, 'db'])] });
    assert.deepEqual(addresses(strange, onA, 'db'), ['10.0.0.8']);
    assert.equal(addresses(strange, onA, 'kelvink'), 'forward');
    assert.equal(pointer(strange, onA, '10.0.0.8'), 'db.a-net');
  });
});

describe('DNS: how a name may be written', () => {
  const zone = zoneOf(records);

  it('a name may have any case and a final dot', () => {
    for (const asked of ['WEB', 'web.', 'Web.A-Net.', 'wEb.causeway.INTERNAL.'])
      assert.deepEqual(addresses(zone, onA, asked), ['10.0.0.2'], asked);
    assert.deepEqual(addresses(zone, onB, 'db'), ['10.0.1.8'], 'a name with capitals');
  });

  it('NAME.NETWORK is known for networks the asker is on', () => {
    assert.deepEqual(addresses(zone, onBoth, 'shared.a-net'), ['10.0.0.8']);
    assert.deepEqual(addresses(zone, onBoth, 'shared.b-net'), ['10.0.1.8']);
    assert.deepEqual(addresses(zone, onBoth, 'tasks.rr.a-net'), ['10.0.0.6', '10.0.0.7']);
    assert.equal(addresses(zone, onA, 'shared.b-net'), 'forward');
  });

  it('names and networks may contain dots', () => {
    const dotted = zoneOf({
      ...records,
      networks: [{ ...a, name: 'front.net' }, b],
      names: [name('a', '10.0.0.8', ['db.1'])],
    });
    assert.deepEqual(addresses(dotted, onA, 'db.1.front.net'), ['10.0.0.8']);
    assert.deepEqual(addresses(dotted, onA, 'db.1.front.net.causeway.internal'), ['10.0.0.8']);
  });

  it('NAME and NAME.NETWORK are known below causeway.internal, too', () => {
    assert.deepEqual(addresses(zone, onA, 'web.causeway.internal'), ['10.0.0.2']);
    assert.deepEqual(addresses(zone, onA, 'web.a-net.causeway.internal'), ['10.0.0.2']);
  });

  it('other names below causeway.internal: NXDOMAIN; its apex and networks exist', () => {
    for (const asked of [
      'nobody.causeway.internal',
      'web.b-net.causeway.internal',
      'x.web.causeway.internal',
    ])
      assert.equal(addresses(zone, onA, asked), 'nxdomain', asked);
    assert.equal(addresses(zone, onA, 'causeway.internal'), 'nodata');
    assert.equal(addresses(zone, onA, 'a-net.causeway.internal'), 'nodata');
    assert.equal(addresses(zone, onA, 'b-net.causeway.internal'), 'nxdomain');
    assert.equal(addresses(zone, onA, 'notcauseway.internal'), 'forward');
    const soa = ask(zone, onA, 'causeway.internal', TYPE.SOA);
    assert.deepEqual(soa, { kind: 'answer', records: [{ type: TYPE.SOA, ttl: 1 }], additional: [] });
  });

  it('other types of our names: NODATA, not forwarded', () => {
    for (const type of [TYPE.AAAA, TYPE.MX, TYPE.PTR, TYPE.SRV, TYPE.SOA, 65])
      for (const asked of ['web', 'tasks.web', 'db', 'web.a-net', 'db.causeway.internal'])
        assert.equal(ask(zone, onA, asked, type).kind, 'nodata', `${asked} ${type}`);
  });

  it('unknown names are forwarded', () => {
    for (const asked of ['example.com', '', '.', 'foo.web', 'a-net'])
      for (const type of [TYPE.A, TYPE.AAAA, TYPE.MX])
        assert.equal(ask(zone, onA, asked, type).kind, 'forward', asked);
  });
});

describe('DNS: the host', () => {
  const zone = zoneOf(records);

  it('the host may ask names of all networks, below causeway.internal and by address only', () => {
    assert.deepEqual(addresses(zone, host, 'shared.causeway.internal'), ['10.0.0.8', '10.0.1.8']);
    assert.deepEqual(addresses(zone, host, 'shared.b-net.causeway.internal'), ['10.0.1.8']);
    assert.deepEqual(addresses(zone, host, 'web.causeway.internal'), ['10.0.0.2']);
    assert.equal(pointer(zone, host, '10.0.1.8'), 'db.b-net');
    for (const asked of ['web', 'web.a-net', 'example.com', '1.1.168.192.in-addr.arpa'])
      assert.equal(addresses(zone, host, asked), 'refuse', asked);
    assert.equal(addresses(zone, host, 'nobody.causeway.internal'), 'nxdomain');
  });
});

describe('DNS: names of addresses', () => {
  const zone = zoneOf(records);

  it('the name of an address is the container’s first name, or for a VIP the service’s, with the network', () => {
    assert.equal(pointer(zone, onA, '10.0.0.8'), 'db.a-net');
    assert.equal(pointer(zone, onA, '10.0.0.2'), 'web.a-net');
  });

  it('the address of a task has a name before its container has told any', () => {
    assert.equal(pointer(zone, onA, '10.0.0.3'), '10-0-0-3.web.a-net');
    assert.deepEqual(addresses(zone, onA, '10-0-0-3.web.a-net'), ['10.0.0.3']);
  });

  it('an address has its name while somebody has it, healthy or not', () => {
    assert.equal(
      pointer(zoneOf({ ...records, endpoints: failingAt('10.0.0.8') }), onA, '10.0.0.8'),
      'db.a-net',
    );
    const { sandbox: _, ...left } = endpoint('a', '10.0.0.8');
    assert.equal(pointer(zoneOf({ ...records, endpoints: [left] }), onA, '10.0.0.8'), 'nxdomain');
  });

  it('names of our subnets’ addresses are never forwarded, and not told to who is on another network', () => {
    assert.equal(pointer(zone, onA, '10.0.0.99'), 'nxdomain');
    assert.equal(pointer(zone, onA, '10.0.0.255'), 'nxdomain');
    assert.equal(pointer(zone, onA, '10.0.1.8'), 'nxdomain');
    assert.equal(pointer(zone, onA, '9.255.255.255'), 'forward');
    assert.equal(ask(zone, onA, '0.0.10.in-addr.arpa', TYPE.PTR).kind, 'forward');
    assert.equal(ask(zone, onA, '8.0.0.10.in-addr.arpa', TYPE.A).kind, 'nodata');
  });

  it('the name of an address is without the network if both are too long, and without parts that are too long', () => {
    const long = `${'x'.repeat(63)}.`.repeat(3) + 'y'.repeat(58);
    const names = [name('a', '10.0.0.8', [long])];
    assert.equal(pointer(zoneOf({ ...records, names }), onA, '10.0.0.8'), long);
    assert.deepEqual(addresses(zoneOf({ ...records, names }), onA, long), ['10.0.0.8']);
    const wide = zoneOf({ ...records, networks: [{ ...a, name: 'n'.repeat(64) }, b] });
    assert.equal(pointer(wide, onA, '10.0.0.8'), 'db');
    assert.match(located(wide, onA, '_80._tcp.web')[0] ?? '', /10-0-0-3\.web\.causeway\.internal$/);
  });

  it('the name of an address is without the network while that has no name', () => {
    const { name: _, ...unnamed } = a;
    const nameless = zoneOf({ ...records, networks: [unnamed] });
    assert.equal(pointer(nameless, onA, '10.0.0.8'), 'db');
    assert.deepEqual(addresses(nameless, onA, 'web'), ['10.0.0.2']);
  });
});

describe('DNS: SRV', () => {
  const named = zoneOf({
    ...records,
    names: [
      name('a', '10.0.0.3', ['web.1.x', 'web']),
      name('a', '10.0.0.4', ['twin']),
      name('a', '10.0.0.5', ['twin']),
    ],
  });

  it('SRV: one record for each live task, whose target is a name of that task alone', () => {
    const targets = [
      '10-0-0-4.web.a-net.causeway.internal',
      '10-0-0-5.web.a-net.causeway.internal',
      'web.1.x.a-net.causeway.internal',
    ];
    assert.deepEqual(
      located(named, onA, '_80._tcp.web'),
      targets.map((target) => `0 1 80 ${target}`),
    );
    for (const asker of [onA, host])
      assert.deepEqual(
        targets.map((target) => addresses(named, asker, target)),
        [['10.0.0.4'], ['10.0.0.5'], ['10.0.0.3']],
      );
  });

  it('SRV: the answer has the addresses of the targets', () => {
    const resolution = ask(named, onA, '_80._tcp.web', TYPE.SRV);
    assert.equal(resolution.kind, 'answer');
    const { additional } = resolution;
    assert.deepEqual(
      additional.map((record) => `${record.name} ${record.type === TYPE.A ? record.address : ''}`).sort(),
      [
        '10-0-0-4.web.a-net.causeway.internal 10.0.0.4',
        '10-0-0-5.web.a-net.causeway.internal 10.0.0.5',
        'web.1.x.a-net.causeway.internal 10.0.0.3',
      ],
    );
  });

  it('SRV: the name of a port gives its target port, for the protocol that is asked for', () => {
    assert.equal(located(named, onA, '_HTTP._tcp.Web').length, 3);
    assert.match(located(named, onA, '_http._tcp.web')[0] ?? '', /^0 1 80 /);
    assert.equal(located(named, onA, '_http._udp.web'), 'nxdomain');
    const port = { protocol: 'udp', port: 5353, targetPort: 53, name: 'dns' } as const;
    const services = [service({ name: 'web', ports: [port], tasks: [task('a', '10.0.0.3')] })];
    const udp = zoneOf({ ...records, services });
    assert.match(located(udp, onA, '_dns._udp.web')[0] ?? '', /^0 1 53 /);
    assert.equal(located(udp, onA, '_dns._tcp.web'), 'nxdomain');
    assert.equal(located(named, onA, '_https._tcp.web'), 'nxdomain');
  });

  it('SRV: only numbers that are ports, and protocols tcp and udp, are known', () => {
    assert.match(located(named, onA, '_65535._udp.web')[0] ?? '', /^0 1 65535 /);
    for (const port of ['0', '65536', '080', '99999'])
      assert.equal(located(named, onA, `_${port}._tcp.web`), 'nxdomain', port);
    assert.equal(located(named, onA, '_80._sctp.web'), 'forward');
  });

  it('SRV: the service is known by all its names, and by no other', () => {
    for (const asked of [
      'www',
      'web.a-net',
      'tasks.web',
      'web.causeway.internal',
      'web.a-net.causeway.internal',
    ])
      assert.equal(located(named, onA, `_80._tcp.${asked}`).length, 3, asked);
    assert.equal(located(named, onB, '_80._tcp.web'), 'forward');
    assert.equal(located(named, onA, '_80._tcp.twin'), 'forward');
    assert.equal(located(named, onA, '_80._tcp.nobody.causeway.internal'), 'nxdomain');
    assert.equal(located(named, host, '_80._tcp.web.causeway.internal').length, 3);
  });

  it('SRV: no live task, or another type: NODATA', () => {
    assert.equal(located(zoneOf({ ...records, endpoints: [] }), onA, '_80._tcp.web'), 'nodata');
    assert.equal(ask(named, onA, '_80._tcp.web').kind, 'nodata');
  });
});

describe('DNS: TXT', () => {
  it('TXT: what a service is, and on which node its live tasks are', () => {
    assert.deepEqual(texts(zoneOf(records, 'n2'), onA, 'web'), [
      'kind=service network=a-net vip=10.0.0.2 tasks=3 live=2',
      'task=10.0.0.3 node=n1',
      'task=10.0.0.5 node=n1',
    ]);
    assert.deepEqual(texts(zoneOf({ ...records, endpoints: [] }), onA, 'tasks.rr'), [
      'kind=tasks network=a-net tasks=2 live=0',
    ]);
  });

  it('TXT: why a container is not live', () => {
    const line = (state: string): string[] => [
      `kind=container network=a-net address=10.0.0.8 node=n1 state=${state}`,
    ];
    assert.deepEqual(texts(zoneOf(records), onA, 'db'), line('live'));
    assert.deepEqual(texts(zoneOf(records, 'n1'), onA, 'db'), line('unreachable'));
    const endpoints = failingAt('10.0.0.8');
    assert.deepEqual(texts(zoneOf({ ...records, endpoints }), onA, 'db'), line('unhealthy'));
  });

  it('ANY for a name without an address: its TXT record', () => {
    const types = (zone: Zone): number[] => {
      const resolution = ask(zone, onA, 'web', TYPE.ANY);
      return resolution.kind === 'answer' ? resolution.records.map(({ type }) => type) : [];
    };
    assert.deepEqual(types(zoneOf(records)), [TYPE.A]);
    assert.deepEqual(types(zoneOf({ ...records, endpoints: [] })), [TYPE.TXT]);
  });
});

describe('DNS: TTL and order', () => {
  const zone = zoneOf(records);

  it('TTL is 5 s for a VIP, and 1 s for what moves', () => {
    assert.equal(ttl(zone, onA, 'web'), 5);
    for (const asked of ['tasks.web', 'rr', 'db', '10-0-0-3.web'])
      assert.equal(ttl(zone, onA, asked), 1, asked);
  });

  it('addresses come in random order, none missing', () => {
    const random = seeded(1);
    const orders = new Set<string>();
    for (let round = 0; round < 200; round += 1) {
      const resolution = resolve(zone, onA, { name: 'tasks.web', type: TYPE.A }, () => random(1_000) / 1_000);
      assert.equal(resolution.kind, 'answer');
      orders.add(resolution.records.map((record) => (record.type === TYPE.A ? record.address : '')).join());
    }
    assert.equal(orders.size, 6);
    for (const order of orders) assert.equal(order.split(',').sort().join(), '10.0.0.3,10.0.0.4,10.0.0.5');
  });
});

describe('DNS: stale addresses', () => {
  it('an address in one of our subnets that nobody has is stale', () => {
    const zone = zoneOf(records, 'n2');
    const stale = ['10.0.0.0', '10.0.0.4', '10.0.0.99', '10.0.0.255', '10.0.1.2'];
    const fine = ['10.0.0.1', '10.0.0.2', '10.0.0.3', '10.0.1.8', '10.0.2.1', '8.8.8.8', 'nonsense', '::1'];
    for (const address of stale) assert.equal(zone.isStale(address), true, address);
    for (const address of fine) assert.equal(zone.isStale(address), false, address);
  });
});
