// Owns the tests of listeners: when they are there, and what becomes of requests that come early.
// Must not test what is served.
import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { request, type RequestListener } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { text } from 'node:stream/consumers';
import { close, listen } from '../../../plugin/listen.ts';

describe('a listener', () => {
  let directory: string;
  let path: string;
  before(async () => {
    directory = await mkdtemp(join(tmpdir(), 'causeway-listen-'));
    path = join(directory, 'run/plugin.sock');
  });
  after(() => rm(directory, { recursive: true }));

  const ask = (body: string): Promise<string> =>
    new Promise((resolve, reject) => {
      const asking = request({ socketPath: path, path: '/', method: 'POST' }, (response) =>
        resolve(text(response)),
      );
      asking.on('error', reject);
      asking.end(body);
    });
  const echo: RequestListener = (request, response) => {
    void text(request).then((body) => response.end(`${body}!`));
  };

  it('a listener accepts requests before anybody answers them, and has them answered whole then', async () => {
    const handler = Promise.withResolvers<RequestListener>();
    const server = await listen(handler.promise, { path });
    try {
      const answers = Promise.all([ask('one'), ask('x'.repeat(200_000))]);
      await sleep(50);
      handler.resolve(echo);
      const [one, large] = await answers;
      assert.equal(one, 'one!');
      assert.equal(large.length, 200_001);
      assert.equal(await ask('later'), 'later!');
    } finally {
      await close(server);
    }
  });

  it('a listener replaces a socket that an earlier life left', async () => {
    await writeFile(path, '');
    const server = await listen(echo, { path });
    try {
      assert.equal(await ask('one'), 'one!');
    } finally {
      await close(server);
    }
  });
});
