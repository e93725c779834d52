// Owns making entries out of what Consul lists, cheaply when most of it is as it was the last time.
// Must not ask Consul.
import { decodeValue, type Entry } from './store.ts';

/** One key as the consul package hands it out with the option `buffer`. */
export interface Item {
  Key: string;
  ModifyIndex: number;
  /** Null: zero bytes. */
  Value: Buffer | null;
  /** The session that has it locked. */
  Session?: string;
}

interface Cached {
  entry: Entry;
  raw: Buffer;
}

/** Lists that are not asked for again are forgotten first. More than the tables a node watches. */
const maxLists = 64;
const nothing = Buffer.alloc(0);

/**
 * Remembers the entries of the last lists. A node reads a whole list at every change in it, and of thousands of entries
 * one is new: parsing all of them would be most of the work.
 */
export class EntryCache {
  readonly #lists = new Map<string, Map<string, Cached>>();

  /**
   * @param prefix what is cut off the keys
   * @param name of the list: the same name for the same query
   */
  list(prefix: string, name: string, items: readonly Item[]): Entry[] {
    const before = this.#lists.get(name);
    const now = new Map<string, Cached>();
    const entries = items.map((item) => {
      const cached = before?.get(item.Key);
      const raw = item.Value ?? nothing;
      // The bytes are compared too: a Consul that was set up anew counts its versions from the start.
      const same = cached?.entry.version === item.ModifyIndex && cached.raw.equals(raw);
      const entry = same ? cached.entry : parseItem(prefix, item);
      now.set(item.Key, same ? cached : { entry, raw });
      return entry;
    });
    this.#lists.delete(name);
    if (items.length > 0) this.#lists.set(name, now);
    for (const oldest of this.#lists.keys()) {
      if (this.#lists.size <= maxLists) break;
      this.#lists.delete(oldest);
    }
    return entries;
  }
}

/** @param prefix what is cut off the key */
export function parseItem(prefix: string, { Key, ModifyIndex, Value }: Item): Entry {
  return {
    key: Key.slice(prefix.length),
    value: decodeValue((Value ?? nothing).toString('utf8')),
    version: ModifyIndex,
  };
}
