// Owns what runs inside a namespace of the kernel tests: it serves TCP and UDP, and asks, as told by lines of JSON.
// Must not assert anything.
import { createSocket } from 'node:dgram';
import { connect, createServer, isIPv6, type Server, type Socket } from 'node:net';
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

/** A UDP datagram inside VXLAN, as any process could send it that knows the nodes' addresses. */
export interface Injected {
  /** Where the encapsulation goes to and comes from, with the port and VNI of the fabric. */
  outer: { address: string; source?: string; port: number; vni: number };
  /** MAC addresses inside. */
  macs: { destination: string; source: string };
  inner: { source: string; sourcePort: number; destination: string; destinationPort: number };
}

export type Command =
  /** @param ends it ends each connection after its first answer */
  | { op: 'serve'; name: string; tcp?: number; udp?: number; address?: string; ends?: boolean }
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
  /** Who has sent it UDP datagrams so far, as ADDRESS:PORT. */
  | { op: 'heard' }
  | { op: 'inject'; datagram: Injected }
  /** Sends datagrams from one port for ever, whoever answers. */
  | { op: 'stream'; key: string; host: string; port: number; localPort: number; everyMs: number }
  /** Who has answered such a stream since it was asked last. */
  | { op: 'answered'; key: string }
  /** Takes no new connections, and answers when those there are have ended. */
  | { op: 'retire' };

const held = new Map<string, Socket>();
const servers: Server[] = [];
const heard: string[] = [];
const answered = new Map<string, string[]>();

/** One line in, one line out, for as long as the connection lives. */
function serve({
  name,
  tcp,
  udp,
  address = '0.0.0.0',
  ends = false,
}: Extract<Command, { op: 'serve' }>): Promise<unknown>[] {
  const answer = (client = '', clientPort = 0): string =>
    JSON.stringify({ server: name, client, clientPort } satisfies Seen);
  const started: Promise<unknown>[] = [];
  if (tcp !== undefined) {
    const server = createServer((socket) => {
      socket.on('data', () => {
        socket.write(answer(socket.remoteAddress, socket.remotePort) + '\n');
        if (ends) socket.destroySoon();
      });
      socket.on('error', () => socket.destroy());
    });
    servers.push(server);
    started.push(once(server.listen({ port: tcp, host: address, ipv6Only: true }), 'listening'));
  }
  if (udp !== undefined) {
    const socket = createSocket(isIPv6(address) ? 'udp6' : 'udp4');
    socket.on('message', (_message, from) => {
      heard.push(`${from.address}:${from.port}`);
      socket.send(answer(from.address, from.port), from.port, from.address);
    });
    socket.on('error', () => undefined);
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
      const text = data.toString();
      // A program that is none of ours has answered, too.
      resolve(
        text.startsWith('{') ? (JSON.parse(text) as Seen) : { server: text, client: '', clientPort: 0 },
      );
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
  const socket = createSocket(isIPv6(host.split('%')[0] ?? host) ? 'udp6' : 'udp4');
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

/** Sends it from an ordinary socket, which takes no privilege. */
async function inject({ outer, macs, inner }: Injected): Promise<void> {
  const bytes = (address: string): number[] => address.split('.').map(Number);
  const mac = (text: string): number[] => text.split(':').map((byte) => Number.parseInt(byte, 16));
  const body = Buffer.from('injected');
  const udp = Buffer.alloc(8);
  udp.writeUInt16BE(inner.sourcePort, 0);
  udp.writeUInt16BE(inner.destinationPort, 2);
  udp.writeUInt16BE(udp.length + body.length, 4);
  const ip = Buffer.from([
    0x45,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    64,
    17,
    0,
    0,
    ...bytes(inner.source),
    ...bytes(inner.destination),
  ]);
  ip.writeUInt16BE(ip.length + udp.length + body.length, 2);
  let sum = 0;
  for (let at = 0; at < ip.length; at += 2) sum += ip.readUInt16BE(at);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
  ip.writeUInt16BE(~sum & 0xffff, 10);
  const vxlan = Buffer.from([8, 0, 0, 0, 0, 0, 0, 0]);
  vxlan.writeUIntBE(outer.vni, 4, 3);
  const ethernet = Buffer.from([...mac(macs.destination), ...mac(macs.source), 8, 0]);
  const socket = createSocket('udp4');
  try {
    await once(socket.bind(0, outer.source), 'listening');
    const packet = Buffer.concat([vxlan, ethernet, ip, udp, body]);
    await new Promise<void>((resolve) => {
      // That it is refused here already is one of the ways in which it does not arrive.
      socket.send(packet, outer.port, outer.address, () => resolve());
    });
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
    case 'heard':
      return heard;
    case 'inject':
      await inject(command.datagram);
      return null;
    case 'stream': {
      const { key, host, port, localPort, everyMs } = command;
      const socket = createSocket('udp4');
      answered.set(key, []);
      socket.on('message', (data) => answered.get(key)?.push((JSON.parse(data.toString()) as Seen).server));
      // Not connected: a refusal is not to end it.
      await once(socket.bind(localPort), 'listening');
      setInterval(() => socket.send('?', port, host, () => undefined), everyMs);
      return null;
    }
    case 'answered': {
      const since = answered.get(command.key) ?? [];
      answered.set(command.key, []);
      return since;
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
