// Owns the tests of which of a host's rules published ports follow.
// Must not test that packets do; test/kernel/host-matrix.test.ts does.
import assert from 'node:assert/strict';
import { sourceRoutes, sourceRules, type IpRule } from '../../../net/source-routing.ts';

/** As `ip -4 -j rule` of iproute2 6.1 prints them. */
const local: IpRule = { priority: 0, src: 'all', table: 'local' };
const main: IpRule = { priority: 32766, src: 'all', table: 'main' };
const first: IpRule = { priority: 100, src: '203.0.113.1', table: '101' };
const second: IpRule = { priority: 101, src: '198.51.100.1', table: '102' };
const links = [
  { name: 'lo', addresses: ['127.0.0.1/8'] },
  { name: 'eth0', addresses: ['203.0.113.1/24'] },
  { name: 'eth1', addresses: ['198.51.100.1/24'] },
];

describe('source routing of a host', () => {
  const of = (...rules: IpRule[]) => sourceRoutes([local, ...rules, main], links);

  it('source routing: a host without any has none', () => {
    assert.deepEqual(of(), []);
  });

  it('source routing: one table for each address that has one', () => {
    assert.deepEqual(of(first, second), [
      { address: '198.51.100.1', device: 'eth1', table: 102, priority: 101 },
      { address: '203.0.113.1', device: 'eth0', table: 101, priority: 100 },
    ]);
  });

  it('source routing: the rule for the prefix of an address counts, of several the first', () => {
    const prefix = { priority: 90, src: '198.51.100.0', srclen: 24, table: '103' };
    assert.deepEqual(of(prefix, second), [
      { address: '198.51.100.1', device: 'eth1', table: 103, priority: 90 },
    ]);
    assert.deepEqual(of(second, prefix), [
      { address: '198.51.100.1', device: 'eth1', table: 102, priority: 101 },
    ]);
  });

  it('source routing: links of sandboxes and Docker’s bridges are left out, though a prefix has them', () => {
    const wide = { priority: 90, src: '0.0.0.0', srclen: 0, table: '103' };
    const others = ['cw-eeeeeeeeeeee', 'docker0', 'docker_gwbridge', 'br-0123456789ab'].map((name, at) => ({
      name,
      addresses: [`10.64.0.${at}/32`],
    }));
    assert.deepEqual(
      sourceRoutes([local, wide, main], [...links, ...others]).map(({ device }) => device),
      ['eth1', 'eth0'],
    );
  });

  it('source routing: rules behind the one to table main do not count', () => {
    assert.deepEqual(sourceRoutes([local, first, main, { ...second, priority: 40_000 }], links).length, 1);
    // One that leads there only what is not by the default route is no end.
    const part: IpRule = { priority: 50, src: 'all', table: 'main', suppress_prefixlen: 0 };
    assert.equal(of(part, first, second).length, 2);
  });

  for (const [what, rule] of Object.entries<IpRule & Record<string, unknown>>({
    'of an address that the host does not have': { ...second, src: '198.51.100.9' },
    'that lead to table main': { ...second, table: 'main' },
    'for one device alone': { ...second, iif: 'eth9' },
    'for one mark alone': { ...second, fwmark: '0x1' },
    'for one destination alone': { ...second, dst: '192.0.2.0', dstlen: 24 },
    'by which only part of a table counts': { ...second, suppress_prefixlen: 0 },
    'for a table whose number no mark can name': { ...second, table: '16777216' },
    'that are Causeway’s own': { ...second, protocol: '197' },
    'that lead nowhere': { priority: 101, src: '198.51.100.1', action: 'unreachable' },
  }))
    it(`source routing: rules ${what} do not count`, () => {
      assert.deepEqual(of(rule), []);
    });

  for (const [priority, own] of [
    [32765, 18680],
    [18679, 18678],
    [100, 99],
    [1, 1],
  ] as const)
    it(`source routing: packets to containers are not led elsewhere by a rule of priority ${priority}`, () => {
      assert.equal(
        sourceRules(of({ ...second, priority }), ['10.64.0.0/20'])[0],
        `pref ${own} to 10.64.0.0/20 iif lo fwmark 0x00000000/0xff000000 lookup main`,
      );
    });
});
