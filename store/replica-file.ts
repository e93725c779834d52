// Owns what a replica keeps on disk: the mirror, its own writes the store does not have yet, what others offered.
// Must not decide anything: it loads, and writes what it is given.
import type { StatementSync } from 'node:sqlite';
import { frozenEntry } from './replica-entries.ts';
import type { JournalEntry } from './replica-merge.ts';
import { SqliteFile } from './sqlite.ts';
import { decodeValue, type Entry } from './store.ts';

const layout = {
  version: 1,
  schema: `
    CREATE TABLE IF NOT EXISTS entries (
      key     TEXT PRIMARY KEY,
      value   TEXT NOT NULL,
      version INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS journal (
      key     TEXT PRIMARY KEY,
      base    INTEGER NOT NULL,
      value   TEXT,
      version INTEGER NOT NULL,
      at      INTEGER NOT NULL,
      earlier TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS offers (node TEXT PRIMARY KEY, payload TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID`,
  whenEmptied:
    'it is filled again from the shared store. Only what was written while that was away, and not yet replayed, is lost',
};

/** An entry or pending write of a key, or undefined to remove it. */
type Change<T> = readonly [key: string, now: T | undefined];

export interface Writes {
  /** Replaces the whole mirror, instead of changing entries of it. */
  wholly?: boolean;
  entries?: Iterable<Change<Entry>>;
  journal?: Iterable<Change<JournalEntry>>;
  offers?: Iterable<readonly [node: string, payload: unknown]>;
  /** `index`: of the store, up to which the mirror is complete. `version`: the last one given offline. */
  counters?: Partial<Record<Counter, number>>;
}
type Counter = 'index' | 'version';

export interface Content {
  /** By key. */
  entries: Entry[];
  /** By version. */
  journal: JournalEntry[];
  offers: { node: string; payload: unknown }[];
  /** `index` is absent before the first complete snapshot. */
  counters: Partial<Record<Counter, number>>;
}

export class ReplicaFile {
  readonly #sqlite: SqliteFile;
  readonly #statements: Record<
    | 'setEntry'
    | 'deleteEntry'
    | 'deleteEntries'
    | 'setPending'
    | 'deletePending'
    | 'setOffer'
    | 'deleteOffer'
    | 'setCounter',
    StatementSync
  >;

  /** @throws StoreError as {@link SqliteFile} */
  constructor(file: string) {
    this.#sqlite = new SqliteFile(file, layout);
    const { db } = this.#sqlite;
    this.#statements = {
      setEntry: db.prepare('INSERT OR REPLACE INTO entries VALUES (?, ?, ?)'),
      deleteEntry: db.prepare('DELETE FROM entries WHERE key = ?'),
      deleteEntries: db.prepare('DELETE FROM entries'),
      setPending: db.prepare('INSERT OR REPLACE INTO journal VALUES (?, ?, ?, ?, ?, ?)'),
      deletePending: db.prepare('DELETE FROM journal WHERE key = ?'),
      setOffer: db.prepare('INSERT OR REPLACE INTO offers VALUES (?, ?)'),
      deleteOffer: db.prepare('DELETE FROM offers WHERE node = ?'),
      setCounter: db.prepare('INSERT OR REPLACE INTO counters VALUES (?, ?)'),
    };
  }

  load(): Content {
    return this.#sqlite.translating(() => {
      const { db } = this.#sqlite;
      const rows = <T>(sql: string): T[] => db.prepare(sql).all() as unknown as T[];
      const entries = rows<{ key: string; value: string; version: number }>(
        'SELECT * FROM entries ORDER BY key',
      );
      const journal = rows<JournalEntry & { value: string | null; earlier: string }>(
        'SELECT * FROM journal ORDER BY version',
      );
      const offers = rows<{ node: string; payload: string }>('SELECT * FROM offers');
      const counters = rows<{ name: Counter; value: number }>('SELECT * FROM counters');
      return {
        entries: entries.map((row) => frozenEntry({ ...row, value: decodeValue(row.value) })),
        journal: journal.map((row) => ({
          ...row,
          value: row.value === null ? undefined : decodeValue(row.value),
          // What was a deletion cannot be told from the store's absence of the key, so it was not kept.
          earlier: JSON.parse(row.earlier) as unknown[],
        })),
        offers: offers.map(({ node, payload }) => ({ node, payload: decodeValue(payload) })),
        counters: Object.fromEntries(counters.map(({ name, value }) => [name, value])),
      };
    });
  }

  /**
   * All or nothing.
   * @param durable also over the loss of power. What is only a copy of the store needs no flush of the disk.
   */
  write(changes: Writes, { durable }: { durable: boolean }): void {
    const { setEntry, deleteEntry, deleteEntries, setPending, deletePending } = this.#statements;
    const { setOffer, deleteOffer, setCounter } = this.#statements;
    this.#sqlite.translating(() =>
      this.#sqlite.db.exec(`PRAGMA synchronous = ${durable ? 'FULL' : 'NORMAL'}`),
    );
    this.#sqlite.transaction(() => {
      if (changes.wholly) deleteEntries.run();
      for (const [key, now] of changes.entries ?? [])
        if (now) setEntry.run(key, JSON.stringify(now.value), now.version);
        else deleteEntry.run(key);
      for (const [key, now] of changes.journal ?? [])
        if (now) {
          const value = now.value === undefined ? null : JSON.stringify(now.value);
          setPending.run(key, now.base, value, now.version, now.at, JSON.stringify(now.earlier));
        } else deletePending.run(key);
      for (const [node, payload] of changes.offers ?? [])
        if (payload === undefined) deleteOffer.run(node);
        else setOffer.run(node, JSON.stringify(payload));
      for (const [name, value] of Object.entries(changes.counters ?? {})) setCounter.run(name, value);
    });
  }

  close(): void {
    this.#sqlite.close();
  }
}
