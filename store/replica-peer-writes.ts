// Owns what other nodes have written while the store was away, as far as it still counts.
// Must not write it to the store: each node replays its own.
import * as z from 'zod';
import { StoreError } from './errors.ts';
import { frozenEntry } from './replica-entries.ts';
import type { JournalEntry } from './replica-merge.ts';
import type { Entry } from './store.ts';

/** What nodes send each other: a key without a value is deleted. See {@link JournalEntry} for the rest. */
const PendingWrites = z.object({
  v: z.literal(1),
  entries: z.array(
    z.object({
      key: z.string().min(1),
      base: z.number().int().nonnegative(),
      at: z.number(),
      value: z.unknown().optional(),
    }),
  ),
});
export type PendingWrites = z.infer<typeof PendingWrites>;

export function renderPendingWrites(journal: Iterable<JournalEntry>): PendingWrites {
  return { v: 1, entries: Array.from(journal, ({ key, base, at, value }) => ({ key, base, at, value })) };
}

/** @throws StoreError `corrupt`, naming the node */
export function parsePendingWrites(node: string, payload: unknown): PendingWrites {
  const parsed = PendingWrites.safeParse(payload);
  if (parsed.success) return parsed.data;
  throw new StoreError(
    'corrupt',
    `What node ${node} wrote while the store was away cannot be read ` +
      `(${z.prettifyError(parsed.error).replaceAll('\n', ' ')}). If it runs another version of Causeway, upgrade the older one.`,
    { cause: parsed.error },
  );
}

/** One node's word on one key. */
export interface Claim {
  node: string;
  key: string;
  base: number;
  at: number;
  /** undefined: deleted. */
  entry: Entry | undefined;
  /** Not offered any longer, presumably because it is in the store by now. */
  withdrawn: boolean;
}

/** What this node knows of the store: a key's entry, and up to which index. */
export interface Mirror {
  get(key: string): Entry | undefined;
  index: number;
}

export class PeerWrites {
  /** By key, then by node. */
  readonly #claims = new Map<string, Map<string, Claim>>();
  /** By node, the `base/at` of keys that the store was seen to be past: offered again, they stay past. */
  readonly #past = new Map<string, Map<string, string>>();

  /**
   * Takes what a node offers now in place of what it offered before, which is only marked as withdrawn: the mirror
   * may not have it yet.
   * @param version gives one for a new entry
   * @returns the keys concerned, and what was withdrawn, to be handed to {@link drop} after a while
   */
  replace(
    node: string,
    pending: PendingWrites,
    version: () => number,
  ): { keys: string[]; withdrawn: Claim[] } {
    const offered = new Set(pending.entries.map(({ key }) => key));
    const past = this.#past.get(node);
    if (offered.size === 0) this.#past.delete(node);
    const withdrawn: Claim[] = [];
    for (const claims of this.#claims.values()) {
      const claim = claims.get(node);
      if (!claim || claim.withdrawn || offered.has(claim.key)) continue;
      claim.withdrawn = true;
      withdrawn.push(claim);
    }
    for (const { key, base, at, value } of pending.entries) {
      const known = this.#claims.get(key)?.get(node);
      if (known?.base === base && known.at === at) known.withdrawn = false;
      else if (past?.get(key) !== `${base}/${at}`) {
        const entry = value === undefined ? undefined : frozenEntry({ key, value, version: version() });
        this.#add({ node, key, base, at, entry, withdrawn: false });
      }
    }
    return { keys: [...offered, ...withdrawn.map(({ key }) => key)], withdrawn };
  }

  /** Forgets what is still withdrawn. @returns the keys concerned */
  drop(claims: readonly Claim[]): string[] {
    const dropped = claims.filter((claim) => claim.withdrawn && this.#remove(claim));
    return dropped.map(({ key }) => key);
  }

  /** Forgets what the mirror is past: the owner has replayed it, or somebody wrote later. @returns the keys concerned */
  prune(mirror: Mirror): string[] {
    const dropped = [...this.#claims.values()]
      .flatMap((claims) => [...claims.values()])
      .filter((claim) => isPast(claim, mirror) && this.#remove(claim));
    for (const { node, key, base, at } of dropped) {
      const past = this.#past.get(node) ?? new Map<string, string>();
      this.#past.set(node, past.set(key, `${base}/${at}`));
    }
    return dropped.map(({ key }) => key);
  }

  /** The latest word on a key. Keys have one owner, but the owner may have changed meanwhile. */
  claim(key: string): Claim | undefined {
    let latest: Claim | undefined;
    for (const claim of this.#claims.get(key)?.values() ?? [])
      if (!latest || claim.at > latest.at || (claim.at === latest.at && claim.node > latest.node))
        latest = claim;
    return latest;
  }

  #add(claim: Claim): void {
    const claims = this.#claims.get(claim.key) ?? new Map<string, Claim>();
    this.#claims.set(claim.key, claims.set(claim.node, claim));
  }

  /** @returns whether it was there, that very one */
  #remove(claim: Claim): boolean {
    const claims = this.#claims.get(claim.key);
    if (claims?.get(claim.node) !== claim) return false;
    claims.delete(claim.node);
    if (claims.size === 0) this.#claims.delete(claim.key);
    return true;
  }
}

/** Whether the store has seen a later change of the key than the one the claim was based on. */
function isPast({ key, base }: Claim, mirror: Mirror): boolean {
  const entry = mirror.get(key);
  if (entry) return entry.version > base;
  // Not there: deleted since, unless this mirror is older than the base and has never seen it.
  return base > 0 && mirror.index >= base;
}
