// Owns how many worker threads answer beside the main thread: none while there is little to do, for each takes memory.
// Must not answer by itself.
import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import type { Reply } from './server.ts';
import type { FromWorker, ToWorker, WorkerSettings } from './worker.ts';

export interface WorkersOptions {
  /** At most. */
  threads: number;
  /** Answers a question that a worker could not. */
  answer: (question: Buffer, address: string, port: number) => Reply | undefined | Promise<Reply>;
  onError: (error: Error) => void;
}

/** From this many questions a second on, one thread is busy enough to be helped; it answers three times as many. */
const busyRate = 20_000;
/** How many in a row are measured together, and how often that has to be above the rate. */
const measured = 512;
const busyTimes = 4;
/** Each has its own copy of the answers. */
const maxThreads = 3;

/**
 * How many pay beside the main thread: those who ask need a processor, too. On two processors a second thread answered no
 * more questions than one alone, and made the slowest wait seven times as long (docs/performance.md).
 */
export const defaultThreads = Math.max(0, Math.min(maxThreads, availableParallelism() - 2));

/** The built plugin has both programs beside each other; from the sources it runs as it is. */
const program = new URL(
  import.meta.url.endsWith('.ts') ? './worker.ts' : './dns-worker.mjs',
  import.meta.url,
);

export class Workers {
  readonly #options: WorkersOptions;
  readonly #workers = new Set<Worker>();
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

  #start(settings: WorkerSettings): void {
    const worker = new Worker(program, {
      workerData: settings,
      resourceLimits: { maxYoungGenerationSizeMb: 4, maxOldGenerationSizeMb: 32 },
    });
    this.#workers.add(worker);
    worker.unref();
    worker.on('message', (message: FromWorker) => void this.#hear(worker, message));
    worker.on('error', (error) => this.#options.onError(error as Error));
    worker.on('exit', () => this.#workers.delete(worker));
  }

  async #hear(worker: Worker, message: FromWorker): Promise<void> {
    if (message.kind === 'idle') {
      await worker.terminate();
      return;
    }
    const { question, address, port } = message;
    const asked = Buffer.from(question.buffer, question.byteOffset, question.byteLength);
    const reply = await this.#options.answer(asked, address, port);
    if (reply === undefined || reply.keepMs <= 0) tell(worker, { kind: 'done' });
    else {
      const answer = new Uint8Array(reply.message);
      tell(worker, { kind: 'done', keep: { question, from: address, answer, keepMs: reply.keepMs } });
    }
  }
}

function tell(worker: Worker, message: ToWorker): void {
  worker.postMessage(message);
}
