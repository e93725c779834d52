// Owns the tests of when checks make a task healthy or not, and of the checks themselves on loopback.
// Must not know records.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer as createHttpServer } from 'node:http';
import { createServer, type AddressInfo, type Server } from 'node:net';
import { probe } from '../../../health/probe.ts';
import { Prober, type Target } from '../../../health/prober.ts';
import { eventually } from '../../support/until.ts';

const target: Target = {
  id: 'one',
  address: '127.0.0.1',
  check: { protocol: 'tcp', port: 80 },
  intervalMs: 1,
  rise: 2,
  fall: 3,
};

/** @param answers what the checks find, one after the other; the last one repeats. @returns the verdicts, with the check after which */
async function verdicts(
  answers: readonly boolean[],
  about: Partial<Target> = {},
): Promise<[number, boolean][]> {
  let at = 0;
  const told: [number, boolean][] = [];
  const enough = Promise.withResolvers<undefined>();
  const prober = new Prober({
    probe: () => {
      if (at > answers.length + 5) enough.resolve(undefined);
      const answer = answers[Math.min(at, answers.length - 1)];
      at += 1;
      return Promise.resolve(answer === true ? undefined : 'closed');
    },
    onVerdict: (_, healthy) => {
      told.push([at, healthy]);
      return Promise.resolve();
    },
  });
  prober.watch([{ ...target, ...about }]);
  await enough.promise;
  prober.watch([]);
  return told;
}

describe('Prober', () => {
  it('a task is healthy after `rise` checks in a row, and unhealthy after `fall`', async () => {
    assert.deepEqual(await verdicts([true, false, true, true, false, false, true, false]), [
      [4, true],
      [10, false],
    ]);
  });

  it('a task that was never healthy is reported unhealthy', async () => {
    assert.deepEqual(await verdicts([false]), [[3, false]]);
  });

  it('a result that is known already is not reported again', async () => {
    assert.deepEqual(await verdicts([true], { healthy: true }), []);
    assert.deepEqual(await verdicts([false], { healthy: true, fall: 1 }), [[1, false]]);
  });

  it('a result that could not be reported, or was lost, is reported again', async () => {
    let tries = 0;
    const told = Promise.withResolvers<undefined>();
    const prober = new Prober({
      probe: () => Promise.resolve(undefined),
      onVerdict: () => {
        tries += 1;
        if (tries === 3) told.resolve(undefined);
        return tries === 1 ? Promise.reject(new Error('no store')) : Promise.resolve();
      },
    });
    const one = { ...target, rise: 1 };
    prober.watch([one]);
    await eventually(() => tries >= 2);
    prober.watch([{ ...one, healthy: true }]);
    prober.watch([one]);
    await told.promise;
    prober.watch([]);
  });
});

describe('probe', () => {
  const servers: Server[] = [];
  async function listen(server: Server): Promise<number> {
    servers.push(server);
    await once(server.listen(0, '127.0.0.1'), 'listening');
    return (server.address() as AddressInfo).port;
  }
  after(() => servers.forEach((server) => server.close()));
  const ask = (protocol: 'tcp' | 'http', port: number, path?: string) =>
    probe({ protocol, port, ...(path !== undefined && { path }) }, '127.0.0.1', 200);

  it('a probe passes with a connection, or with an HTTP status below 400', async () => {
    const port = await listen(
      createHttpServer((request, response) => {
        response.statusCode = request.url === '/ready' ? 204 : 503;
        response.end('x'.repeat(100_000));
      }),
    );
    assert.equal(await ask('tcp', port), undefined);
    assert.equal(await ask('http', port, '/ready'), undefined);
    assert.equal(await ask('http', port), 'status 503');
  });

  it('a failed probe has its reason: refused, silent, or no HTTP', async () => {
    const silent = await listen(createServer(() => undefined));
    assert.equal(await ask('http', silent), 'no answer in 200 ms');
    const other = await listen(createServer((socket) => socket.end('SSH-2.0-x\r\n')));
    assert.match((await ask('http', other)) ?? '', /Parse Error|Expected HTTP/);
    const gone = createServer();
    const port = await listen(gone);
    gone.close();
    await once(gone, 'close');
    assert.match((await ask('tcp', port)) ?? '', /ECONNREFUSED/);
    assert.match((await ask('http', port)) ?? '', /ECONNREFUSED/);
  });
});
