// Owns what becomes of a key that was written while the store was away, once it is back. Pure.
// Must not write: see replica.ts. The reasons are in docs/adr/0009-replica.md.
import { isDeepStrictEqual } from 'node:util';
import { maxCommitBytes, maxOps, type Entry, type Op } from './store.ts';

/** A key as it was left by writes that the store does not have yet. */
export interface JournalEntry {
  key: string;
  /** The store's version of the key that the first of these writes was based on, 0 if it was not there. */
  base: number;
  /** undefined: deleted. */
  value: unknown;
  /** Of the last write: above all of the store's, growing, never used twice. */
  version: number;
  /** Of the last write: ms since the epoch. */
  at: number;
  /** Values it had in between: what the store may show if it took a write and the acknowledgement got lost. */
  earlier: readonly unknown[];
}

/** `done`: nothing is to be written. `ours`: write it over theirs. `theirs`: somebody else's stays, ours is dropped. */
export type Resolution = 'done' | 'ours' | 'theirs';

/** @param theirs what the store has now */
export function resolveConflict(pending: JournalEntry, theirs: Entry | undefined): Resolution {
  const { base, value, earlier } = pending;
  if (isDeepStrictEqual(theirs?.value, value)) return 'done';
  if ((theirs?.version ?? 0) === base) return 'ours';
  // Not what we based ours on, but ours as well: the acknowledgement was lost.
  if (theirs && earlier.some((mine) => isDeepStrictEqual(mine, theirs.value))) return 'ours';
  // Gone: a store that was rebuilt, or somebody who took the owner for dead.
  if (!theirs) return 'ours';
  // Two have created it, each without knowing of the other: the first one is in use.
  if (base === 0) return 'theirs';
  // Whoever changed it needs it. What is left too much is collected later; what is deleted too much is lost.
  if (value === undefined) return 'theirs';
  return 'ours';
}

/** One step of the replay. */
export interface Replay {
  /** Nothing is to be written. */
  done: JournalEntry[];
  /** Somebody else's stays, or their deletion. */
  lost: { pending: JournalEntry; theirs: Entry | undefined }[];
  /** As much as fits into one commit; each succeeds only if the store still has what was looked at. */
  writes: { pending: JournalEntry; op: Op }[];
}

/**
 * @param pending in the order in which they were written
 * @param theirs what the store has now
 * @param overruledAt when another node wrote the key meanwhile, in ms since the epoch: keys have one owner, so the
 *   owner has changed, and the later one is right
 */
export function planReplay(
  pending: readonly JournalEntry[],
  theirs: (key: string) => Entry | undefined,
  overruledAt: (key: string) => number | undefined,
): Replay {
  const replay: Replay = { done: [], lost: [], writes: [] };
  let bytes = 0;
  for (const each of pending) {
    const now = theirs(each.key);
    const verdict = (overruledAt(each.key) ?? 0) > each.at ? 'done' : resolveConflict(each, now);
    if (verdict === 'done') replay.done.push(each);
    else if (verdict === 'theirs') replay.lost.push({ pending: each, theirs: now });
    else {
      const json = each.value === undefined ? '' : JSON.stringify(each.value);
      bytes += Buffer.byteLength(each.key) + Buffer.byteLength(json);
      if (replay.writes.length > 0 && bytes > maxCommitBytes) break;
      replay.writes.push({ pending: each, op: replayOp(each, now) });
      if (replay.writes.length === maxOps) break;
    }
  }
  return replay;
}

/** The write of a key that is `ours`, which succeeds only if the store still has theirs. */
function replayOp({ key, value }: JournalEntry, theirs: Entry | undefined): Op {
  const version = theirs?.version ?? 0;
  return value === undefined ? { op: 'delete', key, version } : { op: 'set', key, value, version };
}

/**
 * The next state of a key that was written again.
 * @param before what is pending of it
 * @param next `base` counts only if nothing is
 */
export function coalesce(
  before: JournalEntry | undefined,
  next: Omit<JournalEntry, 'earlier'>,
): JournalEntry {
  if (!before) return { ...next, earlier: [] };
  const isKnown = before.earlier.some((value) => isDeepStrictEqual(value, before.value));
  // That a key is not there says nothing about who deleted it, and settle() does not ask.
  const earlier = isKnown || before.value === undefined ? before.earlier : [...before.earlier, before.value];
  return { ...next, base: before.base, earlier };
}
