// Owns talking to a peer program in a namespace: see peer-program.ts.
// Must not assert anything.
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { execa } from 'execa';
import { slowness } from '../slowness.ts';
import type { Command, Injected, Seen } from './peer-program.ts';

/** Milliseconds that mean "no answer". */
export const patience = 3_000 * slowness;

export interface Peer {
  serve(command: {
    name: string;
    tcp?: number;
    udp?: number;
    address?: string;
    ends?: boolean;
  }): Promise<void>;
  /** One question on a new connection. Rejects with `ECONNREFUSED`, `timeout`, … as its message. */
  ask(
    host: string,
    port: number,
    options?: { protocol?: 'tcp' | 'udp'; localPort?: number; timeout?: number; pause?: number },
  ): Promise<Seen>;
  /** Opens a connection that is kept under a key, for {@link Peer.use}. */
  open(key: string, host: string, port: number, o?: { localPort?: number }): Promise<void>;
  use(key: string): Promise<Seen>;
  /** Who has sent UDP datagrams to what it serves, as ADDRESS:PORT. */
  heard(): Promise<string[]>;
  /** Sends a datagram inside VXLAN, by an ordinary socket. */
  inject(datagram: Injected): Promise<void>;
  /** Sends datagrams from one port all the time, as routers send their logs. */
  stream(key: string, host: string, port: number, o: { localPort: number; everyMs: number }): Promise<void>;
  /** Which servers have answered the stream since this was asked last. */
  answered(key: string): Promise<string[]>;
  /** Takes no new TCP connections from now on. Resolves when those there are have ended. */
  retire(): Promise<void>;
  stop(): Promise<void>;
}

/** What a process without any privilege is run by. */
const unprivileged = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', '--bounding-set=-all'];

export function startPeer(netns: string, { privileged = true } = {}): Peer {
  const program = execa(
    'nsenter',
    [
      `--net=${netns}`,
      ...(privileged ? [] : unprivileged),
      ...[process.execPath, join(import.meta.dirname, 'peer-program.ts')],
    ],
    { stdin: 'pipe', stdout: 'pipe', stderr: 'inherit', buffer: false, reject: false },
  );
  const waiting = new Map<number, { resolve: (value: unknown) => void; reject: (error: Error) => void }>();
  createInterface({ input: program.stdout }).on('line', (line) => {
    const { id, result, error } = JSON.parse(line) as { id: number; result?: unknown; error?: string };
    if (error === undefined) waiting.get(id)?.resolve(result);
    else waiting.get(id)?.reject(new Error(error));
    waiting.delete(id);
  });
  let last = 0;
  const tell = <T>(command: Command): Promise<T> =>
    new Promise((resolve, reject) => {
      const id = (last += 1);
      waiting.set(id, { resolve: resolve as (value: unknown) => void, reject });
      program.stdin.write(JSON.stringify({ id, ...command }) + '\n');
    });
  return {
    serve: (command) => tell({ op: 'serve', ...command }),
    ask: (host, port, { protocol = 'tcp', localPort, timeout = patience, pause = 0 } = {}) =>
      tell<Seen>({
        op: 'ask',
        protocol,
        host,
        port,
        timeout,
        pause,
        ...(localPort === undefined ? {} : { localPort }),
      }),
    open: (key, host, port, o) => tell({ op: 'open', key, host, port, timeout: patience, ...o }),
    use: (key) => tell({ op: 'use', key, timeout: patience }),
    heard: () => tell({ op: 'heard' }),
    inject: (datagram) => tell({ op: 'inject', datagram }),
    stream: (key, host, port, o) => tell({ op: 'stream', key, host, port, ...o }),
    answered: (key) => tell({ op: 'answered', key }),
    retire: () => tell({ op: 'retire' }),
    async stop() {
      program.stdin.end();
      await program;
    },
  };
}
