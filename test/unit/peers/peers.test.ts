// Owns the tests of nodes that watch each other over real sockets, each on an address of the loopback device.
// Must not need root; what a dead link does is in test/kernel/peers.test.ts.
import assert from 'node:assert/strict';
import { createSecretKey, randomBytes, type KeyObject } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  datagramBytes,
  decode,
  digestOf,
  encode,
  noRevision,
  type Datagram,
} from '../../../peers/datagram.ts';
import { fetchPendingWrites, maxPendingBytes } from '../../../peers/pending-writes.ts';
import { openPeers, PeersUnavailable, type Peers, type PeersOptions } from '../../../peers/peers.ts';
import { captureLog } from '../../fake/log.ts';
import { eventually } from '../../support/until.ts';

const secret = createSecretKey('the secret of the cluster', 'utf8');
const a = { id: 'a', address: '127.0.19.1' };
const b = { id: 'b', address: '127.0.19.2' };
const heartbeat: Datagram = {
  kind: 'ask',
  interval: 100,
  sender: digestOf('a'),
  stamp: 1n,
  echo: 0n,
  revision: noRevision,
};

describe('peers on real sockets', () => {
  let port: number;
  const open: Peers[] = [];

  /** What nodes offer and were offered, and the log of all. */
  const { log, lines } = captureLog();

  async function start(options: Partial<PeersOptions> & Pick<PeersOptions, 'self'>): Promise<Peers> {
    const peers = await openPeers({ port, secret: () => secret, log, ...options });
    open.push(peers);
    return peers;
  }

  before(async () => {
    const server = createServer().listen(0, a.address);
    await once(server, 'listening');
    port = (server.address() as AddressInfo).port;
    server.close();
  });
  afterEach(async () => {
    await Promise.all(open.splice(0).map((peers) => peers.close()));
    lines.length = 0;
  });

  /** How A asks B for its offer, but for the secret. */
  const fetching = () => ({
    address: b.address,
    port,
    localAddress: a.address,
    self: digestOf('a'),
    peer: digestOf('b'),
    signal: AbortSignal.timeout(8_000),
  });

  const verdict = (peers: Peers, id: string) => peers.state().get(id)?.verdict;

  it('two peers are alive to each other, with a round-trip time', async () => {
    const one = await start({ self: a });
    const two = await start({ self: b });
    let calls = 0;
    one.onChange(() => {
      calls += 1;
    });
    one.watch([a, b]);
    two.watch([a, b]);
    assert.deepEqual([...one.state().keys()], ['b'], 'a node does not watch itself');
    assert.equal(one.state().get('b')?.alive, true, 'who is unknown counts as alive');
    await eventually(() => verdict(one, 'b') === 'alive' && verdict(two, 'a') === 'alive');
    await eventually(() => [one, two].some((peers) => [...peers.state().values()][0]?.rttMs !== undefined));
    assert.equal(calls, 1);
    one.watch([]);
    assert.equal(one.state().size, 0);
  });

  it('a peer that does not know us yet is alive, and does not answer', async () => {
    const one = await start({ self: a });
    const two = await start({ self: b });
    one.watch([b]);
    await eventually(() => verdict(one, 'b') === 'alive');
    await sleep(300);
    assert.equal(one.state().get('b')?.rttMs, undefined);
    two.watch([a]);
    await eventually(() => one.state().get('b')?.rttMs !== undefined);
    assert.equal(verdict(one, 'b'), 'alive');
  });

  it('peers without a secret use TCP alone, and use the secret when it comes', async () => {
    const store: { secret?: KeyObject } = {};
    const one = await start({ self: a, secret: () => store.secret });
    const two = await start({ self: b });
    one.watch([b]);
    two.watch([a]);
    await eventually(() => verdict(one, 'b') === 'alive');
    assert.equal(one.state().get('b')?.rttMs, undefined);
    store.secret = secret;
    await eventually(() => one.state().get('b')?.rttMs !== undefined);
  });

  it('a peer where nobody listens is alive: its kernel refuses', async () => {
    const one = await start({ self: a });
    one.watch([b]);
    await eventually(() => verdict(one, 'b') === 'alive');
  });

  it('a heartbeat is answered with as many bytes, garbage not at all', async () => {
    const two = await start({ self: b });
    two.watch([a]);
    const socket = createSocket('udp4').bind(0, a.address).unref();
    await once(socket, 'listening');
    const got: Buffer[] = [];
    // What it asks on its own behalf goes to the port, and not to this socket.
    socket.on('message', (bytes) => got.push(bytes));
    for (let i = 0; i < 50; i += 1) socket.send(randomBytes(i * 3), port, b.address);
    for (const kind of ['answer', 'ask'] as const) {
      socket.send(encode({ ...heartbeat, kind }, digestOf('b'), secret), port, b.address);
    }
    await eventually(() => got.length > 0);
    await sleep(50);
    assert.deepEqual(
      got.map((bytes) => bytes.length),
      [datagramBytes],
    );
    socket.close();
  });

  it('a replayed answer is no sign of life', async () => {
    const one = await start({ self: a });
    const socket = createSocket('udp4').bind(port, b.address).unref();
    await once(socket, 'listening');
    const asked: bigint[] = [];
    socket.on('message', (bytes) => asked.push(decode(bytes, digestOf('b'), secret)!.stamp));
    const answer = (echo: bigint) =>
      encode({ ...heartbeat, kind: 'answer', sender: digestOf('b'), echo }, digestOf('a'), secret);
    one.watch([b]);
    await eventually(() => asked.length > 0);
    const late = asked[0]!;
    await sleep(400);
    for (const echo of [0n, 12_345n, late, late + 3_600_000_000n]) {
      socket.send(answer(echo), port, a.address);
    }
    await sleep(50);
    assert.equal(one.state().get('b')?.rttMs, undefined);
    socket.on('message', () => socket.send(answer(asked.at(-1)!), port, a.address));
    await eventually(() => one.state().get('b')?.rttMs !== undefined);
    socket.close();
  });

  it('peers tell each other their pending writes when they change, and when there are none any more', async () => {
    const told: [string, unknown][] = [];
    let offer = { revision: '', payload: {} as unknown };
    const one = await start({ self: a, onPendingWrites: (node, payload) => told.push([node, payload]) });
    const two = await start({
      self: b,
      pendingWrites: { revision: () => offer.revision, read: () => offer.payload },
    });
    one.watch([b]);
    two.watch([a]);
    await eventually(() => one.state().get('b')?.rttMs !== undefined);
    assert.deepEqual(told, []);
    offer = { revision: '1', payload: { endpoints: ['x'] } };
    await eventually(() => told.length === 1);
    offer = { revision: '2', payload: { endpoints: 'y'.repeat(5_000_000) } };
    await eventually(() => told.length === 2);
    offer = { revision: '', payload: undefined };
    await eventually(() => told.length === 3);
    await sleep(300);
    assert.deepEqual(told, [
      ['b', { endpoints: ['x'] }],
      ['b', { endpoints: 'y'.repeat(5_000_000) }],
      ['b', undefined],
    ]);
  });

  it('pending writes that are too long are logged once', async () => {
    const one = await start({ self: a, onPendingWrites: () => assert.fail('nothing was offered') });
    const payload = 'z'.repeat(maxPendingBytes);
    const two = await start({ self: b, pendingWrites: { revision: () => '1', read: () => payload } });
    two.watch([a]);
    await assert.rejects(
      fetchPendingWrites({ ...fetching(), secret }),
      /16777\d+ bytes long, more than 16777216/,
    );
    one.watch([b]);
    await eventually(() => lines.some(({ level }) => level === 'warn'));
    await sleep(1_200);
    assert.equal(lines.filter(({ level }) => level === 'warn').length, 1);
  });

  it('pending writes are given to nobody without the secret, and accepted from nobody without it', async () => {
    const two = await start({ self: b, pendingWrites: { revision: () => '1', read: () => 'the payload' } });
    two.watch([a]);
    assert.deepEqual(await fetchPendingWrites({ ...fetching(), secret }), {
      revision: '1',
      payload: 'the payload',
    });
    await assert.rejects(
      fetchPendingWrites({ ...fetching(), secret: createSecretKey('wrong', 'utf8') }),
      /does not know the secret/,
    );
    await assert.rejects(
      fetchPendingWrites({ ...fetching(), peer: digestOf('c'), secret }),
      /does not know the secret/,
    );

    // One that goes on without having proved anything.
    const socket = connect({ host: b.address, port, localAddress: a.address });
    let bytes = 0;
    socket.on('data', (data) => (bytes += data.length));
    socket.write(Buffer.concat([Buffer.from([0x43, 0x57, 0x4f, 1]), randomBytes(64)]));
    await once(socket, 'close');
    assert.equal(bytes, 48, 'a nonce and a MAC');

    const garbage = connect({ host: b.address, port, localAddress: a.address });
    garbage.end(randomBytes(1_000));
    garbage.resume();
    await once(garbage, 'close');
  });

  /** Connections that say nothing. */
  async function idle(count: number, localAddress: string): Promise<Socket[]> {
    const sockets = Array.from({ length: count }, () => {
      const socket = connect({ host: b.address, port, localAddress });
      socket.on('error', () => undefined);
      return socket.resume();
    });
    await Promise.all(sockets.map((socket) => once(socket, 'connect')));
    return sockets;
  }

  const kept = (sockets: Socket[]) => sockets.filter(({ closed }) => !closed).length;

  it('pending writes are fetched however many connections strangers and other nodes keep', async () => {
    const two = await start({ self: b, pendingWrites: { revision: () => '1', read: () => 'the payload' } });
    two.watch([a, { id: 'c', address: '127.0.19.3' }]);
    const strangers = await idle(300, '127.0.19.4');
    await eventually(() => kept(strangers) === 0);
    const greedy = await idle(300, '127.0.19.3');
    await eventually(() => kept(greedy) === 16);
    assert.deepEqual(await fetchPendingWrites({ ...fetching(), secret }), {
      revision: '1',
      payload: 'the payload',
    });
    for (const socket of greedy) socket.destroy();
    await sleep(100);
    const again = await idle(16, '127.0.19.3');
    await sleep(200);
    assert.equal(kept(again), 16, 'as many again once they have ended');
    for (const socket of again) socket.destroy();
  });

  it('a stranger’s datagram is dropped before its signature is checked', async () => {
    let looks = 0;
    const two = await start({
      self: b,
      secret: () => {
        looks += 1;
        return secret;
      },
    });
    const socket = createSocket('udp4').bind(0, '127.0.19.4').unref();
    await once(socket, 'listening');
    let answers = 0;
    socket.on('message', () => (answers += 1));
    const send = async (): Promise<void> => {
      for (let i = 0; i < 100; i += 1)
        socket.send(encode({ ...heartbeat, sender: digestOf('c') }, digestOf('b'), secret), port, b.address);
      await sleep(200);
    };
    await send();
    assert.deepEqual({ looks, answers }, { looks: 0, answers: 0 });
    two.watch([{ id: 'c', address: '127.0.19.4' }]);
    await send();
    assert.ok(answers > 0, 'a node is answered');
    two.watch([]);
    const before = answers;
    await send();
    assert.equal(answers, before, 'and no longer when it is none any more');
    socket.close();
  });

  it('a port that cannot be bound: the error says what is wrong', async () => {
    await start({ self: a });
    await assert.rejects(start({ self: a }), (error: Error) => {
      assert.ok(error instanceof PeersUnavailable);
      assert.match(error.message, /in use by another program: free it, or choose another port/);
      return true;
    });
    await assert.rejects(
      start({ self: { id: 'c', address: '203.0.113.99' } }),
      /not an address of this node/,
    );
  });
});
