// Owns the table of consistent choices (Eisenbud et al., "Maglev", NSDI 2016, §3.4): who makes it of the same servers gets
// the same table, and one server more or less moves few of the others' places.
// Must not know what is hashed, nor how the table is looked up.
import { createHash } from 'node:crypto';

export interface Candidate {
  /** What tells it from the others; the same at every node. */
  name: string;
  /** Its share of the places; above 0. */
  weight: number;
}

/** Places for each server, at least: its share is off by one part in so many at most. */
const placesEach = 32;

/** Primes, as the permutations need them. Few sizes: in a table of another size, everything has another place. */
const sizes = [251, 1_021, 4_093, 16_381] as const;

/** @returns how many places a table for so many servers has */
export function placesFor(servers: number): number {
  return sizes.find((size) => size >= servers * placesEach) ?? sizes[sizes.length - 1] ?? 0;
}

/**
 * @param candidates in any order
 * @param places from {@link placesFor}
 * @returns for each place the index of the candidate that has it; empty without candidates
 */
export function fillTable(candidates: readonly Candidate[], places: number): number[] {
  if (candidates.length === 0) return [];
  const table = new Array<number>(places).fill(-1);
  const heaviest = Math.max(...candidates.map(({ weight }) => weight));
  // Turns are taken by name, so that every node fills in the same order.
  const players = candidates
    .map(({ name, weight }, index) => ({
      index,
      name,
      weight,
      ...permutation(name, places),
      credit: 0,
      next: 0,
    }))
    .sort((a, b) => (a.name < b.name ? -1 : 1));
  for (let left = places; left > 0;)
    for (const player of players) {
      player.credit += player.weight;
      if (player.credit < heaviest || left === 0) continue;
      player.credit -= heaviest;
      let place: number;
      do {
        place = (player.offset + player.next * player.skip) % places;
        player.next += 1;
      } while (table[place] !== -1);
      table[place] = player.index;
      left -= 1;
    }
  return table;
}

/** The order in which a server likes the places. */
function permutation(name: string, places: number): { offset: number; skip: number } {
  const digest = createHash('sha256').update(name).digest();
  return { offset: digest.readUInt32BE(0) % places, skip: (digest.readUInt32BE(4) % (places - 1)) + 1 };
}
