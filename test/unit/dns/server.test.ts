// Owns the tests of the DNS server: what each asker gets, whatever is sent to it, and once over real sockets.
// Must not ask servers outside this machine.
import assert from 'node:assert/strict';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { connect, type AddressInfo, type Socket } from 'node:net';
import { Packet } from 'dns2';
import type { Given, Upstream } from '../../../dns/forward.ts';
import { parseQuery } from '../../../dns/message.ts';
import { toWire } from '../../../dns/name.ts';
import { DnsServer, DnsUnavailable, type DnsServerOptions, type Identity } from '../../../dns/server.ts';
import { Connections, createTcpService } from '../../../dns/tcp.ts';
import { RCODE, TYPE } from '../../../dns/types.ts';
import { zoneWith } from '../../support/dns-zone.ts';
import { seeded } from '../../support/random.ts';

const live = Array.from({ length: 100 }, (_, at) => `10.0.0.${100 + at}`);

const upstream: Upstream = { key: 'u', addresses: [] };
const container: Identity = { asker: { kind: 'container', networks: new Set(['a']) }, upstream };

const identities: Record<string, Identity> = {
  sandbox: container,
  other: { ...container, upstream: { ...upstream, key: 'other' } },
  alone: { asker: container.asker },
  host: { asker: { kind: 'host' } },
};

const built = zoneWith(live);

/** @param forwarded addresses with which all that is forwarded is answered */
function server(options: Partial<DnsServerOptions> = {}, forwarded: string[] = ['192.0.2.80']): DnsServer {
  return new DnsServer({
    zone: () => built,
    identify: (asker) => identities[asker],
    forwarder: { ask: (query) => Promise.resolve({ message: foreign(query, forwarded), keepMs: 0 }) },
    log: { debug: () => undefined, warn: () => undefined },
    ...options,
  });
}

/** What another server would answer. */
function foreign(query: Buffer, addresses: string[]): Buffer {
  const parsed = parseQuery(query);
  assert.equal(parsed.kind, 'query');
  const header = Buffer.alloc(12);
  query.copy(header, 0, 0, 2);
  header.writeUInt16BE(0x8180, 2);
  header.writeUInt16BE(1, 4);
  header.writeUInt16BE(addresses.length, 6);
  const records = addresses.map((address) =>
    Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, ...address.split('.').map(Number)]),
  );
  return Buffer.concat([header, parsed.query.question.wire, ...records]);
}

interface Asked {
  type?: number;
  class?: number;
  edns?: number;
}

function query(name: string, { type = TYPE.A, class: ofClass = 1, edns }: Asked = {}): Buffer {
  const header = Buffer.from([0xbe, 0xef, 1, 0, 0, 1, 0, 0, 0, 0, 0, edns === undefined ? 0 : 1]);
  const fixed = Buffer.from([type >> 8, type & 255, ofClass >> 8, ofClass & 255]);
  const opt = Buffer.from([0, 0, TYPE.EDNS, (edns ?? 0) >> 8, (edns ?? 0) & 255, 0, 0, 0, 0, 0, 0]);
  return Buffer.concat([
    header,
    name === '' ? Buffer.alloc(1) : toWire(name),
    fixed,
    ...(edns === undefined ? [] : [opt]),
  ]);
}

async function ask(
  dns: DnsServer,
  name: string,
  {
    from = 'sandbox',
    transport = 'udp',
    ...asked
  }: Asked & { from?: string; transport?: 'udp' | 'tcp' } = {},
): Promise<Packet> {
  const answer = await dns.handle(query(name, asked), from, transport);
  assert.ok(answer !== undefined);
  const packet = Packet.parse(answer.message);
  assert.deepEqual(packet.errors, []);
  return packet;
}

async function rcode(...args: Parameters<typeof ask>): Promise<number> {
  return (await ask(...args)).header.rcode;
}

function addresses(packet: Packet): (string | undefined)[] {
  return packet.answers.map(({ address }) => address);
}

describe('DNS: the server', () => {
  it('our names are answered, and others with what an upstream says', async () => {
    assert.deepEqual(addresses(await ask(server(), 'web')), ['10.0.0.2']);
    const packet = await ask(server(), 'example.com');
    assert.deepEqual([addresses(packet), packet.header.aa], [['192.0.2.80'], 0]);
    assert.equal(await rcode(server(), 'nobody.causeway.internal'), RCODE.NXDOMAIN);
    const aaaa = await ask(server(), 'web', { type: TYPE.AAAA });
    assert.deepEqual(
      [aaaa.header.rcode, aaaa.header.aa, aaaa.answers.length, aaaa.authorities.length],
      [0, 1, 0, 1],
    );
  });

  it('our names are answered synchronously, without a promise', () => {
    assert.ok(!(server().handle(query('web'), 'sandbox', 'udp') instanceof Promise));
  });

  it('an asker that is not known is refused, even for our names', async () => {
    for (const name of ['web', 'example.com', 'web.causeway.internal'])
      assert.equal(await rcode(server(), name, { from: 'stranger' }), RCODE.REFUSED);
  });

  it('the host, and an asker without upstreams: what is not ours is refused', async () => {
    assert.equal(await rcode(server(), 'example.com', { from: 'host' }), RCODE.REFUSED);
    assert.equal(await rcode(server(), 'example.com', { from: 'alone' }), RCODE.REFUSED);
    assert.deepEqual(addresses(await ask(server(), 'web.causeway.internal', { from: 'host' })), ['10.0.0.2']);
  });

  it('other classes, and types that are no record types, are refused', async () => {
    assert.equal(await rcode(server(), 'web', { class: 3 }), RCODE.REFUSED);
    for (const type of [128, 251, 252, 254])
      assert.equal(await rcode(server(), 'web', { type }), RCODE.REFUSED);
    assert.equal(await rcode(server(), 'web', { type: TYPE.EDNS }), RCODE.FORMERR);
    assert.deepEqual(addresses(await ask(server(), 'web', { type: TYPE.ANY })), ['10.0.0.2']);
  });

  it('upstream answers lose addresses of our subnets that nobody has', async () => {
    const mixed = server({}, ['10.0.0.9', '192.0.2.80', '10.0.0.100', '10.0.0.2']);
    assert.deepEqual(addresses(await ask(mixed, 'example.com')), ['192.0.2.80', '10.0.0.100', '10.0.0.2']);
    const packet = await ask(server({}, ['10.0.0.9']), 'old-name');
    assert.deepEqual([packet.header.rcode, packet.answers.length], [RCODE.NXDOMAIN, 0]);
  });

  it('answers are truncated to the asker’s size, but not over TCP', async () => {
    const [small, large, tcp] = await Promise.all([
      ask(server(), 'tasks.web'),
      ask(server(), 'tasks.web', { edns: 4_096 }),
      ask(server(), 'tasks.web', { transport: 'tcp' }),
    ]);
    assert.deepEqual([small.header.tc, small.answers.length < 33], [1, true]);
    assert.deepEqual(
      [large.header.tc, large.answers.length > 70, large.answers.length < 100],
      [1, true, true],
    );
    assert.deepEqual([tcp.header.tc, tcp.answers.length], [0, 100]);
  });

  it('upstream answers that do not fit are truncated to nothing, with our OPT record', async () => {
    const many = live.concat(live.map((address) => address.replace('10.', '11.')));
    const packet = await ask(server({}, many), 'example.com', { edns: 1_232 });
    assert.deepEqual([packet.header.tc, packet.answers.length, packet.additionals.length], [1, 0, 1]);
    const tcp = await ask(server({}, many), 'example.com', { edns: 1_232, transport: 'tcp' });
    assert.deepEqual([tcp.header.tc, tcp.answers.length, tcp.additionals[0]?.type], [0, 200, TYPE.EDNS]);
  });

  it('an error of ours: SERVFAIL, logged, but not with every packet', async () => {
    const warnings: string[] = [];
    const log = { debug: () => undefined, warn: (_: object, message: string) => warnings.push(message) };
    const fail = (): never => {
      throw new Error('a fault');
    };
    for (const fault of [
      { zone: fail },
      { identify: fail },
      { forwarder: { ask: () => Promise.reject(new Error('a fault')) } },
    ]) {
      const broken = server({ ...fault, log });
      assert.equal(await rcode(broken, 'example.com'), RCODE.SERVFAIL);
      assert.equal(await rcode(broken, 'example.com'), RCODE.SERVFAIL);
    }
    assert.equal(warnings.length, 3);
  });

  it('an asker with too many questions waiting: SERVFAIL at once for it, others are served', async () => {
    const { promise, resolve } = Promise.withResolvers<Given>();
    const stuck = server({ forwarder: { ask: () => promise } });
    const waiting = Array.from({ length: 4_096 }, () => stuck.handle(query('example.com'), 'sandbox', 'udp'));
    assert.equal(await rcode(stuck, 'example.com'), RCODE.SERVFAIL);
    assert.deepEqual(addresses(await ask(stuck, 'web')), ['10.0.0.2']);
    const other = ask(stuck, 'example.com', { from: 'other' });
    resolve({ message: foreign(query('example.com'), []), keepMs: 0 });
    for (const answer of waiting) await answer;
    assert.equal((await other).header.rcode, RCODE.NOERROR);
    assert.equal(await rcode(stuck, 'example.com'), RCODE.NOERROR);
  });

  it('random and damaged packets do not stop the server', async function () {
    const packets = Number(process.env['PACKETS'] ?? 20_000);
    this.timeout(60_000 + packets);
    const seed = Number(process.env['SEED'] ?? Date.now() % 1_000_000);
    const random = seeded(seed);
    const warnings: string[] = [];
    const memory: number[] = [];
    const dns = server(
      { log: { debug: () => undefined, warn: (fields) => warnings.push(JSON.stringify(fields)) } },
      ['10.0.0.9', '192.0.2.1'],
    );
    const sound = [
      query('web'),
      query('tasks.web', { edns: 1_232 }),
      query('_http._tcp.web.front.causeway.internal', { type: TYPE.SRV, edns: 512 }),
      query('100.0.0.10.in-addr.arpa', { type: TYPE.PTR }),
      query('web', { type: TYPE.TXT }),
      query('web', { type: TYPE.ANY }),
      query('nobody.causeway.internal', { type: TYPE.AAAA, edns: 4_096 }),
      query('example.com'),
      query('', { type: TYPE.NS, edns: 0 }),
    ];
    const froms = [...Object.keys(identities), 'stranger'];
    for (let round = 0; round < packets; round += 1) {
      let packet = Buffer.from(sound[random(sound.length)] ?? []);
      for (let change = random(6); change > 0 && packet.length > 0; change -= 1)
        switch (random(5)) {
          case 0:
            packet = packet.subarray(0, random(packet.length + 1));
            break;
          case 1:
            packet = Buffer.concat([
              packet,
              Buffer.from(Array.from({ length: random(40) }, () => random(256))),
            ]);
            break;
          case 2:
            packet = Buffer.concat([
              packet.subarray(0, random(packet.length)),
              sound[random(sound.length)]?.subarray(12) ?? packet,
            ]);
            break;
          default:
            packet[random(packet.length)] = [0, 1, 0x3f, 0x40, 0xc0, 0xff, random(256)][random(7)] ?? 0;
        }
      const transport = random(2) === 0 ? 'udp' : 'tcp';
      const context = `SEED=${seed}, round ${round}: ${packet.toString('hex')}`;
      try {
        const reply = await dns.handle(packet, froms[random(froms.length)] ?? '', transport);
        if (reply === undefined) continue;
        const answer = reply.message;
        assert.equal(answer.readUInt16BE(0), packet.readUInt16BE(0), 'the id');
        assert.notEqual(answer.readUInt16BE(2) & 0x8000, 0, 'is an answer');
        if (transport === 'udp') assert.ok(answer.length <= 1_232, 'short enough');
        assert.deepEqual(Packet.parse(answer).errors, []);
        assert.deepEqual(warnings, []);
      } catch (cause) {
        throw new Error(context, { cause });
      }
      if (round % 100_000 === 99_999) memory.push(Math.round(process.memoryUsage().rss / 1e6));
    }
    // To be looked at in a long run: it has to level out.
    if (memory.length > 0)
      console.log(`      SEED=${seed}, resident MB each 100,000 packets: ${memory.join(' ')}`);
  });
});

async function overUdp(port: number, message: Buffer): Promise<Packet> {
  const socket = createSocket('udp4');
  socket.send(message, port, '127.0.0.1');
  const [answer] = (await once(socket, 'message')) as [Buffer];
  socket.close();
  return Packet.parse(answer);
}

function framed(...messages: Buffer[]): Buffer {
  return Buffer.concat(
    messages.flatMap((message) => [Buffer.from([message.length >> 8, message.length & 255]), message]),
  );
}

/** @returns the answers until the other side ends, or until there are so many */
async function read(socket: Socket, count = Infinity): Promise<Packet[]> {
  let received = Buffer.alloc(0);
  const packets: Packet[] = [];
  for await (const chunk of socket as AsyncIterable<Buffer>) {
    received = Buffer.concat([received, chunk]);
    while (received.length >= 2 && received.length >= 2 + received.readUInt16BE()) {
      packets.push(Packet.parse(received.subarray(2, 2 + received.readUInt16BE())));
      received = received.subarray(2 + received.readUInt16BE());
    }
    if (packets.length >= count) break;
  }
  return packets;
}

describe('DNS: the server’s sockets', () => {
  const local = { address: '127.0.0.1', port: 0 };
  const known = new Set(['sandbox']);
  const dns = server({ identify: (asker) => (known.has(asker) ? container : undefined) });
  let port: number;

  before(async () => {
    port = await dns.listen('sandbox', local);
  });
  after(() => dns.close());
  beforeEach(() => known.add('sandbox'));

  it('the server answers by UDP, and by TCP what was truncated', async () => {
    assert.deepEqual(addresses(await overUdp(port, query('web'))), ['10.0.0.2']);
    assert.deepEqual(addresses(await overUdp(port, query('example.com'))), ['192.0.2.80']);
    const truncated = await overUdp(port, query('tasks.web', { edns: 1_232 }));
    assert.equal(truncated.header.tc, 1);
    const socket = connect(port, '127.0.0.1');
    socket.write(framed(query('tasks.web', { edns: 1_232 })));
    const [whole] = await read(socket, 1);
    assert.deepEqual(whole && addresses(whole).sort(), live.toSorted());
  });

  it('the server’s sockets refuse an asker that is not known', async () => {
    known.delete('sandbox');
    dns.forget();
    assert.equal((await overUdp(port, query('web'))).header.rcode, RCODE.REFUSED);
    const socket = connect(port, '127.0.0.1');
    socket.end(framed(query('web')));
    assert.deepEqual(
      (await read(socket)).map(({ header }) => header.rcode),
      [RCODE.REFUSED],
    );
  });

  it('a TCP connection may carry several questions, in pieces, and is answered after a half-close', async () => {
    const socket = connect({ port, host: '127.0.0.1', noDelay: true });
    const bytes = framed(
      ...Array.from({ length: 40 }, (_, at) => query(at % 2 === 0 ? 'web' : 'example.com')),
    );
    for (const [from, to] of [
      [0, 1],
      [1, 2],
      [2, 3],
      [3, 50],
    ] as const)
      socket.write(bytes.subarray(from, to));
    await new Promise((resolve) => setTimeout(resolve, 20));
    socket.end(bytes.subarray(50));
    const packets = await read(socket);
    assert.equal(packets.length, 40);
    assert.equal(packets.filter((packet) => addresses(packet)[0] === '192.0.2.80').length, 20);
  });

  it('a TCP connection that sends what is too long or no question is closed; others go on', async () => {
    for (const bad of [
      Buffer.from([0xff, 0xff]),
      framed(Buffer.alloc(0)),
      framed(Buffer.from([0, 1, 0x80, 0])),
    ]) {
      const socket = connect(port, '127.0.0.1');
      socket.write(bad);
      assert.deepEqual(await read(socket), []);
    }
    assert.deepEqual(addresses(await overUdp(port, query('web'))), ['10.0.0.2']);
  });

  it('a TCP connection that is slow with a question, even byte by byte, is closed; an idle one is not', async () => {
    const { promise, resolve } = Promise.withResolvers<Buffer>();
    const service = createTcpService({
      asker: 'slow',
      connections: new Connections(),
      answer: () => promise,
      onError: () => undefined,
      idleMs: 50,
    });
    service.server.listen(0, '127.0.0.1');
    await once(service.server, 'listening');
    const { port: slowPort } = service.server.address() as AddressInfo;
    const patient = connect(slowPort, '127.0.0.1');
    patient.end(framed(query('example.com')));
    const slow = connect({ port: slowPort, host: '127.0.0.1', noDelay: true });
    // It is reset when bytes came that nobody has read.
    slow.on('error', () => undefined);
    const closed = new Promise((done) => slow.on('close', done));
    const trickle = setInterval(() => slow.write(Buffer.from([0])), 10);
    slow.write(Buffer.from([1]));
    await closed;
    clearInterval(trickle);
    resolve(foreign(query('example.com'), ['192.0.2.80']));
    const [packet] = await read(patient, 1);
    assert.deepEqual(packet && addresses(packet), ['192.0.2.80']);
    await service.close();
  });

  it('one asker has at most 32 TCP connections', async () => {
    const sockets = Array.from({ length: 33 }, () => connect(port, '127.0.0.1'));
    const last = sockets.at(-1);
    assert.deepEqual(last && (await read(last)), []);
    const first = sockets[0];
    first?.write(framed(query('web')));
    assert.equal(first && (await read(first, 1)).length, 1);
    for (const socket of sockets) socket.destroy();
    for (const socket of sockets) if (!socket.closed) await once(socket, 'close');
  });

  it('256 TCP connections at most: a new one closes one of the asker with the most', async () => {
    const busy = server({ identify: () => container });
    const open = async (asker: string, count: number): Promise<Socket[]> => {
      const to = await busy.listen(asker, local);
      const sockets = Array.from({ length: count }, () => connect(to, '127.0.0.1'));
      for (const socket of sockets) socket.resume().on('error', () => undefined);
      await Promise.all(sockets.map((socket) => once(socket, 'connect')));
      return sockets;
    };
    const greedy: Socket[] = [];
    for (let at = 0; at < 8; at += 1) greedy.push(...(await open(`greedy ${at}`, 32)));
    const [modest] = await open('modest', 1);
    assert.ok(modest !== undefined);
    const answered = once(modest, 'data');
    modest.write(framed(query('web')));
    const [answer] = (await answered) as [Buffer];
    assert.deepEqual(addresses(Packet.parse(answer.subarray(2))), ['10.0.0.2']);
    // While it stays: the others may not all have been taken yet.
    const ended = (): number => greedy.filter(({ destroyed }) => destroyed).length;
    for (let tries = 0; tries < 400 && ended() === 0; tries += 1)
      await new Promise((resolve) => setTimeout(resolve, 10));
    assert.equal(ended(), 1);
    for (const socket of [...greedy, modest]) socket.destroy();
    await busy.close();
  });

  it('a port that is taken: the error says so', async () => {
    await assert.rejects(server().listen('other', { ...local, port }), (error: unknown) => {
      assert.ok(error instanceof DnsUnavailable);
      assert.match(error.message, /in use by another program/);
      return true;
    });
  });

  it('the server can be closed with connections open, and started again', async () => {
    const other = server();
    const socket = connect(await other.listen('sandbox', local), '127.0.0.1');
    await once(socket, 'connect');
    await Promise.all([other.close(), once(socket, 'close')]);
    const again = await other.listen('sandbox', local);
    assert.deepEqual(addresses(await overUdp(again, query('web'))), ['10.0.0.2']);
    await other.close();
  });
});
