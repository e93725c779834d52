// Owns one worker thread of the name server: the sockets that were left to it, and the answers it may give by itself.
// Must not decide what is answered: what it has no answer for it asks the main thread.
//
// It does nothing but wait for datagrams and answer them, and never comes back to an event loop: what a loop, a callback and
// an object for each datagram cost is more than the answer itself (docs/adr/0012-datagrams.md).
import { parentPort, receiveMessageOnPort, workerData, type MessagePort } from 'node:worker_threads';
import { batch, Datagrams, type Descriptors } from './datagrams.ts';
import { PreparedAnswers } from './prepared.ts';

export interface WorkerSettings {
  /** One number, which counts what it was told: looked at before each batch of answers. */
  told: Int32Array;
}

/** Goes by the asker's socket. */
export interface Answer {
  message: Uint8Array;
  asker: string;
  address: string;
  port: number;
}

/** What the main thread tells. */
export type ToWorker =
  /** What comes in at this socket is this one's to answer, too. */
  | { kind: 'open'; asker: string; socket: number }
  /** And no more. */
  | { kind: 'shut'; asker: string; socket: number }
  /** What to answer to one of its questions, if anything; and, with the question, for how long that may be given again. */
  | { kind: 'answer'; to?: Answer; keep?: { question: Uint8Array; keepMs: number } }
  /** To a question that came in before the socket was left. */
  | { kind: 'send'; to: Answer }
  /** Nothing that was told is true any more. */
  | { kind: 'clear' }
  /** Others read the sockets: answer what was read, and end. */
  | { kind: 'end' };

/** What a worker tells. */
export type FromWorker =
  /** What belongs to the main thread from now on, to ring and, when the thread has ended, to close. */
  | { kind: 'listening'; descriptors: Descriptors }
  | { kind: 'question'; question: Uint8Array; asker: string; address: string; port: number }
  /** It does not use this socket any more. */
  | { kind: 'shut'; socket: number }
  /** It has had little to do for a while. */
  | { kind: 'idle' };

/** Questions that the main thread has not looked at yet; more are dropped, as by a full socket. */
const maxPending = 256;
/** A worker with fewer questions than these in so many milliseconds is not worth its memory. */
const idleQuestions = 20_000;
const idleMs = 20_000;
/** A process that ends without a word to its threads waits until this one looks up. */
const longestWaitMs = 100;
/** Full batches of one socket, while others may have something, too. */
const maxBatches = 4;

class Answering {
  readonly #parent: MessagePort;
  readonly #told: Int32Array;
  readonly #datagrams = new Datagrams();
  readonly #prepared = new PreparedAnswers();
  /** Whose each socket is, and the other way round. */
  readonly #askers = new Map<number, string>();
  readonly #sockets = new Map<string, number>();
  #heard = 0;
  #pending = 0;
  #questions = 0;
  #lookedAt = performance.now();
  #ending = false;

  constructor(parent: MessagePort, { told }: WorkerSettings) {
    this.#parent = parent;
    this.#told = told;
    this.#tell({ kind: 'listening', descriptors: this.#datagrams.descriptors });
  }

  /** Returns when it was told to end. */
  run(): void {
    const datagrams = this.#datagrams;
    while (!this.#ending) {
      const ready = datagrams.wait(longestWaitMs);
      this.#hear();
      for (const socket of ready) this.#serve(socket);
      this.#tellIfIdle();
    }
    datagrams.free();
  }

  #serve(socket: number): void {
    const datagrams = this.#datagrams;
    for (let batches = 0; batches < maxBatches; batches += 1) {
      // It may have been shut meanwhile.
      if (!this.#askers.has(socket)) return;
      const count = datagrams.receive(socket);
      // Before anything is answered that may have been true.
      this.#hear();
      const asker = this.#askers.get(socket);
      if (asker === undefined) return;
      this.#answer(count, asker);
      if (count < batch) return;
    }
  }

  #answer(count: number, asker: string): void {
    const datagrams = this.#datagrams;
    this.#questions += count;
    for (let at = 0; at < count; at += 1) {
      const question = datagrams.message(at);
      const answer = this.#prepared.find(question, asker);
      if (answer !== undefined) datagrams.reply(at, answer);
      else if (this.#pending < maxPending) {
        this.#pending += 1;
        // A copy: the next datagram takes its place.
        const asked = new Uint8Array(question);
        const [address, port] = [datagrams.address(at), datagrams.port(at)];
        this.#tell({ kind: 'question', question: asked, asker, address, port });
      }
    }
    datagrams.flush();
  }

  #hear(): void {
    const told = Atomics.load(this.#told, 0);
    if (told === this.#heard) return;
    this.#heard = told;
    for (;;) {
      const received = receiveMessageOnPort(this.#parent) as { message: ToWorker } | undefined;
      if (received === undefined) break;
      this.#take(received.message);
    }
    this.#datagrams.flush();
  }

  #take(message: ToWorker): void {
    switch (message.kind) {
      case 'open':
        this.#askers.set(message.socket, message.asker);
        this.#sockets.set(message.asker, message.socket);
        this.#datagrams.add(message.socket);
        return;
      case 'shut':
        this.#shut(message);
        return;
      case 'clear':
        this.#prepared.clear();
        return;
      case 'end':
        this.#ending = true;
        return;
      case 'send':
        this.#send(message.to);
        return;
      case 'answer': {
        this.#pending -= 1;
        const { to, keep } = message;
        if (to === undefined) return;
        this.#send(to);
        if (keep) this.#prepared.keep(buffer(keep.question), to.asker, buffer(to.message), keep.keepMs);
      }
    }
  }

  #shut({ asker, socket }: Extract<ToWorker, { kind: 'shut' }>): void {
    // What was answered by it goes by it.
    this.#datagrams.flush();
    this.#datagrams.remove(socket);
    this.#askers.delete(socket);
    if (this.#sockets.get(asker) === socket) this.#sockets.delete(asker);
    this.#tell({ kind: 'shut', socket });
  }

  #send({ message, asker, address, port }: Answer): void {
    const socket = this.#sockets.get(asker);
    if (socket !== undefined) this.#datagrams.send(socket, message, address, port);
  }

  #tellIfIdle(): void {
    const now = performance.now();
    if (now - this.#lookedAt < idleMs) return;
    this.#lookedAt = now;
    if (this.#questions < idleQuestions) this.#tell({ kind: 'idle' });
    this.#questions = 0;
  }

  #tell(message: FromWorker): void {
    this.#parent.postMessage(message);
  }
}

function buffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

if (parentPort === null) throw new Error('This runs as a worker thread only.');
new Answering(parentPort, workerData as WorkerSettings).run();
