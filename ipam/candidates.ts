// Owns what looked abandoned to the collector, and that no request for it slips in between the look and the deed.
// Must not decide what is abandoned: collect.ts does.
import type { Holder } from './records.ts';
import { KeyedMutex } from './keyed-mutex.ts';

/** What was found unheld, by {@link candidateKey}: at which version of the record, and when first (ms). */
export type CandidateMap = ReadonlyMap<string, { version: number; since: number }>;

export function candidateKey(recordId: string, holder: Holder): string {
  return `${holder} ${recordId}`;
}

/**
 * A replayed request finds its record as it should be and writes nothing, so the record's version cannot tell the
 * collector that somebody still wants it. This does, within the process that hears both: a node for its own half,
 * Swarm's leader for the other.
 */
export class Candidates {
  #seen = new Map<string, { version: number; since: number }>();
  readonly #turns = new KeyedMutex();

  get seen(): CandidateMap {
    return this.#seen;
  }

  replace(seen: CandidateMap): void {
    this.#seen = new Map(seen);
  }

  /** Somebody asked for it: it is not abandoned. To be called in turn. */
  forget(recordId: string, holder: Holder): void {
    this.#seen.delete(candidateKey(recordId, holder));
  }

  has(recordId: string, holder: Holder): boolean {
    return this.#seen.has(candidateKey(recordId, holder));
  }

  /** Runs one at a time what reads the record and acts on it. */
  inTurn<T>(recordId: string, body: () => Promise<T>): Promise<T> {
    return this.#turns.runExclusive(recordId, body);
  }
}
