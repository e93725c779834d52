// Owns the tests of how long silent connections are remembered.
// Must not need a kernel.
import assert from 'node:assert/strict';
import { longest, renderTimeouts, timeoutShortcomings, whyNoTimeouts } from '../../../lb/timeouts.ts';
import { CommandError, type Runner } from '../../../net/run.ts';

describe('renderTimeouts', () => {
  it('timeouts that no label sets are the node’s', () => {
    const declared = (timeout: Parameters<typeof renderTimeouts>[0][number]['timeout']): string[] => [
      ...renderTimeouts([{ timeout, addresses: ['10.64.0.3'] }]).timeouts.values(),
    ];
    assert.deepEqual(declared({ tcp: 60 }), ['protocol tcp; l3proto ip; policy = { established: 60 };']);
    assert.deepEqual(declared({ fin: 5, udp: 7 }), [
      'protocol tcp; l3proto ip; policy = { fin_wait: 5, close_wait: 5 };',
      'protocol udp; l3proto ip; policy = { unreplied: 7, replied: 7 };',
    ]);
  });

  it('services with the same timeouts share a chain, with each address once', () => {
    const { parts, timeouts } = renderTimeouts([
      { timeout: { udp: 60 }, addresses: ['10.64.0.3', '10.64.0.4'] },
      { timeout: { udp: 60 }, addresses: ['10.64.0.4', '10.64.0.5'] },
      { timeout: { udp: 61 }, addresses: ['10.64.0.6'] },
    ]);
    assert.deepEqual(
      parts.map(({ elements }) => elements.map(([, address]) => address)),
      [['10.64.0.3', '10.64.0.4', '10.64.0.5'], ['10.64.0.6']],
    );
    assert.equal(timeouts.size, 2);
  });
});

describe('longest', () => {
  it('the longest timeout is enough for all services', () => {
    const timed = [{ udp: 60, tcp: 9 }, { udp: 61 }, { fin: 1 }].map((timeout) => ({
      timeout,
      addresses: [],
    }));
    assert.deepEqual(longest(timed), { udp: 61, tcp: 9, fin: 1 });
    assert.deepEqual(longest([]), {});
  });
});

describe('timeoutShortcomings', () => {
  it('timeouts that an engine or kernel cannot do are reported where a label asks for them', () => {
    const policy = { timeout: { udp: 60 } };
    assert.deepEqual(timeoutShortcomings(policy, 'nft', undefined), []);
    assert.deepEqual(timeoutShortcomings(undefined, 'ipvs', 'Not supported'), []);
    assert.match(timeoutShortcomings(policy, 'ipvs', undefined).join(), /one set of times for all/);
    assert.match(
      timeoutShortcomings(policy, 'nft', 'Not supported').join(),
      /no timeout policies \(Not supported\)/,
    );
  });

  it('a trial shows whether the kernel can set timeouts', async () => {
    assert.equal(await whyNoTimeouts(() => Promise.resolve('')), undefined);
    const refuse: Runner = () =>
      Promise.reject(
        new CommandError('nft --check -f -', 1, 'Error: Could not process rule: Not supported\n  add'),
      );
    assert.match((await whyNoTimeouts(refuse)) ?? '', /Not supported$/);
  });
});
