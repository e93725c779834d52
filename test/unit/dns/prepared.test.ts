// Owns the tests of answers that are given again without a look at the question, by one thread or by several.
// Must not ask servers outside this machine.
import assert from 'node:assert/strict';
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { Packet } from 'dns2';
import { PreparedAnswers } from '../../../dns/prepared.ts';
import { resolve } from '../../../dns/resolve.ts';
import { limitOf, parseQuery, renderResolution } from '../../../dns/message.ts';
import { DnsServer } from '../../../dns/server.ts';
import { TYPE } from '../../../dns/types.ts';
import type { Zone } from '../../../dns/zone.ts';
import { toWire } from '../../../dns/name.ts';
import { zoneWith } from '../../support/dns-zone.ts';
import { localPort, openSocket } from '../../../net/namespace.ts';
import { seeded } from '../../support/random.ts';

const asker = { kind: 'container', networks: new Set(['a']) } as const;
const addresses = Array.from({ length: 5 }, (_, at) => `10.0.0.${10 + at}`);

function question(name: string, id = 1, type: number = TYPE.A): Buffer {
  const header = Buffer.from([id >> 8, id & 255, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
  return Buffer.concat([header, toWire(name), Buffer.from([0, type, 0, 1])]);
}

function answerTo(bytes: Buffer, zone: Zone): Buffer {
  const parsed = parseQuery(bytes);
  assert.ok(parsed.kind === 'query');
  const resolution = resolve(zone, asker, parsed.query.question, () => 0);
  assert.ok(resolution.kind !== 'forward' && resolution.kind !== 'refuse');
  return renderResolution(parsed.query, resolution, limitOf(parsed.query, 'udp'));
}

function addressesIn(message: Buffer): string[] {
  return Packet.parse(message).answers.flatMap((record) => ('address' in record ? [record.address] : []));
}

describe('DNS: prepared answers', () => {
  const zone = zoneWith(addresses);
  let now: number;
  let prepared: PreparedAnswers;
  beforeEach(() => {
    now = 0;
    const random = seeded(7);
    prepared = new PreparedAnswers(
      () => now,
      () => random(1_000_000) / 1_000_000,
    );
  });

  function keep(bytes: Buffer, from: string, keepMs = Infinity): Buffer {
    const answer = answerTo(bytes, zone);
    prepared.keep(bytes, from, answer, keepMs);
    return answer;
  }

  it('a prepared answer is the answer of before with the id of the new question', () => {
    for (const [name, type] of [
      ['web', TYPE.A],
      ['web', TYPE.AAAA],
      ['nobody.causeway.internal', TYPE.A],
      ['web.front', TYPE.TXT],
    ] as const) {
      const expected = keep(question(name, 1, type), '10.0.0.10');
      const found = prepared.find(question(name, 0xabcd, type), '10.0.0.10');
      assert.equal(found?.readUInt16BE(0), 0xabcd);
      assert.deepEqual(found.subarray(2), expected.subarray(2));
    }
  });

  it('a prepared answer is for one asker and one question only', () => {
    keep(question('web'), '10.0.0.10');
    assert.equal(prepared.find(question('web'), '10.0.0.11'), undefined);
    for (const other of [question('WEB'), question('web', 1, TYPE.AAAA), question('web').subarray(0, -1)])
      assert.equal(prepared.find(other, '10.0.0.10'), undefined);
    const withoutRecursion = question('web');
    withoutRecursion[2] = 0;
    assert.equal(prepared.find(withoutRecursion, '10.0.0.10'), undefined);
    assert.equal(prepared.find(Buffer.alloc(1), '10.0.0.10'), undefined);
  });

  it('prepared answers have all addresses each time, each of them first equally often', () => {
    keep(question('tasks.web'), '10.0.0.10');
    const first = new Map<string, number>();
    const turns = 5_000;
    for (let turn = 0; turn < turns; turn += 1) {
      const found = addressesIn(prepared.find(question('tasks.web'), '10.0.0.10') ?? Buffer.alloc(0));
      assert.deepEqual(found.toSorted(), addresses);
      first.set(found[0] ?? '', (first.get(found[0] ?? '') ?? 0) + 1);
    }
    for (const address of addresses)
      assert.ok(Math.abs((first.get(address) ?? 0) * addresses.length - turns) < turns / 10, address);
  });

  it('prepared answers expire with their TTL, and all at once when names change', () => {
    keep(question('web'), '10.0.0.10', 500);
    now = 499;
    assert.ok(prepared.find(question('web'), '10.0.0.10'));
    now = 500;
    assert.equal(prepared.find(question('web'), '10.0.0.10'), undefined);
    assert.equal(prepared.size, 0);
    keep(question('web'), '10.0.0.10');
    prepared.clear();
    assert.equal(prepared.find(question('web'), '10.0.0.10'), undefined);
  });

  it('truncated answers and answers with TTL 0 are not prepared', () => {
    const bytes = question('tasks.web');
    const answer = answerTo(bytes, zone);
    prepared.keep(bytes, '10.0.0.10', answer, 0);
    answer.writeUInt16BE(answer.readUInt16BE(2) | 0x0200, 2);
    prepared.keep(bytes, '10.0.0.10', answer, Infinity);
    assert.equal(prepared.size, 0);
  });

  it('the number of prepared answers is limited whatever is asked', () => {
    const answer = answerTo(question('web'), zone);
    for (let at = 0; at < 20_000; at += 1)
      prepared.keep(question(`n${at}`), `10.0.${at % 50}.1`, answer, Infinity);
    assert.ok(prepared.size <= 4_096);
  });

  it('answers of other shapes are not prepared', () => {
    const random = seeded(3);
    for (let turn = 0; turn < 2_000; turn += 1) {
      const answer = answerTo(question('tasks.web'), zone);
      for (let change = 0; change < 3; change += 1) answer[6 + random(answer.length - 6)] = random(256);
      answer.writeUInt16BE(0x8580, 2);
      prepared.keep(question('tasks.web'), '10.0.0.10', answer, Infinity);
      const found = prepared.find(question('tasks.web'), '10.0.0.10');
      // Whatever is moved: nothing is lost.
      assert.deepEqual(found?.toSorted(), answer.fill(question('tasks.web').subarray(0, 2), 0, 2).toSorted());
    }
  });
});

describe('DNS: threads', function () {
  this.timeout(60_000);
  let dns: DnsServer;
  let sockets: Socket[] = [];
  afterEach(async () => {
    for (const socket of sockets) socket.close();
    await dns.close();
  });

  it('DNS threads start under load, learn what changes, and end with the server', async () => {
    let zone = zoneWith(addresses);
    dns = new DnsServer({
      zone: () => zone,
      identify: () => ({ asker }),
      threads: 2,
      // Which a machine that is busy with other things reaches, too.
      busyRate: 100,
      forwarder: { ask: () => Promise.reject(new Error('nobody is asked')) },
      log: { debug: () => undefined, warn: (fields) => assert.fail(JSON.stringify(fields)) },
    });
    const local = { address: '127.0.0.1', port: 0 };
    const open = (name: string): number => {
      const udp = openSocket({ protocol: 'udp', local });
      const port = localPort(udp);
      dns.open(name, { udp, tcp: openSocket({ protocol: 'tcp', local }) });
      return port;
    };
    const port = open('one');
    sockets = Array.from({ length: 16 }, () => createSocket('udp4'));
    let received = 0;
    for (const socket of sockets) socket.on('message', () => (received += 1));
    const ask = (socket: Socket, name: string): void => socket.send(question(name), port, '127.0.0.1');
    for (const deadline = Date.now() + 30_000; dns.workers === 0 && Date.now() < deadline;) {
      for (const socket of sockets) for (let burst = 0; burst < 8; burst += 1) ask(socket, 'tasks.web');
      await new Promise((resolve) => setImmediate(resolve));
    }
    assert.ok(received > 0);
    assert.equal(dns.workers, 2);

    const everybody = async (): Promise<string[][]> =>
      Promise.all(
        sockets.map(async (socket) => {
          ask(socket, 'tasks.web');
          const [answer] = (await once(socket, 'message')) as [Buffer];
          return addressesIn(answer).toSorted();
        }),
      );
    const quiet = async (): Promise<void> => {
      for (let before = -1; before !== received; await new Promise((resolve) => setTimeout(resolve, 300)))
        before = received;
    };
    await quiet();
    for (let round = 0; round < 3; round += 1)
      for (const answer of await everybody()) assert.deepEqual(answer, addresses);
    zone = zoneWith(addresses.slice(0, 2));
    dns.forget();
    await quiet();
    for (let round = 0; round < 3; round += 1)
      for (const answer of await everybody()) assert.deepEqual(answer, addresses.slice(0, 2));
    // Who comes while they answer is theirs, and who leaves is nobody's.
    const later = open('later');
    const [socket] = sockets;
    assert.ok(socket !== undefined);
    const answered = once(socket, 'message');
    socket.send(question('tasks.web'), later, '127.0.0.1');
    const [message, from] = (await answered) as [Buffer, { port: number }];
    assert.equal(from.port, later);
    assert.deepEqual(addressesIn(message).toSorted(), addresses.slice(0, 2));
    await dns.shut('later');
    const before = received;
    socket.send(question('tasks.web'), later, '127.0.0.1');
    await quiet();
    assert.equal(received, before);
    await everybody();
    await dns.close();
    assert.equal(dns.workers, 0);
  });
});
