// Owns the tests of reading labels.
// Must not test what becomes of them.
import assert from 'node:assert/strict';
import { readContainerPolicy, readPolicy, readTaskPolicy } from '../../swarm/policy.ts';

describe('labels', () => {
  it('say how a service is balanced and published', () => {
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

  it('say nothing where there are none', () => {
    for (const none of [undefined, null, {}]) assert.deepEqual(readPolicy(none), { value: {}, problems: [] });
  });

  it('say a subnet once, and not within another: nft takes no overlaps', () => {
    const allow = '10.0.0.0/8,10.1.0.0/16,10.0.0.0/8,192.0.2.0/24,192.0.2.128/25,0.0.0.0/0';
    assert.deepEqual(readPolicy({ 'causeway.publish.allow': allow }).value.allow, ['0.0.0.0/0']);
    assert.deepEqual(readPolicy({ 'causeway.publish.deny': '10.0.0.0/8,10.255.0.0/16' }).value.deny, [
      '10.0.0.0/8',
    ]);
  });

  it('say how a task is to answer', () => {
    const check = (text: string): unknown => readPolicy({ 'causeway.health': text }).value.health;
    assert.deepEqual(check('tcp:80'), { protocol: 'tcp', port: 80 });
    assert.deepEqual(check('http:80'), { protocol: 'http', port: 80, path: '/' });
    for (const text of ['tcp:80/x', 'udp:53', 'http:65536', 'http:80/a b', 'http://x', '80'])
      assert.equal(check(text), undefined, text);
  });

  it('say for how long connections may be silent, once for each kind', () => {
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

  it('are told when they say how often to check, and nothing says what', () => {
    assert.deepEqual(readPolicy({ 'causeway.health.fall': '2' }).problems, [
      'causeway.health.fall=2: nothing is checked without causeway.health',
    ]);
  });

  it('give a task its weight', () => {
    assert.deepEqual(readTaskPolicy({ 'causeway.lb.weight': '7' }), { value: { weight: 7 }, problems: [] });
  });

  const bad: Record<string, [string, RegExp]> = {
    'causeway.lb.scheduler': ['fastest', /must be one of rr, wrr/],
    'causeway.lb.affinity': ['5m', /whole number of seconds, 1 to 86400/],
    'causeway.lb.locality': ['here', /must be one of any, prefer-local, local/],
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
    it(`that say nothing to use are told with the reason: ${label}=${value}`, () => {
      const { value: policy, problems } = readPolicy({ [label]: value });
      assert.deepEqual(policy, {});
      assert.ok(problems[0]?.startsWith(`${label}=${value}: `), problems[0]);
      assert.match(problems[0] ?? '', reason);
    });

  it('of a single container say who may use its ports, and for how long its connections are remembered', () => {
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

  it('of a service that are put on its containers are told to be moved', () => {
    const { problems } = readTaskPolicy({ 'causeway.lb.scheduler': 'rr', 'causeway.lb.weight': '0' });
    assert.match(problems[0] ?? '', /set it by --label/);
    assert.match(problems[1] ?? '', /whole number of parts, 1 to 100/);
  });
});
