// Owns answers that are given again: how long, how many, and which go first.
// Must not know what is in them.
import type { KeptAnswer } from './foreign.ts';

export interface CacheLimits {
  entries: number;
  bytes: number;
}

interface Entry {
  answer: KeptAnswer;
  bytes: number;
  /** When it came, in milliseconds. */
  since: number;
}

/** Beside message and key: the entry itself and its places in the maps, roughly. */
const entryBytes = 200;

/** Answers by key; when there are too many, those go first that were not asked for the longest. */
export class AnswerCache {
  /** In the order in which they were asked for. */
  readonly #entries = new Map<string, Entry>();
  readonly #limits: CacheLimits;
  readonly #now: () => number;
  #bytes = 0;

  /** @param now a monotonic clock in milliseconds */
  constructor(limits: CacheLimits, now: () => number) {
    this.#limits = limits;
    this.#now = now;
  }

  get size(): number {
    return this.#entries.size;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** @returns the answer, and for how many milliseconds it has been kept */
  get(key: string): { answer: KeptAnswer; age: number } | undefined {
    const entry = this.#entries.get(key);
    if (entry === undefined) return undefined;
    const age = this.#now() - entry.since;
    if (age >= entry.answer.keep * 1_000) {
      this.#delete(key, entry);
      return undefined;
    }
    this.#entries.delete(key);
    this.#entries.set(key, entry);
    return { answer: entry.answer, age };
  }

  set(key: string, answer: KeptAnswer): void {
    const old = this.#entries.get(key);
    if (old !== undefined) this.#delete(key, old);
    if (answer.keep <= 0) return;
    const bytes = answer.message.length + answer.ttls.length * 8 + key.length * 2 + entryBytes;
    if (bytes > this.#limits.bytes) return;
    this.#entries.set(key, { answer, bytes, since: this.#now() });
    this.#bytes += bytes;
    for (const [oldest, entry] of this.#entries) {
      if (this.#entries.size <= this.#limits.entries && this.#bytes <= this.#limits.bytes) return;
      this.#delete(oldest, entry);
    }
  }

  #delete(key: string, entry: Entry): void {
    this.#entries.delete(key);
    this.#bytes -= entry.bytes;
  }
}
