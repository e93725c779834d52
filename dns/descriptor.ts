// Owns having a second file descriptor of the same socket: whoever closes the first one does not close the socket.
// Must not know what a socket is for.
import koffi from 'koffi';

/** See fcntl(2). */
const F_DUPFD_CLOEXEC = 1030;
const fcntl = koffi.load(null).func('int fcntl(int, int, int)') as (
  fd: number,
  command: number,
  least: number,
) => number;

/** @throws when there is no more room for descriptors, or no such one */
export function duplicate(descriptor: number): number {
  const copy = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) throw new Error(`Descriptor ${descriptor} cannot be duplicated: errno ${koffi.errno()}.`);
  return copy;
}
