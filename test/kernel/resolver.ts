// Owns playing Docker's resolver in a sandbox, with the rules that Docker has there, and asking it as a container's program does.
// Must not assert anything.
import { createSocket, type Socket as UdpSocket } from 'node:dgram';
import { once } from 'node:events';
import { createServer, Socket, type Server } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { Packet } from 'dns2';
import { toWire } from '../../dns/name.ts';
import { inNamespace, localPort, openSocket } from '../../net/namespace.ts';
import { runTool } from '../lab/plugin-process.ts';
import { slowness } from '../slowness.ts';

const address = '127.0.0.11';

/** With what Docker's resolver answers here, whatever it is asked. */
export const dockersAnswer = '192.0.2.11';

/** How Docker makes its rules: by iptables, or since 29 by nft where it is told to. */
export type Form = 'iptables' | 'nft';

export class Resolver {
  readonly #sandbox: string;
  readonly #form: Form;
  #udp: UdpSocket | undefined;
  #tcp: Server | undefined;
  #ports: { udp: number; tcp: number } = { udp: 0, tcp: 0 };
  /** Questions that it got. */
  asked = 0;

  private constructor(sandbox: string, form: Form) {
    this.#sandbox = sandbox;
    this.#form = form;
  }

  static async start(sandbox: string, form: Form = 'iptables'): Promise<Resolver> {
    const resolver = new Resolver(sandbox, form);
    await resolver.start();
    return resolver;
  }

  /** Listens, at other ports than before, as a restarted dockerd does. */
  async start(): Promise<void> {
    const open = (protocol: 'udp' | 'tcp'): number =>
      inNamespace(this.#sandbox, () => openSocket({ protocol, local: { address, port: 0 } }));
    const [udp, tcp] = [open('udp'), open('tcp')];
    this.#ports = { udp: localPort(udp), tcp: localPort(tcp) };
    const socket = createSocket('udp4');
    socket.on('message', (question, from) => socket.send(this.#answer(question), from.port, from.address));
    socket.bind({ fd: udp });
    this.#udp = socket;
    this.#tcp = createServer((connection) => {
      connection.on('error', () => undefined);
      connection.on('data', (data) => connection.write(framed(this.#answer(data.subarray(2)))));
    });
    this.#tcp.listen({ fd: tcp });
    await this.#translate('add');
  }

  async stop(): Promise<void> {
    await this.#translate('delete').catch(() => undefined);
    this.close();
  }

  /** As {@link stop}, but that its rules stay. */
  close(): void {
    this.#udp?.close();
    this.#tcp?.close();
  }

  #answer(question: Buffer): Buffer {
    this.asked += 1;
    // Without the OPT record, which is behind the question.
    let end = 12;
    while ((question[end] ?? 0) > 0) end += 1 + (question[end] ?? 0);
    const answer = Buffer.concat([
      question.subarray(0, end + 5),
      Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, ...dockersAnswer.split('.').map(Number)]),
    ]);
    answer.writeUInt16BE(0x8180, 2);
    answer.writeUInt16BE(1, 6);
    answer.writeUInt16BE(0, 10);
    return answer;
  }

  async #translate(verb: 'add' | 'delete'): Promise<void> {
    const { udp, tcp } = this.#ports;
    if (this.#form === 'nft') {
      const rules = Object.entries({ udp, tcp }).map(([protocol, port]) => [
        `ip daddr ${address} ${protocol} dport 53 dnat to ${address}:${port}`,
        `ip saddr ${address} ${protocol} sport ${port} snat to :53`,
      ]);
      const text =
        `table ip docker-dns { chain output { type nat hook output priority -100; ${rules.map(([to]) => to).join('; ')}; }; ` +
        `chain postrouting { type nat hook postrouting priority srcnat; ${rules.map(([, back]) => back).join('; ')}; }; }`;
      await runTool(this.#sandbox, 'nft', [verb === 'add' ? text : 'delete table ip docker-dns']);
      return;
    }
    for (const [protocol, port] of Object.entries({ udp, tcp })) {
      const of = ['-p', protocol];
      await this.#iptables(verb, 'OUTPUT', [
        ...['-d', address, ...of, '--dport', '53'],
        ...['-j', 'DNAT', '--to-destination', `${address}:${port}`],
      ]);
      await this.#iptables(verb, 'POSTROUTING', [
        ...['-s', address, ...of, '--sport', `${port}`],
        ...['-j', 'SNAT', '--to-source', ':53'],
      ]);
    }
  }

  #iptables(verb: 'add' | 'delete', chain: string, rule: string[]): Promise<string> {
    return runTool(this.#sandbox, 'iptables-nft', [
      '-t',
      'nat',
      `--${verb === 'add' ? 'append' : verb}`,
      chain,
      ...rule,
    ]);
  }
}

export interface AskOptions {
  protocol?: 'udp' | 'tcp';
  /** From where, if not by the kernel's choice. */
  from?: string;
  /** Milliseconds; in vain as long. */
  timeout?: number;
}

/** @returns the addresses that the container's resolver answers with; or how it refuses, or `timeout` */
export async function lookUp(
  sandbox: string,
  name: string,
  { protocol = 'udp', from = '0.0.0.0', timeout = 2_000 * slowness }: AskOptions = {},
): Promise<string> {
  const descriptor = inNamespace(sandbox, () =>
    openSocket({
      ...{ protocol, local: { address: from, port: 0 } },
      ...(protocol === 'tcp' && { remote: { address, port: 53 } }),
    }),
  );
  const ends = AbortSignal.timeout(timeout);
  try {
    return read(await (protocol === 'udp' ? overUdp : overTcp)(descriptor, question(name), ends));
  } catch (error) {
    return ends.aborted ? 'timeout' : ((error as NodeJS.ErrnoException).code ?? (error as Error).message);
  }
}

/** The socket is connected: no answer from anywhere else is taken. */
async function overUdp(descriptor: number, message: Buffer, signal: AbortSignal): Promise<Buffer> {
  const socket = createSocket('udp4');
  try {
    const answered = once(socket, 'message', { signal });
    socket.bind({ fd: descriptor });
    socket.connect(53, address, () => socket.send(message));
    const [answer] = (await answered) as [Buffer];
    return answer;
  } finally {
    socket.close();
  }
}

async function overTcp(descriptor: number, message: Buffer, signal: AbortSignal): Promise<Buffer> {
  const socket = new Socket({ fd: descriptor });
  try {
    socket.write(framed(message));
    const [answer] = (await once(socket, 'data', { signal })) as [Buffer];
    return answer.subarray(2);
  } finally {
    socket.destroy();
  }
}

let lastId = 0;

function question(name: string): Buffer {
  lastId = (lastId + 1) & 0xffff;
  const header = Buffer.from([lastId >> 8, lastId & 255, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
  return Buffer.concat([header, toWire(name), Buffer.from([0, 1, 0, 1])]);
}

function framed(message: Buffer): Buffer {
  return Buffer.concat([Buffer.from([message.length >> 8, message.length & 255]), message]);
}

const codes = ['NOERROR', 'FORMERR', 'SERVFAIL', 'NXDOMAIN', 'NOTIMP', 'REFUSED'];

function read(message: Buffer): string {
  const { header, answers } = Packet.parse(message);
  const addresses = answers.flatMap((record) => ('address' in record ? [record.address] : []));
  return addresses.length > 0 ? addresses.join(' ') : (codes[header.rcode] ?? `code ${header.rcode}`);
}

export interface Lookups {
  /** @returns what each question was answered with, in order */
  stop: () => Promise<string[]>;
}

/** Looks a name up again and again, from one port and the same socket, without a second try. */
export function keepLookingUp(sandbox: string, name: string, everyMs: number): Lookups {
  const descriptor = inNamespace(sandbox, () =>
    openSocket({ protocol: 'udp', local: { address: '0.0.0.0', port: 0 } }),
  );
  const socket = createSocket('udp4');
  socket.bind({ fd: descriptor });
  socket.connect(53, address);
  const answers: string[] = [];
  const byId = new Map<number, number>();
  socket.on('message', (message) => {
    const at = byId.get(message.readUInt16BE(0));
    if (at !== undefined) answers[at] = read(message);
  });
  socket.on('error', () => undefined);
  const timer = setInterval(() => {
    const message = question(name);
    byId.set(message.readUInt16BE(0), answers.length);
    answers.push('nothing');
    socket.send(message);
  }, everyMs);
  return {
    stop: async () => {
      clearInterval(timer);
      await sleep(500 * slowness);
      socket.close();
      return answers;
    },
  };
}
