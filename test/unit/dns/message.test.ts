// Owns the tests of DNS on the wire, with dns2 as the other side that reads what is written here.
// Must not open sockets.
import assert from 'node:assert/strict';
import { Packet } from 'dns2';
import { limitOf, parseQuery, render, renderResolution, type Query } from '../../../dns/message.ts';
import { canonical, readName, readPlainName, toWire } from '../../../dns/name.ts';
import type { Answer } from '../../../dns/resolve.ts';
import { RCODE, TYPE } from '../../../dns/types.ts';

interface Asked {
  flags?: number;
  counts?: [number, number, number, number];
  type?: number;
  opt?: { size?: number; version?: number; flags?: number; count?: number };
  tail?: Buffer;
}

/** @param name text, or bytes as on the wire */
function message(
  name: string | Buffer,
  { flags = 0x0100, counts, type = TYPE.A, opt, tail }: Asked = {},
): Buffer {
  const header = Buffer.alloc(12);
  header.writeUInt16BE(0xbeef, 0);
  header.writeUInt16BE(flags, 2);
  const options = opt === undefined ? 0 : (opt.count ?? 1);
  for (const [at, count] of (counts ?? [1, 0, 0, options]).entries()) header.writeUInt16BE(count, 4 + 2 * at);
  const fixed = Buffer.alloc(4);
  fixed.writeUInt16BE(type, 0);
  fixed.writeUInt16BE(1, 2);
  const record = Buffer.alloc(11);
  record.writeUInt16BE(TYPE.EDNS, 1);
  record.writeUInt16BE(opt?.size ?? 1_232, 3);
  record.writeUInt8(opt?.version ?? 0, 6);
  record.writeUInt16BE(opt?.flags ?? 0, 7);
  const wire = typeof name === 'string' ? toWire(name) : name;
  return Buffer.concat([
    header,
    wire,
    fixed,
    ...Array<Buffer>(options).fill(record),
    tail ?? Buffer.alloc(0),
  ]);
}

function queryOf(bytes: Buffer): Query {
  const parsed = parseQuery(bytes);
  assert.equal(parsed.kind, 'query');
  return parsed.query;
}

/** @returns the code of the answer to what is invalid, or else the kind */
function verdict(bytes: Buffer): number | string {
  const parsed = parseQuery(bytes);
  if (parsed.kind !== 'invalid') return parsed.kind;
  assert.equal(parsed.response.readUInt16BE(0), bytes.readUInt16BE(0), 'the same id');
  assert.notEqual(parsed.response.readUInt16BE(2) & 0x8000, 0, 'an answer');
  return Packet.parse(parsed.response).header.rcode;
}

function addresses(count: number): Answer[] {
  return Array.from({ length: count }, (_, at) => ({
    type: TYPE.A,
    ttl: 1,
    address: `10.0.${at >> 8}.${at & 255}`,
  }));
}

function answer(query: Query, records: readonly Answer[], limit: number): Buffer {
  return renderResolution(query, { kind: 'answer', records, additional: [] }, limit);
}

describe('DNS: names on the wire', () => {
  it('a name that is written and read is the same', () => {
    for (const text of ['a', 'web.front', 'x'.repeat(63), `${'y'.repeat(63)}.`.repeat(3) + 'z'.repeat(61)])
      assert.deepEqual(readPlainName(toWire(text), 0), { text, end: text.length + 2 });
  });

  it('different names have different texts', () => {
    const one = Buffer.from([3, 0x61, 0x2e, 0x62, 0]);
    assert.deepEqual(readPlainName(one, 0)?.text, 'a\\046b');
    assert.deepEqual(readPlainName(Buffer.from([1, 0xff, 0]), 0)?.text, '\\255');
    assert.deepEqual(readPlainName(Buffer.from([1, 0x5c, 0]), 0)?.text, '\\092');
  });

  it('canonical names are in lower case, without the final dot, and writable', () => {
    assert.equal(canonical('WEB.Front.'), 'web.front');
    for (const bad of ['', '.', 'a..b', '.a', 'a b', 'ä', 'x'.repeat(64), 'a.'.repeat(127) + 'b'])
      assert.equal(canonical(bad), undefined, bad);
    assert.equal(canonical('a.'.repeat(126) + 'b')?.length, 253);
  });

  it('compression pointers are followed backwards only', () => {
    const bytes = Buffer.from([1, 0x61, 0, 1, 0x62, 0xc0, 0, 0xc0, 3, 0xc0, 9, 0xc0, 13, 0xc0, 11, 0xc0]);
    assert.deepEqual(readName(bytes, 7), { wire: Buffer.from([1, 0x62, 1, 0x61, 0]), end: 9 });
    for (const start of [9, 11, 13, 15, 16]) assert.equal(readName(bytes, start), undefined, `at ${start}`);
  });
});

describe('DNS: reading a query', () => {
  it('a query gives name, type, class, flags and the spelling of its name', () => {
    const query = queryOf(message('Web.Front', { flags: 0x0110, type: TYPE.AAAA }));
    assert.equal(query.question.name, 'web.front');
    assert.equal(query.question.wire.toString('latin1', 1, 4), 'Web');
    assert.deepEqual([query.id, query.question.type, query.question.class], [0xbeef, TYPE.AAAA, 1]);
    assert.deepEqual([query.recursionDesired, query.checkingDisabled], [true, true]);
    assert.equal(query.edns, undefined);
  });

  it('a packet without an id, too long, or that is an answer is dropped', () => {
    assert.equal(verdict(Buffer.alloc(0)), 'drop');
    assert.equal(verdict(Buffer.alloc(1)), 'drop');
    assert.equal(verdict(message('web', { tail: Buffer.alloc(65_536) })), 'drop');
    assert.equal(verdict(message('web', { flags: 0x8100 })), 'drop');
    assert.equal(verdict(message('web', { flags: 0x8100 }).subarray(0, 8)), 'drop');
  });

  it('a malformed query: FORMERR', () => {
    const whole = message('web', { opt: {} });
    for (let length = 2; length < whole.length; length += 1)
      assert.equal(verdict(whole.subarray(0, length)), RCODE.FORMERR, `${length} bytes`);
    assert.equal(verdict(whole), 'query');
    for (const counts of [
      [0, 0, 0, 0],
      [2, 0, 0, 0],
      [1, 1, 0, 0],
      [1, 0, 1, 0],
      [1, 0, 0, 1],
    ] as const)
      assert.equal(verdict(message('web', { counts: [...counts] })), RCODE.FORMERR, counts.join());
  });

  it('an OPT record that is longer than the message, or has a name: FORMERR', () => {
    const bytes = message('web', { opt: {} });
    bytes.writeUInt16BE(1, bytes.length - 2);
    assert.equal(verdict(bytes), RCODE.FORMERR);
    const named = message('web', {
      counts: [1, 0, 0, 1],
      tail: Buffer.from([1, 0x61, 0, 0, TYPE.EDNS, 4, 0xd0, 0, 0, 0, 0, 0, 0]),
    });
    assert.equal(verdict(named), RCODE.FORMERR);
  });

  it('a query name that is compressed, reserved or too long: FORMERR', () => {
    assert.equal(verdict(message(Buffer.from([0xc0, 0x0c]))), RCODE.FORMERR, 'a pointer to itself');
    assert.equal(verdict(message(Buffer.from([1, 0x61, 0xc0, 0x0c]))), RCODE.FORMERR, 'a pointer');
    assert.equal(
      verdict(message(Buffer.from([0x40, ...Array<number>(64).fill(0x61), 0]))),
      RCODE.FORMERR,
      '64 bytes',
    );
    const label = Buffer.concat([Buffer.from([63]), Buffer.alloc(63, 0x61)]);
    const end = (length: number): Buffer =>
      Buffer.concat([Buffer.from([length]), Buffer.alloc(length, 0x62), Buffer.from([0])]);
    assert.equal(verdict(message(Buffer.concat([label, label, label, end(61)]))), 'query', '255 bytes');
    assert.equal(verdict(message(Buffer.concat([label, label, label, end(62)]))), RCODE.FORMERR, '256 bytes');
  });

  it('another operation than a query: NOTIMP, with the same operation', () => {
    for (const opcode of [1, 2, 4, 5, 15]) {
      const bytes = message('web', { flags: opcode << 11 });
      assert.equal(verdict(bytes), RCODE.NOTIMP);
      const parsed = parseQuery(bytes);
      assert.equal(parsed.kind === 'invalid' && (parsed.response.readUInt16BE(2) >> 11) & 15, opcode);
    }
  });

  it('the size of EDNS counts within its limits', () => {
    const limits = [0, 512, 513, 1_000, 1_232, 4_096, 65_535].map((size) =>
      limitOf(queryOf(message('web', { opt: { size } })), 'udp'),
    );
    assert.deepEqual(limits, [512, 512, 513, 1_000, 1_232, 1_232, 1_232]);
    assert.equal(limitOf(queryOf(message('web')), 'udp'), 512);
    assert.equal(limitOf(queryOf(message('web')), 'tcp'), 65_535);
  });

  it('another version of EDNS: BADVERS; two OPT records: FORMERR', () => {
    assert.equal(verdict(message('web', { opt: { version: 1 } })), RCODE.BADVERS);
    assert.equal(verdict(message('web', { opt: { count: 2 } })), RCODE.FORMERR);
  });
});

describe('DNS: writing an answer', () => {
  it('an answer repeats id, question and spelling, and is authoritative', () => {
    const bytes = answer(queryOf(message('WeB')), addresses(2), 512);
    const packet = Packet.parse(bytes);
    assert.deepEqual(packet.errors, []);
    assert.equal(packet.header.id, 0xbeef);
    const { qr, aa, tc, rd, ra, rcode } = packet.header;
    assert.deepEqual([qr, aa, tc, rd, ra, rcode], [1, 1, 0, 1, 1, 0]);
    assert.equal(packet.questions[0]?.name, 'WeB');
    assert.deepEqual(
      packet.answers.map((record) => [record.name, record.type, record.ttl, record.address]),
      [
        ['WeB', 1, 1, '10.0.0.0'],
        ['WeB', 1, 1, '10.0.0.1'],
      ],
    );
    assert.deepEqual(packet.additionals, []);
  });

  it('PTR, SRV with its addresses, TXT and SOA are written as records', () => {
    const query = queryOf(message('_80._tcp.web', { opt: {} }));
    const target = 'web.1.front.causeway.internal';
    const bytes = renderResolution(
      query,
      {
        kind: 'answer',
        records: [
          { type: TYPE.PTR, ttl: 1, target: 'db.front' },
          { type: TYPE.SRV, ttl: 1, priority: 0, weight: 1, port: 80, target },
          { type: TYPE.TXT, ttl: 1, text: 'kind=service' },
          { type: TYPE.SOA, ttl: 1 },
        ],
        additional: [{ type: TYPE.A, ttl: 1, name: target, address: '10.0.0.3' }],
      },
      1_232,
    );
    const { answers, additionals, errors } = Packet.parse(bytes);
    assert.deepEqual(errors, []);
    const [ptr, srv, txt, soa] = answers;
    assert.equal(ptr?.domain, 'db.front');
    assert.deepEqual([srv?.priority, srv?.weight, srv?.port, srv?.target], [0, 1, 80, target]);
    assert.deepEqual([txt?.data].flat(), ['kind=service']);
    assert.equal(soa?.minimum, 1);
    assert.deepEqual([additionals[0]?.name, additionals[0]?.address], [target, '10.0.0.3']);
    assert.equal(additionals[1]?.type, TYPE.EDNS);
    assert.ok(bytes.includes(toWire(target)), 'the target of SRV is not compressed');
  });

  it('a negative answer has the SOA record of the zone', () => {
    const authority = (name: string, kind: 'nodata' | 'nxdomain'): [string | undefined, number] => {
      const { authorities, errors, header } = Packet.parse(
        renderResolution(queryOf(message(name)), { kind }, 512),
      );
      assert.deepEqual(errors, []);
      assert.equal(authorities[0]?.type, TYPE.SOA);
      assert.deepEqual([authorities[0].ttl, authorities[0].minimum], [1, 1]);
      return [authorities[0].name, header.rcode];
    };
    assert.deepEqual(authority('no.body.causeway.internal', 'nxdomain'), ['causeway.internal', 3]);
    assert.deepEqual(authority('causeway.internal', 'nodata'), ['causeway.internal', 0]);
    assert.deepEqual(authority('9.0.0.10.in-addr.arpa', 'nxdomain'), ['0.0.10.in-addr.arpa', 3]);
  });

  it('an answer has room for 50 addresses with EDNS', () => {
    const bytes = answer(queryOf(message('tasks.some-service', { opt: {} })), addresses(50), 1_232);
    const { header, answers } = Packet.parse(bytes);
    assert.deepEqual([header.tc, answers.length], [0, 50]);
    assert.ok(bytes.length < 900, `${bytes.length} bytes`);
  });

  it('an answer is truncated to whole records within each limit, with the flag set', () => {
    for (let limit = 512; limit <= 1_232; limit += 7) {
      const query = queryOf(message('web', { opt: { size: limit } }));
      const bytes = answer(query, addresses(100), limitOf(query, 'udp'));
      const { header, answers, additionals, errors } = Packet.parse(bytes);
      assert.ok(bytes.length <= limit && bytes.length > limit - 16, `${bytes.length} of ${limit}`);
      assert.deepEqual([errors.length, header.tc, additionals.length], [0, 1, 1]);
      assert.equal(answers.length, Math.floor((limit - 12 - 9 - 11) / 16));
    }
    const plain = (count: number): number =>
      Packet.parse(answer(queryOf(message('web')), addresses(count), 512)).header.tc;
    assert.deepEqual([plain(30), plain(31)], [0, 1]);
  });

  it('additional records that do not fit are left out without truncation', () => {
    const additional = addresses(100).map((record, at) => ({ ...record, name: `host-${at}` }));
    const bytes = renderResolution(
      queryOf(message('web')),
      { kind: 'answer', records: addresses(1), additional },
      512,
    );
    const { header, additionals, errors } = Packet.parse(bytes);
    assert.ok(bytes.length <= 512);
    assert.deepEqual([header.tc, errors.length], [0, 0]);
    assert.ok(additionals.length > 5 && additionals.length < 100);
  });

  it('an answer has an OPT record if the question had one', () => {
    for (const edns of [true, false]) {
      const query = queryOf(message('web', edns ? { opt: { flags: 0x8000 } } : {}));
      const { additionals, header } = Packet.parse(render(query, RCODE.REFUSED, 512));
      assert.equal(header.rcode, RCODE.REFUSED);
      assert.equal(additionals.length, edns ? 1 : 0);
      if (edns) assert.deepEqual([additionals[0]?.class, additionals[0]?.doFlag], [1_232, true]);
    }
  });
});
