// Owns the load of the part `failover`: new connections on schedule, each with the moment it was begun and its outcome.
// Must not import anything but Node's own modules: it is started by itself, in the network namespace of the client.
//
// usage: node bench/failover-load.ts URL INTERVAL-MS TIMEOUT-MS
//   Goes on until SIGTERM, then waits for what is under way. One line of JSON per request, as it ends:
//   {at, ms, connected, task} or {at, ms, error}; `at` is when it was begun, in milliseconds of Unix time, `ms` and
//   `connected` how much later it ended, and had a connection.
import { Agent, get } from 'node:http';

const [url, interval, timeout] = process.argv.slice(2);
if (url === undefined) throw new Error('Which URL? See the head of failover-load.ts.');
const timeoutMs = Number(timeout);
// Every request has a connection of its own.
const agent = new Agent({ keepAlive: false });

function ask(target: string): void {
  const at = Date.now();
  let connected: number | undefined;
  const end = (outcome: { task: string } | { error: string }): void =>
    console.log(JSON.stringify({ at, ms: Date.now() - at, connected, ...outcome }));
  const signal = AbortSignal.timeout(timeoutMs);
  const fail = (error: Error): void =>
    end({ error: signal.aborted ? `no answer in ${timeoutMs} ms` : error.message });
  get(target, { agent, signal }, (response) => {
    let body = '';
    response.setEncoding('utf8');
    response.on('data', (text: string) => (body += text));
    response.on('end', () => end({ task: (JSON.parse(body) as { task: string }).task }));
    response.on('error', fail);
  })
    .on('socket', (socket) => socket.once('connect', () => (connected = Date.now() - at)))
    .on('error', fail);
}

// An open loop: a request that hangs delays none of those after it.
const timer = setInterval(() => ask(url), Number(interval));
process.once('SIGTERM', () => clearInterval(timer));
