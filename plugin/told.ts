// Owns what was said already, so that what goes on being so is said once.
// Must not log: who asks does.

/** Texts that are true for a while, or keys. */
export class Told {
  #told: ReadonlySet<string> = new Set();

  /** @param now all that is so. @returns what was not so the last time; what is no longer so is news when it is again */
  news(now: readonly string[]): string[] {
    const news = now.filter((text) => !this.#told.has(text));
    this.#told = new Set(now);
    return news;
  }
}
