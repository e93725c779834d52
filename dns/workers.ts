// Owns how many worker threads answer in place of the main thread: none while there is little to do, for each takes memory.
// Must not answer by itself.
import { closeSync, writeSync } from 'node:fs';
import { isIPv4 } from 'node:net';
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
  /** Answers a question that a worker could not. */
  answer: (question: Buffer, address: string) => Reply | undefined | Promise<Reply>;
  /** All of them listen: the main thread may leave the port to them. */
  onReady: () => void;
  /** The last of them has ended, or will when this is done. @returns whether the main thread has the port again */
  onGone: () => Promise<boolean>;
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

  constructor(settings: Omit<WorkerSettings, 'told'>) {
    this.worker = new Worker(program, {
      workerData: { ...settings, told: this.#told } satisfies WorkerSettings,
      // The young generation's is the process's own: its flags (config.json) come before a thread's limit.
      resourceLimits: { maxOldGenerationSizeMb: 32 },
    });
    this.worker.unref();
    this.ended = new Promise((resolve) => {
      this.worker.once('exit', () => {
        // However it ended: to a socket that nobody reads the kernel would go on to give questions.
        if (this.#descriptors !== undefined) {
          closeSync(this.#descriptors.socket);
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

  /** Resolves when it has answered what had come in, and has ended. */
  async end(): Promise<void> {
    this.tell({ kind: 'end' });
    await this.ended;
  }
}

export class Workers {
  readonly #options: WorkersOptions;
  readonly #workers = new Set<Thread>();
  readonly #listening = new Set<Thread>();
  #settings: Omit<WorkerSettings, 'told'> | undefined;
  /** What one thread could not do the next could not either. */
  #failed = false;
  #questions = 0;
  #since = 0;
  #busy = 0;

  constructor(options: WorkersOptions) {
    this.#options = options;
  }

  get size(): number {
    return this.#workers.size;
  }

  /** From now on they may be started, at an IPv4 address. */
  open(settings: Omit<WorkerSettings, 'told'>): void {
    if (isIPv4(settings.address)) this.#settings = settings;
  }

  async close(): Promise<void> {
    this.#settings = undefined;
    await Promise.all([...this.#workers].map((thread) => thread.end()));
  }

  /** To be called for each question that the main thread's own socket gets. */
  count(): void {
    this.#questions += 1;
    if (this.#questions % measured !== 0 || this.#workers.size > 0) return;
    const now = performance.now();
    const { busyRate = defaultBusyRate } = this.#options;
    this.#busy = (measured * 1_000) / (now - this.#since) >= busyRate ? this.#busy + 1 : 0;
    this.#since = now;
    if (this.#busy < busyTimes || this.#settings === undefined || this.#failed) return;
    this.#busy = 0;
    for (let thread = 0; thread < this.#options.threads; thread += 1) this.#start(this.#settings);
  }

  /** Makes them forget all answers: the names have changed. */
  clear(): void {
    for (const thread of this.#workers) thread.tell({ kind: 'clear' });
  }

  /** Has one of them send what the main thread answers to a question of its own, while it has no socket. */
  send(message: Buffer, address: string, port: number): void {
    const [thread] = this.#listening;
    thread?.tell({ kind: 'send', to: answerOf(message, address, port) });
  }

  #start(settings: Omit<WorkerSettings, 'told'>): void {
    const thread = new Thread(settings);
    this.#workers.add(thread);
    thread.worker.on('message', (message: FromWorker) => void this.#hear(thread, message));
    thread.worker.on('error', (error) => {
      this.#failed = true;
      this.#options.onError(error as Error);
    });
    void thread.ended.then(() => {
      this.#workers.delete(thread);
      const listened = this.#listening.delete(thread);
      if (listened && this.#listening.size === 0 && this.#settings !== undefined) void this.#options.onGone();
    });
  }

  async #hear(thread: Thread, message: FromWorker): Promise<void> {
    switch (message.kind) {
      case 'listening':
        thread.listens(message.descriptors);
        this.#listening.add(thread);
        if (this.#listening.size === this.#workers.size) this.#options.onReady();
        return;
      case 'idle':
        // One after the other; the last one's share comes back to the main thread before it ends.
        if (this.#listening.size === 1 && !(await this.#options.onGone())) return;
        this.#listening.delete(thread);
        await thread.end();
        return;
      case 'question':
        this.#ask(thread, message);
    }
  }

  #ask(thread: Thread, { question, address, port }: Extract<FromWorker, { kind: 'question' }>): void {
    const asked = Buffer.from(question.buffer, question.byteOffset, question.byteLength);
    const give = (reply: Reply | undefined): void => {
      if (reply === undefined) thread.tell({ kind: 'answer' });
      else {
        const keep = reply.keepMs > 0 ? { keep: { question, keepMs: reply.keepMs } } : {};
        thread.tell({ kind: 'answer', to: answerOf(reply.message, address, port), ...keep });
      }
    };
    const reply = this.#options.answer(asked, address);
    // One turn later, the names may have changed, and the worker been told to forget them.
    if (reply instanceof Promise) void reply.then(give);
    else give(reply);
  }
}

/** A copy, without what else is in the buffer. */
function answerOf(message: Buffer, address: string, port: number): Answer {
  return { message: new Uint8Array(message), address, port };
}
