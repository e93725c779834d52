// Owns the tests of nodes that watch each other over real sockets, each on an address of the loopback device.
// Must not need root; what a dead link does is in test/kernel/peers.test.ts.
import assert from 'node:assert/strict';
import { createSecretKey, randomBytes, type KeyObject } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { connect, createServer, type AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { datagramBytes, decode, digestOf, encode, noRevision, type Datagram } from '../../peers/datagram.ts';
import { fetchOffer, maxOfferBytes } from '../../peers/offer.ts';
import { openPeers, PeersUnavailable, type Peers, type PeersOptions } from '../../peers/peers.ts';
import { captureLog } from '../fake/log.ts';

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

async function until(what: string, holds: () => boolean): Promise<void> {
  const end = Date.now() + 8_000;
  while (!holds()) {
    assert.ok(Date.now() < end, `not within 8 s: ${what}`);
    await sleep(10);
  }
}

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

  it('know each other alive, with the time of a round trip', async () => {
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
    await until('both alive', () => verdict(one, 'b') === 'alive' && verdict(two, 'a') === 'alive');
    await until('a round trip', () =>
      [one, two].some((peers) => [...peers.state().values()][0]?.rttMs !== undefined),
    );
    assert.equal(calls, 1);
    one.watch([]);
    assert.equal(one.state().size, 0);
  });

  it('are answered by who does not watch them', async () => {
    const one = await start({ self: a });
    await start({ self: b });
    one.watch([b]);
    await until('alive', () => one.state().get('b')?.rttMs !== undefined);
  });

  it('without a secret go by TCP alone, and take it up when it comes', async () => {
    const store: { secret?: KeyObject } = {};
    const one = await start({ self: a, secret: () => store.secret });
    await start({ self: b });
    one.watch([b]);
    await until('alive', () => verdict(one, 'b') === 'alive');
    assert.equal(one.state().get('b')?.rttMs, undefined);
    store.secret = secret;
    await until('a heartbeat', () => one.state().get('b')?.rttMs !== undefined);
  });

  it('are alive where nobody listens: the kernel refuses', async () => {
    const one = await start({ self: a });
    one.watch([b]);
    await until('alive', () => verdict(one, 'b') === 'alive');
  });

  it('answer with as many bytes as they were asked with, and garbage not at all', async () => {
    await start({ self: b });
    const socket = createSocket('udp4').bind(0, a.address).unref();
    await once(socket, 'listening');
    const got: Buffer[] = [];
    socket.on('message', (bytes) => got.push(bytes));
    for (let i = 0; i < 50; i += 1) socket.send(randomBytes(i * 3), port, b.address);
    for (const kind of ['answer', 'ask'] as const) {
      socket.send(encode({ ...heartbeat, kind }, digestOf('b'), secret), port, b.address);
    }
    await until('an answer', () => got.length > 0);
    await sleep(50);
    assert.deepEqual(
      got.map((bytes) => bytes.length),
      [datagramBytes],
    );
    socket.close();
  });

  it('take no replay for a sign of life', async () => {
    const one = await start({ self: a });
    const socket = createSocket('udp4').bind(port, b.address).unref();
    await once(socket, 'listening');
    const asked: bigint[] = [];
    socket.on('message', (bytes) => asked.push(decode(bytes, digestOf('b'), secret)!.stamp));
    const answer = (echo: bigint) =>
      encode({ ...heartbeat, kind: 'answer', sender: digestOf('b'), echo }, digestOf('a'), secret);
    one.watch([b]);
    await until('a question', () => asked.length > 0);
    const late = asked[0]!;
    await sleep(400);
    for (const echo of [0n, 12_345n, late, late + 3_600_000_000n]) {
      socket.send(answer(echo), port, a.address);
    }
    await sleep(50);
    assert.equal(one.state().get('b')?.rttMs, undefined);
    socket.on('message', () => socket.send(answer(asked.at(-1)!), port, a.address));
    await until('an answer to the last question', () => one.state().get('b')?.rttMs !== undefined);
    socket.close();
  });

  it('tell each other what they offer, when it changes, and that they offer nothing any more', async () => {
    const told: [string, unknown][] = [];
    let offer = { revision: '', payload: {} as unknown };
    const one = await start({ self: a, onOffer: (node, payload) => told.push([node, payload]) });
    await start({ self: b, offers: { revision: () => offer.revision, read: () => offer.payload } });
    one.watch([b]);
    await until('alive', () => one.state().get('b')?.rttMs !== undefined);
    assert.deepEqual(told, []);
    offer = { revision: '1', payload: { endpoints: ['x'] } };
    await until('the first offer', () => told.length === 1);
    offer = { revision: '2', payload: { endpoints: 'y'.repeat(5_000_000) } };
    await until('the second offer', () => told.length === 2);
    offer = { revision: '', payload: undefined };
    await until('no offer', () => told.length === 3);
    await sleep(300);
    assert.deepEqual(told, [
      ['b', { endpoints: ['x'] }],
      ['b', { endpoints: 'y'.repeat(5_000_000) }],
      ['b', undefined],
    ]);
  });

  it('say once that an offer is too long', async () => {
    const one = await start({ self: a, onOffer: () => assert.fail('nothing was offered') });
    const payload = 'z'.repeat(maxOfferBytes);
    await start({ self: b, offers: { revision: () => '1', read: () => payload } });
    await assert.rejects(fetchOffer({ ...fetching(), secret }), /16777\d+ bytes long, more than 16777216/);
    one.watch([b]);
    await until('a warning', () => lines.some(({ level }) => level === 'warn'));
    await sleep(1_200);
    assert.equal(lines.filter(({ level }) => level === 'warn').length, 1);
  });

  it('give their offer to nobody without the secret, and believe nobody without it', async () => {
    await start({ self: b, offers: { revision: () => '1', read: () => 'the payload' } });
    assert.deepEqual(await fetchOffer({ ...fetching(), secret }), { revision: '1', payload: 'the payload' });
    await assert.rejects(
      fetchOffer({ ...fetching(), secret: createSecretKey('wrong', 'utf8') }),
      /does not know the secret/,
    );
    await assert.rejects(
      fetchOffer({ ...fetching(), peer: digestOf('c'), secret }),
      /does not know the secret/,
    );

    // One that goes on without having proved anything.
    const socket = connect({ host: b.address, port });
    let bytes = 0;
    socket.on('data', (data) => (bytes += data.length));
    socket.write(Buffer.concat([Buffer.from([0x43, 0x57, 0x4f, 1]), randomBytes(64)]));
    await once(socket, 'close');
    assert.equal(bytes, 48, 'a nonce and a MAC');

    const garbage = connect({ host: b.address, port });
    garbage.end(randomBytes(1_000));
    garbage.resume();
    await once(garbage, 'close');
  });

  it('say what is wrong with the port', async () => {
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
