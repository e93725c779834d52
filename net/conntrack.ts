// Owns forgetting flows in conntrack that lead to an address that answers no more, or shall not.
// Must not touch flows of any other address.
import type { Runner } from './run.ts';

/**
 * Flows without an end: of UDP, and TCP connections that were not answered yet. Without an entry the client's next
 * packet, which for the latter is the same SYN again after a second, is balanced anew; with it, it would be sent to the
 * old address, as would a later connection from the same port, for two minutes.
 */
const endless = ['-p udp', '-p tcp --state SYN_SENT'];

/**
 * Deletes such flows whose answers would come from these addresses, in one process. A connection that was ever answered
 * stays.
 */
export async function forgetFlows(run: Runner, addresses: readonly string[]): Promise<void> {
  await forget(
    run,
    addresses.flatMap((address) => endless.map((which) => `${which} --reply-src ${address}`)),
  );
}

/**
 * Deletes all flows whose answers come from these addresses, established connections among them: what comes next is
 * balanced anew, and refused by whom it does not belong to.
 */
export async function endFlows(run: Runner, addresses: readonly string[]): Promise<void> {
  await forget(
    run,
    addresses.map((address) => `--reply-src ${address}`),
  );
}

async function forget(run: Runner, which: readonly string[]): Promise<void> {
  if (which.length === 0) return;
  const input = which.map((flows) => `-D ${flows}\n`).join('');
  await run('conntrack', ['-R', '-'], { input, opensInput: true });
}
