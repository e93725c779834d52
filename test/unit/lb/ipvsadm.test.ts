// Owns the tests of ipvsadm's words: reading them, the difference between two states, and running it.
// Must not need a kernel with IPVS.
import assert from 'node:assert/strict';
import {
  observeIpvs,
  parseIpvs,
  planIpvs,
  runIpvsBatch,
  whyNoIpvs,
  type IpvsService,
} from '../../../lb/ipvsadm.ts';
import { FakeIpvs } from '../../fake/ipvs.ts';
import { FakeKernel } from '../../fake/kernel.ts';
import { markBase } from '../../../net/names.ts';
import { seeded } from '../../support/random.ts';

const mark = markBase + 1;

function service(destinations: Record<string, number>, number = mark, scheduler = 'rr'): IpvsService {
  return { mark: number, scheduler, flags: [], destinations: new Map(Object.entries(destinations)) };
}

describe('parseIpvs', () => {
  it('ipvsadm’s output gives services and destinations, draining ones too', () => {
    const text = `-A -f ${mark} -s rr\n-a -f ${mark} -r 10.64.0.3:80 -m -w 1\n-a -f ${mark} -r 10.64.0.4:80 -m -w 0\n`;
    assert.deepEqual(parseIpvs(text), [service({ '10.64.0.3:80': 1, '10.64.0.4:80': 0 })]);
  });

  it('ipvsadm’s output: addresses and marks of others, such as Docker’s, are ignored', () => {
    const text = [
      '-A -t 203.0.113.1:80 -s wlc',
      '-a -t 203.0.113.1:80 -r 10.1.1.1:80 -m -w 1',
      '-A -f 256 -s rr',
      '-a -f 256 -r 10.0.0.5:0 -m -w 1',
      // The highest bit set: a signed number in JavaScript's bit operations.
      `-A -f 2348810241 -s rr`,
      `-A -f ${mark} -s rr`,
    ].join('\n');
    assert.deepEqual(parseIpvs(text), [service({})]);
  });

  it('ipvsadm’s output gives how a service balances, in any order of its flags', () => {
    const [read] = parseIpvs(`-A -f ${mark} -s mh -p 300 -b mh-port,mh-fallback\n`);
    assert.deepEqual(read, { ...service({}, mark, 'mh'), flags: ['mh-fallback', 'mh-port'], affinity: 300 });
  });

  it('empty output of ipvsadm gives nothing', () => {
    assert.deepEqual(parseIpvs(''), []);
  });
});

describe('planIpvs', () => {
  it('an IPVS service is added before its destinations', () => {
    assert.deepEqual(planIpvs([], [service({ '10.64.0.3:0': 1 })]), {
      add: [`-A -f ${mark} -s rr`, `-a -f ${mark} -r 10.64.0.3:0 -m -w 1`],
      remove: [],
    });
  });

  it('an IPVS service that balances in another way is changed, and keeps its destinations', () => {
    const before = service({ '10.64.0.3:0': 1 });
    const sticky = { ...before, scheduler: 'mh', flags: ['mh-fallback', 'mh-port'], affinity: 300 };
    assert.deepEqual(planIpvs([before], [sticky]), {
      add: [`-E -f ${mark} -s mh -b mh-fallback,mh-port -p 300`],
      remove: [],
    });
    assert.deepEqual(planIpvs([sticky], [before]).add, [`-E -f ${mark} -s rr`]);
  });

  it('an IPVS destination drains by weight 0 and stays', () => {
    assert.deepEqual(planIpvs([service({ '10.64.0.3:0': 1 })], [service({ '10.64.0.3:0': 0 })]), {
      add: [`-e -f ${mark} -r 10.64.0.3:0 -m -w 0`],
      remove: [],
    });
  });

  it('an IPVS scheduler is changed in place, because connections live in the service', () => {
    assert.deepEqual(planIpvs([service({ '10.64.0.3:0': 1 })], [service({ '10.64.0.3:0': 1 }, mark, 'mh')]), {
      add: [`-E -f ${mark} -s mh`],
      remove: [],
    });
  });

  it('IPVS destinations and services are removed last, when packets are no longer marked', () => {
    const actual = [
      service({ '10.64.0.3:0': 1, '10.64.0.4:0': 1 }),
      service({ '10.64.0.3:80': 1 }, mark + 1),
    ];
    assert.deepEqual(planIpvs(actual, [service({ '10.64.0.3:0': 1 })]), {
      add: [],
      remove: [`-d -f ${mark} -r 10.64.0.4:0`, `-D -f ${mark + 1}`],
    });
  });

  it('planIpvs leads from any state to any other, in lines that ipvsadm accepts', () => {
    const random = seeded(99);
    const some = (): IpvsService[] =>
      [1, 2, 3]
        .filter(() => random(3) > 0)
        .map((offset) => {
          const addresses = ['10.64.0.3:0', '10.64.0.4:0', '10.64.0.5:0'].filter(() => random(2) === 0);
          const scheduler = random(4) === 0 ? 'mh' : 'rr';
          return service(
            Object.fromEntries(addresses.map((a) => [a, random(2)])),
            markBase + offset,
            scheduler,
          );
        });
    const ipvs = new FakeIpvs();
    for (let round = 0; round < 300; round += 1) {
      const desired = some();
      const { add, remove } = planIpvs(parseIpvs(ipvs.save()), desired);
      for (const part of [add, remove]) {
        assert.equal(ipvs.restore(part.join('\n')).stderr, '', `round ${round}`);
      }
      const byMark = (a: IpvsService, b: IpvsService): number => a.mark - b.mark;
      assert.deepEqual(parseIpvs(ipvs.save()).sort(byMark), desired);
    }
  });
});

describe('runIpvsBatch', () => {
  it('no lines start no ipvsadm', async () => {
    const kernel = new FakeKernel();
    await runIpvsBatch(kernel.run, []);
    assert.deepEqual(kernel.changes, []);
  });

  it('a line that fails is an error, though ipvsadm ends with 0 because the last one did not', async () => {
    const kernel = new FakeKernel();
    await assert.rejects(
      runIpvsBatch(kernel.run, [`-a -f ${mark} -r 10.64.0.3:0 -m -w 1`, `-A -f ${mark} -s rr`]),
      /Service not defined/,
    );
    assert.deepEqual(await observeIpvs(kernel.run), [service({})], 'the other line was run all the same');
  });
});

describe('whyNoIpvs', () => {
  it('whyNoIpvs gives the first line of what ipvsadm says', async () => {
    assert.equal(
      await whyNoIpvs(new FakeKernel({ ipvs: false }).run),
      "Can't initialize ipvs: Protocol not available",
    );
    assert.equal(await whyNoIpvs(new FakeKernel().run), undefined);
  });
});
