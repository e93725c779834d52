// Owns the DNS server: its sockets, and for each question who asks, what is answered and who else is asked.
// Must not make names of records (zone.ts), nor know who is behind an address: it is told.
import { once } from 'node:events';
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
import { PreparedAnswers } from './prepared.ts';
import { resolve, type Asker } from './resolve.ts';
import { createTcpService, type TcpService } from './tcp.ts';
import { CLASS, RCODE, TYPE } from './types.ts';
import { UdpService, type Send } from './udp.ts';
import { defaultThreads, Workers } from './workers.ts';
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
  /** What is true now, until {@link DnsServer.forget}. Asked for with every new question: has to be cheap. */
  zone: () => Zone;
  /** @returns undefined for somebody who is not to be answered; the same until {@link DnsServer.forget} */
  identify: (address: string) => Identity | undefined;
  forwarder: Pick<Forwarder, 'ask'>;
  /** That answer beside this one when there is much to do; by default as many as pay on this machine. */
  threads?: number;
  /** Questions a second from which on they answer. */
  busyRate?: number;
  log: Log;
}

export interface Reply {
  message: Buffer;
  /** For so many milliseconds the same question from the same asker may get it again; Infinity: until the names change. */
  keepMs: number;
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
  readonly #prepared = new PreparedAnswers();
  readonly #workers: Workers;
  #udp: UdpService | undefined;
  #tcp: TcpService | undefined;
  /** In use, once it is started. */
  #port: number | undefined;
  #waiting = 0;
  #warnedAt = -Infinity;

  constructor(options: DnsServerOptions) {
    this.#options = options;
    this.#workers = new Workers({
      threads: options.threads ?? defaultThreads,
      busyRate: options.busyRate,
      answer: (question, from) => this.handle(question, from, 'udp'),
      onReady: () => void this.#leave(),
      onGone: () => this.#comeBack(),
      onError: (error) => this.#warn(error, {}, 'A thread of the DNS server failed.'),
    });
  }

  /** The port in use, once it is started. */
  get port(): number {
    return this.#port ?? this.#options.port;
  }

  /** Threads that answer in place of this one. */
  get workers(): number {
    return this.#workers.size;
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
    this.#port = undefined;
    await Promise.all([this.#workers.close(), udp?.close(), tcp?.close()]);
  }

  /** To be called whenever the zone or who is who has changed. */
  forget(): void {
    this.#prepared.clear();
    this.#workers.clear();
  }

  /**
   * Answers one message. Never throws, nor does the promise ever fail.
   *
   * @param from the address it came from
   * @returns undefined when there is nothing to send back; a promise only when another server has to be asked
   */
  handle(message: Buffer, from: string, transport: Transport): Reply | undefined | Promise<Reply> {
    const parsed = parseQuery(message);
    if (parsed.kind !== 'query') {
      this.#options.log.debug({ from, transport, bytes: message.length }, 'This is no question.');
      return parsed.kind === 'invalid' ? passing(parsed.response) : undefined;
    }
    const { query } = parsed;
    const limit = limitOf(query, transport);
    try {
      return this.#answer(message, query, from, limit);
    } catch (error) {
      return passing(this.#fail(error, query, limit));
    }
  }

  #answer(message: Buffer, query: Query, from: string, limit: number): Reply | Promise<Reply> {
    const { question } = query;
    const without = (rcode: number): Reply => passing(render(query, rcode, limit));
    const identity = this.#options.identify(from);
    if (identity === undefined) return without(RCODE.REFUSED);
    if (question.type === TYPE.EDNS) return without(RCODE.FORMERR);
    if (question.class !== CLASS.IN || isMeta(question.type)) return without(RCODE.REFUSED);
    const zone = this.#options.zone();
    const resolution = resolve(zone, identity.asker, question);
    if (resolution.kind === 'refuse') return without(RCODE.REFUSED);
    if (resolution.kind !== 'forward')
      return { message: renderResolution(query, resolution, limit), keepMs: Infinity };
    if (identity.upstream === undefined) return without(RCODE.REFUSED);
    if (this.#waiting >= maxWaiting) return without(RCODE.SERVFAIL);
    return this.#forward(message, query, identity.upstream, limit);
  }

  async #forward(message: Buffer, query: Query, upstream: Upstream, limit: number): Promise<Reply> {
    this.#waiting += 1;
    try {
      const given = await this.#options.forwarder.ask(message, upstream);
      const rest = withoutStale(query, given.message, this.#options.zone().isStale);
      const answer =
        rest === undefined ? render(query, RCODE.NXDOMAIN, limit) : finishForeign(query, rest, limit);
      return { message: answer, keepMs: given.keepMs };
    } catch (error) {
      return passing(this.#fail(error, query, limit));
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
    const { address = '0.0.0.0', port: wanted } = this.#options;
    const onError = (error: Error): void => this.#warn(error, {}, 'A socket of the DNS server failed.');
    const udp = new UdpService({
      prepared: this.#prepared,
      onQuestion: () => this.#workers.count(),
      onMiss: (question, from, port) => this.#receive(question, from, port),
      onError,
    });
    this.#udp = udp;
    await udp.listen(wanted, address);
    const port = udp.port ?? wanted;
    this.#port = port;
    const tcp = createTcpService((message, from) => this.#handleTcp(message, from), onError);
    this.#tcp = tcp;
    tcp.server.listen({ port, host: address });
    await once(tcp.server, 'listening');
    tcp.server.on('error', onError);
    this.#workers.open({ port, address });
  }

  #receive(question: Buffer, from: string, port: number): void {
    const give = (reply: Reply): void => {
      this.#udp?.send(reply.message, from, port);
      this.#prepared.keep(question, from, reply.message, reply.keepMs);
    };
    const reply = this.handle(question, from, 'udp');
    if (reply instanceof Promise) void reply.then(give);
    else if (reply !== undefined) give(reply);
  }

  /** This thread has other work, which would make those wait who ask it. */
  async #leave(): Promise<void> {
    const send: Send = (answer, from, port) => this.#workers.send(answer, from, port);
    await this.#udp
      ?.leave(send)
      .catch((error: unknown) => this.#warn(error, {}, 'A socket could not be left.'));
  }

  /** @returns whether it could */
  async #comeBack(): Promise<boolean> {
    const { address = '0.0.0.0' } = this.#options;
    const [udp, port] = [this.#udp, this.#port];
    if (udp === undefined || port === undefined) return false;
    if (udp.port !== undefined) return true;
    try {
      await udp.listen(port, address);
      return true;
    } catch (error) {
      this.#warn(error, {}, 'The DNS server’s port could not be had again.');
      return false;
    }
  }

  #handleTcp(message: Buffer, from: string): Buffer | undefined | Promise<Buffer> {
    const reply = this.handle(message, from, 'tcp');
    return reply instanceof Promise ? reply.then((later) => later.message) : reply?.message;
  }
}

function passing(message: Buffer): Reply {
  return { message, keepMs: 0 };
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
