// Owns asking other servers what is not ours: whom, how often, how long, and for whom an answer counts.
// Must not know which names are ours.
import { randomInt } from 'node:crypto';
import { AnswerCache } from './cache.ts';
import { answers, giveAnswer, isTruncated, keepAnswer, readAnswer, type KeptAnswer } from './foreign.ts';
import { flag, parseQuery, renderQuestion, responseFlags, type Query } from './message.ts';
import { Shares } from './shares.ts';
import { sockets, type Server, type Transport } from './transport.ts';
import { RCODE } from './types.ts';
import { headerBytes } from './writer.ts';

/** The servers that are asked on behalf of somebody. */
export interface Upstream {
  /** Askers with the same key get the same answers. */
  key: string;
  /** In the order in which they are asked. */
  addresses: readonly Server[];
}

/** An answer for one asker. */
export interface Given {
  /** With the query's id and spelling and without OPT record; SERVFAIL when there is none. */
  message: Buffer;
  /** For so many milliseconds it stays as it is: until its TTLs count down. */
  keepMs: number;
}

export interface Clock {
  /** Monotonic, in milliseconds. */
  now: () => number;
  /** Calls back once, after so many milliseconds. @returns forgets it */
  after: (milliseconds: number, callback: () => void) => () => void;
}

const systemClock: Clock = {
  now: () => performance.now(),
  after: (milliseconds, callback) => {
    const timer = setTimeout(callback, milliseconds);
    return () => clearTimeout(timer);
  },
};

export interface ForwarderOptions {
  clock?: Clock;
  transport?: Transport;
}

/** For UDP and, when an answer is truncated, TCP together. */
const tryMs = 1_500;
/** Together they end before resolvers in containers give up, after 5 s. */
const maxTries = 3;
/** Somebody who asks a single server asks it again: a datagram may be lost. */
const minTries = 2;

/** Different questions that are being asked at once, for all askers together: as many sockets. */
const maxFlights = 1_000;
const cacheLimits = { entries: 2_000, bytes: 8 * 1024 * 1024 };

/**
 * Asks other servers and remembers what they said.
 *
 * A question that comes back to this server while it is being asked waits for the same answer as the first, so it goes round
 * once and ends with the time limit: there can be no loop.
 */
export class Forwarder {
  readonly #clock: Clock;
  readonly #transport: Transport;
  readonly #cache: AnswerCache;
  readonly #flights = new Map<string, Promise<KeptAnswer | undefined>>();
  /** By upstream: a container that asks for much costs itself alone. */
  readonly #shares = new Shares(maxFlights);
  readonly #tries = new Set<AbortController>();
  #closed = false;

  constructor({ clock = systemClock, transport = sockets }: ForwarderOptions = {}) {
    this.#clock = clock;
    this.#transport = transport;
    this.#cache = new AnswerCache(cacheLimits, clock.now);
  }

  /**
   * @param query a query as it came; its OPT record is not passed on, but for the bit that asks for DNSSEC
   * @param signal ends the waiting, not the asking, for which others may wait too
   * @throws {TypeError} if this is no query, and the signal's reason
   */
  async ask(query: Buffer, upstream: Upstream, signal?: AbortSignal): Promise<Given> {
    signal?.throwIfAborted();
    const parsed = parseQuery(query);
    if (parsed.kind !== 'query') throw new TypeError('What is to be asked of another server is no query.');
    const key = keyOf(parsed.query, upstream);
    const kept = this.#cache.get(key);
    if (kept !== undefined) return give(kept.answer, parsed.query, kept.age);
    const answer = await unless(signal, this.#fly(key, parsed.query, upstream));
    return answer === undefined
      ? { message: failure(parsed.query), keepMs: 0 }
      : give(answer, parsed.query, 0);
  }

  /** Ends all waiting: what is being asked is answered with SERVFAIL. */
  close(): void {
    this.#closed = true;
    for (const controller of this.#tries) controller.abort(new Error('closed'));
  }

  #fly(key: string, query: Query, upstream: Upstream): Promise<KeptAnswer | undefined> {
    const same = this.#flights.get(key);
    if (same !== undefined) return same;
    if (!this.#shares.take(upstream.key)) return Promise.resolve(undefined);
    const flight = this.#askAll(query, upstream.addresses)
      .then((answer) => {
        if (answer !== undefined) this.#cache.set(key, answer);
        return answer;
      })
      .finally(() => {
        this.#flights.delete(key);
        this.#shares.give(upstream.key);
      });
    this.#flights.set(key, flight);
    return flight;
  }

  async #askAll(query: Query, servers: readonly Server[]): Promise<KeptAnswer | undefined> {
    const tries = Math.min(maxTries, Math.max(minTries, servers.length));
    let plain = false;
    for (let count = 0; count < tries && !this.#closed; count += 1) {
      const server = servers[count % servers.length];
      if (server === undefined) return undefined;
      const result = await this.#try(query, server, plain);
      if (typeof result === 'object') return result;
      // A server that does not know EDNS cannot read the question.
      plain = result === RCODE.FORMERR;
    }
    return undefined;
  }

  /** @returns an answer, or the code of one that is none, or undefined when there was none that could be read */
  async #try(query: Query, server: Server, plain: boolean): Promise<KeptAnswer | number | undefined> {
    const controller = new AbortController();
    this.#tries.add(controller);
    const cancel = this.#clock.after(tryMs, () => controller.abort(new Error('timeout')));
    const id = randomInt(0x1_0000);
    const question = renderQuestion(id, query, { plain });
    const belongs = (message: Buffer): boolean => answers(message, id, query);
    try {
      const ask = (protocol: 'udp' | 'tcp'): Promise<Buffer> =>
        this.#transport.exchange(protocol, question, server, belongs, controller.signal);
      let message = await ask('udp');
      if (isTruncated(message)) message = await ask('tcp');
      const answer = isTruncated(message) ? undefined : readAnswer(message);
      if (answer === undefined) return undefined;
      const isAnswer = answer.rcode === RCODE.NOERROR || answer.rcode === RCODE.NXDOMAIN;
      return isAnswer ? keepAnswer(query, answer) : answer.rcode;
    } catch {
      // Whatever it was: the next one is asked.
      return undefined;
    } finally {
      cancel();
      this.#tries.delete(controller);
    }
  }
}

/** @param age in milliseconds */
function give(answer: KeptAnswer, query: Query, age: number): Given {
  const seconds = Math.floor(age / 1_000);
  const unchanged = Math.min(seconds + 1, answer.keep) * 1_000 - age;
  return { message: giveAnswer(answer, query, seconds), keepMs: Math.max(0, unchanged) };
}

/** Answers differ by what is asked, of whom, and by whether signatures are wanted or left unchecked. */
function keyOf({ question, edns, checkingDisabled }: Query, { key }: Upstream): string {
  const wants = `${edns?.dnssecOk === true ? 'd' : ''}${checkingDisabled ? 'c' : ''}`;
  return `${question.name} ${question.type} ${question.class} ${wants} ${key}`;
}

function failure(query: Query): Buffer {
  const answer = Buffer.alloc(headerBytes + query.question.wire.length);
  answer.writeUInt16BE(query.id, 0);
  answer.writeUInt16BE(flag.response | responseFlags(query) | RCODE.SERVFAIL, 2);
  answer.writeUInt16BE(1, 4);
  query.question.wire.copy(answer, headerBytes);
  return answer;
}

async function unless<T>(signal: AbortSignal | undefined, promise: Promise<T>): Promise<T> {
  if (signal === undefined) return promise;
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const abort = (): void => reject(signal.reason as Error);
  signal.addEventListener('abort', abort, { once: true });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener('abort', abort);
  }
}
