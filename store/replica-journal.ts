// Owns this node's writes that the store does not have yet, in memory.
// Must not write them anywhere: replica-file.ts keeps them, replica.ts replays them.
import { frozenEntry } from './replica-entries.ts';
import type { JournalEntry } from './replica-merge.ts';
import type { Entry } from './store.ts';

export class Journal {
  readonly #pending = new Map<string, JournalEntry>();
  /** Made once, so that readers meet the same object each time. Absent: deleted. */
  readonly #entries = new Map<string, Entry>();
  /** Tells this run's revisions from those of the runs before. */
  readonly #run = Date.now().toString(36);
  #changes = 0;

  constructor(pending: readonly JournalEntry[]) {
    for (const each of pending) this.set(each);
  }

  get size(): number {
    return this.#pending.size;
  }

  get(key: string): JournalEntry | undefined {
    return this.#pending.get(key);
  }

  /** @returns the entry to be read, undefined if the key is deleted or nothing is pending */
  entry(key: string): Entry | undefined {
    return this.#entries.get(key);
  }

  /** In the order in which they were last written. */
  all(): JournalEntry[] {
    return [...this.#pending.values()].sort((a, b) => a.version - b.version);
  }

  set(pending: JournalEntry): void {
    const { key, value, version } = pending;
    this.#pending.set(key, pending);
    if (value === undefined) this.#entries.delete(key);
    else if (this.#entries.get(key)?.version !== version)
      this.#entries.set(key, frozenEntry({ key, value, version }));
    this.#changes++;
  }

  remove(key: string): void {
    this.#pending.delete(key);
    this.#entries.delete(key);
    this.#changes++;
  }

  /** Another one whenever something changed; '' if nothing is pending. */
  revision(): string {
    return this.size === 0 ? '' : `${this.#run}-${this.#changes}`;
  }
}
