// Owns forgetting flows in conntrack that lead to an address that answers no more, or shall not.
// Must not touch flows of any other address.
import { CommandError, type Runner } from './run.ts';

/** Addresses, by which of the flows whose answers would come from them are to be forgotten. */
export interface Flows {
  /** Those without an end (below): a connection that was ever answered stays. */
  endless: readonly string[];
  /** All, established connections among them: what comes next is balanced anew, or refused by whom it is not for. */
  all: readonly string[];
}

/**
 * Flows without an end: of UDP, and TCP connections that were not answered yet. Without an entry the client's next
 * packet, which for the latter is the same SYN again after a second, is balanced anew; with it, it would be sent to the
 * old address, as would a later connection from the same port, for two minutes.
 */
const endless = ['-p udp', '-p tcp --state SYN_SENT'];

/**
 * conntrack(8) lists what it is to delete, and gives up with the rest undone when one of them is gone before its turn:
 * its time was over, or somebody else deleted it. Nothing of it comes back, so that every try gets further.
 */
const goneMeanwhile = /such conntrack doesn't exist/;
const tries = 20;

/**
 * Deletes such flows, in one process where nobody else deletes them at the same time.
 * @throws {CommandError} when the kernel refuses
 */
export async function forgetFlows(run: Runner, flows: Flows): Promise<void> {
  const lines = [
    ...flows.all.map((address) => `-D --reply-src ${address}\n`),
    ...flows.endless.flatMap((address) => endless.map((which) => `-D ${which} --reply-src ${address}\n`)),
  ];
  if (lines.length === 0) return;
  for (let left = tries; left > 0; left -= 1) {
    try {
      await run('conntrack', ['-R', '-'], { input: lines.join(''), opensInput: true });
      return;
    } catch (error) {
      if (!(error instanceof CommandError && goneMeanwhile.test(error.stderr) && left > 1)) throw error;
    }
  }
}
