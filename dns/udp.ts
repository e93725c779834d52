// Owns DNS over UDP in the main thread: one socket, which gives prepared answers by itself and passes on all other questions,
// and which may leave the port to others (worker.ts) without a question lost.
// Must not know what is in a message.
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { isIPv6 } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { PreparedAnswers } from './prepared.ts';

export interface UdpServiceOptions {
  prepared: PreparedAnswers;
  /** With each question. */
  onQuestion: () => void;
  /** A question without a prepared answer. The buffer is the taker's. */
  onMiss: (question: Buffer, address: string, port: number) => void;
  onError: (error: Error) => void;
}

/** Sends an answer from the port. */
export type Send = (answer: Buffer, address: string, port: number) => void;

/** Where nobody is: the port for what is to be discarded (RFC 863). */
const nobody = 9;

/** What waits in a socket has been read after so many milliseconds. */
const leaveMs = 250;

export class UdpService {
  readonly #options: UdpServiceOptions;
  #socket: Socket | undefined;
  /** Answers for us while we have left. */
  #elsewhere: Send | undefined;

  constructor(options: UdpServiceOptions) {
    this.#options = options;
  }

  /** The port in use, while it listens. */
  get port(): number | undefined {
    return this.#socket?.address().port;
  }

  /**
   * @param port 0 for any that is free; others of this process may listen there too: the kernel spreads the askers
   * @throws Error as of bind(2)
   */
  async listen(port: number, address: string): Promise<void> {
    const socket = createSocket({
      type: isIPv6(address) ? 'udp6' : 'udp4',
      reusePort: true,
      // Answers go to addresses, never to names; Node would look up even those, and one turn later.
      lookup: (host, options, done) => done(null, host, options.family === 6 ? 6 : 4),
    });
    this.#socket = socket;
    socket.on('message', (message, from) => this.#receive(message, from.address, from.port));
    // Before bind(): with a look-up that takes no time, it is done at once.
    const listening = once(socket, 'listening');
    socket.bind({ port, address });
    await listening;
    socket.on('error', (error) => this.#options.onError(error));
    this.#elsewhere = undefined;
  }

  /**
   * Leaves the port to other sockets that listen there already; {@link listen} comes back.
   * @param elsewhere sends what is still to be answered here
   */
  async leave(elsewhere: Send): Promise<void> {
    const socket = this.#socket;
    if (socket === undefined) return;
    this.#socket = undefined;
    this.#elsewhere = elsewhere;
    // A connected socket gets nothing but from its peer, and what has come before can still be read. To close it at once
    // would throw that away.
    const connected = once(socket, 'connect');
    socket.connect(nobody, isIPv6(socket.address().address) ? '::1' : '127.0.0.1');
    await connected;
    await sleep(leaveMs, undefined, { ref: false });
    socket.close();
  }

  async close(): Promise<void> {
    const socket = this.#socket;
    if (socket === undefined) return;
    this.#socket = undefined;
    const closed = once(socket, 'close');
    socket.close();
    await closed;
  }

  send(answer: Buffer, address: string, port: number): void {
    // Nobody can be answered at port 0, and nobody waits once this is closed. Whether it arrives is the asker's to notice.
    if (port === 0) return;
    if (this.#elsewhere === undefined) this.#socket?.send(answer, port, address);
    else this.#elsewhere(answer, address, port);
  }

  #receive(question: Buffer, address: string, port: number): void {
    this.#options.onQuestion();
    const answer = this.#options.prepared.find(question, address);
    if (answer === undefined) this.#options.onMiss(question, address, port);
    else this.send(answer, address, port);
  }
}
