// Owns what is read from a replica: the mirror of the store, over it other nodes' pending writes, over that the journal.
// Must not talk to the store, nor write to disk.
import { Changes } from './changes.ts';
import { SortedEntries } from './replica-entries.ts';
import type { Journal } from './replica-journal.ts';
import type { Mirror } from './replica-mirror.ts';
import { PeerWrites, type Claim, type PendingWrites } from './replica-peer-writes.ts';
import type { Entry, Op } from './store.ts';

export class View {
  readonly #mirror: Mirror;
  readonly #journal: Journal;
  readonly #peerWrites = new PeerWrites();
  readonly #entries = new SortedEntries();
  readonly #changes = new Changes();
  /** Counts changes, and is never below a version in it. */
  #index = 0;

  constructor(mirror: Mirror, journal: Journal) {
    this.#mirror = mirror;
    this.#journal = journal;
    this.show([...[...mirror.entries()].map(([key]) => key), ...journal.all().map(({ key }) => key)]);
  }

  get index(): number {
    return this.#index;
  }

  get(key: string): Entry | undefined {
    return this.#entries.get(key);
  }

  under(prefix: string): Entry[] {
    return this.#entries.under(prefix);
  }

  /** See {@link Changes.past}. */
  past(after: number, prefix: string, signal: AbortSignal | undefined): Promise<void> {
    return this.#changes.past(after, prefix, this.#index, signal);
  }

  wakeAll(): void {
    this.#changes.wakeAll();
  }

  /** Brings these keys up to date, and wakes who waits for them. */
  show(keys: readonly string[]): void {
    const changed: string[] = [];
    for (const key of new Set(keys)) {
      const now = this.#resolve(key);
      const shown = this.#entries.get(key);
      if (now === shown) continue;
      if (now) this.#entries.put(now);
      else this.#entries.remove(key);
      this.#index = Math.max(this.#index, now?.version ?? 0);
      changed.push(key);
    }
    if (changed.length === 0) return;
    this.#index++;
    this.#changes.announce(changed, this.#index);
  }

  /** After a change of the mirror: pending writes of others may be in it now. */
  showMirror(keys: readonly string[]): void {
    this.show([...keys, ...this.#peerWrites.prune(this.#mirror)]);
  }

  /**
   * Shows the pending writes of a node in place of those of before.
   * @param version gives one for a new entry
   * @returns what is not pending any longer and still shown: for {@link drop}, after a while
   */
  absorb(node: string, pending: PendingWrites, version: () => number): Claim[] {
    const { keys, withdrawn } = this.#peerWrites.replace(node, pending, version);
    this.showMirror(keys);
    return withdrawn;
  }

  /** Shows no longer what is still withdrawn. */
  drop(claims: readonly Claim[]): void {
    this.show(this.#peerWrites.drop(claims));
  }

  /** When another node wrote the key meanwhile, in ms since the epoch. */
  overruledAt(key: string): number | undefined {
    return this.#peerWrites.claim(key)?.at;
  }

  /**
   * Others' entries and our own have versions that the store does not know; what it has below them, it does.
   * @param compared also what is written whatever was there: a request that nobody answered may be carried out much
   *   later, and must not undo what was written here after it
   */
  asRemote(op: Op, compared: boolean): Op {
    if (op.version === undefined) return compared ? { ...op, version: this.#mirror.version(op.key) } : op;
    const shown = this.#entries.get(op.key);
    const below = this.#mirror.get(op.key);
    if (shown === below || op.version !== (shown?.version ?? 0)) return op;
    return { ...op, version: below?.version ?? 0 };
  }

  #resolve(key: string): Entry | undefined {
    const own = this.#journal.get(key);
    const claim = this.#peerWrites.claim(key);
    if (own && own.at >= (claim?.at ?? 0)) return this.#journal.entry(key);
    return claim ? claim.entry : this.#mirror.get(key);
  }
}
