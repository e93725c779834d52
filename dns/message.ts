// Owns the DNS wire format of clients: queries are parsed defensively, responses written within the size limit.
// Must not decide what is answered (resolve.ts), nor look into answers of others (foreign.ts).
import { toNumber } from './address.ts';
import { readPlainName, skipName, toWire } from './name.ts';
import { negativeTtl, type Answer, type Question, type Resolution } from './resolve.ts';
import { CLASS, RCODE, TYPE } from './types.ts';
import { headerBytes, maxMessageBytes, MessageWriter, questionPointer } from './writer.ts';
import { suffix } from './zone.ts';

/** Bits of the header's second 16 (RFC 1035 §4.1.1, RFC 4035 §3.2). */
export const flag = {
  response: 0x8000,
  authoritative: 0x0400,
  truncated: 0x0200,
  recursionDesired: 0x0100,
  recursionAvailable: 0x0080,
  checkingDisabled: 0x0010,
} as const;

/** A question, and as what it came. */
export interface AskedQuestion extends Question {
  /** In lower case and escaped, see readPlainName. */
  name: string;
  class: number;
  /** Name, type and class with the asker's own spelling. */
  wire: Buffer;
}

export interface Query {
  id: number;
  recursionDesired: boolean;
  checkingDisabled: boolean;
  question: AskedQuestion;
  /** Absent when the asker does not know EDNS. */
  edns?: {
    /** What the asker takes by UDP. */
    udpBytes: number;
    dnssecOk: boolean;
  };
}

export type Parsed =
  | { kind: 'query'; query: Query }
  /** There is nothing to answer but this. */
  | { kind: 'invalid'; response: Buffer }
  /** Not worth an answer: it has no id, or it is an answer itself, and answering those makes loops. */
  | { kind: 'drop' };

export type Transport = 'udp' | 'tcp';

/** Without EDNS (RFC 1035 §4.2.1). */
const minUdpBytes = 512;

/**
 * However much the asker would take: what fits into IPv6's smallest MTU is fragmented nowhere. 50 addresses take 850 bytes;
 * whoever needs more asks by TCP.
 */
export const maxUdpBytes = 1_232;

/** An OPT record without options. */
const optBytes = 11;
const dnssecOk = 0x8000;
const maxRcode = 0xf;

const writer = new MessageWriter();
const nothing = Buffer.alloc(0);

/** Never throws, and never reads beyond the message. */
export function parseQuery(message: Buffer): Parsed {
  if (message.length < 2 || message.length > maxMessageBytes) return { kind: 'drop' };
  const flags = message.length < 4 ? 0 : message.readUInt16BE(2);
  if ((flags & flag.response) !== 0) return { kind: 'drop' };
  if (message.length < headerBytes) return invalid(message, flags, RCODE.FORMERR);
  if (opcodeOf(flags) !== 0) return invalid(message, flags, RCODE.NOTIMP);
  const [questions, answers, authority] = [4, 6, 8].map((at) => message.readUInt16BE(at));
  if (questions !== 1 || answers !== 0 || authority !== 0) return invalid(message, flags, RCODE.FORMERR);
  const question = readQuestion(message);
  if (question === undefined) return invalid(message, flags, RCODE.FORMERR);
  const edns = readEdns(message, headerBytes + question.wire.length, message.readUInt16BE(10));
  if (edns === 'malformed') return invalid(message, flags, RCODE.FORMERR);
  const query: Query = {
    id: message.readUInt16BE(0),
    recursionDesired: (flags & flag.recursionDesired) !== 0,
    checkingDisabled: (flags & flag.checkingDisabled) !== 0,
    question,
    ...(edns !== undefined && { edns }),
  };
  if (edns !== undefined && edns.version !== 0)
    return { kind: 'invalid', response: render(query, RCODE.BADVERS, maxUdpBytes) };
  return { kind: 'query', query };
}

/** @returns the only question of a message that has at least a header; undefined when it is malformed or compressed */
export function readQuestion(message: Buffer): AskedQuestion | undefined {
  const name = readPlainName(message, headerBytes);
  if (name === undefined || name.end + 4 > message.length) return undefined;
  return {
    name: name.text,
    type: message.readUInt16BE(name.end),
    class: message.readUInt16BE(name.end + 2),
    wire: message.subarray(headerBytes, name.end + 4),
  };
}

type Edns = NonNullable<Query['edns']> & { version: number };

/** Goes through the additional records, which is where a query has its OPT record (RFC 6891 §6.1.1). */
function readEdns(message: Buffer, start: number, count: number): Edns | 'malformed' | undefined {
  let edns: Edns | undefined;
  let at = start;
  for (let record = 0; record < count; record += 1) {
    const fixed = skipName(message, at);
    if (fixed === undefined || fixed + 10 > message.length) return 'malformed';
    const end = fixed + 10 + message.readUInt16BE(fixed + 8);
    if (end > message.length) return 'malformed';
    if (message.readUInt16BE(fixed) === TYPE.EDNS) {
      if (edns !== undefined || message[at] !== 0) return 'malformed';
      edns = {
        udpBytes: Math.min(Math.max(message.readUInt16BE(fixed + 2), minUdpBytes), maxUdpBytes),
        version: message.readUInt8(fixed + 5),
        dnssecOk: (message.readUInt16BE(fixed + 6) & dnssecOk) !== 0,
      };
    }
    at = end;
  }
  return edns;
}

function opcodeOf(flags: number): number {
  return (flags >>> 11) & 0xf;
}

/** An answer to what has no question that could be repeated. */
function invalid(message: Buffer, asked: number, rcode: number): Parsed {
  const flags = flag.response | (opcodeOf(asked) << 11) | (asked & flag.recursionDesired) | rcode;
  writer.begin(message.readUInt16BE(0), flags, nothing, maxUdpBytes);
  return { kind: 'invalid', response: writer.finish() };
}

/** @returns bytes that an answer may have */
export function limitOf({ edns }: Query, transport: Transport): number {
  return transport === 'tcp' ? maxMessageBytes : (edns?.udpBytes ?? minUdpBytes);
}

/** @returns an answer without records, with this code */
export function render({ id, question, edns, ...query }: Query, rcode: number, limit: number): Buffer {
  begin({ id, question, ...query }, rcode & maxRcode, limit, edns !== undefined);
  writeOpt(edns, rcode >>> 4);
  return writer.finish();
}

/**
 * @returns the answer of our own; marked as truncated, with those of its records that fit, when not all do. Additional records
 * that do not fit are left out, since they can be asked for.
 */
export function renderResolution(
  query: Query,
  resolution: Extract<Resolution, { kind: 'answer' | 'nodata' | 'nxdomain' }>,
  limit: number,
): Buffer {
  const rcode = resolution.kind === 'nxdomain' ? RCODE.NXDOMAIN : RCODE.NOERROR;
  begin(query, flag.authoritative | rcode, limit, query.edns !== undefined);
  if (resolution.kind === 'answer') {
    const isWhole = resolution.records.every((record) =>
      writer.record('answer', () => writeRecord(questionPointer, record)),
    );
    if (!isWhole) writer.setFlags(flag.truncated);
    else
      resolution.additional.every((record) =>
        writer.record('additional', () => {
          writer.name(toWire(record.name), true);
          writeFields(record);
        }),
      );
  } else {
    const apex = apexPointer(query.question);
    writer.record('authority', () => writeRecord(apex, { type: TYPE.SOA, ttl: negativeTtl }, apex));
  }
  writeOpt(query.edns, 0);
  return writer.finish();
}

/**
 * Makes another server's answer one for this query: with our OPT record if it knows EDNS, and truncated to nothing if it is
 * too long.
 *
 * @param answer without an OPT record, to the same question and with the query's id
 */
export function finishForeign(query: Query, answer: Buffer, limit: number): Buffer {
  const extra = query.edns === undefined ? 0 : optBytes;
  if (answer.length + extra > limit) {
    begin(query, flag.truncated | (answer.readUInt16BE(2) & maxRcode), limit, extra > 0);
    writeOpt(query.edns, 0);
    return writer.finish();
  }
  if (extra === 0) return answer;
  const whole = Buffer.allocUnsafe(answer.length + extra);
  answer.copy(whole);
  whole.writeUInt16BE(whole.readUInt16BE(10) + 1, 10);
  whole.fill(0, answer.length);
  whole.writeUInt16BE(TYPE.EDNS, answer.length + 1);
  whole.writeUInt16BE(maxUdpBytes, answer.length + 3);
  return whole;
}

/** @returns the question as this server asks it of another: always with EDNS unless it is plain */
export function renderQuestion(
  id: number,
  { question, edns, checkingDisabled }: Query,
  options: { plain: boolean },
): Buffer {
  const flags = flag.recursionDesired | (checkingDisabled ? flag.checkingDisabled : 0);
  writer.begin(id, flags, question.wire, maxMessageBytes);
  if (!options.plain) writeOpt({ dnssecOk: edns?.dnssecOk ?? false }, 0);
  return writer.finish();
}

/** Of an answer. */
export function responseFlags({ recursionDesired, checkingDisabled }: Omit<Query, 'edns'>): number {
  return (
    flag.response |
    flag.recursionAvailable |
    (recursionDesired ? flag.recursionDesired : 0) |
    (checkingDisabled ? flag.checkingDisabled : 0)
  );
}

function begin(query: Omit<Query, 'edns'>, flags: number, limit: number, hasOpt: boolean): void {
  writer.begin(query.id, responseFlags(query) | flags, query.question.wire, limit);
  if (hasOpt) writer.reserve(optBytes);
}

/** @param rcode the upper bits of the response code, which has four bits in the header */
function writeOpt(edns: { dnssecOk: boolean } | undefined, rcode: number): void {
  if (edns === undefined) return;
  writer.reserve(-optBytes);
  writer.record('additional', () => {
    writer.bytes(root);
    writer.uint16(TYPE.EDNS);
    writer.uint16(maxUdpBytes);
    writer.uint32((rcode << 24) | (edns.dnssecOk ? dnssecOk : 0));
    writer.uint16(0);
  });
}

const root = Buffer.from([0]);

function writeRecord(namePointer: number, record: Answer, apex = questionPointer): void {
  writer.uint16(namePointer);
  writeFields(record, apex);
}

function writeFields(record: Answer, apex = questionPointer): void {
  writer.uint16(record.type);
  writer.uint16(CLASS.IN);
  writer.uint32(record.ttl);
  writer.data(() => writeData(record, apex));
}

function writeData(record: Answer, apex: number): void {
  switch (record.type) {
    case TYPE.A:
      writer.uint32(toNumber(record.address) ?? 0);
      return;
    case TYPE.PTR:
      writer.name(toWire(record.target), true);
      return;
    case TYPE.SRV:
      writer.uint16(record.priority);
      writer.uint16(record.weight);
      writer.uint16(record.port);
      writer.name(toWire(record.target), false);
      return;
    case TYPE.TXT:
      writer.text(record.text);
      return;
    case TYPE.SOA:
      // The zone is nobody's but this server's: no mailbox, nothing to transfer, and refresh, retry and expire mean nothing.
      writer.uint16(apex);
      writer.bytes(root);
      for (const number of [1, negativeTtl, negativeTtl, negativeTtl, negativeTtl]) writer.uint32(number);
      return;
  }
}

/** @returns a pointer to what a negative answer says is ours: a part of the question's name (RFC 2308 §3) */
function apexPointer({ name, wire }: AskedQuestion): number {
  if (name === suffix) return questionPointer;
  const first = wire[0] ?? 0;
  // What is not below the suffix stands for itself, and what is not there for where it would be.
  const skipped = name.endsWith(`.${suffix}`)
    ? wire.length - 4 - (suffix.length + 2)
    : first === 0
      ? 0
      : 1 + first;
  return questionPointer + skipped;
}
