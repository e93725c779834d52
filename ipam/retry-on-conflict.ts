// Owns repeating a compare-and-set that somebody else won, and giving up at some point.
// Must not repeat anything else: errors pass through.
import { setTimeout as sleep } from 'node:timers/promises';
import { IpamError } from './errors.ts';

/** What an attempt returns when its commit met a changed record: everything has to be read again. */
export const conflict: unique symbol = Symbol('lost');

const maxTries = 30;

/**
 * @param what is being tried, as the beginning of a sentence
 * @throws IpamError `busy` after {@link maxTries} lost races
 */
export async function retryOnConflict<T>(
  what: string,
  attempt: () => Promise<T | typeof conflict>,
): Promise<T> {
  for (let tries = 0; tries < maxTries; tries++) {
    const result = await attempt();
    if (result !== conflict) return result;
    // Those who lost to the same winner would meet again without a pause of random length (ms).
    await sleep(Math.random() * Math.min(100, 2 ** tries));
  }
  throw new IpamError(
    'busy',
    `${what} did not succeed: other nodes kept changing the same records. Try again.`,
  );
}
