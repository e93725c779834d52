// Owns asking another server by UDP and TCP: a socket for each question, from where the server is reached.
// Must not judge an answer but for whether it belongs to the question.
import { createSocket } from 'node:dgram';
import { connect, isIPv6, Socket } from 'node:net';
import type { Transport as Protocol } from './message.ts';

export interface Server {
  address: string;
  port: number;
  /**
   * Opens the socket that asks it, where it is not reached from this process's own network; for TCP it is connected.
   * @returns a descriptor
   */
  open?: (protocol: Protocol) => number;
}

/** How another server is asked. */
export interface Transport {
  /**
   * @param belongs whether a message is the answer; others are not looked at
   * @throws whatever goes wrong, and the signal's reason once it is aborted
   */
  exchange: (
    protocol: Protocol,
    question: Buffer,
    server: Server,
    belongs: (message: Buffer) => boolean,
    signal: AbortSignal,
  ) => Promise<Buffer>;
}

export const sockets: Transport = {
  exchange: (protocol, ...rest) => (protocol === 'udp' ? overUdp(...rest) : overTcp(...rest)),
};

type Exchange = Parameters<Transport['exchange']> extends [unknown, ...infer Rest] ? Rest : never;

/**
 * From a port of its own each time, which together with the id is what somebody who wants to answer in the server's place has
 * to guess (RFC 5452). The socket is connected: the kernel lets nobody else's datagrams in, and tells when nobody listens.
 */
async function overUdp(...[question, server, belongs, signal]: Exchange): Promise<Buffer> {
  signal.throwIfAborted();
  const socket = createSocket(isIPv6(server.address) ? 'udp6' : 'udp4');
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  const abort = (): void => reject(signal.reason as Error);
  signal.addEventListener('abort', abort, { once: true });
  socket.on('error', reject);
  socket.on('message', (message) => {
    if (belongs(message)) resolve(message);
  });
  socket.on('connect', () => socket.send(question));
  try {
    if (server.open !== undefined) socket.bind({ fd: server.open('udp') });
    socket.connect(server.port, server.address);
    return await promise;
  } finally {
    signal.removeEventListener('abort', abort);
    socket.close();
  }
}

async function overTcp(...[question, server, belongs, signal]: Exchange): Promise<Buffer> {
  signal.throwIfAborted();
  const socket =
    server.open === undefined
      ? connect({ port: server.port, host: server.address, signal, noDelay: true })
      : new Socket({ fd: server.open('tcp'), signal });
  const length = Buffer.alloc(2);
  length.writeUInt16BE(question.length);
  socket.write(Buffer.concat([length, question]));
  try {
    let received: Buffer = Buffer.alloc(0);
    for await (const chunk of socket as AsyncIterable<Buffer>) {
      received = received.length === 0 ? chunk : Buffer.concat([received, chunk]);
      while (received.length >= 2 && received.length >= 2 + received.readUInt16BE()) {
        const end = 2 + received.readUInt16BE();
        const message = received.subarray(2, end);
        if (belongs(message)) return message;
        received = received.subarray(end);
      }
    }
  } finally {
    socket.destroy();
  }
  throw new Error(`${server.address}:${server.port} ended the connection without an answer`);
}
