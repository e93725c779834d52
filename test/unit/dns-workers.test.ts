// Owns the tests of threads that cannot do their work; those that can are in dns-prepared.test.ts.
import assert from 'node:assert/strict';
import { once, EventEmitter } from 'node:events';
import { Workers } from '../../dns/workers.ts';

describe('DNS: a thread that cannot listen', function () {
  this.timeout(30_000);

  it('is told of once, leaves the port where it is, and no other one is started', async () => {
    const events = new EventEmitter();
    let errors = 0;
    const workers = new Workers({
      threads: 1,
      busyRate: 1,
      answer: () => undefined,
      onReady: () => assert.fail('nobody listens'),
      onGone: () => assert.fail('nobody has listened'),
      onError: (error) => {
        errors += 1;
        events.emit('failed', error);
      },
    });
    // An address of documentation, which is nobody's.
    workers.open({ port: 4795, address: '192.0.2.1' });
    const busy = (): void => {
      for (let question = 0; question < 10_000; question += 1) workers.count();
    };
    busy();
    const [error] = (await once(events, 'failed')) as [Error];
    assert.match(error.message, /^bind\(192\.0\.2\.1:4795\) failed with errno 99$/);
    while (workers.size > 0) await new Promise((resolve) => setTimeout(resolve, 10));
    busy();
    assert.equal(workers.size, 0);
    assert.equal(errors, 1);
    await workers.close();
  });
});
