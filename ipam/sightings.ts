// Owns what looked abandoned to the collector, and that no request for it slips in between the look and the deed.
// Must not decide what is abandoned: collect.ts does.
import type { Holder } from './records.ts';
import { Turns } from './turns.ts';

/** What was found unheld, by {@link sightingOf}: at which version of the record, and when first (ms). */
export type SightingMap = ReadonlyMap<string, { version: number; since: number }>;

export function sightingOf(recordId: string, holder: Holder): string {
  return `${holder} ${recordId}`;
}

/**
 * A replayed request finds its record as it should be and writes nothing, so the record's version cannot tell the
 * collector that somebody still wants it. This does, within the process that hears both: a node for its own half,
 * Swarm's leader for the other.
 */
export class Sightings {
  #seen = new Map<string, { version: number; since: number }>();
  readonly #turns = new Turns();

  get seen(): SightingMap {
    return this.#seen;
  }

  replace(seen: SightingMap): void {
    this.#seen = new Map(seen);
  }

  /** Somebody asked for it: it is not abandoned. To be called in turn. */
  forget(recordId: string, holder: Holder): void {
    this.#seen.delete(sightingOf(recordId, holder));
  }

  has(recordId: string, holder: Holder): boolean {
    return this.#seen.has(sightingOf(recordId, holder));
  }

  /** Runs one at a time what reads the record and acts on it. */
  inTurn<T>(recordId: string, body: () => Promise<T>): Promise<T> {
    return this.#turns.take(recordId, body);
  }
}
