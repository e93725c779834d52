// Owns entries in memory, ordered by key, so that a list costs what it returns.
// Must not know where they come from.
import type { Entry } from './store.ts';

export class SortedEntries {
  readonly #entries: Entry[] = [];

  get(key: string): Entry | undefined {
    const entry = this.#entries[this.#position(key)];
    return entry?.key === key ? entry : undefined;
  }

  /** Takes the place of an entry of the same key. Cheapest at the end: load in order. */
  put(entry: Entry): void {
    const at = this.#position(entry.key);
    this.#entries.splice(at, this.#entries[at]?.key === entry.key ? 1 : 0, entry);
  }

  remove(key: string): void {
    const at = this.#position(key);
    if (this.#entries[at]?.key === key) this.#entries.splice(at, 1);
  }

  /** A list of its own, of the very entries. */
  under(prefix: string): Entry[] {
    const start = this.#position(prefix);
    // Keys that begin with the prefix stand together, from the prefix itself on.
    const end = this.#first(start, (entry) => !entry.key.startsWith(prefix));
    return this.#entries.slice(start, end);
  }

  #position(key: string): number {
    return this.#first(0, (entry) => entry.key >= key);
  }

  /** The first place from `low` on that fulfils what, once fulfilled, all later ones fulfil. */
  #first(low: number, fulfils: (entry: Entry) => boolean): number {
    let high = this.#entries.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const entry = this.#entries[middle];
      if (entry && !fulfils(entry)) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** An entry to be handed out to many: frozen with all that is in it. */
export function frozenEntry({ key, value, version }: Entry): Entry {
  return Object.freeze({ key, value: freeze(value), version });
}

function freeze(value: unknown): unknown {
  // What is frozen was frozen here, with its contents.
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    for (const each of Object.values(value)) freeze(each);
    Object.freeze(value);
  }
  return value;
}
