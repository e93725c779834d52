// Owns the DNS server: its sockets, and for each question who asks, what is answered and who else is asked.
// Must not make names of records (zone.ts), nor know who is behind a socket: it is told.
import { once } from 'node:events';
import type { Forwarder, Upstream } from './forward.ts';
import { duplicate } from './descriptor.ts';
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
import { Shares } from './shares.ts';
import { Connections, createTcpService, type TcpService } from './tcp.ts';
import { CLASS, RCODE, TYPE } from './types.ts';
import { UdpService } from './udp.ts';
import { defaultThreads, Workers } from './workers.ts';
import type { Zone } from './zone.ts';

/** The part of pino that is used here. */
export interface Log {
  debug: (fields: object, message: string) => void;
  warn: (fields: object, message: string) => void;
}

/** Who asks by a socket, and whom to ask on its behalf; without upstream nobody is asked. */
export interface Identity {
  asker: Asker;
  upstream?: Upstream;
}

export interface DnsServerOptions {
  /** What is true now, until {@link DnsServer.forget}. Asked for with every new question: has to be cheap. */
  zone: () => Zone;
  /** @returns undefined for somebody who is not to be answered; the same until {@link DnsServer.forget} */
  identify: (asker: string) => Identity | undefined;
  forwarder: Pick<Forwarder, 'ask'>;
  /** That answer beside this one when there is much to do; by default as many as pay on this machine. */
  threads?: number;
  /** Questions a second from which on they answer. */
  busyRate?: number;
  log: Log;
}

/** File descriptors of sockets that are bound. */
export interface AskersSockets {
  udp: number;
  tcp: number;
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

interface Door {
  udp: UdpService;
  tcp: TcpService;
}

export class DnsServer {
  readonly #options: DnsServerOptions;
  readonly #prepared = new PreparedAnswers();
  readonly #connections = new Connections();
  readonly #workers: Workers;
  /** By asker, where its questions come in. */
  readonly #doors = new Map<string, Door>();
  readonly #waiting = new Shares(maxWaiting);
  #warnedAt = -Infinity;

  constructor(options: DnsServerOptions) {
    this.#options = options;
    this.#workers = new Workers({
      threads: options.threads ?? defaultThreads,
      busyRate: options.busyRate,
      answer: (question, asker) => this.handle(question, asker, 'udp'),
      send: (message, asker, address, port) => this.#doors.get(asker)?.udp.send(message, address, port),
      onReady: () => this.#leave(),
      onGone: (sockets) => this.#comeBack(sockets),
      onError: (error) => this.#warn(error, {}, 'A thread of the DNS server failed.'),
    });
  }

  /** Threads that answer in place of this one. */
  get workers(): number {
    return this.#workers.size;
  }

  /**
   * Opens sockets of its own, for all who reach the address.
   * @param port UDP and TCP; 0 for any that is free
   * @returns the port
   * @throws {DnsUnavailable} when the port is taken, or the address is not this node's
   */
  async listen(asker: string, { port, address }: { port: number; address: string }): Promise<number> {
    for (let attempt = 1; ; attempt += 1)
      try {
        const { udp, tcp } = this.#make(asker);
        await udp.listen(port, address);
        const used = udp.port ?? port;
        tcp.server.listen({ port: used, host: address });
        await once(tcp.server, 'listening');
        tcp.server.on('error', this.#onError);
        return used;
      } catch (error) {
        await this.shut(asker);
        const { code } = error as NodeJS.ErrnoException;
        if (port !== 0 || code !== 'EADDRINUSE' || attempt === bindAttempts)
          throw unavailable(error as NodeJS.ErrnoException, address, port);
      }
  }

  /**
   * Answers one asker at sockets that are there.
   * @param sockets its own from now on
   */
  open(asker: string, sockets: AskersSockets): void {
    const { udp, tcp } = this.#make(asker);
    tcp.server.on('error', this.#onError);
    tcp.server.listen({ fd: sockets.tcp });
    if (this.#workers.ready) this.#workers.take(asker, sockets.udp);
    else udp.read(sockets.udp);
  }

  /** Ends an asker's sockets, and all connections. */
  async shut(asker: string): Promise<void> {
    const door = this.#doors.get(asker);
    if (door === undefined) return;
    this.#doors.delete(asker);
    this.#workers.release(asker);
    door.udp.close();
    await door.tcp.close();
  }

  async close(): Promise<void> {
    await Promise.all([...this.#doors.keys()].map((asker) => this.shut(asker)));
    await this.#workers.close();
  }

  /** To be called whenever the zone or who is who has changed. */
  forget(): void {
    this.#prepared.clear();
    this.#workers.clear();
  }

  /**
   * Answers one message. Never throws, nor does the promise ever fail.
   *
   * @param asker whose socket it came from
   * @returns undefined when there is nothing to send back; a promise only when another server has to be asked
   */
  handle(message: Buffer, asker: string, transport: Transport): Reply | undefined | Promise<Reply> {
    const parsed = parseQuery(message);
    if (parsed.kind !== 'query') {
      this.#options.log.debug({ asker, transport, bytes: message.length }, 'not a query, ignored');
      return parsed.kind === 'invalid' ? passing(parsed.response) : undefined;
    }
    const { query } = parsed;
    const limit = limitOf(query, transport);
    try {
      return this.#answer(message, query, asker, limit);
    } catch (error) {
      return passing(this.#fail(error, query, limit));
    }
  }

  #answer(message: Buffer, query: Query, asker: string, limit: number): Reply | Promise<Reply> {
    const { question } = query;
    const without = (rcode: number): Reply => passing(render(query, rcode, limit));
    const identity = this.#options.identify(asker);
    if (identity === undefined) return without(RCODE.REFUSED);
    if (question.type === TYPE.EDNS) return without(RCODE.FORMERR);
    if (question.class !== CLASS.IN || isMeta(question.type)) return without(RCODE.REFUSED);
    const zone = this.#options.zone();
    const resolution = resolve(zone, identity.asker, question);
    if (resolution.kind === 'refuse') return without(RCODE.REFUSED);
    if (resolution.kind !== 'forward')
      return { message: renderResolution(query, resolution, limit), keepMs: Infinity };
    if (identity.upstream === undefined) return without(RCODE.REFUSED);
    if (!this.#waiting.take(identity.upstream.key)) return without(RCODE.SERVFAIL);
    return this.#forward(message, query, identity.upstream, limit);
  }

  async #forward(message: Buffer, query: Query, upstream: Upstream, limit: number): Promise<Reply> {
    try {
      const given = await this.#options.forwarder.ask(message, upstream);
      const rest = withoutStale(query, given.message, this.#options.zone().isStale);
      const answer =
        rest === undefined ? render(query, RCODE.NXDOMAIN, limit) : finishForeign(query, rest, limit);
      return { message: answer, keepMs: given.keepMs };
    } catch (error) {
      return passing(this.#fail(error, query, limit));
    } finally {
      this.#waiting.give(upstream.key);
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

  readonly #onError = (error: Error): void => this.#warn(error, {}, 'DNS socket failed');

  #make(asker: string): Door {
    const udp = new UdpService({
      asker,
      prepared: this.#prepared,
      onQuestion: () => this.#workers.count(),
      onMiss: (question, address, port) => this.#receive(question, asker, address, port),
      onError: this.#onError,
    });
    const tcp = createTcpService({
      asker,
      connections: this.#connections,
      answer: (message) => this.#handleTcp(message, asker),
      onError: this.#onError,
    });
    const door = { udp, tcp };
    this.#doors.set(asker, door);
    return door;
  }

  #receive(question: Buffer, asker: string, address: string, port: number): void {
    const give = (reply: Reply): void => {
      const udp = this.#doors.get(asker)?.udp;
      if (udp?.reads === true) udp.send(reply.message, address, port);
      else if (udp !== undefined) this.#workers.send(reply.message, asker, address, port);
      this.#prepared.keep(question, asker, reply.message, reply.keepMs);
    };
    const reply = this.handle(question, asker, 'udp');
    if (reply instanceof Promise) void reply.then(give);
    else if (reply !== undefined) give(reply);
  }

  /** This thread has other work, which would make those wait who ask it. */
  #leave(): void {
    for (const [asker, { udp }] of this.#doors) {
      const socket = udp.leave();
      if (socket !== undefined) this.#workers.take(asker, socket);
    }
  }

  #comeBack(sockets: ReadonlyMap<string, number>): void {
    for (const [asker, socket] of sockets)
      try {
        this.#doors.get(asker)?.udp.read(duplicate(socket));
      } catch (error) {
        this.#warn(error, { asker }, 'A socket of the DNS server could not be had again.');
      }
  }

  #handleTcp(message: Buffer, asker: string): Buffer | undefined | Promise<Buffer> {
    const reply = this.handle(message, asker, 'tcp');
    return reply instanceof Promise ? reply.then((later) => later.message) : reply?.message;
  }
}

function passing(message: Buffer): Reply {
  return { message, keepMs: 0 };
}

function isMeta(type: number): boolean {
  return type >= firstMetaType && type <= lastMetaType;
}

function unavailable(error: NodeJS.ErrnoException, address: string, port: number): DnsUnavailable {
  const reasons: Record<string, string> = {
    EADDRINUSE: `port ${port} of ${address} is in use by another program: free it, or choose another port`,
    EADDRNOTAVAIL: `${address} is not an address of this node: set the one it has`,
    EACCES: `port ${port} needs the right to use ports below 1024: run as root, or choose another port`,
  };
  const reason = reasons[error.code ?? ''] ?? `${address}:${port} cannot be used: ${error.message}`;
  return new DnsUnavailable(`Names cannot be answered: ${reason}`, { cause: error });
}
