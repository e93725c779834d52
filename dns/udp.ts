// Owns the UDP socket of one asker in the main thread, which gives prepared answers by itself and passes on all other questions,
// and which may be left to others (worker.ts) without a question lost.
// Must not know what is in a message.
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { duplicate } from './descriptor.ts';
import type { PreparedAnswers } from './prepared.ts';

export interface UdpServiceOptions {
  asker: string;
  prepared: PreparedAnswers;
  /** With each question. */
  onQuestion: () => void;
  /** A question without a prepared answer. The buffer is the taker's. */
  onMiss: (question: Buffer, address: string, port: number) => void;
  onError: (error: Error) => void;
}

export class UdpService {
  readonly #options: UdpServiceOptions;
  #socket: Socket | undefined;
  /** Of the socket, where it was opened by somebody else. */
  #descriptor: number | undefined;

  constructor(options: UdpServiceOptions) {
    this.#options = options;
  }

  /** The port in use, while it reads. */
  get port(): number | undefined {
    return this.#socket?.address().port;
  }

  /** Whether it reads what comes, rather than others. */
  get reads(): boolean {
    return this.#socket !== undefined;
  }

  /**
   * Opens a socket of its own.
   * @param port 0 for any that is free
   * @throws Error as of bind(2)
   */
  async listen(port: number, address: string): Promise<void> {
    const socket = this.#create();
    this.#socket = socket;
    // Before bind(): with a look-up that takes no time, it is done at once.
    const listening = once(socket, 'listening');
    socket.bind({ port, address });
    await listening;
    socket.on('error', (error) => this.#options.onError(error));
  }

  /**
   * Reads a socket that is there.
   * @param descriptor its own from now on
   * @throws when it is none
   */
  read(descriptor: number): void {
    const socket = this.#create();
    socket.on('error', (error) => this.#options.onError(error));
    socket.bind({ fd: descriptor });
    this.#socket = socket;
    this.#descriptor = descriptor;
  }

  /**
   * Leaves the socket that it reads to others. What comes waits in it until they read it.
   * @returns a descriptor of it, which is the caller's to close; undefined for a socket of its own, which stays
   */
  leave(): number | undefined {
    if (this.#socket === undefined || this.#descriptor === undefined) return undefined;
    const copy = duplicate(this.#descriptor);
    this.#socket.close();
    this.#socket = this.#descriptor = undefined;
    return copy;
  }

  close(): void {
    this.#socket?.close();
    this.#socket = this.#descriptor = undefined;
  }

  send(answer: Buffer, address: string, port: number): void {
    // Nobody can be answered at port 0, and nobody waits once this is closed. Whether it arrives is the asker's to notice.
    if (port !== 0) this.#socket?.send(answer, port, address);
  }

  #create(): Socket {
    const socket = createSocket({
      type: 'udp4',
      // Answers go to addresses, never to names; Node would look up even those, and one turn later.
      lookup: (host, _options, done) => done(null, host, 4),
    });
    socket.on('message', (message, from) => this.#receive(message, from.address, from.port));
    return socket;
  }

  #receive(question: Buffer, address: string, port: number): void {
    const { asker, prepared, onQuestion, onMiss } = this.#options;
    onQuestion();
    const answer = prepared.find(question, asker);
    if (answer === undefined) onMiss(question, address, port);
    else this.send(answer, address, port);
  }
}
