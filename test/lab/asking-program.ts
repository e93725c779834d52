// Owns a load of new connections on schedule, each with the moment it was begun and its outcome.
// Must not import anything but Node's own modules: it is started by itself, in the network namespace of the client.
//
// usage: node test/lab/asking-program.ts URL INTERVAL-MS TIMEOUT-MS
//   Goes on until SIGTERM, then waits for what is under way. One line of JSON per request, as it ends:
//   {at, ms, connected, task} or {at, ms, error}; `at` is when it was begun, in milliseconds of Unix time, `ms` and
//   `connected` how much later it ended, and had a connection. One that failed may have both of the latter, too.
import { Agent, get } from 'node:http';

const [url, interval, timeout] = process.argv.slice(2);
if (url === undefined) throw new Error('Which URL? See the head of asking-program.ts.');
const timeoutMs = Number(timeout);
// Every request has a connection of its own.
const agent = new Agent({ keepAlive: false });

function ask(target: string): void {
  const at = Date.now();
  let connected: number | undefined;
  let body = '';
  let ended = false;
  const end = (outcome: { error?: string }): void => {
    // Both the request and a response that has begun tell an error.
    if (ended) return;
    ended = true;
    const { task } = body === '' ? {} : (JSON.parse(body) as { task: string });
    console.log(JSON.stringify({ at, ms: Date.now() - at, connected, task, ...outcome }));
  };
  const signal = AbortSignal.timeout(timeoutMs);
  const fail = (error: Error): void =>
    end({ error: signal.aborted ? `no answer in ${timeoutMs} ms` : error.message });
  get(target, { agent, signal }, (response) => {
    response.setEncoding('utf8');
    response.on('data', (text: string) => (body += text));
    response.on('end', () => end({}));
    response.on('error', fail);
  })
    .on('socket', (socket) => socket.once('connect', () => (connected = Date.now() - at)))
    .on('error', fail);
}

// An open loop: a request that hangs delays none of those after it.
const timer = setInterval(() => ask(url), Number(interval));
process.once('SIGTERM', () => clearInterval(timer));
