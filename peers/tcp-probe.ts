// Owns trying by TCP whether a peer's kernel is alive.
// Must not wait: who calls knows how long, and gives up by the function it gets.
import { connect } from 'node:net';

export type Reached = 'accepted' | 'refused' | 'blind';

// A reset is an answer of the peer's kernel. Silence may also be told by this kernel or a router. All other errors are
// of this side: no descriptors, no such local address, forbidden by a rule.
const refusals = new Set(['ECONNREFUSED', 'ECONNRESET']);
const silences = new Set(['ETIMEDOUT', 'EHOSTUNREACH', 'ENETUNREACH', 'EHOSTDOWN', 'ENETDOWN']);

/**
 * Opens a connection and closes it as soon as it is open.
 * @param told called once at most, and not at all while there is no answer
 * @returns gives up
 */
export function reach(
  { address, port, localAddress }: { address: string; port: number; localAddress: string },
  told: (reached: Reached, code: string) => void,
): () => void {
  const socket = connect({ host: address, port, localAddress });
  socket.once('connect', () => {
    socket.destroy();
    told('accepted', '');
  });
  socket.on('error', ({ code = '' }: NodeJS.ErrnoException) => {
    if (refusals.has(code)) told('refused', code);
    else if (!silences.has(code)) told('blind', code);
  });
  return () => socket.destroy();
}
