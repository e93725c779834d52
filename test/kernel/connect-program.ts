// Owns a client that connects as often as it can, and ends each connection at once. Must not assert anything.
// usage: connect-program.ts HOST PORT; until its standard input ends, and says at last how many connections there were, and why
// others failed
import { connect } from 'node:net';

const [host = '', port = ''] = process.argv.slice(2);
const atOnce = 4;
let connected = 0;
const failures: string[] = [];
let ended = false;
process.stdin.resume().once('end', () => (ended = true));

function once(): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<undefined>();
  const socket = connect({ host, port: Number(port) });
  socket.once('connect', () => {
    connected += 1;
    socket.resetAndDestroy();
    resolve(undefined);
  });
  socket.once('error', (error: NodeJS.ErrnoException) => {
    failures.push(error.code ?? error.message);
    resolve(undefined);
  });
  return promise;
}

async function again(): Promise<void> {
  while (!ended) await once();
}

await Promise.all(Array.from({ length: atOnce }, again));
process.stdout.write(JSON.stringify({ connected, failures }));
