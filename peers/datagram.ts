// Owns the heartbeat on the wire: 64 bytes, question and answer alike, so that no answer is longer than its question.
// Must not decide what a heartbeat means.
import { createHash, createHmac, timingSafeEqual, type KeyObject } from 'node:crypto';

/**
 * One heartbeat. Numbers are big-endian.
 *
 * | at | bytes |                                                                        |
 * | -- | ----- | ---------------------------------------------------------------------- |
 * |  0 |     4 | `CWP` and the version, 1                                               |
 * |  4 |     1 | 1: asks for an answer; 2: is one                                       |
 * |  5 |     1 | 0                                                                      |
 * |  6 |     2 | the interval at which the sender asks, in ms                           |
 * |  8 |    16 | the sender, see {@link digestOf}                                       |
 * | 24 |     8 | stamp: the sender's clock in µs, from a random start                   |
 * | 32 |     8 | echo: the last stamp the sender had from the recipient, 0 for none     |
 * | 40 |     8 | the revision of the sender's pending writes, see {@link revisionDigestOf}       |
 * | 48 |    16 | HMAC-SHA256 of the above and the recipient's digest, its first half    |
 */
export interface Datagram {
  kind: 'ask' | 'answer';
  interval: number;
  sender: string;
  stamp: bigint;
  echo: bigint;
  revision: string;
}

export const datagramBytes = 64;
const signedBytes = 48;
const magic = Buffer.from([0x43, 0x57, 0x50, 1]);
const kinds = { ask: 1, answer: 2 } as const;
const label = 'causeway heartbeat';

/** @returns what stands for a node's id in datagrams: 16 bytes in hexadecimal */
export function digestOf(id: string): string {
  return hash(id, 16);
}

/** The digest of no pending writes. */
export const noRevision = '0'.repeat(16);

/** @returns what stands for the revision of pending writes in datagrams: 8 bytes in hexadecimal */
export function revisionDigestOf(revision: string): string {
  return revision === '' ? noRevision : hash(revision, 8);
}

/** @param recipient the digest of the node it goes to: no other accepts it */
export function encode(datagram: Datagram, recipient: string, secret: KeyObject): Buffer {
  const bytes = Buffer.alloc(datagramBytes);
  magic.copy(bytes);
  bytes.writeUInt8(kinds[datagram.kind], 4);
  bytes.writeUInt16BE(datagram.interval, 6);
  bytes.write(datagram.sender, 8, 'hex');
  bytes.writeBigUInt64BE(datagram.stamp, 24);
  bytes.writeBigUInt64BE(datagram.echo, 32);
  bytes.write(datagram.revision, 40, 'hex');
  mac(bytes, recipient, secret).copy(bytes, signedBytes);
  return bytes;
}

/**
 * @param self the digest of this node
 * @returns undefined for everything that no node of this cluster sent to this one
 */
export function decode(bytes: Buffer, self: string, secret: KeyObject): Datagram | undefined {
  if (bytes.length !== datagramBytes || !bytes.subarray(0, 4).equals(magic)) return undefined;
  if (!timingSafeEqual(bytes.subarray(signedBytes), mac(bytes, self, secret))) return undefined;
  const kind = bytes.readUInt8(4);
  if ((kind !== kinds.ask && kind !== kinds.answer) || bytes.readUInt8(5) !== 0) return undefined;
  return {
    kind: kind === kinds.ask ? 'ask' : 'answer',
    interval: bytes.readUInt16BE(6),
    sender: bytes.toString('hex', 8, 24),
    stamp: bytes.readBigUInt64BE(24),
    echo: bytes.readBigUInt64BE(32),
    revision: bytes.toString('hex', 40, signedBytes),
  };
}

function mac(bytes: Buffer, recipient: string, secret: KeyObject): Buffer {
  return createHmac('sha256', secret)
    .update(label)
    .update(bytes.subarray(0, signedBytes))
    .update(recipient, 'hex')
    .digest()
    .subarray(0, datagramBytes - signedBytes);
}

function hash(text: string, bytes: number): string {
  return createHash('sha256')
    .update(text)
    .digest('hex')
    .slice(0, bytes * 2);
}
