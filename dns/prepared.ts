// Owns answers that are given again without a look at the question: the same bytes from the same asker get the same answer.
// Must not know what is in a question, nor when the names change: it is told.
import { headerBytes } from './writer.ts';

/** Kept at most; then all are forgotten and those that are asked for come back, which takes one look at each. */
const maxAnswers = 4_096;
/** Whoever asks in more words than this, or gets more, is unusual. */
const maxBytes = 1_232;

/** In an answer's flags. */
const truncated = 0x0200;
const addressRecordBytes = 16;
/** From the start of a record to its address. */
const dataAt = 12;
/** How a record with an address looks here: a pointer to the question's name, type A, class IN; TTL; four bytes. */
const addressRecord = { before: Buffer.from([0xc0, headerBytes, 0, 1, 0, 1]), length: Buffer.from([0, 4]) };

interface Prepared {
  message: Buffer;
  /** On the given clock, in milliseconds. */
  until: number;
  /** Where the addresses are, when all there is are addresses. */
  addresses: number;
  count: number;
}

export class PreparedAnswers {
  /** By who asks, and then by all that is asked but the id. */
  readonly #answers = new Map<string, Map<string, Prepared>>();
  readonly #now: () => number;
  readonly #random: () => number;
  #size = 0;

  /**
   * @param now a monotonic clock in milliseconds
   * @param random from 0 and below 1
   */
  constructor(now: () => number = () => performance.now(), random: () => number = Math.random) {
    this.#now = now;
    this.#random = random;
  }

  get size(): number {
    return this.#size;
  }

  /**
   * @param from the address it came from
   * @returns the answer, with the question's id and its addresses in another order, to be sent before the next call;
   * undefined when there is none
   */
  find(question: Buffer, from: string): Buffer | undefined {
    const ofAsker = this.#answers.get(from);
    if (ofAsker === undefined) return undefined;
    const key = question.toString('latin1', 2);
    const prepared = ofAsker.get(key);
    if (prepared === undefined) return undefined;
    const { message, until, count } = prepared;
    if (until !== Infinity && until <= this.#now()) {
      ofAsker.delete(key);
      this.#size -= 1;
      return undefined;
    }
    message[0] = question[0] ?? 0;
    message[1] = question[1] ?? 0;
    if (count > 1) this.#shuffle(prepared);
    return message;
  }

  /** @param keepMs for so many milliseconds; Infinity until {@link clear} */
  keep(question: Buffer, from: string, answer: Buffer, keepMs: number): void {
    if (keepMs <= 0 || question.length > maxBytes || answer.length > maxBytes) return;
    // Which of the addresses are left out shall be another choice each time.
    if ((answer.readUInt16BE(2) & truncated) !== 0) return;
    if (this.#size >= maxAnswers) this.clear();
    const key = question.toString('latin1', 2);
    let ofAsker = this.#answers.get(from);
    if (ofAsker === undefined) this.#answers.set(from, (ofAsker = new Map<string, Prepared>()));
    if (!ofAsker.has(key)) this.#size += 1;
    const until = keepMs === Infinity ? Infinity : this.#now() + keepMs;
    // A copy: the answer may be part of something larger, which would be kept with it.
    ofAsker.set(key, { message: Buffer.from(answer), until, ...addressesOf(answer) });
  }

  clear(): void {
    this.#answers.clear();
    this.#size = 0;
  }

  /** Swaps the first address with any of them: whoever takes the first one gets each equally often. */
  #shuffle({ message, addresses, count }: Prepared): void {
    const other = addresses + addressRecordBytes * Math.floor(this.#random() * count);
    for (let byte = dataAt; byte < addressRecordBytes; byte += 1) {
      const first = message[addresses + byte] ?? 0;
      message[addresses + byte] = message[other + byte] ?? 0;
      message[other + byte] = first;
    }
  }
}

function addressesOf(answer: Buffer): { addresses: number; count: number } {
  const none = { addresses: 0, count: 0 };
  const count = answer.readUInt16BE(6);
  if (count < 2) return none;
  let at = headerBytes;
  while (at < answer.length && answer[at] !== 0) at += 1 + (answer[at] ?? 0);
  const addresses = at + 5;
  for (let record = 0; record < count; record += 1) {
    const start = addresses + record * addressRecordBytes;
    const before = answer.subarray(start, start + addressRecord.before.length);
    const length = answer.subarray(start + dataAt - addressRecord.length.length, start + dataAt);
    const isAddress = before.equals(addressRecord.before) && length.equals(addressRecord.length);
    if (!isAddress || start + addressRecordBytes > answer.length) return none;
  }
  return { addresses, count };
}
