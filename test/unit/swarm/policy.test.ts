// Owns the tests of reading labels.
// Must not test what becomes of them.
import assert from 'node:assert/strict';
import { readContainerPolicy, readPolicy, readTaskPolicy } from '../../../swarm/policy.ts';

describe('labels', () => {
  it('labels say how a service is balanced and published', () => {
    const labels = {
      'com.example.team': 'web',
      'causeway.lb.scheduler': ' mh ',
      'causeway.lb.affinity': '300',
      'causeway.lb.locality': 'prefer-local',
      'causeway.lb.drain': '0',
      'causeway.lb.timeout': 'udp:600, tcp:3600',
      'causeway.health': 'http:8080/ready?x=1',
      'causeway.health.interval': '5',
      'causeway.health.rise': '2',
      'causeway.health.fall': '4',
      'causeway.publish.bind': 'eth1, 203.0.113.7',
      'causeway.publish.allow': '10.1.2.3/8,192.0.2.1',
      'causeway.publish.deny': '10.9.9.9',
    };
    assert.deepEqual(readPolicy(labels), {
      value: {
        scheduler: 'mh',
        affinity: 300,
        locality: 'prefer-local',
        drain: 0,
        timeout: { udp: 600, tcp: 3600 },
        health: { protocol: 'http', port: 8080, path: '/ready?x=1' },
        healthInterval: 5,
        healthRise: 2,
        healthFall: 4,
        bind: ['203.0.113.7', 'eth1'],
        allow: ['10.0.0.0/8', '192.0.2.1/32'],
        deny: ['10.9.9.9/32'],
      },
      problems: [],
    });
  });

  it('no labels: no policy', () => {
    for (const none of [undefined, null, {}]) assert.deepEqual(readPolicy(none), { value: {}, problems: [] });
  });

  it('a subnet within another of the label is left out: nft accepts no overlaps', () => {
    const allow = '10.0.0.0/8,10.1.0.0/16,10.0.0.0/8,192.0.2.0/24,192.0.2.128/25,0.0.0.0/0';
    assert.deepEqual(readPolicy({ 'causeway.publish.allow': allow }).value.allow, ['0.0.0.0/0']);
    assert.deepEqual(readPolicy({ 'causeway.publish.deny': '10.0.0.0/8,10.255.0.0/16' }).value.deny, [
      '10.0.0.0/8',
    ]);
  });

  it('labels say what health check a task must answer', () => {
    const check = (text: string): unknown => readPolicy({ 'causeway.health': text }).value.health;
    assert.deepEqual(check('tcp:80'), { protocol: 'tcp', port: 80 });
    assert.deepEqual(check('http:80'), { protocol: 'http', port: 80, path: '/' });
    for (const text of ['tcp:80/x', 'udp:53', 'http:65536', 'http:80/a b', 'http://x', '80'])
      assert.equal(check(text), undefined, text);
  });

  it('labels say how long connections may be silent, once for each protocol', () => {
    const timeout = (text: string): unknown => readPolicy({ 'causeway.lb.timeout': text }).value.timeout;
    assert.deepEqual(timeout('tcp:1,fin:2,udp:2592000'), { tcp: 1, fin: 2, udp: 2_592_000 });
    for (const text of [
      '60',
      'tcp',
      'tcp:',
      'tcp:0',
      'udp:2592001',
      'tcp:1,tcp:2',
      'sctp:9',
      'tcp:1,',
      'tcp:1h',
    ])
      assert.equal(timeout(text), undefined, text);
  });

  it('a health interval without a health check is reported', () => {
    assert.deepEqual(readPolicy({ 'causeway.health.fall': '2' }).problems, [
      'causeway.health.fall=2: nothing is checked without causeway.health',
    ]);
  });

  it('causeway.lb.slow-start says how long the share of a new task grows; without shares it is a problem', () => {
    const slow = { 'causeway.lb.slow-start': '30' };
    for (const scheduler of ['wrr', 'wlc'] as const)
      assert.deepEqual(readPolicy({ ...slow, 'causeway.lb.scheduler': scheduler }).value, {
        slowStart: 30,
        scheduler,
      });
    assert.deepEqual(readPolicy(slow), { value: { slowStart: 30 }, problems: [] });
    for (const [label, value] of [
      ...(['rr', 'lc', 'sh', 'mh'] as const).map((name) => ['causeway.lb.scheduler', name] as const),
      ['causeway.lb.affinity', '60'] as const,
    ]) {
      const { value: policy, problems } = readPolicy({ ...slow, [label]: value });
      assert.equal(policy.slowStart, undefined);
      assert.deepEqual(problems, [`causeway.lb.slow-start=30: no share grows with ${label}=${value}`]);
    }
  });

  it('a label gives a task its weight', () => {
    assert.deepEqual(readTaskPolicy({ 'causeway.lb.weight': '7' }), { value: { weight: 7 }, problems: [] });
  });

  const bad: Record<string, [string, RegExp]> = {
    'causeway.lb.scheduler': ['fastest', /must be one of rr, wrr/],
    'causeway.lb.affinity': ['5m', /whole number of seconds, 1 to 86400/],
    'causeway.lb.locality': ['here', /must be one of any, prefer-local, local/],
    'causeway.lb.slow-start': ['0', /whole number of seconds, 1 to 3600/],
    'causeway.lb.drain': ['-1', /whole number of seconds, 0 to 86400/],
    'causeway.health': ['tcp:0', /must be tcp:PORT or http:PORT\/PATH/],
    'causeway.health.interval': ['0', /whole number of seconds, 1 to 3600/],
    'causeway.publish.bind': ['eth0"; flush ruleset', /neither an IPv4 address nor the name of a device/],
    'causeway.publish.allow': ['10.0.0.0/33', /neither an IPv4 address nor a subnet/],
    'causeway.publish.deny': ['10.0.0.0/8,,', /commas between/],
    'causeway.publish.port': ['80', /no such label; there are .*causeway.publish.bind/],
    'causeway.lb.weight': ['2', /--container-label/],
  };
  for (const [label, [value, reason]] of Object.entries(bad))
    it(`a label of no use is reported with the reason: ${label}=${value}`, () => {
      const { value: policy, problems } = readPolicy({ [label]: value });
      assert.deepEqual(policy, label.startsWith('causeway.publish.') ? { closed: true } : {});
      assert.ok(problems[0]?.startsWith(`${label}=${value}: `), problems[0]);
      assert.match(problems[0] ?? '', reason);
    });

  const slips: Record<string, string> = {
    'causeway.publish.allow': '10.0.0.0/8;192.168.0.0/16',
    'causeway.publish.allow ': '10.0.0.0/8',
    'causeway.publish.deny': '203.0.113.0/24,2001:db8::/32',
    'causeway.publish.bind': '',
    'causeway.publish.alow': '10.0.0.0/8',
    'causeway.publish': '10.0.0.0/8',
    'causeway.publsh.allow': '10.0.0.0/8',
    'causeway.deny': '203.0.113.0/24',
    'Causeway.Publish.Allow': '10.0.0.0/8',
  };
  for (const [name, text] of Object.entries(slips))
    it(`an access label that cannot be read closes the ports: ${name}=${text}`, () => {
      const labels = { [name]: text, 'causeway.lb.timeout': 'udp:60' };
      for (const read of [readPolicy, readContainerPolicy]) {
        const { value, problems } = read(labels);
        assert.deepEqual(value, { timeout: { udp: 60 }, closed: true });
        assert.match(problems.join(), /closed to everybody until it is put right/);
      }
    });

  it('access labels on a service’s containers close the ports where they are', () => {
    assert.equal(readTaskPolicy({ 'causeway.publish.allow': '10.0.0.0/8' }).closed, true);
    assert.equal(readTaskPolicy({ 'causeway.lb.scheduler': 'rr' }).closed, undefined);
  });

  it('labels of other sections close nothing', () => {
    for (const name of ['causeway.lb.scheduler', 'causeway.health', 'causeway.lb.scheduller'])
      assert.equal(readPolicy({ [name]: '?' }).value.closed, undefined, name);
  });

  it('labels of a single container say who may use its ports, and how long its connections are remembered', () => {
    assert.deepEqual(
      readContainerPolicy({
        'causeway.publish.bind': 'eth1',
        'causeway.publish.allow': '10.0.0.0/8',
        'causeway.publish.deny': '10.9.0.0/16',
        'causeway.lb.timeout': 'udp:60',
        maintainer: 'somebody',
      }),
      {
        value: { bind: ['eth1'], allow: ['10.0.0.0/8'], deny: ['10.9.0.0/16'], timeout: { udp: 60 } },
        problems: [],
      },
    );
    for (const [name, text] of [
      ['causeway.lb.scheduler', 'rr'],
      ['causeway.lb.weight', '2'],
    ] as const)
      assert.deepEqual(readContainerPolicy({ [name]: text }).problems, [
        `${name}=${text}: a label of services, not of single containers`,
      ]);
  });

  it('a service’s labels that were put on its containers are reported as to be moved', () => {
    const { problems } = readTaskPolicy({ 'causeway.lb.scheduler': 'rr', 'causeway.lb.weight': '0' });
    assert.match(problems[0] ?? '', /set it by --label/);
    assert.match(problems[1] ?? '', /whole number of parts, 1 to 100/);
  });
});
