// Owns the copy of the store in memory: what the latest snapshot says, and what was committed since.
// Must not know what this node or others wrote while the store was away: that lies over it (replica.ts).
import { isDeepStrictEqual } from 'node:util';
import { frozenEntry } from './replica-entries.ts';
import type { Entry, Op, Snapshot } from './store.ts';

/** A key, and what it is now; undefined: gone. */
export type MirrorChange = readonly [key: string, now: Entry | undefined];

export class Mirror {
  readonly #entries: Map<string, Entry>;
  /**
   * By key, the version of an acknowledged commit of ours that no snapshot has shown yet: of what was set, or of what
   * was deleted. A snapshot that is older, on its way when we committed, must not undo it.
   */
  readonly #ahead = new Map<string, number>();
  #index: number;

  /** @param index of the store, up to which the entries are complete */
  constructor(entries: readonly Entry[], index: number) {
    this.#entries = new Map(entries.map((entry) => [entry.key, entry]));
    this.#index = index;
  }

  get index(): number {
    return this.#index;
  }

  get(key: string): Entry | undefined {
    return this.#entries.get(key);
  }

  version(key: string): number {
    return this.#entries.get(key)?.version ?? 0;
  }

  entries(): Iterable<MirrorChange> {
    return this.#entries;
  }

  /**
   * Takes a snapshot of the whole store, unless it is older than the one before.
   * @param how `rebuilt`: the store began to count anew, so that a smaller index is no older one. `afresh`: it may
   *   have done so unseen, and the same version may stand for another value.
   */
  snapshot(
    { index, entries }: Snapshot,
    { rebuilt = false, afresh = rebuilt }: { rebuilt?: boolean; afresh?: boolean } = {},
  ): MirrorChange[] {
    if (rebuilt) this.#ahead.clear();
    else if (index < this.#index) return [];
    this.#index = index;
    const changes: MirrorChange[] = [];
    const seen = new Set<string>();
    for (const entry of entries) {
      seen.add(entry.key);
      if (this.#isBehind(entry)) continue;
      this.#ahead.delete(entry.key);
      const known = this.#entries.get(entry.key);
      if (known?.version !== entry.version || (afresh && !isDeepStrictEqual(known.value, entry.value)))
        changes.push([entry.key, frozenEntry(entry)]);
    }
    for (const key of this.#ahead.keys())
      // It shows neither what we set nor what we deleted: only if it is late enough, that is because it is gone.
      if (!seen.has(key) && index >= (this.#ahead.get(key) ?? 0)) this.#ahead.delete(key);
    for (const key of this.#entries.keys())
      if (!seen.has(key) && !this.#ahead.has(key)) changes.push([key, undefined]);
    return this.#apply(changes);
  }

  /**
   * Takes over an acknowledged commit.
   * @param ops whose values are nobody else's: they are frozen
   * @param before versions in this mirror when the commit was sent
   * @returns `open`: a snapshot that came meanwhile leaves it open whether a key was deleted before or after: look afresh
   */
  commit(
    ops: readonly Op[],
    index: number,
    before: ReadonlyMap<string, number>,
  ): { changes: MirrorChange[]; open: boolean } {
    const changes: MirrorChange[] = [];
    let open = false;
    for (const op of ops) {
      const known = this.#entries.get(op.key);
      if (op.op === 'set') {
        // A snapshot as late as the commit has shown it already, and maybe what became of it.
        if (this.#index >= index) continue;
        const same = known !== undefined && isDeepStrictEqual(known.value, op.value);
        // Set to what it had, it keeps its version, unless somebody else had changed it before: wait and see.
        if (!same || op.version === undefined) this.#ahead.set(op.key, index);
        if (!same) changes.push([op.key, frozenEntry({ key: op.key, value: op.value, version: index })]);
      } else if (op.op === 'delete' && known) {
        const deleted = op.version ?? before.get(op.key) ?? 0;
        if (known.version <= deleted) {
          this.#ahead.set(op.key, deleted);
          changes.push([op.key, undefined]);
        } else open ||= op.version === undefined;
      }
    }
    return { changes: this.#apply(changes), open };
  }

  #isBehind({ key, version }: Entry): boolean {
    const ahead = this.#ahead.get(key);
    // The very version that we deleted is behind, too; the one that we set is what we have.
    return ahead !== undefined && (version < ahead || (version === ahead && !this.#entries.has(key)));
  }

  #apply(changes: MirrorChange[]): MirrorChange[] {
    for (const [key, now] of changes)
      if (now) this.#entries.set(key, now);
      else this.#entries.delete(key);
    return changes;
  }
}
