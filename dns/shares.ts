// Owns who may have how many of something that all askers share.
// Must not know what it is.

/** One alone has an eighth of all: of what is free, its share is a seventh of that. */
const part = 7;

/**
 * A stock of which everybody may have as much as a fixed part of what is left. So nobody, nor all of the greedy together,
 * takes it all: who comes new finds something, and what is refused is refused to those who have most (Choudhury and
 * Hahne's dynamic thresholds).
 */
export class Shares {
  readonly #taken = new Map<string, number>();
  #free: number;

  constructor(total: number) {
    this.#free = total;
  }

  /** @returns whether there was one for `who`, to be given back */
  take(who: string): boolean {
    const own = this.#taken.get(who) ?? 0;
    if (own * part >= this.#free) return false;
    this.#taken.set(who, own + 1);
    this.#free -= 1;
    return true;
  }

  give(who: string): void {
    const own = this.#taken.get(who) ?? 0;
    if (own === 0) throw new Error(`${who} gives back what it does not have.`);
    if (own === 1) this.#taken.delete(who);
    else this.#taken.set(who, own - 1);
    this.#free += 1;
  }
}
