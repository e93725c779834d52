// Owns the program inside the lab's containers: a server that tells who asks it, and a client with a bounded count.
// Must not import anything but Node's own modules: it is the only file in its image.
//
//   echo.ts serve [--http PORT] [--echo PORT]            until SIGTERM
//   echo.ts http URL        [--count N] [--interval MS] [--timeout MS] [--keep-alive]
//   echo.ts tcp  HOST:PORT  [--count N] [--interval MS] [--timeout MS]     one connection, N lines echoed
//   echo.ts udp  HOST:PORT  [--count N] [--interval MS] [--timeout MS]     one socket per datagram
//
// Each answer is one line of JSON: {task, client, port}. A client prints one line per request, {ms, …answer} or
// {ms, error}, and ends 1 when any request failed.
import { createSocket } from 'node:dgram';
import { Agent, createServer as createHttpServer, get } from 'node:http';
import { connect, createServer as createTcpServer } from 'node:net';
import { hostname } from 'node:os';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';

/** What a server knows of its client: which task answers, and the address and port it was reached from. */
const describe = (client: string | undefined, port: number | undefined) =>
  `${JSON.stringify({ task: hostname(), client: client?.replace(/^::ffff:/, ''), port })}\n`;

/**
 * HTTP on one port; on the other the echo service: TCP greets with the description and then sends back what it gets,
 * UDP answers each datagram with the description.
 */
function serve(http: number, echo: number): void {
  const web = createHttpServer((request, response) => {
    const { remoteAddress, remotePort } = request.socket;
    const { pathname, searchParams } = new URL(request.url ?? '/', 'http://any');
    // /bytes?n=… measures throughput.
    if (pathname === '/bytes') {
      response.end(Buffer.alloc(Math.min(Number(searchParams.get('n')), 64 << 20)));
      return;
    }
    response.setHeader('content-type', 'application/json');
    response.write(describe(remoteAddress, remotePort));
    // /slow?ms=… is a request that takes its time: who answers is told at once, and that this was all at the end.
    if (pathname === '/slow')
      setTimeout(() => response.end(), Math.min(Number(searchParams.get('ms')), 60_000));
    else response.end();
  }).listen(http);

  createTcpServer((socket) => {
    socket.on('error', () => socket.destroy());
    socket.write(describe(socket.remoteAddress, socket.remotePort));
    socket.pipe(socket);
  }).listen(echo);

  const udp = createSocket('udp4');
  udp.on('message', (_, { address, port }) => udp.send(describe(address, port), port, address));
  udp.bind(echo);

  // Process 1 of a container has no default action for signals. As servers should, it answers what it was asked.
  process.on('SIGTERM', () => web.close(() => process.exit(0)));
}

interface Pace {
  count: number;
  interval: number;
  timeout: number;
}

/** Runs `ask` count times, prints each outcome, and makes the process fail when one failed. */
async function repeat({ count, interval }: Pace, ask: () => Promise<string>): Promise<void> {
  for (let index = 0; index < count; index++) {
    if (index > 0 && interval > 0) await sleep(interval);
    const start = performance.now();
    const outcome = await ask().then(
      (line) => JSON.parse(line) as object,
      (error: unknown) => ({ error: error instanceof Error ? error.message : String(error) }),
    );
    if ('error' in outcome) process.exitCode = 1;
    console.log(JSON.stringify({ ms: Math.round((performance.now() - start) * 10) / 10, ...outcome }));
  }
}

async function askHttp(url: string, pace: Pace, keepAlive: boolean): Promise<void> {
  const agent = new Agent({ keepAlive });
  await repeat(
    pace,
    () =>
      new Promise((done, fail) => {
        const signal = AbortSignal.timeout(pace.timeout);
        get(url, { agent, signal }, (response) => {
          let body = '';
          response.setEncoding('utf8');
          response.on('data', (text: string) => (body += text));
          response.on('end', () => done(body));
          response.on('error', fail);
        }).on('error', (error) =>
          fail(signal.aborted ? new Error(`no answer in ${pace.timeout} ms`) : error),
        );
      }),
  );
  agent.destroy();
}

async function askTcp(host: string, port: number, pace: Pace): Promise<void> {
  const socket = connect({ host, port });
  const lines = createInterface({ input: socket })[Symbol.asyncIterator]();
  const failed = new Promise<never>((_, fail) => socket.on('error', fail));
  failed.catch(() => {});
  const nextLine = async () => {
    const late = sleep(pace.timeout, undefined, { ref: false }).then(() => {
      throw new Error(`no answer in ${pace.timeout} ms`);
    });
    const line = await Promise.race([lines.next(), failed, late]);
    if (line.done === true) throw new Error('connection closed by the server');
    return line.value;
  };
  let greeting: string | undefined;
  let sequence = 0;
  await repeat(pace, async () => {
    greeting ??= await nextLine();
    const sent = String(++sequence);
    socket.write(`${sent}\n`);
    const received = await nextLine();
    if (received !== sent) throw new Error(`sent ${sent}, got ${received}`);
    return greeting;
  });
  socket.destroy();
}

async function askUdp(host: string, port: number, pace: Pace): Promise<void> {
  await repeat(
    pace,
    () =>
      new Promise((done, fail) => {
        const socket = createSocket('udp4');
        const end = (act: () => void) => {
          clearTimeout(timer);
          socket.close();
          act();
        };
        const timer = setTimeout(
          () => end(() => fail(new Error(`no answer in ${pace.timeout} ms`))),
          pace.timeout,
        );
        socket.on('message', (message) => end(() => done(message.toString())));
        socket.on('error', (error) => end(() => fail(error)));
        // Connected, so that an ICMP refusal is reported.
        socket.connect(port, host, (error?: Error) => (error ? end(() => fail(error)) : socket.send('?')));
      }),
  );
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    http: { type: 'string', default: '80' },
    echo: { type: 'string', default: '7' },
    count: { type: 'string', default: '1' },
    interval: { type: 'string', default: '0' },
    timeout: { type: 'string', default: '3000' },
    'keep-alive': { type: 'boolean', default: false },
  },
});
const [mode, target = ''] = positionals;
const pace = {
  count: Number(values.count),
  interval: Number(values.interval),
  timeout: Number(values.timeout),
};
const [host, port] = [
  target.slice(0, target.lastIndexOf(':')),
  Number(target.slice(target.lastIndexOf(':') + 1)),
];
if (mode === 'serve') serve(Number(values.http), Number(values.echo));
else if (mode === 'http') await askHttp(target, pace, values['keep-alive']);
else if (mode === 'tcp') await askTcp(host, port, pace);
else if (mode === 'udp') await askUdp(host, port, pace);
else throw new Error(`echo.ts serve|http|tcp|udp, not ${String(mode)}`);
