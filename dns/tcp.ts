// Owns DNS over TCP: connections, messages with their length in front, and who is put out (RFC 7766).
// Must not know what is in a message.
import { createServer, type Server, type Socket } from 'node:net';

/** @returns what is sent back; undefined ends the connection */
export type Answerer = (message: Buffer) => Buffer | undefined | Promise<Buffer | undefined>;

/** For a whole question to come, and for the next one after an answer. */
const defaultIdleMs = 5_000;
/** Of all askers together. */
const maxConnections = 256;
const maxConnectionsOfOne = 32;
/** A question with its OPT record, however padded, is far shorter; and there is one in a message. */
const maxQuestionBytes = 4_096;
/** Questions of one connection that wait for their answers; further ones are not read meanwhile. */
const maxWaiting = 16;
/** Of answers that are not fetched. */
const maxUnsentBytes = 256 * 1_024;

/** Who has how many connections, so that nobody keeps others from asking. */
export class Connections {
  /** By asker, the oldest first. */
  readonly #open = new Map<string, Set<Socket>>();
  #count = 0;

  /** @returns whether it may stay; when there are too many, the one with the most gives up its oldest for another's */
  admit(asker: string, socket: Socket): boolean {
    const own = this.#open.get(asker) ?? new Set();
    if (own.size >= maxConnectionsOfOne) return false;
    if (this.#count >= maxConnections) {
      let most = own;
      for (const others of this.#open.values()) if (others.size > most.size) most = others;
      const [oldest] = most;
      if (most === own || oldest === undefined) return false;
      this.#forget(most, oldest);
      oldest.destroy();
    }
    this.#open.set(asker, own.add(socket));
    this.#count += 1;
    socket.once('close', () => {
      this.#forget(own, socket);
      if (own.size === 0 && this.#open.get(asker) === own) this.#open.delete(asker);
    });
    return true;
  }

  /** Ends all connections of one at once. */
  end(asker: string): void {
    for (const socket of this.#open.get(asker) ?? []) socket.destroy();
  }

  #forget(own: Set<Socket>, socket: Socket): void {
    if (own.delete(socket)) this.#count -= 1;
  }
}

export interface TcpServiceOptions {
  asker: string;
  connections: Connections;
  answer: Answerer;
  onError: (error: Error) => void;
  idleMs?: number;
}

export interface TcpService {
  server: Server;
  /** Ends all connections at once. */
  close: () => Promise<void>;
}

/** @returns a server that does not listen yet */
export function createTcpService({
  asker,
  connections,
  answer,
  onError,
  idleMs = defaultIdleMs,
}: TcpServiceOptions): TcpService {
  // Whoever has ended its side after its last question still wants the answers.
  const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
    socket.on('error', () => socket.destroy());
    if (!connections.admit(asker, socket)) {
      socket.destroy();
      return;
    }
    new Connection(socket, answer, onError, idleMs);
  });
  return {
    server,
    close: async () => {
      connections.end(asker);
      if (!server.listening) return;
      const { promise, resolve } = Promise.withResolvers<undefined>();
      server.close(() => resolve(undefined));
      await promise;
    },
  };
}

class Connection {
  readonly #socket: Socket;
  readonly #answer: Answerer;
  readonly #onError: (error: Error) => void;
  #received: Buffer = Buffer.alloc(0);
  #waiting = 0;
  #ended = false;
  #timer: NodeJS.Timeout;

  constructor(socket: Socket, answer: Answerer, onError: (error: Error) => void, idleMs: number) {
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
