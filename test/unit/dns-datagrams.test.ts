// Owns the tests of the socket that is read and written many datagrams at a time: real sockets on loopback.
import assert from 'node:assert/strict';
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { closeSync, writeSync } from 'node:fs';
import { Datagrams } from '../../dns/datagrams.ts';

const loopback = '127.0.0.1';

describe('DNS: datagrams', () => {
  let port: number;
  let datagrams: Datagrams;
  let client: Socket;
  let answers: string[];
  let release: () => void;

  beforeEach(async () => {
    // The kernel says which port is free; the one who asks shares it for a moment.
    const finder = createSocket({ type: 'udp4', reusePort: true });
    finder.bind(0, loopback);
    await once(finder, 'listening');
    ({ port } = finder.address());
    datagrams = new Datagrams(port, loopback);
    finder.close();
    client = createSocket('udp4');
    answers = [];
    client.on('message', (message) => answers.push(message.toString()));
    client.bind(0, loopback);
    await once(client, 'listening');
    release = () => {
      datagrams.free();
      closeSync(datagrams.descriptors.socket);
      closeSync(datagrams.descriptors.bell);
    };
  });
  afterEach(() => {
    client.close();
    release();
  });

  const send = (text: string | Buffer): Promise<void> =>
    new Promise((done, fail) => client.send(text, port, loopback, (error) => (error ? fail(error) : done())));

  /** Takes so many, and makes of each what is sent back. */
  const serve = (count: number, answer: (text: string, at: number) => void): void => {
    for (let taken = 0; taken < count;) {
      const some = datagrams.receive();
      assert.ok(some > 0, `${taken} of ${count} came`);
      for (let at = 0; at < some; at += 1) answer(datagrams.message(at).toString(), at);
      datagrams.flush();
      taken += some;
    }
    assert.equal(datagrams.receive(), 0);
  };

  const answered = async (count: number): Promise<void> => {
    while (answers.length < count) await once(client, 'message');
  };

  it('come as they were sent, more than one call takes, and are answered', async () => {
    const texts = Array.from({ length: 100 }, (_, at) => `question ${at}`);
    for (const text of texts) await send(text);
    serve(texts.length, (text, at) => {
      assert.equal(datagrams.address(at), loopback);
      assert.equal(datagrams.port(at), client.address().port);
      datagrams.reply(at, Buffer.from(`${text} answered`));
    });
    await answered(texts.length);
    assert.deepEqual(
      answers,
      texts.map((text) => `${text} answered`),
    );
  });

  it('are sent to whom one says, and one that cannot be sent takes none of the others along', async () => {
    const { port: to } = client.address();
    for (let at = 0; at < 40; at += 1) {
      datagrams.send(Buffer.from('to nobody'), loopback, 0);
      datagrams.send(Buffer.from(`answer ${at}`), loopback, to);
    }
    datagrams.flush();
    await answered(40);
    assert.deepEqual(
      answers,
      Array.from({ length: 40 }, (_, at) => `answer ${at}`),
    );
  });

  it('that are too long are cut, and the next one is not', async () => {
    await send(Buffer.alloc(9_000, 'x'));
    await send('short');
    const lengths: number[] = [];
    serve(2, (text) => lengths.push(text.length));
    assert.deepEqual(lengths, [4_096, 5]);
    assert.throws(() => datagrams.send(Buffer.alloc(4_097), loopback, 1), RangeError);
  });

  it('are waited for, and so is the bell', async () => {
    assert.equal(datagrams.wait(1), false);
    writeSync(datagrams.descriptors.bell, Buffer.from([1, 0, 0, 0, 0, 0, 0, 0]));
    assert.equal(datagrams.wait(10_000), true);
    assert.equal(datagrams.wait(1), false);
    await send('question');
    assert.equal(datagrams.wait(10_000), false);
    serve(1, (text) => assert.equal(text, 'question'));
  });

  it('that came before it left are still there, and go to others afterwards', async () => {
    await send('before');
    datagrams.leave();
    await send('after');
    serve(1, (text, at) => {
      assert.equal(text, 'before');
      datagrams.reply(at, Buffer.from('answered'));
    });
    await answered(1);
  });

  it('need a port that is free, and an address of this machine', () => {
    const open = (): Datagrams => new Datagrams(port, '192.0.2.1');
    assert.throws(open, /bind\(192\.0\.2\.1:\d+\) failed with errno 99/);
  });
});
