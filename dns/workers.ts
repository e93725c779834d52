// Owns how many worker threads answer in place of the main thread: none while there is little to do, for each takes memory.
// Must not answer by itself.
import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import type { Reply } from './server.ts';
import type { Answer, FromWorker, ToWorker, WorkerSettings } from './worker.ts';

export interface WorkersOptions {
  /** At most. */
  threads: number;
  /** Answers a question that a worker could not. */
  answer: (question: Buffer, address: string) => Reply | undefined | Promise<Reply>;
  /** All of them listen: the main thread may leave the port to them. */
  onReady: () => void;
  /** The last of them has ended, or will when this is done. @returns whether the main thread has the port again */
  onGone: () => Promise<boolean>;
  onError: (error: Error) => void;
}

/** From this many questions a second on, the main thread is busy enough; it could answer three times as many. */
const busyRate = 20_000;
/** How many in a row are measured together, and how often that has to be above the rate. */
const measured = 512;
const busyTimes = 4;
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

export class Workers {
  readonly #options: WorkersOptions;
  readonly #workers = new Set<Worker>();
  readonly #listening = new Set<Worker>();
  #settings: WorkerSettings | undefined;
  #questions = 0;
  #since = 0;
  #busy = 0;

  constructor(options: WorkersOptions) {
    this.#options = options;
  }

  get size(): number {
    return this.#workers.size;
  }

  /** From now on they may be started. */
  open(settings: WorkerSettings): void {
    this.#settings = settings;
  }

  async close(): Promise<void> {
    this.#settings = undefined;
    await Promise.all([...this.#workers].map((worker) => worker.terminate()));
  }

  /** To be called for each question that the main thread's own socket gets. */
  count(): void {
    this.#questions += 1;
    if (this.#questions % measured !== 0 || this.#workers.size > 0) return;
    const now = performance.now();
    this.#busy = (measured * 1_000) / (now - this.#since) >= busyRate ? this.#busy + 1 : 0;
    this.#since = now;
    if (this.#busy < busyTimes || this.#settings === undefined) return;
    this.#busy = 0;
    for (let thread = 0; thread < this.#options.threads; thread += 1) this.#start(this.#settings);
  }

  /** Makes them forget all answers: the names have changed. */
  clear(): void {
    for (const worker of this.#workers) tell(worker, { kind: 'clear' });
  }

  /** Has one of them send what the main thread answers to a question of its own, while it has no socket. */
  send(message: Buffer, address: string, port: number): void {
    const [worker] = this.#listening;
    if (worker !== undefined) tell(worker, { kind: 'send', to: answerOf(message, address, port) });
  }

  #start(settings: WorkerSettings): void {
    const worker = new Worker(program, {
      workerData: settings,
      // The young generation's is the process's own: its flags (config.json) come before a thread's limit.
      resourceLimits: { maxOldGenerationSizeMb: 32 },
    });
    this.#workers.add(worker);
    worker.unref();
    worker.on('message', (message: FromWorker) => void this.#hear(worker, message));
    worker.on('error', (error) => this.#options.onError(error as Error));
    worker.on('exit', () => {
      this.#workers.delete(worker);
      const listened = this.#listening.delete(worker);
      if (listened && this.#listening.size === 0 && this.#settings !== undefined) void this.#options.onGone();
    });
  }

  async #hear(worker: Worker, message: FromWorker): Promise<void> {
    switch (message.kind) {
      case 'listening':
        this.#listening.add(worker);
        if (this.#listening.size === this.#workers.size) this.#options.onReady();
        return;
      case 'idle':
        // One after the other; the last one's share comes back to the main thread before it ends.
        if (this.#listening.size === 1 && !(await this.#options.onGone())) return;
        this.#listening.delete(worker);
        await worker.terminate();
        return;
      case 'question':
        this.#ask(worker, message);
    }
  }

  #ask(worker: Worker, { question, address, port }: Extract<FromWorker, { kind: 'question' }>): void {
    const asked = Buffer.from(question.buffer, question.byteOffset, question.byteLength);
    const give = (reply: Reply | undefined): void => {
      if (reply === undefined) tell(worker, { kind: 'answer' });
      else {
        const keep = reply.keepMs > 0 ? { keep: { question, keepMs: reply.keepMs } } : {};
        tell(worker, { kind: 'answer', to: answerOf(reply.message, address, port), ...keep });
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

function tell(worker: Worker, message: ToWorker): void {
  worker.postMessage(message);
}
