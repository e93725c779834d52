// Owns the arithmetic of subnets and the forms of pool ids.
// Must not need a store.
import assert from 'node:assert/strict';
import { choices, formatPoolId, parsePoolId, spaceOf } from '../../../ipam/poolid.ts';
import {
  formatAddress,
  hostRange,
  overlaps,
  parseAddress,
  parseSubnet,
  sizeOf,
} from '../../../ipam/subnet.ts';

const invalid = { name: 'IpamError', code: 'invalid-request' };

describe('subnet', () => {
  it('parsing a subnet clears host bits', () => {
    for (const [text, cidr] of [
      ['10.77.3.9/16', '10.77.0.0/16'],
      ['10.77.3.9/32', '10.77.3.9/32'],
      ['255.255.255.255/31', '255.255.255.254/31'],
      ['1.2.3.4/0', '0.0.0.0/0'],
    ] as const)
      assert.equal(parseSubnet(text).cidr, cidr);
  });

  it('text that is no subnet or address is refused, and quoted', () => {
    for (const text of [
      '',
      '10.77.0.0',
      '10.77.0.0/33',
      '10.77.0/16',
      '10.77.0.0/',
      'fd00::/64',
      'x/16',
      '10.0.0.01/8',
    ])
      assert.throws(() => parseSubnet(text), {
        ...invalid,
        message: new RegExp(`^"${text}" is no .*10.77.0.0/16`),
      });
    for (const text of ['', '10.77.0', '10.77.0.0/16', '::1', '10.0.0.256'])
      assert.throws(() => parseAddress(text), { ...invalid, message: new RegExp(`^"${text}" is `) });
  });

  it('first, last and size of a subnet are right up to the ends of the address space', () => {
    const all = parseSubnet('0.0.0.0/0');
    assert.deepEqual([all.first, all.last, sizeOf(all)], [0n, 2n ** 32n - 1n, 2n ** 32n]);
    assert.equal(formatAddress(parseSubnet('240.0.0.0/4').last), '255.255.255.255');
  });

  it('network and broadcast address are not usable, but both of a /31 and the one of a /32 are', () => {
    const hosts = (cidr: string): string[] => {
      const { first, last } = hostRange(parseSubnet(cidr));
      return [formatAddress(first), formatAddress(last)];
    };
    assert.deepEqual(hosts('10.0.0.0/24'), ['10.0.0.1', '10.0.0.254']);
    assert.deepEqual(hosts('10.0.0.0/30'), ['10.0.0.1', '10.0.0.2']);
    assert.deepEqual(hosts('10.0.0.0/31'), ['10.0.0.0', '10.0.0.1']);
    assert.deepEqual(hosts('10.0.0.7/32'), ['10.0.0.7', '10.0.0.7']);
  });

  it('subnets that overlap are told from neighbours', () => {
    const [one, inside, next] = ['10.0.0.0/16', '10.0.255.0/24', '10.1.0.0/16'].map(parseSubnet);
    assert.ok(overlaps(one!, inside!) && overlaps(inside!, one!) && overlaps(one!, one!));
    assert.ok(!overlaps(one!, next!) && !overlaps(next!, one!));
  });
});

describe('pool id', () => {
  it('a pool id is written and read back, with and without a range', () => {
    for (const id of ['global/10.77.0.0-16', 'local/10.77.0.0-16/10.77.5.0-24'])
      assert.equal(formatPoolId(parsePoolId(id)), id);
    const { space, subnet, range } = parsePoolId('local/10.77.0.0-16/10.77.5.0-24');
    assert.deepEqual([space, subnet.cidr, range.cidr], ['local', '10.77.0.0/16', '10.77.5.0/24']);
  });

  it('text that is no pool id is refused', () => {
    for (const id of [
      '',
      'global',
      'elsewhere/10.77.0.0-16',
      'global/10.77.0.0',
      'global/10.77.0.0-16/',
      'local/a/b/c',
    ])
      assert.throws(() => parsePoolId(id), invalid);
    assert.throws(() => spaceOf('GlobalDefault'), {
      ...invalid,
      message: /causeway-global and causeway-local/,
    });
  });

  it('addresses are chosen from the range, never the network or broadcast address of the subnet', () => {
    const of = (id: string): string[] => {
      const range = choices(parsePoolId(id));
      return range ? [formatAddress(range.first), formatAddress(range.last)] : [];
    };
    assert.deepEqual(of('global/10.77.0.0-16'), ['10.77.0.1', '10.77.255.254']);
    assert.deepEqual(of('global/10.77.0.0-16/10.77.5.0-24'), ['10.77.5.0', '10.77.5.255']);
    assert.deepEqual(of('global/10.77.0.0-16/10.77.0.0-24'), ['10.77.0.1', '10.77.0.255']);
    assert.deepEqual(of('global/10.77.0.0-16/10.77.0.0-32'), []);
  });
});
