// Owns the tests of what is told of a host that Causeway cannot work with.
// Must not need a kernel.
import assert from 'node:assert/strict';
import { hostProblems, observeHostFacts, type HostFacts } from '../../../net/host-problems.ts';
import type { Runner } from '../../../net/run.ts';

const fine: HostFacts = { closedChains: [], arpIgnore: 0, strictUplinks: [] };
const closed = { table: 'inet filter', chain: 'forward', hook: 'forward', knowsUs: false } as const;

describe('hostProblems', () => {
  it('a host as it is installed, or with what Causeway can work with, has no problems', () => {
    assert.deepEqual(hostProblems({ ...fine, arpIgnore: 2 }, true), []);
    assert.deepEqual(hostProblems({ ...fine, closedChains: [{ ...closed, knowsUs: true }] }, true), []);
    assert.deepEqual(hostProblems({ ...fine, closedChains: [{ ...closed, hook: 'input' }] }, false), []);
  });

  const cases: Record<string, [facts: Partial<HostFacts>, what: RegExp, remedy: RegExp]> = {
    'firewalld, with its own command': [
      { closedChains: [{ ...closed, table: 'inet firewalld', chain: 'filter_FORWARD' }] },
      /inet firewalld .*filter_FORWARD at forward/,
      /CAUSEWAY_LB=nft, and then firewall-cmd --permanent --zone=trusted --add-interface=cw-\+ && firewall-cmd --reload$/,
    ],
    'a table of nft, with what to insert': [
      { closedChains: [closed, { ...closed, chain: 'in', hook: 'input' }] },
      /chain forward at forward, chain in at input/,
      /^nft 'insert rule inet filter forward iifname "cw-\*" accept'; .*; nft 'insert rule inet filter in meta mark & 0xff000000 == 0x0c000000 accept'$/,
    ],
    'a host that answers no ARP request': [{ arpIgnore: 8 }, /arp_ignore=8/, /arp_ignore=1/],
    'a second uplink with source routing that asks where clients come from': [
      { strictUplinks: ['eth1'] },
      /eth1\.rp_filter=1/,
      /eth1\.rp_filter=2/,
    ],
    'a VLAN, whose name has a dot': [
      { strictUplinks: ['eth0.102'] },
      /eth0\.102\.rp_filter=1/,
      /conf\.eth0\/102\.rp_filter=2/,
    ],
    'an uplink that does not forward': [{ closedUplink: 'eth0' }, /eth0\.forwarding=0/, /eth0\.forwarding=1/],
  };
  for (const [name, [facts, what, remedy]] of Object.entries(cases))
    it(`a host problem is reported: ${name}`, () => {
      const [problem, ...others] = hostProblems({ ...fine, ...facts }, true);
      assert.deepEqual(others, []);
      assert.match(problem?.what ?? '', what);
      assert.match(problem?.remedy ?? '', remedy);
    });
});

describe('observeHostFacts', () => {
  const chain = (table: string, name: string, hook: string, policy: string) => ({
    chain: { family: 'inet', table, name, type: 'filter', hook, policy },
  });
  const settings = new Map([
    ['ipv4/conf/all/arp_ignore', '1'],
    ['ipv4/conf/eth0/forwarding', '0'],
    ['ipv4/conf/all/rp_filter', '1'],
    ['ipv4/conf/eth2/rp_filter', '2'],
  ]);
  const sysctl = {
    read: (path: string) => Promise.resolve(settings.get(path)),
    write: () => Promise.resolve(),
  };

  it('a dropping policy and a dropping last rule count alike; ours and those that pass do not', async () => {
    const run: Runner = (_tool, args) => {
      const rule = (name: string, ...expr: object[]) => ({ rule: { chain: name, expr } });
      const answer = args.includes('chains')
        ? [
            chain('causeway', 'forward', 'forward', 'accept'),
            chain('firewalld', 'filter_INPUT', 'input', 'accept'),
            chain('mine', 'forward', 'forward', 'drop'),
            chain('open', 'input', 'input', 'accept'),
          ]
        : args.includes('firewalld')
          ? [
              rule('filter_INPUT', { match: {} }, { accept: null }),
              rule('filter_INPUT', { reject: { type: 'icmpx' } }),
            ]
          : args.includes('mine')
            ? [rule('forward', { match: { right: 'cw-*' } }, { accept: null })]
            : [rule('input', { match: {} }, { drop: null })];
      return Promise.resolve(JSON.stringify({ nftables: answer }));
    };
    assert.deepEqual(await observeHostFacts(run, sysctl, 'eth0', ['eth1', 'eth2']), {
      closedChains: [
        { table: 'inet firewalld', chain: 'filter_INPUT', hook: 'input', knowsUs: false },
        { table: 'inet mine', chain: 'forward', hook: 'forward', knowsUs: true },
      ],
      arpIgnore: 1,
      closedUplink: 'eth0',
      strictUplinks: ['eth1'],
    });
  });
});
