// Owns the store of a single node: one SQLite file, durable at every acknowledged commit.
// Must not be opened by two processes: waiting readers are woken inside this process only.
import type { StatementSync } from 'node:sqlite';
import { Changes } from './changes.ts';
import { StoreError } from './errors.ts';
import { SqliteFile } from './sqlite.ts';
import {
  decodeValue,
  encode,
  type CommitResult,
  type EncodedOp,
  type Entry,
  type ListOptions,
  type Op,
  type ReadOptions,
  type Snapshot,
  type Store,
} from './store.ts';

const layout = {
  version: 1,
  schema: `
    CREATE TABLE IF NOT EXISTS entries (
      key     TEXT PRIMARY KEY,
      value   TEXT NOT NULL,
      version INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS counter (one INTEGER PRIMARY KEY CHECK (one = 1), value INTEGER NOT NULL) STRICT;
    INSERT OR IGNORE INTO counter VALUES (1, 0)`,
  whenEmptied: 'what Swarm and running containers hold is then taken over again',
};

/**
 * Opens, or creates with its directory, the store in `file`; `:memory:` gives one that is gone when closed.
 * @throws StoreError as {@link SqliteFile}
 */
export function openEmbedded(file: string): Store {
  return new EmbeddedStore(new SqliteFile(file, layout));
}

class EmbeddedStore implements Store {
  readonly #sqlite: SqliteFile;
  readonly #get: StatementSync;
  readonly #list: StatementSync;
  readonly #set: StatementSync;
  readonly #delete: StatementSync;
  readonly #readIndex: StatementSync;
  readonly #writeIndex: StatementSync;
  readonly #changes = new Changes();
  #open = true;

  constructor(sqlite: SqliteFile) {
    this.#sqlite = sqlite;
    const { db } = sqlite;
    this.#get = db.prepare('SELECT value, version FROM entries WHERE key = ?');
    this.#list = db.prepare(
      'SELECT key, value, version FROM entries WHERE key >= ? AND key < ? ORDER BY key',
    );
    this.#set = db.prepare('INSERT OR REPLACE INTO entries VALUES (?, ?, ?)');
    this.#delete = db.prepare('DELETE FROM entries WHERE key = ?');
    this.#readIndex = db.prepare('SELECT value FROM counter');
    this.#writeIndex = db.prepare('UPDATE counter SET value = ?');
  }

  // The methods are async although SQLite is not: the interface is, and a throw becomes a rejection.
  // eslint-disable-next-line @typescript-eslint/require-await
  async get(key: string, { signal }: ReadOptions = {}): Promise<Entry | undefined> {
    this.#assertOpen(signal);
    const row = this.#row(key);
    return row && { key, value: decodeValue(row.value), version: row.version };
  }

  async list(prefix: string, { after, signal }: ListOptions = {}): Promise<Snapshot> {
    this.#assertOpen(signal);
    if (after !== undefined) {
      await this.#changes.past(after, prefix, this.#index(), signal);
      this.#assertOpen(signal);
    }
    return this.#snapshot(prefix);
  }

  // eslint-disable-next-line @typescript-eslint/require-await
  async commit(ops: readonly Op[], { signal }: ReadOptions = {}): Promise<CommitResult> {
    this.#assertOpen(signal);
    const encoded = encode(ops);
    const changes: string[] = [];
    const result = this.#sqlite.transaction((): CommitResult => {
      const conflicts = encoded.filter((op) => this.#isStale(op)).map((op) => op.key);
      if (conflicts.length > 0) return { ok: false, conflicts };
      const index = this.#index();
      for (const op of encoded) if (this.#apply(op, index + 1)) changes.push(op.key);
      if (changes.length === 0) return { ok: true, index };
      this.#writeIndex.run(index + 1);
      return { ok: true, index: index + 1 };
    });
    if (result.ok && changes.length > 0) this.#changes.announce(changes, result.index);
    return result;
  }

  // Async, as with everything else of a store.
  // eslint-disable-next-line @typescript-eslint/require-await
  async close(): Promise<void> {
    if (!this.#open) return;
    this.#open = false;
    this.#changes.wakeAll();
    this.#sqlite.close();
  }

  #assertOpen(signal: AbortSignal | undefined): void {
    signal?.throwIfAborted();
    if (!this.#open) throw new StoreError('closed', `The store ${this.#sqlite.file} is closed.`);
  }

  #isStale(op: EncodedOp): boolean {
    if (op.version === undefined) return false;
    const actual = this.#row(op.key)?.version ?? 0;
    // Deleting what is not there succeeds: see Op.
    return actual !== op.version && !(op.op === 'delete' && actual === 0);
  }

  /** @returns whether the key changed */
  #apply(op: EncodedOp, index: number): boolean {
    if (op.op === 'check') return false;
    if (op.op === 'delete') return this.#delete.run(op.key).changes !== 0;
    if (this.#row(op.key)?.value === op.json) return false;
    this.#set.run(op.key, op.json, index);
    return true;
  }

  #snapshot(prefix: string): Snapshot {
    return this.#sqlite.translating(() => {
      const rows = this.#list.all(prefix, `${prefix}\u{10FFFF}`) as unknown as {
        key: string;
        value: string;
        version: number;
      }[];
      const entries = rows.map(({ key, value, version }) => ({ key, value: decodeValue(value), version }));
      return { index: this.#index(), entries };
    });
  }

  #row(key: string): { value: string; version: number } | undefined {
    return this.#sqlite.translating(() => this.#get.get(key)) as
      { value: string; version: number } | undefined;
  }

  #index(): number {
    return (this.#sqlite.translating(() => this.#readIndex.get()) as { value: number }).value;
  }
}
