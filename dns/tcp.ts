// Owns DNS over TCP: connections, messages with their length in front, and who is put out (RFC 7766).
// Must not know what is in a message.
import { createServer, type Server, type Socket } from 'node:net';

/** @returns what is sent back; undefined ends the connection */
export type Answerer = (message: Buffer, address: string) => Buffer | undefined | Promise<Buffer | undefined>;

/** For a whole question to come, and for the next one after an answer. */
const defaultIdleMs = 5_000;
const maxConnections = 256;
/** Of one address, so that one container cannot keep all others from asking. */
const maxConnectionsOfOne = 32;
/** A question with its OPT record, however padded, is far shorter; and there is one in a message. */
const maxQuestionBytes = 4_096;
/** Questions of one connection that wait for their answers; further ones are not read meanwhile. */
const maxWaiting = 16;
/** Of answers that are not fetched. */
const maxUnsentBytes = 256 * 1_024;

export interface TcpService {
  server: Server;
  /** Ends all connections at once. */
  close: () => Promise<void>;
}

/** @returns a server that does not listen yet */
export function createTcpService(
  answer: Answerer,
  onError: (error: Error) => void,
  idleMs = defaultIdleMs,
): TcpService {
  const connections = new Map<Socket, string>();
  // Whoever has ended its side after its last question still wants the answers.
  const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
    const address = socket.remoteAddress ?? '';
    const ofOne = connections.values().filter((other) => other === address);
    if ([...ofOne].length >= maxConnectionsOfOne) {
      socket.destroy();
      return;
    }
    connections.set(socket, address);
    socket.on('close', () => connections.delete(socket));
    socket.on('error', () => socket.destroy());
    new Connection(socket, (message) => answer(message, address), onError, idleMs);
  });
  server.maxConnections = maxConnections;
  return {
    server,
    close: async () => {
      for (const socket of connections.keys()) socket.destroy();
      if (!server.listening) return;
      const { promise, resolve } = Promise.withResolvers<undefined>();
      server.close(() => resolve(undefined));
      await promise;
    },
  };
}

class Connection {
  readonly #socket: Socket;
  readonly #answer: (message: Buffer) => ReturnType<Answerer>;
  readonly #onError: (error: Error) => void;
  #received: Buffer = Buffer.alloc(0);
  #waiting = 0;
  #ended = false;
  #timer: NodeJS.Timeout;

  constructor(
    socket: Socket,
    answer: (message: Buffer) => ReturnType<Answerer>,
    onError: (error: Error) => void,
    idleMs: number,
  ) {
    this.#socket = socket;
    this.#answer = answer;
    this.#onError = onError;
    // Not the socket's own time limit, which every single byte would put off.
    this.#timer = setTimeout(() => this.#expire(), idleMs);
    socket.on('close', () => clearTimeout(this.#timer));
    socket.on('data', (chunk: Buffer) => {
      this.#received = this.#received.length === 0 ? chunk : Buffer.concat([this.#received, chunk]);
      this.#read();
    });
    socket.on('end', () => {
      this.#ended = true;
      this.#read();
    });
  }

  #expire(): void {
    if (this.#waiting === 0) this.#socket.destroy();
    else this.#timer.refresh();
  }

  #read(): void {
    while (this.#waiting < maxWaiting && this.#received.length >= 2 && !this.#socket.destroyed) {
      const end = 2 + this.#received.readUInt16BE();
      if (end > 2 + maxQuestionBytes) {
        this.#socket.destroy();
        return;
      }
      if (this.#received.length < end) break;
      const message = this.#received.subarray(2, end);
      this.#received = this.#received.subarray(end);
      this.#timer.refresh();
      this.#take(message);
    }
    if (this.#waiting >= maxWaiting) this.#socket.pause();
    else if (this.#ended && this.#waiting === 0) this.#socket.end();
    else this.#socket.resume();
  }

  #take(message: Buffer): void {
    const answer = this.#answer(message);
    if (!(answer instanceof Promise)) {
      this.#send(answer);
      return;
    }
    this.#waiting += 1;
    answer
      .then(
        (later) => this.#send(later),
        (error: unknown) => {
          this.#onError(error as Error);
          this.#socket.destroy();
        },
      )
      .finally(() => {
        this.#waiting -= 1;
        if (!this.#socket.destroyed) this.#read();
      });
  }

  #send(answer: Buffer | undefined): void {
    if (this.#socket.destroyed) return;
    if (answer === undefined || this.#socket.writableLength > maxUnsentBytes) {
      this.#socket.destroy();
      return;
    }
    const length = Buffer.allocUnsafe(2);
    length.writeUInt16BE(answer.length);
    this.#socket.cork();
    this.#socket.write(length);
    this.#socket.write(answer);
    this.#socket.uncork();
    this.#timer.refresh();
  }
}
