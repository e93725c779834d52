// Owns how many worker threads answer in place of the main thread: none while there is little to do, for each takes memory.
// Must not answer by itself.
import { closeSync, writeSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import type { Reply } from './server.ts';
import type { Descriptors } from './datagrams.ts';
import type { Answer, FromWorker, ToWorker, WorkerSettings } from './worker.ts';

export interface WorkersOptions {
  /** At most. */
  threads: number;
  /** Questions a second from which on they answer. */
  busyRate?: number | undefined;
  /** What a thread runs, if not the worker's own program. */
  program?: URL;
  /** Answers a question that a worker could not. */
  answer: (question: Buffer, asker: string) => Reply | undefined | Promise<Reply>;
  /** Sends an answer by the main thread's own socket, which it has again. */
  send: (message: Buffer, asker: string, address: string, port: number) => void;
  /** All of them listen: the main thread may leave its sockets to them, by {@link Workers.take}. */
  onReady: () => void;
  /** The last of them has ended, or will when this is done: the main thread has to read these sockets again, by asker. */
  onGone: (sockets: ReadonlyMap<string, number>) => void;
  onError: (error: Error) => void;
}

/** At this rate the main thread is busy enough; it could answer three times as many. */
const defaultBusyRate = 20_000;
/** How many in a row are measured together, and how often that has to be above the rate. */
const measured = 512;
const busyTimes = 4;
/** What is written to a bell: eventfd(2) takes a number of 64 bits. */
const ring = Buffer.from([1, 0, 0, 0, 0, 0, 0, 0]);
/** Each has its own copy of the answers. */
const maxThreads = 3;

/**
 * How many pay: those who ask need a processor, too. The main thread has other work, which makes who asks it wait, so even
 * one of them is better than none.
 */
export const defaultThreads = Math.max(1, Math.min(maxThreads, availableParallelism() - 1));

/** The built plugin has both programs beside each other; from the sources it runs as it is. */
const program = new URL(
  import.meta.url.endsWith('.ts') ? './worker.ts' : './dns-worker.mjs',
  import.meta.url,
);

/** A thread that hears what it is told between two batches of questions, and does not return to an event loop. */
class Thread {
  readonly worker: Worker;
  readonly ended: Promise<void>;
  readonly #told = new Int32Array(new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT));
  /** Absent until it listens. */
  #descriptors: Descriptors | undefined;

  constructor(file: URL) {
    this.worker = new Worker(file, {
      workerData: { told: this.#told } satisfies WorkerSettings,
      // The young generation's is the process's own: its flags (config.json) come before a thread's limit.
      resourceLimits: { maxOldGenerationSizeMb: 32 },
    });
    this.worker.unref();
    this.ended = new Promise((resolve) => {
      this.worker.once('exit', () => {
        if (this.#descriptors !== undefined) {
          closeSync(this.#descriptors.interest);
          closeSync(this.#descriptors.bell);
        }
        this.#descriptors = undefined;
        resolve();
      });
    });
  }

  listens(descriptors: Descriptors): void {
    this.#descriptors = descriptors;
  }

  tell(message: ToWorker): void {
    this.worker.postMessage(message);
    // The message first: it is looked for when this has changed.
    Atomics.add(this.#told, 0, 1);
    if (this.#descriptors !== undefined) writeSync(this.#descriptors.bell, ring);
  }

  /** Resolves when it has answered what it had read, and has ended. */
  async end(): Promise<void> {
    this.tell({ kind: 'end' });
    await this.ended;
  }
}

export class Workers {
  readonly #options: WorkersOptions;
  readonly #workers = new Set<Thread>();
  readonly #listening = new Set<Thread>();
  /** By asker, the sockets that were left to them. */
  readonly #sockets = new Map<string, number>();
  /** Sockets to be closed, once these do not use them any more. */
  readonly #users = new Map<number, Set<Thread>>();
  /** What one thread could not do the next could not either. */
  #failed = false;
  #closed = false;
  #ready = false;
  #questions = 0;
  #since = 0;
  #busy = 0;

  constructor(options: WorkersOptions) {
    this.#options = options;
  }

  get size(): number {
    return this.#workers.size;
  }

  /** Whether sockets may be left to them. */
  get ready(): boolean {
    return this.#ready;
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#ready = false;
    for (const asker of [...this.#sockets.keys()]) this.release(asker);
    await Promise.all([...this.#workers].map((thread) => thread.end()));
    this.#closed = false;
  }

  /** To be called for each question that the main thread's own sockets get. */
  count(): void {
    this.#questions += 1;
    if (this.#questions % measured !== 0 || this.#workers.size > 0) return;
    const now = performance.now();
    const { busyRate = defaultBusyRate } = this.#options;
    this.#busy = (measured * 1_000) / (now - this.#since) >= busyRate ? this.#busy + 1 : 0;
    this.#since = now;
    if (this.#busy < busyTimes || this.#closed || this.#failed) return;
    this.#busy = 0;
    for (let thread = 0; thread < this.#options.threads; thread += 1) this.#start();
  }

  /** Makes them forget all answers: the names have changed. */
  clear(): void {
    for (const thread of this.#workers) thread.tell({ kind: 'clear' });
  }

  /**
   * Leaves a socket to them while they are {@link ready}.
   * @param socket a descriptor, theirs from now on
   */
  take(asker: string, socket: number): void {
    this.#sockets.set(asker, socket);
    for (const thread of this.#listening) thread.tell({ kind: 'open', asker, socket });
  }

  /** Ends an asker's socket. @returns whether they had it */
  release(asker: string): boolean {
    const socket = this.#sockets.get(asker);
    if (socket === undefined) return false;
    this.#sockets.delete(asker);
    this.#closeAfter(socket, this.#listening);
    for (const thread of this.#listening) thread.tell({ kind: 'shut', asker, socket });
    return true;
  }

  /** Has one of them send what the main thread answers to a question of its own, when it has left the socket. */
  send(message: Buffer, asker: string, address: string, port: number): void {
    const [thread] = this.#listening;
    thread?.tell({ kind: 'send', to: answerOf(message, asker, address, port) });
  }

  #start(): void {
    const thread = new Thread(this.#options.program ?? program);
    this.#workers.add(thread);
    thread.worker.on('message', (message: FromWorker) => void this.#hear(thread, message));
    thread.worker.on('error', (error) => {
      this.#failed = true;
      this.#options.onError(error as Error);
    });
    void thread.ended.then(() => {
      this.#workers.delete(thread);
      if (this.#listening.delete(thread) && this.#listening.size === 0) this.#giveBack();
      for (const socket of this.#users.keys()) this.#leaves(thread, socket);
    });
  }

  async #hear(thread: Thread, message: FromWorker): Promise<void> {
    switch (message.kind) {
      case 'listening':
        thread.listens(message.descriptors);
        this.#listening.add(thread);
        if (this.#closed || this.#listening.size < this.#workers.size) return;
        this.#ready = true;
        this.#options.onReady();
        return;
      case 'idle':
        // One after the other; the last one's share comes back to the main thread before it ends.
        this.#listening.delete(thread);
        if (this.#listening.size === 0) this.#giveBack(thread);
        await thread.end();
        return;
      case 'shut':
        this.#leaves(thread, message.socket);
        return;
      case 'question':
        this.#ask(thread, message);
    }
  }

  /** @param last still uses them, until it has ended */
  #giveBack(last?: Thread): void {
    this.#ready = false;
    const sockets = new Map(this.#sockets);
    this.#sockets.clear();
    this.#options.onGone(sockets);
    for (const socket of sockets.values()) this.#closeAfter(socket, last === undefined ? [] : [last]);
  }

  #closeAfter(socket: number, users: Iterable<Thread>): void {
    const waitsFor = new Set(users);
    if (waitsFor.size === 0) closeSync(socket);
    else this.#users.set(socket, waitsFor);
  }

  #leaves(thread: Thread, socket: number): void {
    const users = this.#users.get(socket);
    if (users?.delete(thread) !== true || users.size > 0) return;
    this.#users.delete(socket);
    closeSync(socket);
  }

  #ask(thread: Thread, { question, asker, address, port }: Extract<FromWorker, { kind: 'question' }>): void {
    const asked = Buffer.from(question.buffer, question.byteOffset, question.byteLength);
    const give = (reply: Reply | undefined): void => {
      if (!this.#listening.has(thread)) {
        if (reply !== undefined) this.#options.send(reply.message, asker, address, port);
      } else if (reply === undefined) thread.tell({ kind: 'answer' });
      else {
        const keep = reply.keepMs > 0 ? { keep: { question, keepMs: reply.keepMs } } : {};
        thread.tell({ kind: 'answer', to: answerOf(reply.message, asker, address, port), ...keep });
      }
    };
    const reply = this.#options.answer(asked, asker);
    // One turn later, the names may have changed, and the worker been told to forget them.
    if (reply instanceof Promise) void reply.then(give);
    else give(reply);
  }
}

/** A copy, without what else is in the buffer. */
function answerOf(message: Buffer, asker: string, address: string, port: number): Answer {
  return { message: new Uint8Array(message), asker, address, port };
}
