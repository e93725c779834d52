// Owns the client of the tests of used ports: connections from ports of its own choice to one address, and from the same
// ports to another. Must not assert anything.
// usage: reopen-program.ts closed|held FIRST SECOND PORT FROM COUNT; waits for a line of standard input in between, and says
// at last how many SYNs were sent again
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { synsSentAgain } from '../lab/syns.ts';

const [how = '', first = '', second = '', port = '', from = '', count = ''] = process.argv.slice(2);
const ports = Array.from({ length: Number(count) }, (_, at) => Number(from) + at);

/** One connection that the server ends, and we only where it is not held. */
async function ask(host: string, localPort: number, held: boolean): Promise<Socket> {
  const socket = connect({ host, port: Number(port), localPort, allowHalfOpen: true });
  const signal = AbortSignal.timeout(8_000);
  await once(socket, 'connect', { signal });
  socket.write('?\n');
  socket.resume();
  await once(socket, 'end', { signal });
  if (!held) socket.end();
  return socket;
}

const kept: Socket[] = [];
for (const one of ports) kept.push(await ask(first, one, how === 'held'));
process.stdout.write('ready\n');
await once(process.stdin, 'data');
const before = synsSentAgain();
for (const one of ports) await ask(second, one, false);
process.stdout.write(`${synsSentAgain() - before}\n`);
process.exit();
