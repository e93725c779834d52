// Owns the tests of threads that cannot do their work; those that can are in test/unit/dns/prepared.test.ts.
import assert from 'node:assert/strict';
import { once, EventEmitter } from 'node:events';
import { Workers } from '../../../dns/workers.ts';
import { eventually } from '../../support/until.ts';

describe('DNS: a thread that cannot start', function () {
  this.timeout(30_000);

  it('a DNS thread that cannot start: reported once, sockets stay open, no other is started', async () => {
    const events = new EventEmitter();
    let errors = 0;
    const workers = new Workers({
      threads: 1,
      busyRate: 1,
      program: new URL('./no-such-program.mjs', import.meta.url),
      answer: () => undefined,
      send: () => assert.fail('nothing was asked'),
      onReady: () => assert.fail('nobody listens'),
      onGone: () => assert.fail('nobody has listened'),
      onError: (error) => {
        errors += 1;
        events.emit('failed', error);
      },
    });
    const busy = (): void => {
      for (let question = 0; question < 10_000; question += 1) workers.count();
    };
    busy();
    const [error] = (await once(events, 'failed')) as [Error];
    assert.match(error.message, /no-such-program/);
    await eventually(() => workers.size === 0);
    busy();
    assert.equal(workers.size, 0);
    assert.equal(errors, 1);
    await workers.close();
  });
});
