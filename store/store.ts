// Owns the interface of Causeway's shared state and the limits that every implementation keeps.
// Must not know an implementation, nor what the records mean.
import { StoreError } from './errors.ts';

/** One key as it was read. */
export interface Entry {
  key: string;
  /**
   * Parsed JSON, to be read only: a store may hand the same object to all who ask until the key changes.
   * Text that is not JSON arrives as that string: no record is a bare string, so its schema rejects it.
   */
  value: unknown;
  /**
   * The store's index at the last change of this key, as Consul's ModifyIndex: it grows with every change of any
   * key and is never used twice. Setting a key to the value it has is not a change.
   */
  version: number;
}

/**
 * One operation of a commit. `version` is a compare-and-set: the operation applies only if the key has exactly
 * this version, 0 meaning "does not exist". Without it, set and delete are unconditional; deleting a key that
 * is not there succeeds, whatever version was named.
 */
export type Op =
  | { op: 'set'; key: string; value: unknown; version?: number }
  | { op: 'delete'; key: string; version?: number }
  | { op: 'check'; key: string; version: number };

/**
 * `index` is the version of what was set; of a commit that set nothing, an index that the store had already reached.
 * `conflicts` names keys whose version was another; nothing was written.
 */
export type CommitResult = { ok: true; index: number } | { ok: false; conflicts: string[] };

export interface ReadOptions {
  signal?: AbortSignal | undefined;
  /**
   * A replica (replica.ts) shall answer with what the store has now, or reject as `unavailable`: for who decides that
   * something is gone, which no compare-and-set can show. Other stores always do.
   */
  fresh?: boolean | undefined;
}

export interface CommitOptions extends ReadOptions {
  /**
   * A replica (replica.ts) shall accept the commit while the store is unavailable, and write it there later. Only for
   * keys that have one owner, who is the caller: nobody else's change is looked at then. Other stores ignore it.
   */
  offline?: boolean | undefined;
}

export interface ListOptions extends ReadOptions {
  /**
   * The `index` of an earlier list of this prefix. The call then resolves once something under the prefix changed
   * past it. It may resolve earlier, with the same entries: it says "look", not "this changed".
   */
  after?: number | undefined;
}

/** Everything under a prefix at one moment, ordered by key. */
export interface Snapshot {
  /** What to pass as `after`. If it is smaller than an earlier one, the store was rebuilt: start again without. */
  index: number;
  entries: Entry[];
}

export interface LockOptions {
  /** Ends the waiting. A lock once given is not touched by it. */
  signal?: AbortSignal | undefined;
  /** Deposes whoever holds the key, instead of waiting: for one that somebody else has already elected. */
  takeOver?: boolean;
  /** Told of every failure of the store that the waiting outlives, with the pause in ms. For the log. */
  onError?: (error: StoreError, pauseMs: number) => void;
}

/** A key that is ours alone: one holder at most, in all processes that use the store. */
export interface Lock {
  readonly key: string;
  /**
   * The version the key got with this holder: a fence. With a `check` of it, a commit succeeds only as long as the
   * key is held, whatever this process believes.
   */
  readonly version: number;
  /**
   * Aborts, with a {@link StoreError} as its reason, when the key is another's, was deleted or written by somebody,
   * or may be another's by now because the store has been unavailable for too long. Not by {@link release}.
   */
  readonly lost: AbortSignal;
  /**
   * Deletes the key, so that the next one gets it at once. May be called twice, and after the loss.
   * @throws StoreError `unavailable`; the key then vanishes by itself
   */
  release(): Promise<void>;
}

/**
 * Shared state. Reads see every commit that was acknowledged before they began. An acknowledged commit is durable.
 * (A replica's reads see all of its own; those of other nodes follow. Whoever decided on old values loses the
 * compare-and-set, and then reads what won.)
 *
 * Every method rejects with a {@link StoreError}, or with `signal.reason` once the signal aborts.
 */
export interface Store {
  get(key: string, options?: ReadOptions): Promise<Entry | undefined>;
  list(prefix: string, options?: ListOptions): Promise<Snapshot>;
  /**
   * All operations or none, at one index. At most {@link maxOps} operations, each key at most once. After
   * `unavailable` it is not known whether it happened: read.
   */
  commit(ops: readonly Op[], options?: CommitOptions): Promise<CommitResult>;
  /** Ends pending reads with code `closed`, and gives up what is locked. May be called twice. */
  close(): Promise<void>;
}

/** A store that several nodes use. */
export interface SharedStore extends Store {
  /**
   * Resolves once this process holds `key`, which then has `value`. Waits for the present holder, in no order among
   * those who wait, and patiently while the store is unavailable.
   */
  lock(key: string, value: unknown, options?: LockOptions): Promise<Lock>;
}

/** Consul's limit for one transaction; the embedded store keeps it too, so that nothing works on one of them alone. */
export const maxOps = 64;
/**
 * The limit for keys and JSON values of one commit together, in bytes. Consul takes 512 KiB of request, in which values
 * are base64 and every operation has a frame of some 100 bytes.
 */
export const maxCommitBytes = 352 * 1024;

/** An operation with its value as JSON text, ready to be written. */
export type EncodedOp =
  | { op: 'set'; key: string; json: string; version: number | undefined }
  | { op: 'delete'; key: string; version: number | undefined }
  | { op: 'check'; key: string; version: number };

/**
 * Checks a commit against the interface and encodes its values: the first step of every implementation.
 * @throws StoreError `invalid`
 */
export function encode(ops: readonly Op[]): EncodedOp[] {
  if (ops.length > maxOps) throw invalid(`a commit of ${ops.length} operations; ${maxOps} is the limit`);
  const seen = new Set<string>();
  let bytes = 0;
  return ops.map((op) => {
    if (op.key === '' || op.key.startsWith('/')) throw invalid(`the key ${JSON.stringify(op.key)}`, op.key);
    if (seen.has(op.key)) throw invalid(`the key ${op.key} twice in one commit`, op.key);
    seen.add(op.key);
    bytes += Buffer.byteLength(op.key);
    if (op.op !== 'set') return op.op === 'check' ? op : { op: op.op, key: op.key, version: op.version };
    const json = encodeValue(op.key, op.value);
    bytes += Buffer.byteLength(json);
    if (bytes > maxCommitBytes)
      throw invalid(`a commit of more than ${maxCommitBytes} bytes, reached with ${op.key}`, op.key);
    return { op: op.op, key: op.key, json, version: op.version };
  });
}

function encodeValue(key: string, value: unknown): string {
  const json = JSON.stringify(value) as string | undefined;
  if (json === undefined) throw invalid(`a value of ${key} that JSON cannot express`, key);
  return json;
}

function invalid(what: string, key?: string): StoreError {
  return new StoreError('invalid', `The store was given ${what}.`, key === undefined ? {} : { key });
}

/** The counterpart of the encoding: see {@link Entry.value}. */
export function decodeValue(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text;
  }
}
