// Owns the tests of the sockets that are read and written many datagrams at a time: real sockets on loopback.
import assert from 'node:assert/strict';
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { closeSync, writeSync } from 'node:fs';
import { Datagrams } from '../../../dns/datagrams.ts';
import { localPort, openSocket } from '../../../net/namespace.ts';

const loopback = '127.0.0.1';

describe('DNS: datagrams', () => {
  let port: number;
  let socket: number;
  let datagrams: Datagrams;
  let client: Socket;
  let answers: string[];

  beforeEach(async () => {
    socket = openSocket({ protocol: 'udp', local: { address: loopback, port: 0 } });
    port = localPort(socket);
    datagrams = new Datagrams();
    datagrams.add(socket);
    client = createSocket('udp4');
    answers = [];
    client.on('message', (message) => answers.push(message.toString()));
    client.bind(0, loopback);
    await once(client, 'listening');
  });
  afterEach(() => {
    client.close();
    datagrams.free();
    const { bell, interest } = datagrams.descriptors;
    for (const descriptor of [socket, bell, interest]) closeSync(descriptor);
  });

  const send = (text: string | Buffer): Promise<void> =>
    new Promise((done, fail) => client.send(text, port, loopback, (error) => (error ? fail(error) : done())));

  /** Takes so many, and makes of each what is sent back. */
  const serve = (count: number, answer: (text: string, at: number) => void): void => {
    for (let taken = 0; taken < count;) {
      const some = datagrams.receive(socket);
      assert.ok(some > 0, `${taken} of ${count} came`);
      for (let at = 0; at < some; at += 1) answer(datagrams.message(at).toString(), at);
      datagrams.flush();
      taken += some;
    }
    assert.equal(datagrams.receive(socket), 0);
  };

  const answered = async (count: number): Promise<void> => {
    while (answers.length < count) await once(client, 'message');
  };

  it('datagrams are received as they were sent, over several calls, and answered', async () => {
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

  it('datagrams go to the address that is named; one that cannot be sent does not hold up the others', async () => {
    const { port: to } = client.address();
    for (let at = 0; at < 40; at += 1) {
      datagrams.send(socket, Buffer.from('to nobody'), loopback, 0);
      datagrams.send(socket, Buffer.from(`answer ${at}`), loopback, to);
    }
    datagrams.flush();
    await answered(40);
    assert.deepEqual(
      answers,
      Array.from({ length: 40 }, (_, at) => `answer ${at}`),
    );
  });

  it('a datagram that is too long is cut, and the next one is whole', async () => {
    await send(Buffer.alloc(9_000, 'x'));
    await send('short');
    const lengths: number[] = [];
    serve(2, (text) => lengths.push(text.length));
    assert.deepEqual(lengths, [4_096, 5]);
    assert.throws(() => datagrams.send(socket, Buffer.alloc(4_097), loopback, 1), RangeError);
  });

  it('wait() returns at a datagram, and at the wake-up bell', async () => {
    assert.deepEqual(datagrams.wait(1), []);
    writeSync(datagrams.descriptors.bell, Buffer.from([1, 0, 0, 0, 0, 0, 0, 0]));
    const began = performance.now();
    assert.deepEqual(datagrams.wait(60_000), []);
    assert.ok(performance.now() - began < 50_000);
    await send('question');
    assert.deepEqual(datagrams.wait(10_000), [socket]);
    serve(1, (text) => assert.equal(text, 'question'));
    datagrams.remove(socket);
    await send('another one');
    assert.deepEqual(datagrams.wait(1), []);
  });

  it('with several sockets, an answer leaves by the socket at which the question came', async () => {
    const other = openSocket({ protocol: 'udp', local: { address: loopback, port: 0 } });
    datagrams.add(other);
    const from = new Map<string, number>();
    client.on('message', (message, { port: by }) => from.set(message.toString(), by));
    client.send('other', localPort(other), loopback);
    await send('one');
    const ready = new Set<number>();
    while (ready.size < 2) for (const each of datagrams.wait(10_000)) ready.add(each);
    for (const each of ready)
      for (let left = datagrams.receive(each); left > 0; left -= 1)
        datagrams.reply(left - 1, Buffer.from(datagrams.message(left - 1)));
    datagrams.send(socket, Buffer.from('sent'), loopback, client.address().port);
    datagrams.flush();
    await answered(3);
    assert.deepEqual(Object.fromEntries(from), { one: port, other: localPort(other), sent: port });
    closeSync(other);
  });

  it('datagrams without a socket are refused', () => {
    assert.throws(() => datagrams.add(1_000_000), /epoll_ctl\(1, 1000000\) failed with errno 9/);
  });
});
