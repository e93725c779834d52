// Owns one worker thread of the name server: a socket of its own on the same port, and the answers it may give by itself.
// Must not decide what is answered: what it has no answer for goes to the main thread, which answers in its place.
import { parentPort, workerData } from 'node:worker_threads';
import { PreparedAnswers } from './prepared.ts';
import { UdpService } from './udp.ts';

export interface WorkerSettings {
  port: number;
  address: string;
}

/** What the main thread tells. */
export type ToWorker =
  /** One question was looked at, and perhaps its answer may be given again. */
  | { kind: 'done'; keep?: { question: Uint8Array; from: string; answer: Uint8Array; keepMs: number } }
  /** Nothing that was told is true any more. */
  | { kind: 'clear' };

/** What a worker tells. */
export type FromWorker =
  | { kind: 'question'; question: Uint8Array; address: string; port: number }
  /** It has had little to do for a while. */
  | { kind: 'idle' };

/** Questions that the main thread has not looked at yet; more are dropped, as by a full socket. */
const maxPending = 256;
/** A worker with fewer questions than these in so many milliseconds is not worth its memory. */
const idleQuestions = 20_000;
const idleMs = 20_000;

async function main(): Promise<void> {
  const parent = parentPort;
  if (parent === null) throw new Error('This runs as a worker thread only.');
  const { port, address } = workerData as WorkerSettings;
  const tell = (message: FromWorker): void => parent.postMessage(message);
  const prepared = new PreparedAnswers();
  let pending = 0;
  let questions = 0;
  const udp = new UdpService({
    prepared,
    onQuestion: () => (questions += 1),
    onMiss: (question, from, fromPort) => {
      if (pending >= maxPending) return;
      pending += 1;
      // A copy without what else the socket's buffer holds.
      tell({ kind: 'question', question: new Uint8Array(question), address: from, port: fromPort });
    },
    onError: (error) => {
      throw error;
    },
  });
  parent.on('message', (message: ToWorker) => {
    if (message.kind === 'clear') {
      prepared.clear();
      return;
    }
    pending -= 1;
    if (message.keep === undefined) return;
    const { question, from, answer, keepMs } = message.keep;
    prepared.keep(buffer(question), from, buffer(answer), keepMs);
  });
  await udp.listen(port, address);
  setInterval(() => {
    if (questions < idleQuestions) tell({ kind: 'idle' });
    questions = 0;
  }, idleMs);
}

function buffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

await main();
