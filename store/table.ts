// Owns records of one kind in the store: keys from ids, parsing at the edge, compare-and-set with retries.
// Must not know what the records mean, and never takes one it cannot read for one that is not there.
import { setTimeout as sleep } from 'node:timers/promises';
import * as z from 'zod';
import { MapCache, memoLast } from '../delta/list.ts';
import { StoreError } from './errors.ts';
import type { CommitOptions, Entry, Op, ReadOptions, Snapshot, Store } from './store.ts';
import { watch, type WatchOptions } from './watch.ts';

/** One record with the version to compare against. `id` is the key without the table's prefix. */
export interface Row<T> {
  id: string;
  value: T;
  version: number;
  /** The value is what could be read last: what the key holds now cannot be. */
  outdated?: true;
}

/**
 * The readable rows, and one error for each key that holds something else. Such a key is taken, not free. Where the
 * store keeps entries as long as they do not change (a replica does), rows and values are the same objects as in
 * the list before, and so is the list of them when none changed.
 */
export interface Rows<T> {
  index: number;
  rows: readonly Row<T>[];
  corrupt: readonly Corrupt[];
}

/** A key that holds something else. */
export interface Corrupt {
  id: string;
  version: number;
  error: StoreError;
  /** The key itself is none of this table's: it takes no record's place. */
  stray?: true;
}

/** What could be read last of keys that cannot be read now, for longer than a process lives. */
export interface Keepsake {
  /** @returns undefined when nothing is known of the key */
  recall(key: string): unknown;
  /** Takes the place of all that was kept of keys with this prefix. */
  keep(prefix: string, values: ReadonlyMap<string, unknown>): void;
}

export interface TableOptions<T> {
  /** The record as it is written, which the schema reads back; default: as it is. */
  stored?: (value: T) => unknown;
  /**
   * Lists have the last readable value of a key that cannot be read any more, as long as the key is there: a record of
   * a newer form, or a damaged one, takes nothing away from those who knew it. It is in `corrupt` all the same.
   */
  keepsake?: Keepsake;
  /** Whether a record may have this id; default: any. */
  isId?: (id: string) => boolean;
}

/** How often {@link Table.update} tries before it gives up with `conflict`. */
const maxTries = 20;

export class Table<T> {
  readonly #store: Store;
  readonly #schema: z.ZodType<T>;
  readonly #stored: (value: T) => unknown;
  readonly prefix: string;
  readonly #keepsake: Keepsake | undefined;
  readonly #isId: (id: string) => boolean;
  readonly #whole = this.#parsing();
  /** Of the last time that the table was listed whole. */
  #last: readonly Row<T>[] = [];
  /** Something is kept; an earlier life may have. */
  #keeps = true;

  /** @param prefix of every key of the table, ending in '/' */
  constructor(
    store: Store,
    prefix: string,
    schema: z.ZodType<T>,
    { stored = (value) => value, keepsake, isId = () => true }: TableOptions<T> = {},
  ) {
    this.#store = store;
    this.prefix = prefix;
    this.#schema = schema;
    this.#stored = stored;
    this.#keepsake = keepsake;
    this.#isId = isId;
  }

  key(id: string): string {
    return this.prefix + id;
  }

  /** @throws StoreError `corrupt` naming the key, if it holds something that is no such record */
  async get(id: string, options?: ReadOptions): Promise<Row<T> | undefined> {
    const entry = await this.#store.get(this.key(id), options);
    if (!entry) return undefined;
    const parsed = this.#parse(entry);
    if ('error' in parsed) throw parsed.error;
    return parsed;
  }

  /** @param under only ids that begin with it */
  async list(under = '', options?: ReadOptions): Promise<Rows<T>> {
    return this.#rows(await this.#store.list(this.prefix + under, options), under);
  }

  /** Ids only, of records readable or not: what is taken. Spares the parsing where there are many. */
  async ids(under = '', options?: ReadOptions): Promise<string[]> {
    const { entries } = await this.#store.list(this.prefix + under, options);
    return entries.map((entry) => this.#id(entry)).filter(this.#isId);
  }

  /** As {@link watch}, in rows. */
  async *watch(options: WatchOptions): AsyncGenerator<Rows<T>> {
    for await (const snapshot of watch(this.#store, this.prefix, options)) yield this.#rows(snapshot);
  }

  /** Writes whatever was there before. */
  async put(id: string, value: T, options?: CommitOptions): Promise<void> {
    await this.#store.commit([this.set(id, value)], options);
  }

  async delete(id: string, options?: CommitOptions): Promise<void> {
    await this.#store.commit([this.remove(id)], options);
  }

  /**
   * Reads, asks `change` for the new value and writes it if nobody else wrote in between, else starts over.
   * `change` must be pure: it may run more than once. It returns undefined to delete the record (or to leave it
   * absent), and the very object it was given to leave everything as it is.
   * @returns what is stored afterwards
   * @throws StoreError `conflict` after {@link maxTries} lost races, `corrupt` as {@link get}
   */
  async update(
    id: string,
    change: (current: T | undefined) => T | undefined,
    options?: CommitOptions,
  ): Promise<T | undefined> {
    for (let tries = 0; tries < maxTries; tries++) {
      const row = await this.get(id, options);
      const next = change(row?.value);
      if (next === row?.value) return next;
      const version = row?.version ?? 0;
      const op = next === undefined ? this.remove(id, version) : this.set(id, next, version);
      if ((await this.#store.commit([op], options)).ok) return next;
      // Losers of one race would meet again at the next without a pause of random length.
      await sleep(Math.random() * Math.min(100, 2 ** tries), undefined, { signal: options?.signal });
    }
    throw new StoreError(
      'conflict',
      `The record ${this.key(id)} changed ${maxTries} times while it was being updated.`,
      {
        key: this.key(id),
      },
    );
  }

  /** Operations on this table, to be committed together with others. */
  set(id: string, value: T, version?: number): Op {
    const stored = this.#stored(value);
    return { op: 'set', key: this.key(id), value: stored, ...(version === undefined ? {} : { version }) };
  }

  remove(id: string, version?: number): Op {
    return { op: 'delete', key: this.key(id), ...(version === undefined ? {} : { version }) };
  }

  check(id: string, version: number): Op {
    return { op: 'check', key: this.key(id), version };
  }

  #rows({ index, entries }: Snapshot, under = ''): Rows<T> {
    // What is listed whole is listed again and again.
    const { parse, split } = under === '' ? this.#whole : this.#parsing();
    const found = split(parse.of(entries));
    if (under === '') this.#remember(found);
    return { index, ...found };
  }

  /** Keeps what is outdated, when that has changed. */
  #remember({ rows, corrupt }: Pick<Rows<T>, 'rows' | 'corrupt'>): void {
    if (rows === this.#last) return;
    this.#last = rows;
    const outdated = corrupt.length === 0 ? [] : rows.filter((row) => row.outdated === true);
    if (outdated.length > 0 || this.#keeps)
      this.#keepsake?.keep(
        this.prefix,
        new Map(outdated.map(({ id, value }) => [this.key(id), this.#stored(value)])),
      );
    this.#keeps = outdated.length > 0;
  }

  /** What stands for a key that cannot be read: the same object for as long as it is so. */
  #outdatedRow({ id, version }: Corrupt, last: ReadonlyMap<string, Row<T>>): Row<T> | undefined {
    if (this.#keepsake === undefined) return undefined;
    const before = last.get(id);
    if (before?.outdated === true && before.version === version) return before;
    if (before !== undefined) return { id, value: before.value, version, outdated: true };
    const kept = this.#schema.safeParse(this.#keepsake.recall(this.key(id)));
    return kept.success ? { id, value: kept.data, version, outdated: true } : undefined;
  }

  #parsing() {
    return {
      parse: new MapCache((entry: Entry) => this.#parse(entry)),
      split: memoLast((parsed: readonly (Row<T> | Corrupt)[]) => {
        const corrupt = parsed.filter((row) => 'error' in row);
        // Usually there are none, and the list can stay as it is.
        if (corrupt.length === 0) return { rows: parsed as readonly Row<T>[], corrupt };
        const last = new Map(this.#last.map((row) => [row.id, row]));
        const rows = parsed.flatMap((row) => ('error' in row ? (this.#outdatedRow(row, last) ?? []) : row));
        return { rows, corrupt };
      }),
    };
  }

  #parse(entry: Entry): Row<T> | Corrupt {
    if (!this.#isId(this.#id(entry))) {
      const message = `The key ${entry.key} is none that Causeway writes. It was left as it is, and counts for nothing; delete it by hand.`;
      const error = new StoreError('corrupt', message, { key: entry.key });
      return { id: this.#id(entry), version: entry.version, error, stray: true };
    }
    const parsed = this.#schema.safeParse(entry.value);
    if (parsed.success) return { id: this.#id(entry), value: parsed.data, version: entry.version };
    const error = new StoreError(
      'corrupt',
      `The record ${entry.key} cannot be read (${z.prettifyError(parsed.error).replaceAll('\n', ' ')}). ` +
        'It was left as it is; correct or delete it by hand.',
      { key: entry.key, cause: parsed.error },
    );
    return { id: this.#id(entry), version: entry.version, error };
  }

  #id(entry: Entry): string {
    return entry.key.slice(this.prefix.length);
  }
}
