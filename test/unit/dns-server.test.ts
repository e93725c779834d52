// Owns the tests of the DNS server: what each asker gets, whatever is sent to it, and once over real sockets.
// Must not ask servers outside this machine.
import assert from 'node:assert/strict';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { connect, type AddressInfo, type Socket } from 'node:net';
import { Packet } from 'dns2';
import type { Given, Upstream } from '../../dns/forward.ts';
import { parseQuery } from '../../dns/message.ts';
import { toWire } from '../../dns/name.ts';
import { DnsServer, DnsUnavailable, type DnsServerOptions, type Identity } from '../../dns/server.ts';
import { createTcpService } from '../../dns/tcp.ts';
import { RCODE, TYPE } from '../../dns/types.ts';
import { zoneWith } from './dns-zone.ts';
import { seeded } from './random.ts';

const live = Array.from({ length: 100 }, (_, at) => `10.0.0.${100 + at}`);

const upstream: Upstream = { key: 'u', addresses: [] };
const container: Identity = { asker: { kind: 'container', networks: new Set(['a']) }, upstream };

const identities: Record<string, Identity> = {
  '10.0.0.100': container,
  '10.0.0.101': { asker: container.asker },
  '10.0.0.1': { asker: { kind: 'host' } },
  '127.0.0.1': container,
};

const built = zoneWith(live);

/** @param forwarded addresses with which all that is forwarded is answered */
function server(options: Partial<DnsServerOptions> = {}, forwarded: string[] = ['192.0.2.80']): DnsServer {
  return new DnsServer({
    port: 0,
    address: '127.0.0.1',
    zone: () => built,
    identify: (address) => identities[address],
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
    from = '10.0.0.100',
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
  it('answers its own names, and the rest with what another says', async () => {
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

  it('answers its own names at once, without a promise', () => {
    assert.ok(!(server().handle(query('web'), '10.0.0.100', 'udp') instanceof Promise));
  });

  it('refuses whoever it does not know, even for its own names', async () => {
    for (const name of ['web', 'example.com', 'web.causeway.internal'])
      assert.equal(await rcode(server(), name, { from: '192.0.2.1' }), RCODE.REFUSED);
  });

  it('refuses to forward for the host, and for who has nobody to ask', async () => {
    assert.equal(await rcode(server(), 'example.com', { from: '10.0.0.1' }), RCODE.REFUSED);
    assert.equal(await rcode(server(), 'example.com', { from: '10.0.0.101' }), RCODE.REFUSED);
    assert.deepEqual(addresses(await ask(server(), 'web.causeway.internal', { from: '10.0.0.1' })), [
      '10.0.0.2',
    ]);
  });

  it('refuses other classes, and types that are none of records', async () => {
    assert.equal(await rcode(server(), 'web', { class: 3 }), RCODE.REFUSED);
    for (const type of [128, 251, 252, 254])
      assert.equal(await rcode(server(), 'web', { type }), RCODE.REFUSED);
    assert.equal(await rcode(server(), 'web', { type: TYPE.EDNS }), RCODE.FORMERR);
    assert.deepEqual(addresses(await ask(server(), 'web', { type: TYPE.ANY })), ['10.0.0.2']);
  });

  it('drops foreign addresses of its subnets where nobody lives', async () => {
    const mixed = server({}, ['10.0.0.9', '192.0.2.80', '10.0.0.100', '10.0.0.2']);
    assert.deepEqual(addresses(await ask(mixed, 'example.com')), ['192.0.2.80', '10.0.0.100', '10.0.0.2']);
    const packet = await ask(server({}, ['10.0.0.9']), 'old-name');
    assert.deepEqual([packet.header.rcode, packet.answers.length], [RCODE.NXDOMAIN, 0]);
  });

  it('truncates by the asker’s size, and not by TCP', async () => {
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

  it('truncates others’ answers to nothing, and adds its OPT record', async () => {
    const many = live.concat(live.map((address) => address.replace('10.', '11.')));
    const packet = await ask(server({}, many), 'example.com', { edns: 1_232 });
    assert.deepEqual([packet.header.tc, packet.answers.length, packet.additionals.length], [1, 0, 1]);
    const tcp = await ask(server({}, many), 'example.com', { edns: 1_232, transport: 'tcp' });
    assert.deepEqual([tcp.header.tc, tcp.answers.length, tcp.additionals[0]?.type], [0, 200, TYPE.EDNS]);
  });

  it('answers SERVFAIL when something of ours fails, says so in the log, and not with every packet', async () => {
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

  it('answers SERVFAIL at once when too many wait', async () => {
    const { promise, resolve } = Promise.withResolvers<Given>();
    const stuck = server({ forwarder: { ask: () => promise } });
    const waiting = Array.from({ length: 4_096 }, () =>
      stuck.handle(query('example.com'), '10.0.0.100', 'udp'),
    );
    assert.equal(await rcode(stuck, 'example.com'), RCODE.SERVFAIL);
    assert.deepEqual(addresses(await ask(stuck, 'web')), ['10.0.0.2']);
    resolve({ message: foreign(query('example.com'), []), keepMs: 0 });
    for (const answer of waiting) await answer;
    assert.equal(await rcode(stuck, 'example.com'), RCODE.NOERROR);
  });

  it('survives whatever is sent to it', async function () {
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
    const froms = [...Object.keys(identities), '192.0.2.1'];
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
  const known = new Set(['127.0.0.1']);
  const dns = server({ identify: (address) => (known.has(address) ? container : undefined) });

  before(() => dns.start());
  after(() => dns.close());
  beforeEach(() => known.add('127.0.0.1'));

  it('answer by UDP, and by TCP what was truncated', async () => {
    assert.deepEqual(addresses(await overUdp(dns.port, query('web'))), ['10.0.0.2']);
    assert.deepEqual(addresses(await overUdp(dns.port, query('example.com'))), ['192.0.2.80']);
    const truncated = await overUdp(dns.port, query('tasks.web', { edns: 1_232 }));
    assert.equal(truncated.header.tc, 1);
    const socket = connect(dns.port, '127.0.0.1');
    socket.write(framed(query('tasks.web', { edns: 1_232 })));
    const [whole] = await read(socket, 1);
    assert.deepEqual(whole && addresses(whole).sort(), live.toSorted());
  });

  it('refuse whoever is unknown', async () => {
    known.delete('127.0.0.1');
    dns.forget();
    assert.equal((await overUdp(dns.port, query('web'))).header.rcode, RCODE.REFUSED);
    const socket = connect(dns.port, '127.0.0.1');
    socket.end(framed(query('web')));
    assert.deepEqual(
      (await read(socket)).map(({ header }) => header.rcode),
      [RCODE.REFUSED],
    );
  });

  it('answer several questions of a connection, in pieces, and after the other side has ended', async () => {
    const socket = connect({ port: dns.port, host: '127.0.0.1', noDelay: true });
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

  it('close a connection that sends what is too long or no question, and go on', async () => {
    for (const bad of [
      Buffer.from([0xff, 0xff]),
      framed(Buffer.alloc(0)),
      framed(Buffer.from([0, 1, 0x80, 0])),
    ]) {
      const socket = connect(dns.port, '127.0.0.1');
      socket.write(bad);
      assert.deepEqual(await read(socket), []);
    }
    assert.deepEqual(addresses(await overUdp(dns.port, query('web'))), ['10.0.0.2']);
  });

  it('close a connection that takes too long over a question, however it trickles, and wait for others', async () => {
    const { promise, resolve } = Promise.withResolvers<Buffer>();
    const service = createTcpService(
      () => promise,
      () => undefined,
      50,
    );
    service.server.listen(0, '127.0.0.1');
    await once(service.server, 'listening');
    const { port } = service.server.address() as AddressInfo;
    const patient = connect(port, '127.0.0.1');
    patient.end(framed(query('example.com')));
    const slow = connect({ port, host: '127.0.0.1', noDelay: true });
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

  it('keep no more than 32 connections of one address', async () => {
    const sockets = Array.from({ length: 33 }, () => connect(dns.port, '127.0.0.1'));
    const last = sockets.at(-1);
    assert.deepEqual(last && (await read(last)), []);
    const first = sockets[0];
    first?.write(framed(query('web')));
    assert.equal(first && (await read(first, 1)).length, 1);
    for (const socket of sockets) socket.destroy();
    for (const socket of sockets) if (!socket.closed) await once(socket, 'close');
  });

  it('say what is wrong with a port that is taken', async () => {
    await assert.rejects(server({ port: dns.port }).start(), (error: unknown) => {
      assert.ok(error instanceof DnsUnavailable);
      assert.match(error.message, /in use by another program/);
      return true;
    });
  });

  it('can be closed with connections open, and started again', async () => {
    const other = server();
    await other.start();
    const socket = connect(other.port, '127.0.0.1');
    await once(socket, 'connect');
    await Promise.all([other.close(), once(socket, 'close')]);
    await other.start();
    assert.deepEqual(addresses(await overUdp(other.port, query('web'))), ['10.0.0.2']);
    await other.close();
  });
});
