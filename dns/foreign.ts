// Owns answers of other servers: read whole and with suspicion, written again without what is theirs alone.
// Must not know where they come from, nor keep them.
import { toText } from './address.ts';
import { flag, readQuestion, responseFlags, type Query } from './message.ts';
import { readName } from './name.ts';
import { RCODE, TYPE } from './types.ts';
import { headerBytes, maxMessageBytes, MessageWriter } from './writer.ts';

export interface ForeignRecord {
  /** Without compression. */
  name: Buffer;
  type: number;
  class: number;
  /** seconds */
  ttl: number;
  /** What it says, in parts: names without compression, and other bytes as they are. */
  data: readonly { kind: 'name' | 'bytes'; bytes: Buffer }[];
}

export interface ForeignAnswer {
  rcode: number;
  answer: readonly ForeignRecord[];
  authority: readonly ForeignRecord[];
  /** But for the OPT record: what it says is between two servers. */
  additional: readonly ForeignRecord[];
}

/** An answer ready to be given to several, again and again. */
export interface KeptAnswer {
  /** The first asker's id and spelling are in it. */
  message: Buffer;
  /** Where the TTLs are. */
  ttls: readonly number[];
  /** Seconds for which it may be kept; 0 for not at all. */
  keep: number;
}

/** Nobody waits longer for a change than this, whatever a record says. Seconds. */
const maxKeep = 300;
/** What is missing may be there soon. Seconds. */
const maxNegativeKeep = 30;

/** Data with names that may be compressed (RFC 3597 §4): bytes before them, and how many names there are. */
const layouts = new Map<number, { before: number; names: number }>([
  [TYPE.NS, { before: 0, names: 1 }],
  [TYPE.MD, { before: 0, names: 1 }],
  [TYPE.MF, { before: 0, names: 1 }],
  [TYPE.CNAME, { before: 0, names: 1 }],
  [TYPE.SOA, { before: 0, names: 2 }],
  [TYPE.MB, { before: 0, names: 1 }],
  [TYPE.MG, { before: 0, names: 1 }],
  [TYPE.MR, { before: 0, names: 1 }],
  [TYPE.PTR, { before: 0, names: 1 }],
  [TYPE.MINFO, { before: 0, names: 2 }],
  [TYPE.MX, { before: 2, names: 1 }],
  [TYPE.SRV, { before: 6, names: 1 }],
  [17 /* RP */, { before: 0, names: 2 }],
  [18 /* AFSDB */, { before: 2, names: 1 }],
  [21 /* RT */, { before: 2, names: 1 }],
  [26 /* PX */, { before: 2, names: 2 }],
  [39 /* DNAME */, { before: 0, names: 1 }],
]);

/** Only names in data of these are compressed in turn (RFC 3597 §4: those of RFC 1035). */
const lastCompressed = 15;

/** @returns whether this is an answer to the question, whatever it says */
export function answers(message: Buffer, id: number, query: Query): boolean {
  if (message.length < headerBytes || message.readUInt16BE(0) !== id) return false;
  if ((message.readUInt16BE(2) & flag.response) === 0 || message.readUInt16BE(4) !== 1) return false;
  const question = readQuestion(message);
  const asked = query.question;
  return question?.name === asked.name && question.type === asked.type && question.class === asked.class;
}

/** @param message has at least a header. What is truncated need not be readable to its end. */
export function isTruncated(message: Buffer): boolean {
  return (message.readUInt16BE(2) & flag.truncated) !== 0;
}

/** @returns undefined when it is malformed */
export function readAnswer(message: Buffer): ForeignAnswer | undefined {
  const question = message.length < headerBytes ? undefined : readQuestion(message);
  if (question === undefined) return undefined;
  let rcode = message.readUInt16BE(2) & 0xf;
  let at = headerBytes + question.wire.length;
  const sections: ForeignRecord[][] = [];
  for (const counted of [6, 8, 10]) {
    const section: ForeignRecord[] = [];
    sections.push(section);
    for (let count = message.readUInt16BE(counted); count > 0; count -= 1) {
      const read = readRecord(message, at);
      if (read === undefined) return undefined;
      at = read.end;
      if (read.record.type === TYPE.EDNS) rcode |= (read.record.ttl >>> 24) << 4;
      else section.push(read.record);
    }
  }
  const [answer = [], authority = [], additional = []] = sections;
  return { rcode, answer, authority, additional };
}

function readRecord(message: Buffer, start: number): { record: ForeignRecord; end: number } | undefined {
  const name = readName(message, start);
  if (name === undefined || name.end + 10 > message.length) return undefined;
  const from = name.end + 10;
  const end = from + message.readUInt16BE(name.end + 8);
  if (end > message.length) return undefined;
  const type = message.readUInt16BE(name.end);
  const data = readData(message, from, end, type);
  if (data === undefined) return undefined;
  const [ofClass, ttl] = [message.readUInt16BE(name.end + 2), message.readUInt32BE(name.end + 4)];
  return { record: { name: name.wire, type, class: ofClass, ttl, data }, end };
}

function readData(
  message: Buffer,
  from: number,
  end: number,
  type: number,
): ForeignRecord['data'] | undefined {
  const { before, names } = layouts.get(type) ?? { before: 0, names: 0 };
  const data: { kind: 'name' | 'bytes'; bytes: Buffer }[] = [];
  let at = from + before;
  if (at > end) return undefined;
  if (before > 0) data.push({ kind: 'bytes', bytes: message.subarray(from, at) });
  for (let count = 0; count < names; count += 1) {
    const name = readName(message, at);
    if (name === undefined || name.end > end) return undefined;
    data.push({ kind: 'name', bytes: name.wire });
    at = name.end;
  }
  if (at < end) data.push({ kind: 'bytes', bytes: message.subarray(at, end) });
  return data;
}

const writer = new MessageWriter();

/**
 * @param answer NOERROR or NXDOMAIN: there is nothing to keep of others
 * @returns undefined when it is longer than a message can be
 */
export function keepAnswer(query: Query, answer: ForeignAnswer): KeptAnswer | undefined {
  writer.begin(query.id, responseFlags(query) | (answer.rcode & 0xf), query.question.wire, maxMessageBytes);
  const ttls: number[] = [];
  const owner = Buffer.from(query.question.wire.subarray(0, -4));
  writer.known(owner, headerBytes);
  for (const section of ['answer', 'authority', 'additional'] as const)
    for (const record of answer[section])
      if (!writer.record(section, () => ttls.push(writeRecord(record)))) return undefined;
  return { message: writer.finish(), ttls, keep: keepFor(query, answer) };
}

/** @returns where the TTL is */
function writeRecord(record: ForeignRecord): number {
  writer.name(record.name, true);
  writer.uint16(record.type);
  writer.uint16(record.class);
  const ttl = writer.length;
  writer.uint32(shown(record.ttl));
  writer.data(() => {
    for (const { kind, bytes } of record.data)
      if (kind === 'bytes') writer.bytes(bytes);
      else writer.name(bytes, record.type <= lastCompressed);
  });
  return ttl;
}

/** A TTL with its highest bit set means none (RFC 2181 §8). */
function shown(ttl: number): number {
  return ttl > 0x7fff_ffff ? 0 : ttl;
}

/** @returns seconds for which an answer may be given again (RFC 2308 §5 for negative ones) */
function keepFor({ question }: Query, { rcode, answer, authority, additional }: ForeignAnswer): number {
  const smallest = Math.min(
    maxKeep,
    ...[...answer, ...authority, ...additional].map(({ ttl }) => shown(ttl)),
  );
  const isPositive =
    rcode === RCODE.NOERROR &&
    answer.some(({ type }) => type === question.type || question.type === TYPE.ANY);
  if (isPositive) return smallest;
  const soa = authority.find(({ type }) => type === TYPE.SOA);
  const numbers = soa?.data.at(-1)?.bytes;
  if (numbers?.length !== 20) return 0;
  return Math.min(smallest, maxNegativeKeep, numbers.readUInt32BE(16));
}

/**
 * @param seconds for which it was kept
 * @returns the answer for this query, which has the same question, perhaps with another spelling
 */
export function giveAnswer({ message, ttls }: KeptAnswer, query: Query, seconds: number): Buffer {
  const given = Buffer.from(message);
  given.writeUInt16BE(query.id, 0);
  given.writeUInt16BE(responseFlags(query) | (message.readUInt16BE(2) & 0xf), 2);
  query.question.wire.copy(given, headerBytes);
  if (seconds > 0)
    for (const at of ttls) given.writeUInt32BE(Math.max(0, given.readUInt32BE(at) - seconds), at);
  return given;
}

/**
 * Takes out addresses at which nobody is any more: another server may still know those of our containers.
 *
 * @param message an answer from {@link giveAnswer}
 * @returns the message itself when there are none; undefined when no address is left
 */
export function withoutStale(
  query: Query,
  message: Buffer,
  isStale: (address: string) => boolean,
): Buffer | undefined {
  const answer = readAnswer(message);
  if (answer === undefined) return undefined;
  const lives = ({ type, data }: ForeignRecord): boolean => {
    const bytes = data[0]?.bytes;
    return type !== TYPE.A || bytes?.length !== 4 || !isStale(toText(bytes.readUInt32BE(0)));
  };
  const rest = {
    ...answer,
    answer: answer.answer.filter(lives),
    additional: answer.additional.filter(lives),
  };
  const dropped = answer.answer.length - rest.answer.length;
  if (dropped === 0 && rest.additional.length === answer.additional.length) return message;
  if (dropped > 0 && !rest.answer.some(({ type }) => type === TYPE.A || type === TYPE.AAAA)) return undefined;
  return keepAnswer(query, rest)?.message;
}
