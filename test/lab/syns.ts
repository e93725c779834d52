// Owns how many SYNs a client's network namespace has sent again, by the kernel's own count.
// Must not know who sent them.
import { readFileSync } from 'node:fs';

/** Of the namespace that this process is in, since it was made. */
export function synsSentAgain(): number {
  const [names = [], values = []] = readFileSync('/proc/self/net/netstat', 'utf8')
    .split('\n')
    .filter((line) => line.startsWith('TcpExt:'))
    .map((line) => line.split(' '));
  return Number(values[names.indexOf('TCPSynRetrans')]);
}
