// Owns the one client of many connections: new ones on schedule, by all nodes in turn, and some that stay.
// Must not judge what comes of them. It is started by itself, in the network namespace of the client.
//
// usage: node bench/one-client-program.ts PER-SECOND SECONDS PORT KEPT ADDRESS...
//   Opens KEPT connections by each address and says "ready". For so many seconds, or until SIGTERM where that is 0, it makes new
//   connections (none where PER-SECOND is 0), each for one request after which the server ends it, while the kept ones ask once
//   a second. Then one line of JSON: see {@link OneClientOutcome}.
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { synsSentAgain } from '../test/lab/syns.ts';

/** What became of it. Times in milliseconds. */
export interface OneClientOutcome {
  begun: number;
  failed: number;
  /** How long each connection took to be there. */
  longestMs: number;
  slow: number;
  /** SYNs that this network namespace has sent again, whoever did. */
  synsSentAgain: number;
  /** Of what client the server told that it was not this one. */
  wrongClients: number;
  kept: number;
  /** Of those that stayed, those that ended, or got no answer. */
  broken: number;
  /** How long this process itself was late at most. */
  stalledMs: number;
}

const slowMs = 800;
const timeoutMs = 8_000;

/** @returns what the server tells of its client */
async function request(socket: Socket, connection: 'close' | 'keep-alive'): Promise<string> {
  let text = '';
  const take = (chunk: Buffer): void => void (text += chunk.toString());
  socket.on('data', take);
  socket.write(`GET /who HTTP/1.1\r\nHost: any\r\nConnection: ${connection}\r\n\r\n`);
  const signal = AbortSignal.timeout(timeoutMs);
  while (!text.includes('}')) await once(socket, 'data', { signal });
  socket.off('data', take);
  return /"client":"([^"]*)"/.exec(text)?.[1] ?? '';
}

async function main(): Promise<void> {
  const [perSecond = 0, seconds = 0, port = 0, kept = 0] = process.argv.slice(2, 6).map(Number);
  const addresses = process.argv.slice(6);
  const open = async (host: string): Promise<Socket> => {
    const socket = connect({ host, port });
    socket.on('error', () => undefined);
    try {
      await once(socket, 'connect', { signal: AbortSignal.timeout(timeoutMs) });
    } catch (error) {
      // It would go on trying.
      socket.destroy();
      throw error;
    }
    return socket;
  };
  const outcome: OneClientOutcome = {
    ...{ begun: 0, failed: 0, longestMs: 0, slow: 0, wrongClients: 0, kept: 0, broken: 0, stalledMs: 0 },
    synsSentAgain: synsSentAgain(),
  };

  const stay: Socket[] = [];
  for (const address of addresses) for (let at = 0; at < kept; at += 1) stay.push(await open(address));
  outcome.kept = stay.length;
  console.log('ready');

  let end = seconds === 0 ? Infinity : performance.now() + seconds * 1_000;
  process.once('SIGTERM', () => (end = 0));
  const broken = new Set<Socket>();
  const keeping = (async () => {
    while (performance.now() < end) {
      await Promise.all(
        stay.map(async (socket) => {
          if (!broken.has(socket)) await request(socket, 'keep-alive').catch(() => broken.add(socket));
        }),
      );
      await sleep(1_000);
    }
  })();

  const ask = async (address: string): Promise<void> => {
    const began = performance.now();
    outcome.begun += 1;
    try {
      const socket = await open(address);
      try {
        const took = performance.now() - began;
        outcome.longestMs = Math.max(outcome.longestMs, took);
        if (took > slowMs) outcome.slow += 1;
        if ((await request(socket, 'close')) !== socket.localAddress) outcome.wrongClients += 1;
      } finally {
        socket.destroy();
      }
    } catch {
      outcome.failed += 1;
    }
  };
  const asking = new Set<Promise<void>>();
  const first = performance.now();
  for (let due = first; perSecond > 0 && due < end; due = first + (outcome.begun * 1_000) / perSecond) {
    const wait = due - performance.now();
    outcome.stalledMs = Math.max(outcome.stalledMs, -wait);
    if (wait > 0) await sleep(wait);
    const one = ask(addresses[outcome.begun % addresses.length] ?? '').finally(() => asking.delete(one));
    asking.add(one);
  }
  await Promise.all([keeping, ...asking]);
  outcome.broken = broken.size;
  outcome.synsSentAgain = synsSentAgain() - outcome.synsSentAgain;
  console.log(JSON.stringify(outcome));
  process.exit();
}

if (import.meta.main) await main();
