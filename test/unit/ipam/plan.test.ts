// Owns the pure decisions: which subnets can be, which is free, which address comes next.
// Must not need a store.
import assert from 'node:assert/strict';
import {
  addressProblem,
  firstFree,
  overlapProblem,
  poolProblem,
  candidatesFrom,
  type Occupied,
} from '../../../ipam/plan.ts';
import { formatAddress, parseAddress, parseSubnet, type Subnet } from '../../../ipam/subnet.ts';
import { seeded } from '../../support/random.ts';

const occupied = (...cidrs: string[]): Occupied[] =>
  cidrs.map((cidr) => ({ ...parseSubnet(cidr), what: 'a test' }));

describe('poolProblem', () => {
  const problem = (cidr: string, range = cidr): string | undefined =>
    poolProblem(parseSubnet(cidr), parseSubnet(range))?.message;

  it('a subnet that contains what cannot be routed is refused by name', () => {
    for (const [cidr, word] of [
      ['127.0.0.0/16', 'loopback'],
      ['224.1.0.0/16', 'multicast'],
      ['169.254.10.0/24', 'link-local'],
      ['0.1.0.0/16', 'this network'],
      ['250.0.0.0/8', 'reserved'],
      ['10.0.0.0/0', 'this network'],
      ['64.0.0.0/2', 'loopback'],
    ] as const) {
      const message = problem(cidr) ?? '';
      assert.ok(message.includes(parseSubnet(cidr).cidr), cidr);
      assert.match(message, new RegExp(`${word}.*Choose another --subnet`));
    }
  });

  it('private, shared and public subnets down to a /32 are accepted', () => {
    for (const cidr of [
      '10.0.0.0/8',
      '172.16.0.0/12',
      '192.168.1.0/24',
      '100.64.0.0/10',
      '198.51.100.0/31',
      '1.1.1.1/32',
    ])
      assert.equal(problem(cidr), undefined);
  });

  it('a range must be inside of its subnet', () => {
    assert.equal(problem('10.77.0.0/16', '10.77.5.0/24'), undefined);
    assert.match(
      problem('10.77.0.0/16', '10.78.5.0/24') ?? '',
      /10\.78\.5\.0\/24 is not inside .*10\.77\.0\.0\/16.*--ip-range/,
    );
  });
});

describe('overlapProblem', () => {
  it('an overlap names the other subnet and what it is', () => {
    const error = overlapProblem(parseSubnet('10.77.0.0/16'), occupied('10.76.0.0/16', '10.77.8.1/32'));
    assert.equal(error?.code, 'overlap');
    assert.match(
      error.message,
      /10\.77\.0\.0\/16 overlaps 10\.77\.8\.1\/32, a test\. Choose another --subnet/,
    );
  });

  it('default routes, whole and in halves, count as no overlap', () => {
    assert.equal(
      overlapProblem(parseSubnet('10.77.0.0/16'), occupied('0.0.0.0/0', '0.0.0.0/1', '128.0.0.0/1')),
      undefined,
    );
    assert.ok(overlapProblem(parseSubnet('10.77.0.0/16'), occupied('0.0.0.0/2')));
  });
});

describe('firstFree', () => {
  const supernet = parseSubnet('10.64.0.0/12');
  const free = (prefix: number, ...cidrs: string[]): string | undefined =>
    firstFree(supernet, prefix, occupied(...cidrs))?.cidr;

  it('firstFree gives the first subnet that overlaps nothing, aligned to its size', () => {
    assert.equal(free(20), '10.64.0.0/20');
    assert.equal(free(20, '10.64.0.0/20'), '10.64.16.0/20');
    assert.equal(free(20, '10.64.0.0/20', '10.64.32.0/20'), '10.64.16.0/20');
    assert.equal(free(20, '10.64.0.5/32'), '10.64.16.0/20');
    assert.equal(free(20, '10.64.0.0/13'), '10.72.0.0/20');
    assert.equal(free(20, '10.0.0.0/10', '10.64.0.0/24', '10.64.16.0/30'), '10.64.32.0/20');
    assert.equal(free(12, '192.168.0.0/16'), '10.64.0.0/12');
    assert.equal(free(32, '10.64.0.0/32'), '10.64.0.1/32');
  });

  it('firstFree gives nothing when all are taken', () => {
    assert.equal(free(20, '10.0.0.0/8'), undefined);
    assert.equal(free(12, '10.79.255.255/32'), undefined);
    assert.equal(free(11), undefined);
    assert.equal(firstFree(parseSubnet('255.0.0.0/8'), 8, occupied('255.0.0.0/9')), undefined);
  });

  it('firstFree agrees with trying every subnet, whatever is taken', () => {
    const random = seeded(7);
    for (let round = 0; round < 300; round++) {
      const small = parseSubnet('10.64.0.0/24');
      const taken = occupied(
        ...Array.from(
          { length: random(8) },
          () => `10.64.${random(10) === 0 ? 1 : 0}.${random(256)}/${23 + random(10)}`,
        ),
      );
      const prefix = 24 + random(9);
      const all = subnetsOf(small, prefix);
      const expected = all.find((subnet) => !overlapProblem(subnet, taken));
      assert.equal(firstFree(small, prefix, taken)?.cidr, expected?.cidr);
    }
  });
});

describe('addressProblem', () => {
  const problem = (address: string, gateway?: string): string | undefined =>
    addressProblem(parseSubnet('10.77.0.0/16'), parseAddress(address), gateway)?.message;

  it('network, broadcast and gateway address, and any outside of the subnet, are refused', () => {
    assert.match(problem('10.77.0.0') ?? '', /network address of 10\.77\.0\.0\/16/);
    assert.match(problem('10.77.255.255') ?? '', /broadcast address/);
    assert.match(problem('10.77.0.1', '10.77.0.1') ?? '', /gateway/);
    assert.match(problem('10.78.0.1') ?? '', /not in the subnet 10\.77\.0\.0\/16/);
    assert.equal(problem('10.77.0.1'), undefined);
    assert.equal(problem('10.77.5.0'), undefined);
    assert.equal(addressProblem(parseSubnet('10.0.0.0/31'), parseAddress('10.0.0.0')), undefined);
  });
});

describe('rotation', () => {
  const order = (last?: string): string[] => {
    const range = { first: parseAddress('10.0.0.1'), last: parseAddress('10.0.0.4') };
    return [...candidatesFrom(range, last === undefined ? undefined : parseAddress(last))].map((n) =>
      formatAddress(n).slice(-1),
    );
  };

  it('rotation begins behind the last address, goes round once, and ends with it', () => {
    assert.deepEqual(order(), ['1', '2', '3', '4']);
    assert.deepEqual(order('10.0.0.2'), ['3', '4', '1', '2']);
    assert.deepEqual(order('10.0.0.4'), ['1', '2', '3', '4']);
    assert.deepEqual(order('10.0.9.9'), ['1', '2', '3', '4']);
  });
});

function subnetsOf({ first, last }: Subnet, prefix: number): Subnet[] {
  const subnets: Subnet[] = [];
  for (let at = first; at <= last; at += 1n << BigInt(32 - prefix))
    subnets.push(parseSubnet(`${formatAddress(at)}/${prefix}`));
  return subnets;
}
