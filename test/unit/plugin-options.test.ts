// Owns the tests of what a user may write after -o.
// Must not need a driver.
import assert from 'node:assert/strict';
import { RequestError } from '../../plugin/errors.ts';
import { parseNetworkOptions, refusedOption } from '../../plugin/options.ts';

const mtu = 'com.docker.network.driver.mtu';

describe('parseNetworkOptions', () => {
  it('takes none, the one mode, and an MTU', () => {
    assert.deepEqual(parseNetworkOptions({}), {});
    assert.deepEqual(parseNetworkOptions({ mode: 'overlay' }), {});
    assert.deepEqual(parseNetworkOptions({ [mtu]: '1400' }), { mtu: 1400 });
  });

  it('passes over the reason it added itself', () => {
    assert.deepEqual(parseNetworkOptions({ [refusedOption]: 'because' }), {});
  });

  it('takes the smallest and the largest MTU there is, and nothing beyond', () => {
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

  it('names an option it does not know, and those it does', () => {
    assert.throws(() => parseNetworkOptions({ 'com.docker.network.bridge.name': 'br0' }), {
      code: 'unknown-option',
      message: `unknown network option com.docker.network.bridge.name: the options of a Causeway network are mode, ${mtu}`,
    });
    assert.throws(() => parseNetworkOptions({ toString: 'x' }), { code: 'unknown-option' });
  });

  it('names a mode it does not have', () => {
    assert.throws(() => parseNetworkOptions({ mode: 'bridge' }), {
      code: 'unknown-mode',
      message: /mode=bridge/,
    });
  });
});
