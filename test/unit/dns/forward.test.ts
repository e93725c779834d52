// Owns the tests of asking other servers: with a clock and servers that are made up, and once with real sockets.
// Must not know zones.
import assert from 'node:assert/strict';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { createServer, type AddressInfo } from 'node:net';
import { Packet } from 'dns2';
import { AnswerCache } from '../../../dns/cache.ts';
import { answers, readAnswer, withoutStale } from '../../../dns/foreign.ts';
import { Forwarder, type Clock, type Upstream } from '../../../dns/forward.ts';
import { parseQuery, type Query } from '../../../dns/message.ts';
import { toWire } from '../../../dns/name.ts';
import type { Server, Transport } from '../../../dns/transport.ts';
import { RCODE, TYPE } from '../../../dns/types.ts';

class FakeClock implements Clock {
  #now = 1_000;
  readonly #timers = new Set<{ at: number; callback: () => void }>();
  now = (): number => this.#now;

  after = (milliseconds: number, callback: () => void): (() => void) => {
    const timer = { at: this.#now + milliseconds, callback };
    this.#timers.add(timer);
    return () => this.#timers.delete(timer);
  };

  /** Lets time go by, and what hangs on it happen. */
  async advance(milliseconds: number): Promise<void> {
    this.#now += milliseconds;
    for (const timer of [...this.#timers])
      if (timer.at <= this.#now) {
        this.#timers.delete(timer);
        timer.callback();
      }
    await settle();
  }
}

async function settle(): Promise<void> {
  for (let turn = 0; turn < 3; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}

interface Exchange {
  protocol: 'udp' | 'tcp';
  question: Buffer;
  server: Server;
}

/** A transport that keeps account; the reply is undefined for none at all, and what is no answer is passed over. */
function fake(
  reply: (exchange: Exchange, count: number) => Buffer | Error | undefined,
): Transport & { asked: Exchange[] } {
  const asked: Exchange[] = [];
  return {
    asked,
    exchange: (protocol, question, server, belongs, signal) => {
      const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
      signal.addEventListener('abort', () => reject(signal.reason as Error));
      asked.push({ protocol, question, server });
      const message = reply({ protocol, question, server }, asked.length);
      if (message instanceof Error) reject(message);
      else if (message !== undefined && belongs(message)) resolve(message);
      return promise;
    },
  };
}

interface Record {
  name?: Buffer;
  type: number;
  ttl: number;
  data: Buffer;
}

const pointer = Buffer.from([0xc0, 0x0c]);

function record({ name = pointer, type, ttl, data }: Record): Buffer {
  const fixed = Buffer.alloc(10);
  fixed.writeUInt16BE(type, 0);
  fixed.writeUInt16BE(1, 2);
  fixed.writeUInt32BE(ttl, 4);
  fixed.writeUInt16BE(data.length, 8);
  return Buffer.concat([name, fixed, data]);
}

function address(text: string, ttl: number): Buffer {
  return record({ type: TYPE.A, ttl, data: Buffer.from(text.split('.').map(Number)) });
}

function soa(ttl: number, minimum: number): Buffer {
  const numbers = Buffer.alloc(20);
  numbers.writeUInt32BE(minimum, 16);
  return record({ type: TYPE.SOA, ttl, data: Buffer.concat([pointer, pointer, numbers]) });
}

const opt = Buffer.from([0, 0, TYPE.EDNS, 4, 0xd0, 0, 0, 0, 0, 0, 0]);

interface Reply {
  rcode?: number;
  truncated?: boolean;
  answer?: Buffer[];
  authority?: Buffer[];
  additional?: Buffer[];
}

/** @returns an answer to the question as another server would write it */
function reply(
  question: Buffer,
  { rcode = 0, truncated = false, answer = [], authority = [], additional = [] }: Reply,
): Buffer {
  const parsed = parseQuery(question);
  if (parsed.kind !== 'query') throw new Error('This server asks what is no question.');
  const header = Buffer.alloc(12);
  question.copy(header, 0, 0, 2);
  header.writeUInt16BE(0x8180 | (truncated ? 0x0200 : 0) | rcode, 2);
  for (const [at, list] of [[0], answer, authority, additional].entries())
    header.writeUInt16BE(list.length, 4 + 2 * at);
  return Buffer.concat([header, parsed.query.question.wire, ...answer, ...authority, ...additional]);
}

let lastId = 0;

function query(name: string, { type = TYPE.A, edns }: { type?: number; edns?: number } = {}): Buffer {
  const bytes = Buffer.alloc(12);
  lastId = (lastId + 1) & 0xffff;
  bytes.writeUInt16BE(lastId, 0);
  bytes.writeUInt16BE(0x0100, 2);
  bytes.writeUInt16BE(1, 4);
  const withFlags = Buffer.from(opt);
  if (edns !== undefined) {
    bytes.writeUInt16BE(1, 10);
    withFlags.writeUInt16BE(edns, 7);
  }
  return Buffer.concat([
    bytes,
    toWire(name),
    Buffer.from([type >> 8, type & 255, 0, 1]),
    edns === undefined ? Buffer.alloc(0) : withFlags,
  ]);
}

function parsedQuery(bytes: Buffer): Query {
  const parsed = parseQuery(bytes);
  if (parsed.kind !== 'query') throw new Error('no query');
  return parsed.query;
}

const one: Server = { address: '192.0.2.1', port: 53 };
const two: Server = { address: '192.0.2.2', port: 53 };
const upstream: Upstream = { key: 'u', addresses: [one] };
const both: Upstream = { key: 'u', addresses: [one, two] };

/** @returns what dns2 makes of the answer */
async function ask(forwarder: Forwarder, bytes: Buffer, from: Upstream = upstream): Promise<Packet> {
  const packet = Packet.parse((await forwarder.ask(bytes, from)).message);
  assert.deepEqual(packet.errors, []);
  assert.equal(packet.header.id, bytes.readUInt16BE(0));
  return packet;
}

function texts(packet: Packet): string[] {
  return packet.answers.map(({ address: text, ttl }) => `${text ?? ''} ${ttl}`);
}

const positive =
  (ttl: number) =>
  (exchange: Exchange): Buffer =>
    reply(exchange.question, { answer: [address('192.0.2.80', ttl)] });

describe('DNS: asking another server', () => {
  it('a forwarded question has its own id and EDNS; the answer has the asker’s id and spelling', async () => {
    const transport = fake(positive(60));
    const bytes = query('Example.COM');
    const packet = await ask(new Forwarder({ transport, clock: new FakeClock() }), bytes);
    assert.deepEqual(texts(packet), ['192.0.2.80 60']);
    assert.equal(packet.questions[0]?.name, 'Example.COM');
    const question = transport.asked[0]?.question ?? Buffer.alloc(12);
    const asked = parsedQuery(question);
    assert.deepEqual([asked.recursionDesired, asked.edns?.udpBytes], [true, 1_232]);
    const ids = new Set<number>();
    for (let count = 0; count < 20; count += 1) {
      const other = fake(positive(0));
      await ask(new Forwarder({ transport: other, clock: new FakeClock() }), bytes);
      ids.add(other.asked[0]?.question.readUInt16BE(0) ?? -1);
    }
    assert.ok(ids.size > 15, `${ids.size} different ids`);
  });

  it('the upstream’s OPT record is not passed on', async () => {
    const transport = fake(({ question }) =>
      reply(question, { answer: [address('192.0.2.80', 9)], additional: [opt] }),
    );
    const packet = await ask(
      new Forwarder({ transport, clock: new FakeClock() }),
      query('example.com', { edns: 0 }),
    );
    assert.deepEqual(packet.additionals, []);
  });

  it('answers of any type are passed on whole', async () => {
    const alias = record({
      type: TYPE.CNAME,
      ttl: 60,
      data: Buffer.concat([Buffer.from([3, 0x77, 0x77, 0x77]), pointer]),
    });
    const at = 12 + 13 + 4 + 12;
    const target = Buffer.from([0xc0, at]);
    const exchange = Buffer.concat([Buffer.from([0, 5]), target]);
    const unknown = Buffer.from([1, 2, 3]);
    const transport = fake(({ question }) =>
      reply(question, {
        answer: [
          alias,
          record({ name: target, type: TYPE.A, ttl: 30, data: Buffer.from([192, 0, 2, 7]) }),
          record({ type: TYPE.MX, ttl: 60, data: exchange }),
          record({ type: 999, ttl: 60, data: unknown }),
        ],
      }),
    );
    const {
      answers: [cname, a, mx, other],
    } = await ask(new Forwarder({ transport, clock: new FakeClock() }), query('Example.com'));
    assert.equal(cname?.domain, 'www.Example.com');
    assert.deepEqual([a?.name, a?.address], ['www.Example.com', '192.0.2.7']);
    assert.deepEqual([mx?.priority, mx?.exchange], [5, 'www.Example.com']);
    assert.deepEqual(other?.data, unknown);
  });

  it('an upstream that is silent for 1.5 s: the next one is asked', async () => {
    const clock = new FakeClock();
    const transport = fake((exchange) => (exchange.server === two ? positive(60)(exchange) : undefined));
    const answer = ask(new Forwarder({ transport, clock }), query('example.com'), both);
    await settle();
    await clock.advance(1_499);
    assert.equal(transport.asked.length, 1);
    await clock.advance(1);
    assert.deepEqual(texts(await answer), ['192.0.2.80 60']);
    assert.deepEqual(
      transport.asked.map(({ server }) => server),
      [one, two],
    );
  });

  it('a single upstream is asked twice, at most three are asked, then the answer is SERVFAIL', async () => {
    for (const [addresses, expected] of [
      [[one], 2],
      [[one, two], 2],
      [[one, two, one, two], 3],
      [[], 0],
    ] as const) {
      const clock = new FakeClock();
      const transport = fake(() => undefined);
      const answer = ask(new Forwarder({ transport, clock }), query('example.com'), { key: 'u', addresses });
      await settle();
      for (let round = 0; round < expected; round += 1) await clock.advance(1_500);
      assert.equal((await answer).header.rcode, RCODE.SERVFAIL);
      assert.equal(transport.asked.length, expected);
    }
  });

  it('a reply with another id, with another question, or that is a question is ignored', async () => {
    const spoilt =
      (spoil: (message: Buffer) => void) =>
      (exchange: Exchange): Buffer => {
        const message = positive(60)(exchange);
        spoil(message);
        return message;
      };
    for (const spoil of [
      (message: Buffer) => message.writeUInt16BE(message.readUInt16BE(0) ^ 1, 0),
      (message: Buffer) => message.writeUInt16BE(0x0100, 2),
      (message: Buffer) => message.write('f', 13),
      (message: Buffer) => message.writeUInt8(TYPE.AAAA, 12 + 13 + 1),
      (message: Buffer) => message.writeUInt16BE(0, 4),
    ]) {
      const clock = new FakeClock();
      const answer = ask(new Forwarder({ transport: fake(spoilt(spoil)), clock }), query('example.com'));
      await settle();
      await clock.advance(1_500);
      await clock.advance(1_500);
      assert.equal((await answer).header.rcode, RCODE.SERVFAIL);
    }
  });

  it('an upstream that fails, refuses or answers malformed: the next one is asked', async () => {
    for (const bad of [
      () => new Error('refused'),
      ({ question }: Exchange) => reply(question, { rcode: RCODE.SERVFAIL }),
      ({ question }: Exchange) => reply(question, { rcode: RCODE.REFUSED }),
      ({ question }: Exchange) => reply(question, { answer: [address('192.0.2.9', 1).subarray(0, 14)] }),
      ({ question }: Exchange) => reply(question, { additional: [Buffer.from(opt).fill(1, 5, 6)] }),
    ]) {
      const transport = fake((exchange, count) => (count === 1 ? bad(exchange) : positive(60)(exchange)));
      const packet = await ask(
        new Forwarder({ transport, clock: new FakeClock() }),
        query('example.com'),
        both,
      );
      assert.deepEqual(texts(packet), ['192.0.2.80 60']);
    }
  });

  it('an upstream that cannot read EDNS is asked again without it', async () => {
    const transport = fake((exchange) =>
      parsedQuery(exchange.question).edns === undefined
        ? positive(60)(exchange)
        : reply(exchange.question, { rcode: RCODE.FORMERR }),
    );
    assert.deepEqual(
      texts(await ask(new Forwarder({ transport, clock: new FakeClock() }), query('example.com'))),
      ['192.0.2.80 60'],
    );
  });

  it('a truncated answer, even one cut within a record, is asked for again by TCP', async () => {
    for (const answer of [[], [address('192.0.2.9', 1).subarray(0, 14)]]) {
      const transport = fake((exchange) =>
        exchange.protocol === 'udp'
          ? reply(exchange.question, { truncated: true, answer })
          : positive(60)(exchange),
      );
      assert.deepEqual(
        texts(await ask(new Forwarder({ transport, clock: new FakeClock() }), query('example.com'))),
        ['192.0.2.80 60'],
      );
      assert.deepEqual(
        transport.asked.map(({ protocol }) => protocol),
        ['udp', 'tcp'],
      );
    }
  });

  it('closing ends questions under way; none waits longer than its asker does', async () => {
    const forwarder = new Forwarder({ transport: fake(() => undefined), clock: new FakeClock() });
    const controller = new AbortController();
    const given = forwarder.ask(query('example.com'), upstream, controller.signal);
    const waiting = ask(forwarder, query('example.com'));
    await settle();
    controller.abort(new Error('enough'));
    await assert.rejects(given, /enough/);
    forwarder.close();
    assert.equal((await waiting).header.rcode, RCODE.SERVFAIL);
    assert.equal((await ask(forwarder, query('other.com'))).header.rcode, RCODE.SERVFAIL);
  });
});

describe('DNS: cached answers', () => {
  it('cached answers count their TTL down, and expire with the smallest', async () => {
    const clock = new FakeClock();
    const transport = fake(({ question }) =>
      reply(question, { answer: [address('192.0.2.1', 100), address('192.0.2.2', 20)] }),
    );
    const forwarder = new Forwarder({ transport, clock });
    await ask(forwarder, query('example.com'));
    await clock.advance(19_999);
    const packet = await ask(forwarder, query('EXAMPLE.com'));
    assert.deepEqual(texts(packet), ['192.0.2.1 81', '192.0.2.2 1']);
    assert.equal(packet.answers[0]?.name, 'EXAMPLE.com');
    assert.equal(transport.asked.length, 1);
    await clock.advance(1);
    assert.deepEqual(texts(await ask(forwarder, query('example.com'))), ['192.0.2.1 100', '192.0.2.2 20']);
    assert.equal(transport.asked.length, 2);
  });

  /** @returns for how many seconds the answer is kept: up to 400 */
  async function kept(what: Reply): Promise<number> {
    const clock = new FakeClock();
    const transport = fake(({ question }) => reply(question, what));
    const forwarder = new Forwarder({ transport, clock });
    await ask(forwarder, query('example.com'), both);
    const { length } = transport.asked;
    for (let seconds = 0; seconds <= 400; seconds += 1) {
      await forwarder.ask(query('example.com'), both);
      if (transport.asked.length > length) return seconds;
      await clock.advance(1_000);
    }
    return Infinity;
  }

  it('cached answers expire after 300 s at the latest', async () => {
    assert.equal(await kept({ answer: [address('192.0.2.1', 100_000)] }), 300);
    assert.equal(await kept({ answer: [address('192.0.2.1', 0)] }), 0);
    assert.equal(await kept({ answer: [address('192.0.2.1', 0x8000_0001)] }), 0);
  });

  it('cached negative answers expire by their SOA record, after 30 s at the latest', async () => {
    assert.equal(await kept({ rcode: RCODE.NXDOMAIN, authority: [soa(3_600, 3_600)] }), 30);
    assert.equal(await kept({ rcode: RCODE.NXDOMAIN, authority: [soa(3_600, 7)] }), 7);
    assert.equal(await kept({ authority: [soa(5, 3_600)] }), 5);
    const alias = record({ type: TYPE.CNAME, ttl: 200, data: Buffer.from([1, 0x61, 0]) });
    assert.equal(await kept({ answer: [alias], authority: [soa(100, 100)] }), 30, 'an alias of nothing');
    assert.equal(await kept({ rcode: RCODE.NXDOMAIN }), 0, 'without SOA');
  });

  it('failures are not cached', async () => {
    assert.equal(await kept({ rcode: RCODE.SERVFAIL, authority: [soa(60, 60)] }), 0);
  });

  it('cached answers are for the same key, type and DNSSEC flag only', async () => {
    const transport = fake(positive(60));
    const forwarder = new Forwarder({ transport, clock: new FakeClock() });
    const asks: [Buffer, Upstream, number][] = [
      [query('example.com'), upstream, 1],
      [query('example.com', { edns: 0 }), upstream, 1],
      [query('example.com'), { ...upstream, key: 'other' }, 2],
      [query('example.com', { type: TYPE.TXT }), upstream, 3],
      [query('example.com', { edns: 0x8000 }), upstream, 4],
      [query('example.org'), upstream, 5],
    ];
    for (const [bytes, from, expected] of asks) {
      await forwarder.ask(bytes, from);
      assert.equal(transport.asked.length, expected);
    }
  });

  it('equal questions at one time are asked upstream once', async () => {
    const clock = new FakeClock();
    const transport = fake((exchange, count) => (count === 1 ? undefined : positive(60)(exchange)));
    const forwarder = new Forwarder({ transport, clock });
    const packets = ['example.com', 'EXAMPLE.com', 'example.COM'].map((name) => ask(forwarder, query(name)));
    await settle();
    assert.equal(transport.asked.length, 1);
    await clock.advance(1_500);
    assert.deepEqual(
      (await Promise.all(packets)).map((packet) => packet.questions[0]?.name),
      ['example.com', 'EXAMPLE.com', 'example.COM'],
    );
    assert.equal(transport.asked.length, 2);
  });

  it('one asker has at most 125 questions upstream at once, and others are served all the same', async () => {
    const transport = fake(() => undefined);
    const forwarder = new Forwarder({ transport, clock: new FakeClock() });
    const from = (key: string): Upstream => ({ key, addresses: [one] });
    const waiting = Array.from({ length: 1_000 }, (_, at) =>
      ask(forwarder, query(`host-${at}.example`), from('greedy')),
    );
    await settle();
    assert.equal(transport.asked.length, 125);
    assert.equal(
      (await ask(forwarder, query('one-more.example'), from('greedy'))).header.rcode,
      RCODE.SERVFAIL,
      'at once',
    );
    waiting.push(ask(forwarder, query('another.example'), from('modest')));
    await settle();
    assert.equal(transport.asked.length, 126);
    forwarder.close();
    await Promise.all(waiting);
  });

  it('a new asker is served however much others ask, up to 1,000 questions in all', async () => {
    const transport = fake(() => undefined);
    const forwarder = new Forwarder({ transport, clock: new FakeClock() });
    const waiting: Promise<unknown>[] = [];
    for (let at = 0; at < 150; at += 1)
      for (let asker = 0; asker < 60; asker += 1)
        waiting.push(
          ask(forwarder, query(`host-${at}.example`), { key: `greedy-${asker}`, addresses: [one] }),
        );
    await settle();
    const before = transport.asked.length;
    assert.ok(before < 1_000, `${before} at once`);
    waiting.push(ask(forwarder, query('another.example'), { key: 'modest', addresses: [one] }));
    await settle();
    assert.equal(transport.asked.length, before + 1);
    forwarder.close();
    await Promise.all(waiting);
  });

  it('an asker that had too many questions upstream is served again once they have ended', async () => {
    const clock = new FakeClock();
    let silent = true;
    const transport = fake((exchange) => (silent ? undefined : positive(60)(exchange)));
    const forwarder = new Forwarder({ transport, clock });
    const waiting = Array.from({ length: 200 }, (_, at) => ask(forwarder, query(`host-${at}.example`)));
    await settle();
    for (let passed = 0; passed < 3_000; passed += 1_500) await clock.advance(1_500);
    await Promise.all(waiting);
    silent = false;
    assert.deepEqual(texts(await ask(forwarder, query('one-more.example'))), ['192.0.2.80 60']);
  });
});

describe('DNS: the cache', () => {
  const answer = (bytes: number): { message: Buffer; ttls: number[]; keep: number } => ({
    message: Buffer.alloc(bytes),
    ttls: [],
    keep: 60,
  });

  it('a full cache drops the entry that was not asked for the longest', () => {
    const cache = new AnswerCache({ entries: 3, bytes: 1e6 }, () => 0);
    for (const key of ['a', 'b', 'c']) cache.set(key, answer(10));
    cache.get('a');
    cache.set('d', answer(10));
    assert.deepEqual(
      ['a', 'b', 'c', 'd'].filter((key) => cache.get(key) !== undefined),
      ['a', 'c', 'd'],
    );
  });

  it('the cache stays within its limit of bytes, and counts them right', () => {
    const cache = new AnswerCache({ entries: 1_000, bytes: 10_000 }, () => 0);
    for (let at = 0; at < 100; at += 1) {
      cache.set(`key-${at % 30}`, answer(1_000));
      assert.ok(cache.bytes <= 10_000);
    }
    assert.equal(cache.size, 8);
    cache.set('big', answer(10_000));
    assert.equal(cache.get('big'), undefined);
    for (let at = 0; at < 30; at += 1) cache.set(`key-${at}`, { ...answer(1), keep: 0 });
    assert.deepEqual([cache.size, cache.bytes], [0, 0]);
  });
});

describe('DNS: stale addresses in upstream answers', () => {
  const bytes = query('example.com');
  const stale = (text: string): boolean => text.startsWith('10.');

  it('stale addresses are removed from an answer, and the rest of it is kept', () => {
    const alias = record({
      type: TYPE.CNAME,
      ttl: 60,
      data: Buffer.concat([Buffer.from([1, 0x61]), pointer]),
    });
    const message = reply(bytes, {
      answer: [alias, address('10.0.0.9', 5), address('192.0.2.9', 6)],
      additional: [address('10.0.0.8', 7), address('192.0.2.8', 8)],
    });
    const packet = Packet.parse(withoutStale(parsedQuery(bytes), message, stale) ?? Buffer.alloc(0));
    assert.deepEqual(
      packet.answers.map(({ type, address: text }) => text ?? type),
      [TYPE.CNAME, '192.0.2.9'],
    );
    assert.deepEqual(
      packet.additionals.map(({ address: text }) => text),
      ['192.0.2.8'],
    );
    assert.equal(packet.header.id, bytes.readUInt16BE(0));
  });

  it('an answer of stale addresses only becomes empty, its alias included', () => {
    const alias = record({ type: TYPE.CNAME, ttl: 60, data: Buffer.from([1, 0x61, 0]) });
    const message = reply(bytes, { answer: [alias, address('10.0.0.9', 5)] });
    assert.equal(withoutStale(parsedQuery(bytes), message, stale), undefined);
  });

  it('an answer without stale addresses is not changed', () => {
    for (const answer of [[], [address('192.0.2.9', 6)]]) {
      const message = reply(bytes, { answer });
      assert.equal(withoutStale(parsedQuery(bytes), message, stale), message);
    }
  });

  it('a malformed answer is not searched for stale addresses', () => {
    const whole = reply(bytes, { answer: [address('192.0.2.9', 6)] });
    for (let length = 12; length < whole.length; length += 1)
      assert.equal(readAnswer(whole.subarray(0, length)), undefined);
    assert.ok(answers(whole, bytes.readUInt16BE(0), parsedQuery(bytes)));
  });
});

describe('DNS: asking over real sockets', () => {
  it('over real sockets an upstream is asked by UDP, then TCP, and packets of others are ignored', async () => {
    const udp = createSocket('udp4');
    udp.bind(0, '127.0.0.1');
    await once(udp, 'listening');
    const { port } = udp.address();
    const forger = createSocket('udp4');
    const ports = new Set<number>();
    udp.on('message', (question, from) => {
      ports.add(from.port);
      const isLong = parsedQuery(question).question.name === 'long.example';
      const forged = reply(question, { answer: [address('203.0.113.66', 60)] });
      forger.send(forged, from.port, from.address, () => {
        udp.send(Buffer.from([1]), from.port, from.address);
        udp.send(
          isLong
            ? reply(question, { truncated: true })
            : reply(question, { answer: [address('192.0.2.80', 60)] }),
          from.port,
          from.address,
        );
      });
    });
    const tcp = createServer((socket) => {
      socket.on('data', (data) => {
        const answer = reply(Buffer.from(data).subarray(2), {
          answer: Array.from({ length: 2_000 }, (_, at) => address(`192.0.${at >> 8}.${at & 255}`, 60)),
        });
        const length = Buffer.alloc(2);
        length.writeUInt16BE(answer.length);
        socket.write(length.subarray(0, 1));
        socket.write(Buffer.concat([length.subarray(1), answer]));
      });
    });
    tcp.listen(port, '127.0.0.1');
    await once(tcp, 'listening');
    assert.equal((tcp.address() as AddressInfo).port, port);
    const forwarder = new Forwarder();
    const here: Upstream = { key: 'u', addresses: [{ address: '127.0.0.1', port }] };
    try {
      assert.deepEqual(texts(await ask(forwarder, query('short.example'), here)), ['192.0.2.80 60']);
      assert.equal((await ask(forwarder, query('long.example'), here)).answers.length, 2_000);
      for (let at = 0; at < 10; at += 1) await ask(forwarder, query(`host-${at}.example`), here);
      assert.ok(ports.size > 5, `${ports.size} different ports`);
    } finally {
      forwarder.close();
      udp.close();
      forger.close();
      tcp.close();
    }
    const gone = await ask(new Forwarder(), query('nobody.example'), here);
    assert.equal(gone.header.rcode, RCODE.SERVFAIL);
  });
});
