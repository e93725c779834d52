// Owns locks in Consul: one session for each, a key that lives and dies with it, and the news of its loss.
// Must not tell a holder that it holds what another may have.
import { setTimeout as sleep } from 'node:timers/promises';
import type { ConsulClient } from './consul-client.ts';
import { readKeys, type KeysRead } from './consul-kv.ts';
import { ConsulSession } from './consul-session.ts';
import { StoreError } from './errors.ts';
import { encode, type Lock, type LockOptions } from './store.ts';
import { backOff, isPassing } from './watch.ts';

/** Pauses between attempts while the store is unavailable: a lock shall be taken soon after the store is back. */
const minPauseMs = 100;
const maxPauseMs = 2_000;
const waitSeconds = 55;
const blockingTimeoutMs = waitSeconds * 1000 * (1 + 1 / 16) + 10_000;

/** All locks of one store. */
export class ConsulLocks {
  readonly #client: ConsulClient;
  readonly #prefix: string;
  readonly #held = new Set<Held>();
  /** What is under way, and never rejects. */
  readonly #busy = new Set<Promise<unknown>>();

  constructor(client: ConsulClient, prefix: string) {
    this.#client = client;
    this.#prefix = prefix;
  }

  /** As {@link Store.lock}. */
  async lock(key: string, value: unknown, options: LockOptions): Promise<Lock> {
    this.#client.ready(options);
    const [op] = encode([{ op: 'set', key, value }]);
    const attempt = new Attempt(this.#client, this.#prefix + key, op?.op === 'set' ? op.json : '', options);
    const taking = this.#track(attempt.run());
    try {
      const { session, version } = await taking;
      const held = new Held(this.#client, { key, fullKey: this.#prefix + key, version }, session);
      this.#held.add(held);
      held.ended.addEventListener('abort', () => this.#held.delete(held), { once: true });
      return held;
    } catch (error) {
      // Not waited for: whoever aborts wants to go on.
      void this.#track(attempt.abandon());
      throw error;
    }
  }

  /** Gives up all of them, as far as Consul can be reached. The client refuses new requests already. */
  async close(): Promise<void> {
    for (const held of this.#held) void this.#track(held.surrender());
    while (this.#busy.size > 0) await Promise.all(this.#busy);
  }

  #track<T>(work: Promise<T>): Promise<T> {
    const done: Promise<unknown> = work.then(
      () => this.#busy.delete(done),
      () => this.#busy.delete(done),
    );
    this.#busy.add(done);
    return work;
  }
}

/** The way of one caller to the lock. Every turn looks at the key anew, so an attempt whose outcome is unknown does no harm. */
class Attempt {
  readonly #client: ConsulClient;
  readonly #key: string;
  readonly #json: string;
  readonly #options: LockOptions;
  #session: ConsulSession | undefined;
  /** Undefined: look at once. */
  #after: number | undefined;

  constructor(client: ConsulClient, key: string, json: string, options: LockOptions) {
    this.#client = client;
    this.#key = key;
    this.#json = json;
    this.#options = options;
  }

  async run(): Promise<{ session: ConsulSession; version: number }> {
    const { onError } = this.#options;
    let failures = 0;
    for (;;) {
      try {
        const held = await this.#turn();
        if (held) return held;
        failures = 0;
      } catch (error) {
        if (!isPassing(error)) throw error;
        const pauseMs = backOff(failures++, minPauseMs, maxPauseMs);
        onError?.(error, pauseMs);
        this.#after = undefined;
        await this.#pause(pauseMs);
      }
    }
  }

  /** Ends the session, if it can be reached; without us it ends by itself. Never rejects. */
  async abandon(): Promise<void> {
    await this.#session?.end({ closing: true }).catch(() => undefined);
  }

  async #turn(): Promise<{ session: ConsulSession; version: number } | undefined> {
    const { signal, takeOver = false } = this.#options;
    if (!this.#session || this.#session.lost.aborted) {
      this.#session = await ConsulSession.create(this.#client, this.#key, signal);
    }
    const session = this.#session;
    const { index, items } = await readLock(this.#client, this.#key, this.#after, signal);
    const [item] = items;
    const holder = item?.Session;
    this.#after = undefined;
    if (item && holder === session.id) return { session, version: item.ModifyIndex };
    if (holder === undefined) {
      if (!(await this.#acquire(session))) await this.#pause(backOff(0, minPauseMs, maxPauseMs));
    } else if (takeOver) {
      await ConsulSession.destroy(this.#client, holder, { signal });
    } else {
      this.#after = index;
    }
    return undefined;
  }

  /** Ends early when the signal aborts or the store is closed; the next request rejects then. */
  async #pause(ms: number): Promise<void> {
    const { signal } = this.#options;
    const { stopped } = this.#client;
    const either = signal ? AbortSignal.any([signal, stopped]) : stopped;
    await sleep(ms, undefined, { signal: either }).catch(() => undefined);
  }

  /** @returns whether it may be ours now */
  async #acquire(session: ConsulSession): Promise<boolean> {
    const answer = await this.#client.send(
      (consul, common) => {
        const options = { key: this.#key, value: this.#json, acquire: session.id, ...common };
        return consul.kv.set(options);
      },
      { signal: this.#options.signal },
    );
    if (answer.status !== 200) throw this.#client.unexpected(answer);
    return answer.body === true;
  }
}

class Held implements Lock {
  readonly key: string;
  readonly version: number;
  readonly #client: ConsulClient;
  readonly #fullKey: string;
  readonly #session: ConsulSession;
  readonly #lost = new AbortController();
  readonly #ended = new AbortController();
  #releasing: Promise<void> | undefined;

  constructor(
    client: ConsulClient,
    { key, fullKey, version }: { key: string; fullKey: string; version: number },
    session: ConsulSession,
  ) {
    this.key = key;
    this.version = version;
    this.#client = client;
    this.#fullKey = fullKey;
    this.#session = session;
    if (session.lost.aborted) this.#lose('its session ended');
    else
      session.lost.addEventListener('abort', () => this.#lose(String(session.lost.reason)), { once: true });
    void this.#watch();
  }

  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  /** Aborts when the lock is no longer ours, for whatever reason. */
  get ended(): AbortSignal {
    return this.#ended.signal;
  }

  release(): Promise<void> {
    this.#ended.abort();
    this.#releasing ??= this.#session.end({});
    return this.#releasing;
  }

  /** The store closes: as a loss, and with what can be done in a short time to let the next one have it. */
  async surrender(): Promise<void> {
    this.#lose('the store was closed');
    await this.#releasing?.catch(() => undefined);
  }

  #lose(why: string): void {
    if (this.#ended.signal.aborted) return;
    this.#ended.abort();
    this.#lost.abort(
      new StoreError('lost', `The lock ${this.key} is no longer ours: ${why}.`, { key: this.key }),
    );
    // Not waited for: if this fails, the session ends by itself.
    this.#releasing = this.#session.end({ closing: true });
    this.#releasing.catch(() => undefined);
  }

  async #watch(): Promise<void> {
    const { signal } = this.#ended;
    let after: number | undefined;
    let failures = 0;
    while (!signal.aborted) {
      try {
        const { index, items } = await readLock(this.#client, this.#fullKey, after, signal);
        failures = 0;
        after = after !== undefined && index < after ? undefined : index;
        if (items[0]?.Session !== this.#session.id) this.#lose('it was taken over, or deleted');
        else if (items[0].ModifyIndex !== this.version) this.#lose('its key was written by somebody');
      } catch {
        // As long as there is no answer, the session's own deadline decides.
        await sleep(backOff(failures++, minPauseMs, maxPauseMs), undefined, { signal }).catch(
          () => undefined,
        );
      }
    }
  }
}

function readLock(
  client: ConsulClient,
  key: string,
  after: number | undefined,
  signal: AbortSignal | undefined,
): Promise<KeysRead> {
  if (after === undefined) return readKeys(client, { key, consistent: true }, { signal });
  const query = { key, index: String(after), wait: `${waitSeconds}s` };
  return readKeys(client, query, { signal, timeoutMs: blockingTimeoutMs });
}
