// Owns the DNS server: its sockets, and for each question who asks, what is answered and who else is asked.
// Must not make names of records (zone.ts), nor know who is behind an address: it is told.
import { createSocket, type RemoteInfo, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { isIPv6 } from 'node:net';
import type { Forwarder, Upstream } from './forward.ts';
import { withoutStale } from './foreign.ts';
import {
  finishForeign,
  limitOf,
  parseQuery,
  render,
  renderResolution,
  type Query,
  type Transport,
} from './message.ts';
import { resolve, type Asker } from './resolve.ts';
import { createTcpService, type TcpService } from './tcp.ts';
import { CLASS, RCODE, TYPE } from './types.ts';
import type { Zone } from './zone.ts';

/** The part of pino that is used here. */
export interface Log {
  debug: (fields: object, message: string) => void;
  warn: (fields: object, message: string) => void;
}

/** Who is behind an address, and whom to ask on its behalf; without upstream nobody is asked. */
export interface Identity {
  asker: Asker;
  upstream?: Upstream;
}

export interface DnsServerOptions {
  /** UDP and TCP; 0 for any that is free. */
  port: number;
  /** Listens there only; on all IPv4 addresses if absent. */
  address?: string;
  /** What is true now. Asked for with every question: has to be cheap. */
  zone: () => Zone;
  /** @returns undefined for somebody who is not to be answered */
  identify: (address: string) => Identity | undefined;
  forwarder: Pick<Forwarder, 'ask'>;
  log: Log;
}

/** The port or the address cannot be used. */
export class DnsUnavailable extends Error {
  override readonly name = 'DnsUnavailable';
}

/** Questions that wait for another server, of all askers together. */
const maxWaiting = 4_096;

/** A fault of ours can show with every packet, and the log shall not be filled by whoever sends them. */
const warnEveryMs = 10_000;

/** Types from here on are no types of records but ways to ask, all but ANY for something else than an answer (RFC 6895). */
const firstMetaType = 128;
const lastMetaType = 254;

/** A free port for UDP may be taken for TCP. */
const bindAttempts = 10;

export class DnsServer {
  readonly #options: DnsServerOptions;
  #udp: Socket | undefined;
  #tcp: TcpService | undefined;
  #waiting = 0;
  #warnedAt = -Infinity;

  constructor(options: DnsServerOptions) {
    this.#options = options;
  }

  /** The port in use, once it is started. */
  get port(): number {
    return this.#udp?.address().port ?? this.#options.port;
  }

  /** @throws {DnsUnavailable} when the port is taken, or the address is not this node's */
  async start(): Promise<void> {
    for (let attempt = 1; ; attempt += 1)
      try {
        await this.#listen();
        return;
      } catch (error) {
        await this.close();
        const { code } = error as NodeJS.ErrnoException;
        if (this.#options.port !== 0 || code !== 'EADDRINUSE' || attempt === bindAttempts)
          throw unavailable(error as NodeJS.ErrnoException, this.#options);
      }
  }

  async close(): Promise<void> {
    const [udp, tcp] = [this.#udp, this.#tcp];
    this.#udp = undefined;
    this.#tcp = undefined;
    if (udp !== undefined) {
      const closed = once(udp, 'close');
      udp.close();
      await closed;
    }
    await tcp?.close();
  }

  /**
   * Answers one message. Never throws, nor does the promise ever fail.
   *
   * @param from the address it came from
   * @returns undefined when there is nothing to send back; a promise only when another server has to be asked
   */
  handle(
    message: Buffer,
    from: string,
    transport: Transport,
  ): Buffer | undefined | Promise<Buffer | undefined> {
    const parsed = parseQuery(message);
    if (parsed.kind !== 'query') {
      this.#options.log.debug({ from, transport, bytes: message.length }, 'This is no question.');
      return parsed.kind === 'invalid' ? parsed.response : undefined;
    }
    const { query } = parsed;
    const limit = limitOf(query, transport);
    try {
      return this.#answer(message, query, from, limit);
    } catch (error) {
      return this.#fail(error, query, limit);
    }
  }

  #answer(message: Buffer, query: Query, from: string, limit: number): Buffer | Promise<Buffer> {
    const { question } = query;
    const identity = this.#options.identify(from);
    if (identity === undefined) return render(query, RCODE.REFUSED, limit);
    if (question.type === TYPE.EDNS) return render(query, RCODE.FORMERR, limit);
    if (question.class !== CLASS.IN || isMeta(question.type)) return render(query, RCODE.REFUSED, limit);
    const zone = this.#options.zone();
    const resolution = resolve(zone, identity.asker, question);
    if (resolution.kind === 'refuse') return render(query, RCODE.REFUSED, limit);
    if (resolution.kind !== 'forward') return renderResolution(query, resolution, limit);
    if (identity.upstream === undefined) return render(query, RCODE.REFUSED, limit);
    if (this.#waiting >= maxWaiting) return render(query, RCODE.SERVFAIL, limit);
    return this.#forward(message, query, identity.upstream, limit);
  }

  async #forward(message: Buffer, query: Query, upstream: Upstream, limit: number): Promise<Buffer> {
    this.#waiting += 1;
    try {
      const answer = await this.#options.forwarder.ask(message, upstream);
      const rest = withoutStale(query, answer, this.#options.zone().isStale);
      return rest === undefined ? render(query, RCODE.NXDOMAIN, limit) : finishForeign(query, rest, limit);
    } catch (error) {
      return this.#fail(error, query, limit);
    } finally {
      this.#waiting -= 1;
    }
  }

  #fail(error: unknown, query: Query, limit: number): Buffer {
    this.#warn(error, { question: query.question.name }, 'A question could not be answered.');
    return render(query, RCODE.SERVFAIL, limit);
  }

  #warn(error: unknown, fields: object, text: string): void {
    const now = performance.now();
    const { log } = this.#options;
    if (now - this.#warnedAt < warnEveryMs) {
      log.debug({ err: error, ...fields }, text);
      return;
    }
    this.#warnedAt = now;
    log.warn({ err: error, ...fields }, text);
  }

  async #listen(): Promise<void> {
    const { address = '0.0.0.0', port } = this.#options;
    const udp = createSocket(isIPv6(address) ? 'udp6' : 'udp4');
    this.#udp = udp;
    udp.on('message', (message, from) => this.#receive(udp, message, from));
    udp.bind({ port, address });
    await once(udp, 'listening');
    const onError = (error: Error): void => this.#warn(error, {}, 'A socket of the DNS server failed.');
    udp.on('error', onError);
    const tcp = createTcpService((message, from) => this.handle(message, from, 'tcp'), onError);
    this.#tcp = tcp;
    tcp.server.listen({ port: udp.address().port, host: address });
    await once(tcp.server, 'listening');
    tcp.server.on('error', onError);
  }

  #receive(udp: Socket, message: Buffer, { address, port }: RemoteInfo): void {
    const send = (answer: Buffer | undefined): void => {
      // Nobody can be answered at port 0, and nobody waits once this is closed.
      if (answer === undefined || port === 0 || udp !== this.#udp) return;
      udp.send(answer, port, address, (error) => {
        if (error !== null) this.#options.log.debug({ err: error, address }, 'An answer could not be sent.');
      });
    };
    const answer = this.handle(message, address, 'udp');
    if (answer instanceof Promise) void answer.then(send);
    else send(answer);
  }
}

function isMeta(type: number): boolean {
  return type >= firstMetaType && type <= lastMetaType;
}

function unavailable(
  error: NodeJS.ErrnoException,
  { address = '0.0.0.0', port }: DnsServerOptions,
): DnsUnavailable {
  const reasons: Record<string, string> = {
    EADDRINUSE: `port ${port} of ${address} is in use by another program: free it, or choose another port`,
    EADDRNOTAVAIL: `${address} is not an address of this node: set the one it has`,
    EACCES: `port ${port} needs the right to use ports below 1024: run as root, or choose another port`,
  };
  const reason = reasons[error.code ?? ''] ?? `${address}:${port} cannot be used: ${error.message}`;
  return new DnsUnavailable(`Names cannot be answered: ${reason}`, { cause: error });
}
