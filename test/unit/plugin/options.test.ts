// Owns the tests of what a user may write after -o.
// Must not need a driver.
import assert from 'node:assert/strict';
import { RequestError } from '../../../plugin/errors.ts';
import { parseNetworkOptions, refusedOption } from '../../../plugin/options.ts';

const mtu = 'com.docker.network.driver.mtu';

describe('parseNetworkOptions', () => {
  it('no options, the one mode, and an MTU are accepted', () => {
    assert.deepEqual(parseNetworkOptions({}), {});
    assert.deepEqual(parseNetworkOptions({ mode: 'overlay' }), {});
    assert.deepEqual(parseNetworkOptions({ [mtu]: '1400' }), { mtu: 1400 });
  });

  it('the reason that Causeway added itself is ignored', () => {
    assert.deepEqual(parseNetworkOptions({ [refusedOption]: 'because' }), {});
  });

  it('the smallest and the largest MTU are accepted, nothing beyond', () => {
    assert.equal(parseNetworkOptions({ [mtu]: '576' }).mtu, 576);
    assert.equal(parseNetworkOptions({ [mtu]: '65535' }).mtu, 65535);
    for (const value of ['575', '65536', '', '1e3', '-1', '1400.0', 'big', 1400])
      assert.throws(
        () => parseNetworkOptions({ [mtu]: value }),
        (error: unknown) =>
          error instanceof RequestError &&
          error.code === 'bad-mtu' &&
          error.message.includes(`${mtu}=${value}`),
      );
  });

  it('an unknown option: the error names it and those that exist', () => {
    assert.throws(() => parseNetworkOptions({ 'com.docker.network.bridge.name': 'br0' }), {
      code: 'unknown-option',
      message: `unknown network option com.docker.network.bridge.name: the options of a Causeway network are mode, ${mtu}`,
    });
    assert.throws(() => parseNetworkOptions({ toString: 'x' }), { code: 'unknown-option' });
  });

  it('an unknown mode: the error names it', () => {
    assert.throws(() => parseNetworkOptions({ mode: 'bridge' }), {
      code: 'unknown-mode',
      message: /mode=bridge/,
    });
  });
});
