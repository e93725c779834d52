// Owns one worker thread of the name server: a socket of its own on the same port, and the answers it may give by itself.
// Must not decide what is answered: what it has no answer for it asks the main thread.
import { parentPort, workerData } from 'node:worker_threads';
import { PreparedAnswers } from './prepared.ts';
import { UdpService } from './udp.ts';

export interface WorkerSettings {
  port: number;
  address: string;
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
  | { kind: 'clear' };

/** What a worker tells. */
export type FromWorker =
  | { kind: 'listening' }
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
    if (message.kind === 'answer') pending -= 1;
    if (message.to === undefined) return;
    const { to } = message;
    udp.send(buffer(to.message), to.address, to.port);
    if (message.kind === 'answer' && message.keep !== undefined)
      prepared.keep(buffer(message.keep.question), to.address, buffer(to.message), message.keep.keepMs);
  });
  await udp.listen(port, address);
  tell({ kind: 'listening' });
  setInterval(() => {
    if (questions < idleQuestions) tell({ kind: 'idle' });
    questions = 0;
  }, idleMs);
}

function buffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

await main();
