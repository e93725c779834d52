// Owns forgetting flows in conntrack that lead to an address that answers no more.
// Must not touch flows of any other address, nor a connection that was ever answered.
import { CommandError, type Runner } from './run.ts';

/**
 * Flows without an end: of UDP, and TCP connections that were not answered yet. Without an entry the client's next
 * packet, which for the latter is the same SYN again after a second, is balanced anew; with it, it would be sent to the
 * old address, as would a later connection from the same port, for two minutes.
 */
const endless = [
  ['-p', 'udp'],
  ['-p', 'tcp', '--state', 'SYN_SENT'],
];

/** Deletes such flows whose answers would come from these addresses. */
export async function forgetFlows(run: Runner, addresses: readonly string[]): Promise<void> {
  for (const address of addresses) {
    await Promise.all(endless.map((which) => forget(run, [...which, '--reply-src', address])));
  }
}

async function forget(run: Runner, which: readonly string[]): Promise<void> {
  try {
    await run('conntrack', ['-D', ...which]);
  } catch (error) {
    // conntrack(8) ends with 1 when there was nothing to delete.
    if (!(error instanceof CommandError && error.stderr.includes('0 flow entries'))) throw error;
  }
}
