// Owns the replica of a remote store on this node: reads from memory, writes that can wait, both over its absence.
// Must not decide who is right about a key: that is replica-merge.ts. The reasons are in docs/adr/0009-replica.md.
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { batches } from './batches.ts';
import { StoreError } from './errors.ts';
import { openAndLoad, openAnew } from './replica-disk.ts';
import type { Content, ReplicaFile, Writes } from './replica-file.ts';
import { Journal } from './replica-journal.ts';
import { Mirror } from './replica-mirror.ts';
import { parsePendingWrites, renderPendingWrites, type PendingWrites } from './replica-peer-writes.ts';
import { planReplay, coalesce, type JournalEntry } from './replica-merge.ts';
import { View } from './replica-view.ts';
import {
  decodeValue,
  encode,
  type CommitOptions,
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
import { backOff, isPassing, watch } from './watch.ts';

export interface ReplicaOptions {
  /** The shared store. It is the replica's from now on, and closed with it. */
  remote: SharedStore;
  /** Where the replica is kept, a SQLite file of its own. */
  file: string;
  /** Told of everything that failed and is tried again. For the log. */
  onError?: (error: unknown) => void;
  /** Told whenever {@link Replica.state} has changed. */
  onState?: (state: ReplicaState) => void;
  /** Told in words of what is wrong with the file, in spite of which it goes on. */
  onDisk?: (reason: string) => void;
  /** Told when the store has lost everything, and is being filled again. */
  onRefill?: () => void;
  /** Whether a store without {@link sentinelKey} is filled again, once that can be told: not with what is another cluster's. Default: yes. */
  mayRefill?: () => Promise<boolean>;
  /**
   * Told when a write of this node was dropped, because somebody else had written the key meanwhile.
   * @param ours undefined: deleted
   * @param theirs what stays; undefined: deleted
   */
  onConflict?: (key: string, ours: unknown, theirs: unknown) => void;
  /**
   * A key that is there for as long as the store keeps anything of ours. A store that has lost it was emptied or
   * replaced: it is filled again from what this node knows, rather than believed.
   */
  sentinelKey?: string;
  /** Keys that are not filled in again, because they say who holds something now. */
  ephemeral?: readonly string[];
  /** How long another node's entry outlives its withdrawal at most, in ms: until the store has shown it. */
  withdrawDelayMs?: number;
  /**
   * How long a write that can be done here waits for the remote, in ms. Well below the two seconds that Swarm gives the
   * balancers between deciding that a task ends and ending it: other nodes hear of it only after this.
   */
  offlineAfterMs?: number;
  /** How long a write that cannot be done here waits for what was done here to reach the remote, in ms. */
  graceMs?: number;
  /** First and longest pause between attempts to reach the remote, in ms. */
  minPauseMs?: number;
  maxPauseMs?: number;
}

export interface ReplicaState {
  /** The remote answers, and has everything that was written here. */
  connected: boolean;
  /** Since when `connected` is what it is, in ms since the epoch. */
  since: number;
  /** Keys written here that the remote does not have yet. */
  pending: number;
  /** The remote's, up to which this replica is complete. */
  index: number;
}

/** Keys that are in one of both only, or differ. All empty: the replica and the remote agree. */
export interface Difference {
  /** In the remote, not here. */
  missing: string[];
  /** Here, not in the remote. */
  extra: string[];
  different: string[];
}

export interface Replica extends SharedStore {
  /** Resolves once there is something to read: at once, if the file has a snapshot. Rejects if closed before. */
  readonly ready: Promise<void>;
  readonly state: ReplicaState;
  /** What this node wrote while the remote was away, for other nodes to {@link applyPeerWrites}. */
  readonly pendingWrites: {
    /** Another one whenever the contents changed; '' if there are none. */
    revision(): string;
    /** JSON. */
    read(): unknown;
  };
  /**
   * Shows the pending writes of another node as if they were in the store, in place of those of before.
   * @param payload of its `pendingWrites.read()`; undefined if it has none any longer
   * @throws StoreError `corrupt` if it cannot be read; those of before stay
   */
  applyPeerWrites(node: string, payload: unknown): void;
  /** Reads the remote afresh and compares. Changes that are on their way show up as differences: ask again. */
  compare(options?: ReadOptions): Promise<Difference>;
}

/** Versions given here are above all of a remote's (Raft indices, from 1 on), and still exact as JavaScript's numbers. */
const firstOwnVersion = 2 ** 52;

/**
 * Every change is told with all there is. While many follow each other several are taken together: so many milliseconds pass for
 * each entry, and so many at most, until the next one is asked for.
 */
const restPerEntryMs = 0.2;
const longestRestMs = 250;

/** How often a compare-and-set of the replica's own may be lost in sequence: a replay then pauses, a commit says so. */
const maxTries = 20;

/**
 * Opens the replica in `file`, creating it if need be. What the file has can be read at once, whether the remote
 * answers or not.
 * @throws StoreError `locked`
 */
// Async, so that a throw is a rejection, as with everything else of a store.
// eslint-disable-next-line @typescript-eslint/require-await
export async function openReplica(options: ReplicaOptions): Promise<Replica> {
  const { file, content } = openAndLoad(options.file, (reason) => options.onDisk?.(reason));
  return new ReplicaStore(options, file, content);
}

class ReplicaStore implements Replica {
  readonly #options: ReplicaOptions;
  readonly #remote: SharedStore;
  #file: ReplicaFile;
  readonly #mirror: Mirror;
  readonly #journal: Journal;
  readonly #view: View;
  /** The last version given here. */
  #version: number;
  /** There was a complete snapshot once. */
  #known: boolean;
  readonly #ready = Promise.withResolvers<undefined>();
  #connected = false;
  #since = Date.now();
  /** Why it is not connected. */
  #reason: unknown;
  /** Index of the last snapshot of the watch: a smaller one is of a store that was rebuilt. */
  #watched: number;
  /** The next snapshot of the watch is the first one after a silence. */
  #afresh = true;
  /** Something of the mirror could not be written to disk. */
  #unsaved = false;
  readonly #closing = new AbortController();
  /** Ends the watch, so that it begins anew. */
  #restart = new AbortController();
  readonly #following: Promise<void>;
  /** Resolves when something that was pending no longer is. */
  #advance = Promise.withResolvers<undefined>();
  /** The last look afresh that began, and the one that will begin after it. */
  #resyncing: Promise<unknown> = Promise.resolve();
  #nextResync: Promise<void> | undefined;

  constructor(options: ReplicaOptions, file: ReplicaFile, content: Content) {
    this.#options = options;
    this.#remote = options.remote;
    this.#file = file;
    const { entries, journal, offers, counters } = content;
    this.#mirror = new Mirror(entries, counters.index ?? 0);
    this.#journal = new Journal(journal);
    this.#version = counters.version ?? firstOwnVersion;
    this.#watched = this.#mirror.index;
    this.#known = counters.index !== undefined;
    // Nobody has to wait for it; without somebody who does, a rejection would end the process.
    this.#ready.promise.catch(() => undefined);
    if (this.#known) this.#ready.resolve(undefined);
    this.#view = new View(this.#mirror, this.#journal);
    for (const { node, payload } of offers) this.#recall(node, payload);
    this.#following = this.#follow();
  }

  get ready(): Promise<void> {
    return this.#ready.promise;
  }

  get state(): ReplicaState {
    const { size: pending } = this.#journal;
    return { connected: this.#connected, since: this.#since, pending, index: this.#mirror.index };
  }

  readonly pendingWrites = {
    revision: (): string => this.#journal.revision(),
    read: (): unknown => renderPendingWrites(this.#journal.all()),
  };

  async get(key: string, { signal, fresh = false }: ReadOptions = {}): Promise<Entry | undefined> {
    this.#assertReadable(signal);
    if (fresh) await this.#trackFailure(this.#resync());
    return this.#view.get(key);
  }

  async list(prefix: string, { after, signal, fresh = false }: ListOptions = {}): Promise<Snapshot> {
    this.#assertReadable(signal);
    if (fresh) await this.#trackFailure(this.#resync());
    if (after !== undefined) {
      await this.#view.past(after, prefix, signal);
      this.#assertReadable(signal);
    }
    return { index: this.#view.index, entries: this.#view.under(prefix) };
  }

  async commit(ops: readonly Op[], { signal, offline = false }: CommitOptions = {}): Promise<CommitResult> {
    this.#assertOpen(signal);
    const own = copied(ops);
    const mayWait = (): boolean => offline && this.#known;
    // Not to make every container wait until an absent store has timed out; and never past what waits already.
    if (mayWait() && (!this.#connected || this.#journal.size > 0)) return this.#commitHere(own);
    await this.#replayed(signal);
    for (let tries = 1; ; tries++) {
      const before = new Map(own.map(({ key }) => [key, this.#mirror.version(key)]));
      const sent = own.map((op) => this.#view.asRemote(op, mayWait()));
      let result: CommitResult;
      try {
        result = await this.#trackFailure(this.#send(sent, signal, mayWait()));
      } catch (error) {
        if (!isPassing(error) || !mayWait() || this.#closing.signal.aborted) throw error;
        return this.#commitHere(own);
      }
      if (result.ok) await this.#committed(sent, result.index, before);
      if (result.ok || this.#closing.signal.aborted) return result;
      const conflicts = new Set(result.conflicts);
      const isNews = sent.some(
        ({ key, version }) => conflicts.has(key) && version === this.#mirror.version(key),
      );
      // The whole store, not the keys alone: who reads a key anew expects what was written with it.
      if (isNews) await this.#trackFailure(this.#resync());
      if (tries === maxTries || own.some(({ key, version }) => conflicts.has(key) && version !== undefined))
        return result;
    }
  }

  async lock(key: string, value: unknown, options?: LockOptions): Promise<Lock> {
    this.#assertOpen(undefined);
    const ops = copied([{ op: 'set', key, value }]);
    const lock = await this.#remote.lock(key, value, options);
    const { version, lost } = lock;
    // The holder shall see itself in what it reads, and after the release that it is no more.
    await this.#committed(ops, version);
    const release = async (): Promise<void> => {
      await lock.release();
      await this.#committed([{ op: 'delete', key, version }], version);
    };
    return { key, version, lost, release };
  }

  applyPeerWrites(node: string, payload: unknown): void {
    this.#assertOpen(undefined);
    const pending =
      payload === undefined ? { v: 1 as const, entries: [] } : parsePendingWrites(node, payload);
    this.#absorb(node, pending);
    this.#save({ offers: [[node, payload]] });
  }

  async compare({ signal }: ReadOptions = {}): Promise<Difference> {
    this.#assertReadable(signal);
    const { entries } = await this.#remote.list('', { signal });
    const here = new Map(this.#view.under('').map(({ key, value }) => [key, value]));
    const difference: Difference = { missing: [], extra: [], different: [] };
    for (const { key, value } of entries) {
      if (!here.has(key)) difference.missing.push(key);
      else if (!isDeepStrictEqual(here.get(key), value)) difference.different.push(key);
      here.delete(key);
    }
    difference.extra.push(...here.keys());
    return difference;
  }

  async close(): Promise<void> {
    if (this.#closing.signal.aborted) return this.#following;
    const closed = new StoreError('closed', 'The replica of the shared store is closed.');
    this.#closing.abort(closed);
    this.#ready.reject(closed);
    this.#view.wakeAll();
    await this.#following;
    this.#file.close();
    await this.#remote.close();
  }

  #assertOpen(signal: AbortSignal | undefined): void {
    signal?.throwIfAborted();
    this.#closing.signal.throwIfAborted();
  }

  #assertReadable(signal: AbortSignal | undefined): void {
    this.#assertOpen(signal);
    if (!this.#known)
      throw new StoreError(
        'unavailable',
        `The shared store has not answered since this node was set up (${text(this.#reason)}), so nothing is known ` +
          'of its contents. Check that it runs and that its address in the settings is right.',
        { cause: this.#reason },
      );
  }

  #absorb(node: string, pending: PendingWrites): void {
    const withdrawn = this.#view.absorb(node, pending, () => ++this.#version);
    if (withdrawn.length === 0) return;
    setTimeout(() => {
      if (!this.#closing.signal.aborted) this.#view.drop(withdrawn);
    }, this.#options.withdrawDelayMs ?? 5_000).unref();
  }

  /** From the disk. What an older version of us wrote there is worth no refusal to start. */
  #recall(node: string, payload: unknown): void {
    try {
      this.#absorb(node, parsePendingWrites(node, payload));
    } catch (error) {
      this.#options.onError?.(error);
    }
  }

  // ---- Following the remote

  async #follow(): Promise<void> {
    const { minPauseMs = 250, maxPauseMs = 5_000 } = this.#options;
    const closing = this.#closing.signal;
    for (let failures = 0; !closing.aborted; failures++) {
      this.#restart = new AbortController();
      const options = {
        signal: AbortSignal.any([closing, this.#restart.signal]),
        onError: (error: unknown) => this.#silent(error),
        minPauseMs,
        maxPauseMs,
      };
      try {
        for await (const snapshot of watch(this.#remote, '', options)) {
          if (this.#hasLostAll(snapshot) && ((await this.#options.mayRefill?.()) ?? true)) {
            await this.#refill();
            // What comes next begins to count anew, whatever its index.
            this.#watched = Infinity;
            continue;
          }
          this.#watch(snapshot);
          await this.#replay();
          failures = 0;
          this.#setConnected(true);
          const rest = Math.min(restPerEntryMs * snapshot.entries.length, longestRestMs);
          await sleep(rest, undefined, { signal: options.signal }).catch(() => undefined);
        }
      } catch (error) {
        // Of whatever kind: also a failure of ours is no reason to go blind.
        this.#silent(error);
      }
      await sleep(backOff(failures, minPauseMs, maxPauseMs), undefined, { signal: closing }).catch(
        () => undefined,
      );
    }
  }

  #hasLostAll({ entries }: Snapshot): boolean {
    const { sentinelKey } = this.#options;
    if (sentinelKey === undefined || this.#mirror.get(sentinelKey) === undefined) return false;
    return !entries.some(({ key }) => key === sentinelKey);
  }

  /**
   * Puts back what is not there, and nothing over what is: all nodes do so at once, and each knows all. The sentinelKey comes
   * last, so that nobody takes a store for whole that is half filled.
   */
  async #refill(): Promise<void> {
    const { sentinelKey, ephemeral = [], onRefill } = this.#options;
    const signal = this.#closing.signal;
    onRefill?.();
    const last = [...this.#mirror.entries()].flatMap(([key, now]): Op[] =>
      now === undefined ? [] : [{ op: 'set', key, value: now.value, version: 0 }],
    );
    const first = last.filter(({ key }) => key !== sentinelKey && !ephemeral.includes(key));
    for (const ops of [...batches(first), last.filter(({ key }) => key === sentinelKey)]) {
      let rest = ops;
      for (;;) {
        const result = await this.#trackFailure(this.#remote.commit(rest, { signal }));
        if (result.ok) break;
        const taken = new Set(result.conflicts);
        rest = rest.filter(({ key }) => !taken.has(key));
      }
    }
  }

  #watch(snapshot: Snapshot): void {
    const rebuilt = snapshot.index < this.#watched;
    this.#watched = snapshot.index;
    this.#take(snapshot, { rebuilt, afresh: this.#afresh || rebuilt });
    this.#afresh = false;
  }

  #take(snapshot: Snapshot, how?: { rebuilt: boolean; afresh: boolean }): void {
    const changes = this.#mirror.snapshot(snapshot, how);
    if (changes.length > 0 || !this.#known)
      this.#save({ entries: changes, counters: { index: this.#mirror.index } });
    if (!this.#known) {
      this.#known = true;
      this.#ready.resolve(undefined);
    }
    this.#view.showMirror(changes.map(([key]) => key));
  }

  /** Brings the mirror to what the remote has now. */
  #resync(): Promise<void> {
    // A look that runs may have been answered already; the next one is shared by all who come until it begins.
    if (!this.#nextResync) {
      this.#nextResync = this.#resyncing.then(async () => {
        this.#nextResync = undefined;
        const snapshot = await this.#remote.list('', { signal: this.#closing.signal });
        this.#assertOpen(undefined);
        if (!this.#hasLostAll(snapshot)) this.#take(snapshot);
      });
      this.#resyncing = this.#nextResync.catch(() => undefined);
    }
    return this.#nextResync;
  }

  /** Shows what the remote has acknowledged. See {@link Mirror.commit}. */
  async #committed(ops: readonly Op[], index: number, before = new Map<string, number>()): Promise<void> {
    // The file is closed, and nobody reads here any longer.
    if (this.#closing.signal.aborted) return;
    const { changes, open } = this.#mirror.commit(ops, index, before);
    this.#save({ entries: changes });
    this.#view.showMirror(changes.map(([key]) => key));
    // The commit is done, whatever becomes of the look: the watch will bring what it would have.
    if (open) await this.#trackFailure(this.#resync()).catch(() => undefined);
  }

  /** @param impatient give up early, because there is another way */
  async #send(
    ops: readonly Op[],
    signal: AbortSignal | undefined,
    impatient: boolean,
  ): Promise<CommitResult> {
    if (!impatient) return this.#remote.commit(ops, { signal });
    const { offlineAfterMs = 500 } = this.#options;
    const giveUp = new AbortController();
    const timer = setTimeout(() => {
      giveUp.abort(
        new StoreError(
          'unavailable',
          `The shared store has not answered a write within ${offlineAfterMs} ms.`,
        ),
      );
    }, offlineAfterMs);
    const signals = signal ? [signal, giveUp.signal] : [giveUp.signal];
    return this.#remote.commit(ops, { signal: AbortSignal.any(signals) }).finally(() => clearTimeout(timer));
  }

  /** After a failed request the watch may still be blocked on a dead connection: it is restarted. */
  async #trackFailure<R>(answer: Promise<R>): Promise<R> {
    try {
      return await answer;
    } catch (error) {
      if (isPassing(error)) {
        this.#silent(error);
        this.#restart.abort();
      }
      throw error;
    }
  }

  #silent(error: unknown): void {
    if (this.#closing.signal.aborted) return;
    this.#afresh = true;
    this.#reason = error;
    this.#options.onError?.(error);
    this.#setConnected(false);
  }

  #setConnected(connected: boolean): void {
    if (this.#connected === connected) return;
    this.#connected = connected;
    this.#since = Date.now();
    this.#options.onState?.(this.state);
  }

  /** Writes what is only a copy. It can be had again, so a full disk does not stop the node. */
  #save(writes: Writes): void {
    try {
      const all = this.#unsaved ? { wholly: true, entries: this.#mirror.entries() } : {};
      this.#file.write({ ...writes, ...all }, { durable: false });
      this.#unsaved = false;
    } catch (error) {
      if (!this.#unsaved)
        this.#options.onDisk?.(`the copy of the shared store is not kept on disk any more: ${text(error)}`);
      this.#unsaved = true;
    }
  }

  /** What is no longer pending must not be found on disk again: it would be replayed over what was written since. */
  #forget(journal: readonly (readonly [key: string, now: JournalEntry | undefined])[]): void {
    try {
      // Durably: one that came back after the loss of power would be replayed, too.
      this.#file.write({ journal }, { durable: true });
    } catch {
      const gone = new Map(journal);
      const left = this.#journal.all().filter(({ key }) => !gone.has(key));
      const changed = [...gone].filter(([, now]) => now !== undefined);
      this.#file.close();
      this.#file = openAnew(this.#options.file, (reason) => this.#options.onDisk?.(reason));
      this.#unsaved = true;
      this.#save({
        journal: [...left.map((each) => [each.key, each] as const), ...changed],
        counters: { index: this.#mirror.index, version: this.#version },
      });
    }
  }

  // ---- Writing while the remote is away

  /** Checks against the view, applies to it, and leaves the rest to the replay. */
  #commitHere(ops: readonly Op[]): CommitResult {
    const conflicts = ops.filter((op) => this.#isStale(op)).map(({ key }) => key);
    if (conflicts.length > 0) return { ok: false, conflicts };
    const version = this.#version + 1;
    const at = Date.now();
    const pending = ops.flatMap((op) => {
      const value = op.op === 'set' ? op.value : undefined;
      if (op.op === 'check' || isDeepStrictEqual(this.#view.get(op.key)?.value, value)) return [];
      const { key } = op;
      return [coalesce(this.#journal.get(key), { key, base: this.#mirror.version(key), value, version, at })];
    });
    if (pending.length === 0) return { ok: true, index: this.#view.index };
    this.#file.write(
      { journal: pending.map((each) => [each.key, each]), counters: { version } },
      { durable: true },
    );
    this.#version = version;
    for (const each of pending) this.#journal.set(each);
    this.#view.show(pending.map(({ key }) => key));
    this.#options.onState?.(this.state);
    return { ok: true, index: version };
  }

  #isStale(op: Op): boolean {
    if (op.version === undefined) return false;
    const actual = this.#view.get(op.key)?.version ?? 0;
    // Deleting what is not there succeeds: see Op.
    return actual !== op.version && !(op.op === 'delete' && actual === 0);
  }

  /** Resolves once nothing is pending. A write must not get ahead of those that wait; for a slow store, it does too. */
  async #replayed(signal: AbortSignal | undefined): Promise<void> {
    if (this.#journal.size > 0) {
      const { graceMs = 3_000 } = this.#options;
      const ends = AbortSignal.any([
        this.#closing.signal,
        AbortSignal.timeout(graceMs),
        ...(signal ? [signal] : []),
      ]);
      while (this.#journal.size > 0 && !ends.aborted) await settledOr(ends, this.#advance.promise);
    }
    this.#assertOpen(signal);
    if (this.#journal.size === 0) return;
    throw new StoreError(
      'unavailable',
      `The shared store cannot be written: ${text(this.#reason)}. ${this.#journal.size} keys that were written ` +
        'meanwhile wait for its return.',
      { cause: this.#reason },
    );
  }

  /** Brings everything pending to the remote. The mirror must be of now. */
  async #replay(): Promise<void> {
    for (let tries = 0; this.#journal.size > 0; tries++) {
      if (await this.#replaySome()) tries = 0;
      else if (tries >= maxTries)
        throw new StoreError('conflict', `What was written meanwhile changed ${tries} times during replay.`);
      else await this.#resync();
    }
  }

  /** @returns false if somebody else was faster: look afresh and try again */
  async #replaySome(): Promise<boolean> {
    const { done, lost, writes } = planReplay(
      this.#journal.all(),
      (key) => this.#mirror.get(key),
      (key) => this.#view.overruledAt(key),
    );
    this.#dropPending([...done, ...lost.map(({ pending }) => pending)]);
    for (const { pending, theirs } of lost)
      this.#options.onConflict?.(pending.key, pending.value, theirs?.value);
    if (writes.length === 0) return true;
    const ops = writes.map(({ op }) => op);
    const before = new Map(ops.map(({ key }) => [key, this.#mirror.version(key)]));
    const result = await this.#remote.commit(ops, { signal: this.#closing.signal });
    this.#assertOpen(undefined);
    if (!result.ok) return false;
    // The mirror first: the view shows the pending entry until it is dropped, then the same value below it.
    const { changes } = this.#mirror.commit(ops, result.index, before);
    this.#save({ entries: changes });
    this.#dropPending(writes.map(({ pending }) => pending));
    return true;
  }

  /** Forgets what the remote has or shall not have, unless it was written again meanwhile. */
  #dropPending(pending: readonly JournalEntry[]): void {
    if (pending.length === 0) return;
    const journal = pending.map(({ key, version }) => {
      const now = this.#journal.get(key);
      if (!now || now.version === version) return [key, undefined] as const;
      return [key, { ...now, base: this.#mirror.version(key) }] as const;
    });
    this.#forget(journal);
    for (const [key, now] of journal)
      if (now) this.#journal.set(now);
      else this.#journal.remove(key);
    this.#advance.resolve(undefined);
    this.#advance = Promise.withResolvers();
    this.#view.showMirror(journal.map(([key]) => key));
    this.#options.onState?.(this.state);
  }
}

/** Checked, and with values that are nobody else's. */
function copied(ops: readonly Op[]): Op[] {
  return encode(ops).map((op): Op => {
    if (op.op === 'check') return op;
    const version = op.version === undefined ? {} : { version: op.version };
    if (op.op === 'delete') return { op: op.op, key: op.key, ...version };
    return { op: op.op, key: op.key, value: decodeValue(op.json), ...version };
  });
}

async function settledOr(signal: AbortSignal, promise: Promise<unknown>): Promise<void> {
  const aborted = Promise.withResolvers<undefined>();
  const abort = (): void => aborted.resolve(undefined);
  signal.addEventListener('abort', abort, { once: true });
  await Promise.race([promise, aborted.promise]).finally(() => signal.removeEventListener('abort', abort));
}

function text(error: unknown): string {
  return error instanceof Error ? error.message : 'it was not reached yet';
}
