// Owns the exchange of a payload between two nodes over TCP: each proves to the other that it knows the secret.
// Must not know what is in a payload, nor keep a connection open.
import { createHmac, randomBytes, timingSafeEqual, type KeyObject } from 'node:crypto';
import { connect, type Socket } from 'node:net';
import * as z from 'zod';

/*
 *   client                                             server
 *     hello: CWO, version 1, its digest, nonce  ──►
 *                                               ◄──    challenge: nonce, MAC 'server'
 *     proof: MAC 'client'                       ──►
 *                                               ◄──    length, JSON, MAC 'offer'
 *
 * Every MAC is HMAC-SHA256 over its own label, the hello, the server's nonce and digest; the last one over the JSON too.
 * So nothing of one exchange is of use in another. The payload is not encrypted, as what the fabric carries is not.
 */

/** Of the JSON, on either side. */
export const maxPendingBytes = 16 * 1024 * 1024;

/** For all of an exchange, in milliseconds. */
const exchangeMs = 10_000;

const magic = Buffer.from([0x43, 0x57, 0x4f, 1]);
const digestBytes = 16;
const nonceBytes = 16;
const macBytes = 32;

export interface PendingWrites {
  /** '' for none. */
  revision: string;
  payload: unknown;
}

const Body = z.object({ revision: z.string(), payload: z.unknown() });

export interface FetchOptions {
  address: string;
  port: number;
  /** The address to come from. */
  localAddress: string;
  /** The digests of both nodes, see datagram.ts. */
  self: string;
  peer: string;
  secret: KeyObject;
  signal: AbortSignal;
}

/**
 * @returns the peer's pending writes now, which may be newer than those asked for
 * @throws {Error} when the peer cannot be reached, does not know the secret, or says what makes no sense
 */
export async function fetchPendingWrites(options: FetchOptions): Promise<PendingWrites> {
  const { address, port, localAddress, signal, secret } = options;
  const socket = connect({ host: address, port, localAddress, noDelay: true, signal });
  return bounded(socket, async (inbox) => {
    const hello = Buffer.concat([magic, Buffer.from(options.self, 'hex'), randomBytes(nonceBytes)]);
    socket.write(hello);
    const nonce = await inbox.take(nonceBytes);
    const sign = signer(secret, hello, nonce, options.peer);
    if (!timingSafeEqual(await inbox.take(macBytes), sign('server'))) {
      throw new Error('the peer does not know the secret of this cluster');
    }
    socket.write(sign('client'));
    const length = (await inbox.take(4)).readUInt32BE();
    if (length > maxPendingBytes) {
      throw new Error(`the pending writes are ${length} bytes long, more than ${maxPendingBytes}`);
    }
    const json = await inbox.take(length);
    if (!timingSafeEqual(await inbox.take(macBytes), sign('offer', json))) {
      throw new Error('the pending writes were changed on their way');
    }
    const { revision, payload } = Body.parse(JSON.parse(json.toString()));
    return { revision, payload };
  });
}

/**
 * Serves one connection to its end. One that says nothing was only to see whether this node is alive.
 * @param self the digest of this node
 * @throws {Error} when the exchange fails, for the log
 */
export async function servePendingWrites(
  socket: Socket,
  self: string,
  secret: KeyObject,
  read: () => PendingWrites,
): Promise<void> {
  await bounded(socket, async (inbox) => {
    const hello = await inbox.take(magic.length + digestBytes + nonceBytes).catch(() => undefined);
    if (hello === undefined) return;
    if (!hello.subarray(0, magic.length).equals(magic)) throw new Error('not the hello of a peer');
    const nonce = randomBytes(nonceBytes);
    const sign = signer(secret, hello, nonce, self);
    socket.write(Buffer.concat([nonce, sign('server')]));
    if (!timingSafeEqual(await inbox.take(macBytes), sign('client'))) {
      throw new Error('the peer does not know the secret of this cluster');
    }
    const json = Buffer.from(JSON.stringify(read()));
    const length = Buffer.alloc(4);
    length.writeUInt32BE(json.length);
    // Of one that is too long, the length is enough for the peer to say so.
    const fits = json.length <= maxPendingBytes;
    socket.end(fits ? Buffer.concat([length, json, sign('offer', json)]) : length);
    // Until the peer has read it all and closes.
    await inbox.take(1).catch(() => undefined);
  });
}

type Sign = (label: 'server' | 'client' | 'offer', body?: Buffer) => Buffer;

function signer(secret: KeyObject, hello: Buffer, nonce: Buffer, server: string): Sign {
  return (label, body = Buffer.alloc(0)) =>
    createHmac('sha256', secret)
      .update(`causeway exchange ${label}`)
      .update(hello)
      .update(nonce)
      .update(server, 'hex')
      .update(body)
      .digest();
}

/** Runs an exchange, which ends with the connection and within its time. */
async function bounded<T>(socket: Socket, run: (inbox: Inbox) => Promise<T>): Promise<T> {
  // Told by the reads as well; without a listener it would end the process.
  socket.on('error', () => undefined);
  const timer = setTimeout(() => socket.destroy(new Error(`no end after ${exchangeMs} ms`)), exchangeMs);
  try {
    return await run(new Inbox(socket));
  } finally {
    clearTimeout(timer);
    socket.destroy();
  }
}

/** What a connection brought and nobody took yet. */
class Inbox {
  readonly #chunks: AsyncIterator<Buffer, undefined>;
  #left: Buffer = Buffer.alloc(0);

  constructor(socket: Socket) {
    this.#chunks = socket[Symbol.asyncIterator]() as AsyncIterator<Buffer, undefined>;
  }

  /** @throws {Error} when the connection ends before */
  async take(bytes: number): Promise<Buffer> {
    const parts = [this.#left];
    let have = this.#left.length;
    while (have < bytes) {
      const { value, done } = await this.#chunks.next();
      if (done === true) throw new Error('the connection was closed early');
      parts.push(value);
      have += value.length;
    }
    const all = Buffer.concat(parts);
    this.#left = all.subarray(bytes);
    return all.subarray(0, bytes);
  }
}
