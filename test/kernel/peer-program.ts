// Owns what runs inside a namespace of the kernel tests: it serves TCP and UDP, and asks, as told by lines of JSON.
// Must not assert anything.
import { createSocket } from 'node:dgram';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';

/** What a server saw of the asker; the answer to every question. */
export interface Seen {
  /** The name of the server that answered. */
  server: string;
  client: string;
  clientPort: number;
}

export type Command =
  | { op: 'serve'; name: string; tcp?: number; udp?: number; address?: string }
  | {
      op: 'ask';
      protocol: 'tcp' | 'udp';
      host: string;
      port: number;
      timeout: number;
      localPort?: number;
      /** Milliseconds between the connection and the question, TCP only. */
      pause?: number;
    }
  | { op: 'open'; key: string; host: string; port: number; timeout: number; localPort?: number }
  | { op: 'use'; key: string; timeout: number }
  /** Takes no new connections, and answers when those there are have ended. */
  | { op: 'retire' };

const held = new Map<string, Socket>();
const servers: Server[] = [];

/** One line in, one line out, for as long as the connection lives. */
function serve({
  name,
  tcp,
  udp,
  address = '0.0.0.0',
}: Extract<Command, { op: 'serve' }>): Promise<unknown>[] {
  const answer = (client = '', clientPort = 0): string =>
    JSON.stringify({ server: name, client, clientPort } satisfies Seen);
  const started: Promise<unknown>[] = [];
  if (tcp !== undefined) {
    const server = createServer((socket) => {
      socket.on('data', () => socket.write(answer(socket.remoteAddress, socket.remotePort) + '\n'));
      socket.on('error', () => socket.destroy());
    });
    servers.push(server);
    started.push(once(server.listen(tcp, address), 'listening'));
  }
  if (udp !== undefined) {
    const socket = createSocket('udp4');
    socket.on('message', (_message, from) =>
      socket.send(answer(from.address, from.port), from.port, from.address),
    );
    started.push(once(socket.bind(udp, address), 'listening'));
  }
  return started;
}

function exchange(socket: Socket, timeout: number): Promise<Seen> {
  return new Promise((resolve, reject) => {
    if (socket.errored) throw socket.errored;
    const timer = setTimeout(() => reject(new Error('timeout')), timeout);
    socket.once('error', (error: NodeJS.ErrnoException) => reject(new Error(error.code ?? error.message)));
    socket.once('close', () => reject(new Error('closed')));
    socket.once('data', (data) => {
      clearTimeout(timer);
      resolve(JSON.parse(data.toString()) as Seen);
    });
    socket.write('?\n');
  });
}

async function open(host: string, port: number, timeout: number, localPort?: number): Promise<Socket> {
  const socket = connect({ host, port, ...(localPort && { localPort }) });
  const signal = AbortSignal.timeout(timeout);
  try {
    await once(socket, 'connect', { signal });
    // Until somebody uses it.
    socket.on('error', () => undefined);
    return socket;
  } catch (error) {
    socket.destroy();
    throw signal.aborted
      ? new Error('timeout')
      : new Error((error as NodeJS.ErrnoException).code ?? String(error));
  }
}

async function ask({
  protocol,
  host,
  port,
  timeout,
  localPort = 0,
  pause = 0,
}: Extract<Command, { op: 'ask' }>): Promise<Seen> {
  if (protocol === 'tcp') {
    const socket = await open(host, port, timeout);
    try {
      await sleep(pause);
      return await exchange(socket, timeout);
    } finally {
      socket.destroy();
    }
  }
  const socket = createSocket('udp4');
  try {
    await once(socket.bind(localPort), 'listening');
    socket.connect(port, host);
    await once(socket, 'connect');
    socket.send('?');
    const [data] = (await once(socket, 'message', { signal: AbortSignal.timeout(timeout) })) as [Buffer];
    return JSON.parse(data.toString()) as Seen;
  } catch (error) {
    const { code, name } = error as NodeJS.ErrnoException;
    throw new Error(name === 'AbortError' ? 'timeout' : (code ?? String(error)));
  } finally {
    socket.close();
  }
}

async function act(command: Command): Promise<unknown> {
  switch (command.op) {
    case 'serve':
      return Promise.all(serve(command)).then(() => null);
    case 'ask':
      return ask(command);
    case 'open':
      held.set(command.key, await open(command.host, command.port, command.timeout, command.localPort));
      return null;
    case 'use': {
      const socket = held.get(command.key);
      if (socket === undefined) throw new Error(`no connection ${command.key}`);
      return exchange(socket, command.timeout);
    }
    case 'retire':
      await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
      return null;
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const { id, ...command } = JSON.parse(line) as Command & { id: number };
  void act(command).then(
    (result) => process.stdout.write(JSON.stringify({ id, result }) + '\n'),
    (error: unknown) => process.stdout.write(JSON.stringify({ id, error: (error as Error).message }) + '\n'),
  );
}
process.exit();
