// Owns opening SQLite files of ours: one process at a time, sound before anything is written, errors in our words.
// Must not know what the tables hold.
import { mkdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { StoreError } from './errors.ts';

export interface SqliteLayout {
  /** Written into the file's header (PRAGMA user_version); a file with a greater one was made by a newer Causeway. */
  version: number;
  /** Statements that create what is not there yet. */
  schema: string;
  /** What follows when the file is moved away, for the user who has to decide it. A clause. */
  whenEmptied: string;
}

/** An open file, or `:memory:` for one that is gone when closed. Every method throws a {@link StoreError}. */
export class SqliteFile {
  readonly file: string;
  readonly db: DatabaseSync;
  readonly #layout: SqliteLayout;
  readonly #lock: DatabaseSync | undefined;

  /**
   * Opens the file, or creates it with its directory.
   * @throws StoreError `locked` if a process has it, `corrupt` if it is no store of ours or damaged,
   *   `unavailable` if it cannot be created or written
   */
  constructor(file: string, layout: SqliteLayout) {
    this.file = file;
    this.#layout = layout;
    if (file !== ':memory:') {
      makeDirectory(file);
      this.#lock = this.#takeLock();
    }
    try {
      this.db = this.translating(() => this.#openDatabase());
    } catch (error) {
      this.#lock?.close();
      throw error;
    }
  }

  /** Runs the body, and turns what SQLite throws into a {@link StoreError}. */
  translating<R>(body: () => R): R {
    try {
      return body();
    } catch (error) {
      throw error instanceof StoreError ? error : this.#translate(error);
    }
  }

  /** All that the body writes, or nothing of it if it throws. */
  transaction<R>(body: () => R): R {
    return this.translating(() => {
      this.db.exec('BEGIN IMMEDIATE');
      try {
        const result = body();
        this.db.exec('COMMIT');
        return result;
      } catch (error) {
        if (this.db.isTransaction) this.db.exec('ROLLBACK');
        throw error;
      }
    });
  }

  close(): void {
    this.db.close();
    this.#lock?.close();
  }

  /**
   * A second SQLite file next to the store, locked as long as we live: the kernel lets go of it however we die.
   * Locking the store itself would keep the sqlite3 command out, and with it whoever wants to look inside.
   */
  #takeLock(): DatabaseSync {
    const lock = this.translating(() => new DatabaseSync(`${this.file}.lock`, { timeout: 0 }));
    try {
      // Its journal would take room, and there is nothing to roll back.
      lock.exec('PRAGMA journal_mode = MEMORY; BEGIN EXCLUSIVE');
      return lock;
    } catch (cause) {
      lock.close();
      if (primaryCode(cause) !== sqlite.busy) throw this.#translate(cause);
      throw new StoreError(
        'locked',
        `The store ${this.file} is in use by another process. Only one plugin may use it: stop the other one, ` +
          'or give this one a state directory of its own.',
        { cause },
      );
    }
  }

  #openDatabase(): DatabaseSync {
    try {
      return this.#openLocking('NORMAL');
    } catch (error) {
      if (primaryCode(error) !== sqlite.ioError) throw error;
      // The index of the log is a file too, for which a full disk has no room. It is kept in memory where nobody else may look.
      return this.#openLocking('EXCLUSIVE');
    }
  }

  #openLocking(mode: 'NORMAL' | 'EXCLUSIVE'): DatabaseSync {
    const db = new DatabaseSync(this.file, { timeout: 1000 });
    try {
      db.exec(`PRAGMA locking_mode = ${mode}`);
      const found = this.#checkSound(db);
      // FULL: a commit is on the disk when it returns, not only in the kernel's cache; the loss of power counts too.
      db.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL');
      // What is as it should be is not written: that takes room too.
      if (found < this.#layout.version)
        db.exec(
          `BEGIN IMMEDIATE; ${this.#layout.schema}; PRAGMA user_version = ${this.#layout.version}; COMMIT`,
        );
      return db;
    } catch (error) {
      db.close();
      throw error;
    }
  }

  /** Before anything is written: a damaged or foreign file is left for a human to look at. @returns its layout */
  #checkSound(db: DatabaseSync): number {
    const found = (db.prepare('PRAGMA quick_check(1)').get() as { quick_check: string }).quick_check;
    if (found !== 'ok') throw this.#corrupt(found);
    const version = (db.prepare('PRAGMA user_version').get() as { user_version: number }).user_version;
    if (version > this.#layout.version)
      throw new StoreError(
        'corrupt',
        `The store ${this.file} has layout ${version}, this Causeway knows ${this.#layout.version}: it was written ` +
          'by a newer version. Install that version again, or move the file away to start empty. Nothing was changed.',
      );
    return version;
  }

  #translate(cause: unknown): unknown {
    const code = primaryCode(cause);
    if (code === undefined) return cause;
    if (code === sqlite.corrupt || code === sqlite.notADatabase) return this.#corrupt(text(cause), cause);
    return new StoreError(
      'unavailable',
      `The store ${this.file} cannot be used: ${text(cause)}. ` +
        'Check that the disk has room and the directory is writable.',
      { cause },
    );
  }

  #corrupt(why: string, cause?: unknown): StoreError {
    const { file } = this;
    return new StoreError(
      'corrupt',
      `The store ${file} is damaged: ${why}. Nothing was deleted. Recover it with ` +
        `"sqlite3 ${file} .recover", or move ${file}, ${file}-wal and ${file}-shm away to start empty: ` +
        `${this.#layout.whenEmptied}.`,
      { cause },
    );
  }
}

function makeDirectory(file: string): void {
  try {
    mkdirSync(dirname(file), { recursive: true, mode: 0o700 });
  } catch (cause) {
    throw new StoreError(
      'unavailable',
      `The directory of the store ${file} cannot be created: ${text(cause)}.`,
      { cause },
    );
  }
}

/** Primary result codes, https://sqlite.org/rescode.html */
const sqlite = { busy: 5, ioError: 10, corrupt: 11, notADatabase: 26 } as const;

/** An extended result code keeps the primary one in its lowest byte. */
function primaryCode(error: unknown): number | undefined {
  const code = error instanceof Error && 'errcode' in error ? error.errcode : undefined;
  return typeof code === 'number' ? code & 0xff : undefined;
}

function text(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
