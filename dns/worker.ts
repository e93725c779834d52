// Owns one worker thread of the name server: a socket of its own on the same port, and the answers it may give by itself.
// Must not decide what is answered: what it has no answer for it asks the main thread.
//
// It does nothing but wait for datagrams and answer them, and never comes back to an event loop: what a loop, a callback and
// an object for each datagram cost is more than the answer itself (docs/adr/0012-datagrams.md).
import { parentPort, receiveMessageOnPort, workerData, type MessagePort } from 'node:worker_threads';
import { Datagrams, type Descriptors } from './datagrams.ts';
import { PreparedAnswers } from './prepared.ts';

export interface WorkerSettings {
  port: number;
  /** IPv4. */
  address: string;
  /** One number, which counts what it was told: looked at before each batch of answers. */
  told: Int32Array;
}

export interface Answer {
  message: Uint8Array;
  address: string;
  port: number;
}

/** What the main thread tells. */
export type ToWorker =
  /** What to answer to one of its questions, if anything; and, with the question, for how long that may be given again. */
  | { kind: 'answer'; to?: Answer; keep?: { question: Uint8Array; keepMs: number } }
  /** A question that came in at another socket. */
  | { kind: 'send'; to: Answer }
  /** Nothing that was told is true any more. */
  | { kind: 'clear' }
  /** Others have the port: answer what has come in, and end. */
  | { kind: 'end' };

/** What a worker tells. */
export type FromWorker =
  /** What belongs to the main thread from now on, to ring and, when the thread has ended, to close. */
  | { kind: 'listening'; descriptors: Descriptors }
  | { kind: 'question'; question: Uint8Array; address: string; port: number }
  /** It has had little to do for a while. */
  | { kind: 'idle' };

/** Questions that the main thread has not looked at yet; more are dropped, as by a full socket. */
const maxPending = 256;
/** A worker with fewer questions than these in so many milliseconds is not worth its memory. */
const idleQuestions = 20_000;
const idleMs = 20_000;
/** A process that ends without a word to its threads waits until this one looks up. */
const longestWaitMs = 100;

class Answering {
  readonly #parent: MessagePort;
  readonly #told: Int32Array;
  readonly #datagrams: Datagrams;
  readonly #prepared = new PreparedAnswers();
  #heard = 0;
  #pending = 0;
  #questions = 0;
  #lookedAt = performance.now();
  #ending = false;

  constructor(parent: MessagePort, { port, address, told }: WorkerSettings) {
    this.#parent = parent;
    this.#told = told;
    this.#datagrams = new Datagrams(port, address);
    this.#tell({ kind: 'listening', descriptors: this.#datagrams.descriptors });
  }

  /** Returns when it was told to end. */
  run(): void {
    const datagrams = this.#datagrams;
    for (;;) {
      const count = datagrams.receive();
      // Before anything is answered that may have been true.
      this.#hear();
      this.#answer(count);
      if (count > 0) continue;
      if (this.#ending) break;
      datagrams.wait(longestWaitMs);
      this.#tellIfIdle();
    }
    datagrams.free();
  }

  #answer(count: number): void {
    const datagrams = this.#datagrams;
    this.#questions += count;
    for (let at = 0; at < count; at += 1) {
      const question = datagrams.message(at);
      const answer = this.#prepared.find(question, datagrams.address(at));
      if (answer !== undefined) datagrams.reply(at, answer);
      else if (this.#pending < maxPending) {
        this.#pending += 1;
        // A copy: the next datagram takes its place.
        const asked = new Uint8Array(question);
        this.#tell({
          kind: 'question',
          question: asked,
          address: datagrams.address(at),
          port: datagrams.port(at),
        });
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
      case 'clear':
        this.#prepared.clear();
        return;
      case 'end':
        this.#ending = true;
        this.#datagrams.leave();
        return;
      case 'send':
        this.#send(message.to);
        return;
      case 'answer': {
        this.#pending -= 1;
        const { to, keep } = message;
        if (to === undefined) return;
        this.#send(to);
        if (keep) this.#prepared.keep(buffer(keep.question), to.address, buffer(to.message), keep.keepMs);
      }
    }
  }

  #send({ message, address, port }: Answer): void {
    this.#datagrams.send(message, address, port);
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
