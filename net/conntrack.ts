// Owns forgetting flows in conntrack that lead to an address that answers no more.
// Must not touch flows of any other address, nor a connection that was ever answered.
import type { Runner } from './run.ts';

/**
 * Flows without an end: of UDP, and TCP connections that were not answered yet. Without an entry the client's next
 * packet, which for the latter is the same SYN again after a second, is balanced anew; with it, it would be sent to the
 * old address, as would a later connection from the same port, for two minutes.
 */
const endless = ['-p udp', '-p tcp --state SYN_SENT'];

/** Deletes such flows whose answers would come from these addresses, in one process. */
export async function forgetFlows(run: Runner, addresses: readonly string[]): Promise<void> {
  if (addresses.length === 0) return;
  const lines = addresses.flatMap((address) =>
    endless.map((which) => `-D ${which} --reply-src ${address}\n`),
  );
  await run('conntrack', ['-R', '-'], { input: lines.join(''), opensInput: true });
}
