// Owns the store of a cluster: Causeway's keys in Consul's KV, by its transactions and blocking queries.
// Must not take anything but an answer of Consul's for the contents: not silence, not another server, not a filter.
import { ConsulClient, type ConsulOptions, type RequestSettings } from './consul-client.ts';
import { EntryCache, parseItem } from './consul-entries.ts';
import { readKeys, transact, type KeysQuery, type KeysRead } from './consul-kv.ts';
import { ConsulLocks } from './consul-lock.ts';
import {
  encode,
  type CommitResult,
  type Entry,
  type ListOptions,
  type Lock,
  type LockOptions,
  type Op,
  type ReadOptions,
  type Snapshot,
  type SharedStore,
} from './store.ts';

export type { ConsulAddress, ConsulOptions } from './consul-client.ts';

const defaultPrefix = 'causeway/';

/** How long Consul lets a blocking query wait; it adds up to a sixteenth, so that not all come back at once. */
const waitSeconds = 55;
const blockingTimeoutMs = waitSeconds * 1000 * (1 + 1 / 16) + 10_000;

/**
 * A store in Consul. Nothing is connected until the first call, so this cannot fail.
 */
export function openConsul(options: ConsulOptions): SharedStore {
  return new ConsulStore(options);
}

class ConsulStore implements SharedStore {
  readonly #client: ConsulClient;
  readonly #prefix: string;
  readonly #cache = new EntryCache();
  readonly #locks: ConsulLocks;
  /** The greatest index seen: what a commit that sets nothing can say of its own. */
  #seen = 0;

  constructor(options: ConsulOptions) {
    this.#prefix = options.prefix ?? defaultPrefix;
    this.#client = new ConsulClient(options, this.#prefix);
    this.#locks = new ConsulLocks(this.#client, this.#prefix);
  }

  async get(key: string, { signal }: ReadOptions = {}): Promise<Entry | undefined> {
    const { items } = await this.#read({ key: this.#prefix + key, consistent: true }, { signal });
    return items[0] && parseItem(this.#prefix, items[0]);
  }

  async list(prefix: string, { after, signal }: ListOptions = {}): Promise<Snapshot> {
    const key = this.#prefix + prefix;
    // `consistent` has the leader ask its peers whether it still is one; a blocking query is followed by another.
    const query: Partial<KeysQuery> =
      after === undefined
        ? { consistent: true }
        : { index: String(Math.max(1, after)), wait: `${waitSeconds}s` };
    const timing = after === undefined ? {} : { timeoutMs: blockingTimeoutMs };
    const { index, items } = await this.#read({ key, recurse: true, ...query }, { signal, ...timing });
    if (items.length === 0) await this.#assertReadable(key, signal);
    return { index, entries: this.#cache.list(this.#prefix, key, items) };
  }

  async commit(ops: readonly Op[], { signal }: ReadOptions = {}): Promise<CommitResult> {
    this.#client.ready({ signal });
    const encoded = encode(ops);
    if (encoded.length === 0) return { ok: true, index: this.#seen };
    const result = await transact(this.#client, this.#prefix, encoded, { signal });
    if (!result.ok) return result;
    this.#seen = Math.max(this.#seen, result.index);
    return { ok: true, index: result.index || this.#seen };
  }

  lock(key: string, value: unknown, options: LockOptions = {}): Promise<Lock> {
    return this.#locks.lock(key, value, options);
  }

  async close(): Promise<void> {
    this.#client.stop();
    await this.#locks.close();
    this.#client.destroy();
  }

  async #read(query: KeysQuery, settings: RequestSettings): Promise<KeysRead> {
    const result = await readKeys(this.#client, query, settings);
    this.#seen = Math.max(this.#seen, result.index);
    return result;
  }

  /**
   * Consul leaves out of a list what the token may not read, without a word; of a single key it says so. An empty list
   * must not be taken for an empty store.
   */
  async #assertReadable(key: string, signal: AbortSignal | undefined): Promise<void> {
    await this.#read({ key: `${key}-`, consistent: true }, { signal });
  }
}
