// Owns the tests of who may no longer connect since a policy changed.
// Must not test that their connections end (test/kernel/attacks.test.ts does).
import assert from 'node:assert/strict';
import type { PortServer } from '../../../lb/model.ts';
import { newlyShutOut, outside } from '../../../lb/shut-out.ts';
import type { PolicyRecord } from '../../../store/records.ts';

const server = (policy?: PolicyRecord): PortServer => ({
  kind: 'port',
  protocol: 'tcp',
  port: 8080,
  targetPort: 80,
  realServers: [{ address: '10.64.0.3', weight: 1 }],
  ...(policy && { policy }),
});

describe('newlyShutOut', () => {
  it('newlyShutOut names whom a change of deny or allow keeps out', () => {
    const shut = { protocol: 'tcp', port: 8080, addresses: ['10.64.0.3'] };
    assert.deepEqual(newlyShutOut([server()], [server({ deny: ['192.0.2.0/24'] })], []), [
      { ...shut, sources: ['192.0.2.0/24'] },
    ]);
    assert.deepEqual(newlyShutOut([server()], [server({ allow: ['128.0.0.0/1'] })], []), [
      { ...shut, sources: ['0.0.0.0/1'] },
    ]);
  });

  it('newlyShutOut is silent about what stays, is new, or opens', () => {
    const same = server({ deny: ['192.0.2.0/24'] });
    assert.deepEqual(newlyShutOut([same], [same], []), []);
    assert.deepEqual(newlyShutOut([], [same], []), []);
    assert.deepEqual(newlyShutOut([same], [server()], []), []);
    assert.deepEqual(newlyShutOut([same], [server({ deny: ['192.0.2.0/24'], scheduler: 'rr' })], []), []);
  });
});

describe('newlyShutOut, without knowledge of before', () => {
  const sources = (policy: PolicyRecord, own: string[] = []): readonly string[] =>
    newlyShutOut(undefined, [server(policy)], own).flatMap((shut) => shut.sources);

  it('newlyShutOut without a state before names everybody who is kept out', () => {
    assert.deepEqual(sources({}), []);
    assert.deepEqual(sources({ deny: ['192.0.2.0/24'] }), ['192.0.2.0/24']);
    assert.deepEqual(sources({ closed: true }), ['0.0.0.0/0']);
  });

  it('newlyShutOut leaves out the node itself, which may connect, unless nobody may', () => {
    const own = ['192.0.2.0', '127.0.0.0/8'];
    assert.deepEqual(sources({ deny: ['192.0.2.0/30'] }, own), ['192.0.2.1/32', '192.0.2.2/31']);
    assert.deepEqual(sources({ deny: ['127.0.0.0/8'] }, own), []);
    assert.deepEqual(sources({ allow: ['0.0.0.0/2', '64.0.0.0/3', '128.0.0.0/1'] }, ['96.0.0.0/3']), []);
    assert.deepEqual(sources({ closed: true }, own), ['0.0.0.0/0']);
  });
});

describe('outside', () => {
  it('outside is everything but the subnets', () => {
    assert.deepEqual(outside([]), ['0.0.0.0/0']);
    assert.deepEqual(outside(['0.0.0.0/0']), []);
    assert.deepEqual(outside(['0.0.0.0/2', '192.0.0.0/2']), ['64.0.0.0/2', '128.0.0.0/2']);
    const single = outside(['203.0.113.7']);
    assert.equal(single.length, 32);
    assert.ok(single.includes('203.0.113.6/32'));
    assert.ok(!single.includes('203.0.113.7/32'));
  });
});
