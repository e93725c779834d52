// Owns talking to Consul: which address, how long, what a failure means. One HTTP request per call.
// Must not know keys, records or locks, and never repeats a request that may have changed something.
import { EventEmitter } from 'node:events';
import http, { type ClientRequest, type IncomingMessage, type RequestOptions } from 'node:http';
import https from 'node:https';
import type { Socket } from 'node:net';
import Consul from 'consul';
import { StoreError } from './errors.ts';

export interface ConsulOptions {
  /** Agents or servers of one cluster. The first that works is kept; when it fails, the next one is tried. */
  addresses: readonly [ConsulAddress, ...ConsulAddress[]];
  /** PEM texts; present: HTTPS. Without `ca` the authorities that Node trusts; `cert` and `key` if Consul asks for them. */
  tls?: { ca?: string; cert?: string; key?: string; serverName?: string } | undefined;
  /** ACL token; see store/README.md for the policy it needs. */
  token?: string | undefined;
  /** Default: the datacenter of the agent. */
  datacenter?: string | undefined;
  /** What every key of ours begins with. Default: `causeway/`. */
  prefix?: string | undefined;
}

export interface ConsulAddress {
  host: string;
  port: number;
}

/** How one request is to be made. */
export interface RequestSettings {
  signal?: AbortSignal | undefined;
  timeoutMs?: number;
  /** Twice does what once does, so a second address may be asked when the first breaks off. */
  repeatable?: boolean;
  /** It is part of closing, and may be made when all others are refused. */
  closing?: boolean;
}

/** An answer of Consul's. */
export interface Answer {
  /** 200, or a status from 400 to 499 other than 401 and 403: those mean something to the caller. */
  status: number;
  headers: http.IncomingHttpHeaders;
  body: unknown;
}

interface Endpoint {
  /** As `host:port`. */
  name: string;
  client: Consul;
}

/** What every call of the consul package is to be given. */
export interface Common {
  ctx: Context;
  timeout: number;
}

/**
 * What papi, below the consul package, takes as `ctx`: it aborts the request at the event `cancel`, and hands out
 * response and body where it would else give the body only.
 */
class Context extends EventEmitter {
  readonly includeResponse = true;
  /** Whether there was a connection, and so perhaps a request that arrived. */
  connected = false;
}

/** A server that is there accepts a connection in less; one that is not, often does not refuse either. */
const connectTimeoutMs = 2_000;
/** An agent holds a request for up to 7 s while its servers elect a leader (`rpc_hold_timeout`), and then makes it. */
const requestTimeoutMs = 9_000;
/** The kernel asks on a silent connection after this time, then every second, and gives it up after ten. */
const keepAliveMs = 5_000;

export class ConsulClient {
  readonly #endpoints: [Endpoint, ...Endpoint[]];
  readonly #agent: http.Agent;
  readonly #prefix: string;
  readonly #pending = new Set<Context>();
  readonly #stopped = new AbortController();
  /** The one that worked last. */
  #current: Endpoint;

  constructor(options: ConsulOptions, prefix: string) {
    const { addresses, tls, token, datacenter } = options;
    this.#prefix = prefix;
    const keepAlive = { keepAlive: true, keepAliveMsecs: keepAliveMs };
    const { serverName, ...pem } = tls ?? {};
    this.#agent =
      tls === undefined
        ? new http.Agent(keepAlive)
        : new https.Agent({
            ...keepAlive,
            ...pem,
            ...(serverName === undefined ? {} : { servername: serverName }),
          });
    const defaults = {
      ...(token === undefined ? {} : { token }),
      ...(datacenter === undefined ? {} : { dc: datacenter }),
    };
    const open = ({ host, port }: ConsulAddress): Endpoint => {
      const named = host.includes(':') ? `[${host}]` : host;
      const client = new Consul({
        host: named,
        port,
        secure: tls !== undefined,
        defaults,
        agent: this.#agent,
      });
      (client as unknown as Papi)._ext('onRequest', guard);
      return { name: `${named}:${port}`, client };
    };
    const [first, ...rest] = addresses;
    this.#endpoints = [open(first), ...rest.map(open)];
    [this.#current] = this.#endpoints;
  }

  /** Aborts when the store is closed. */
  get stopped(): AbortSignal {
    return this.#stopped.signal;
  }

  /**
   * Makes one request, at the address that worked last, and at the others in turn if there was no connection.
   * @param call one call of the consul package, with `common` among its options
   * @throws StoreError `unavailable` if it is not known whether it happened, `forbidden`, `closed`; the signal's reason
   */
  async send(
    call: (consul: Consul, common: Common) => Promise<unknown>,
    settings: RequestSettings = {},
  ): Promise<Answer> {
    const failed: string[] = [];
    for (;;) {
      this.ready(settings);
      const at = this.#current;
      const context = new Context();
      try {
        return await this.#once(at.client, context, call, settings);
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        if (error.code === 'forbidden') throw this.forbidden(error.message, error);
        failed.push(`${at.name} (${error.message})`);
        // Another call may have moved on already.
        if (this.#current === at) this.#current = this.#next(at);
        const mayRepeat = !context.connected || (settings.repeatable === true && !error.timedOut);
        if (!mayRepeat || failed.length >= this.#endpoints.length)
          throw this.#unavailable(failed, error, context.connected && settings.repeatable !== true);
      }
    }
  }

  /** @throws StoreError `closed`; the signal's reason */
  ready({ signal, closing = false }: RequestSettings): void {
    signal?.throwIfAborted();
    if (this.stopped.aborted && !closing) throw this.#closed();
  }

  /** @param said what Consul says */
  forbidden(said: string, cause?: unknown): StoreError {
    return new StoreError(
      'forbidden',
      `Consul at ${this.#current.name} refuses us: ${said}. Give Causeway a token whose policy has ` +
        `key_prefix "${this.#prefix}" { policy = "write" } and session_prefix "" { policy = "write" }.`,
      { cause },
    );
  }

  /** An answer that no Consul gives, or one to a request that should not have been made. */
  unexpected({ status, body }: Answer): StoreError {
    const said = typeof body === 'string' ? body.trim().slice(0, 200) : '';
    return new StoreError(
      'unavailable',
      `What answers at ${this.#current.name} is not a Consul that Causeway can use: HTTP status ${status} ` +
        `${JSON.stringify(said)}. Check the address in CAUSEWAY_STORE and Consul's limits.`,
    );
  }

  /** Ends what is pending, and refuses everything but what belongs to closing. */
  stop(): void {
    this.#stopped.abort();
    for (const context of this.#pending) context.emit('cancel');
  }

  /** Closes all connections. */
  destroy(): void {
    this.stop();
    this.#agent.destroy();
  }

  async #once(
    client: Consul,
    context: Context,
    call: (consul: Consul, common: Common) => Promise<unknown>,
    { signal, timeoutMs = requestTimeoutMs, closing = false }: RequestSettings,
  ): Promise<Answer> {
    const cancel = (): void => void context.emit('cancel');
    signal?.addEventListener('abort', cancel, { once: true });
    this.#pending.add(context);
    try {
      const [response, body] = (await call(client, { ctx: context, timeout: timeoutMs })) as [
        IncomingMessage,
        unknown,
      ];
      return { status: response.statusCode ?? 0, headers: response.headers, body };
    } catch (error) {
      signal?.throwIfAborted();
      if (this.stopped.aborted && !closing) throw this.#closed();
      return interpret(error);
    } finally {
      this.#pending.delete(context);
      signal?.removeEventListener('abort', cancel);
    }
  }

  #next(endpoint: Endpoint): Endpoint {
    const [first] = this.#endpoints;
    return this.#endpoints[this.#endpoints.indexOf(endpoint) + 1] ?? first;
  }

  #closed(): StoreError {
    return new StoreError('closed', `The store in Consul at ${this.#current.name} is closed.`);
  }

  #unavailable(failed: string[], cause: Failure, maybeDone: boolean): StoreError {
    return new StoreError(
      'unavailable',
      `Consul cannot be used: ${failed.join(', ')}. Check that it runs there, has a leader ("consul operator raft ` +
        'list-peers"), and is reached from this node; other addresses are a matter of CAUSEWAY_STORE.' +
        (maybeDone ? ' Whether the change was made is not known.' : ''),
      { cause },
    );
  }
}

/** One request that did not get an answer of use. */
class Failure extends Error {
  readonly code: 'unavailable' | 'forbidden';
  readonly timedOut: boolean;

  constructor(code: 'unavailable' | 'forbidden', message: string, cause: unknown, timedOut = false) {
    super(message, { cause });
    this.code = code;
    this.timedOut = timedOut;
  }
}

/** The marks papi puts on its errors. */
interface PapiError {
  isPapi?: true;
  isResponse?: true;
  isTimeout?: true;
  response?: IncomingMessage & { body?: unknown };
}

/** @returns an error status that means something to the caller. @throws Failure of every other kind */
function interpret(error: unknown): Answer {
  if (!(error instanceof Error)) throw error;
  const { isResponse, isTimeout, response } = error as PapiError;
  if (isTimeout) throw new Failure('unavailable', 'no answer in time', error, true);
  // The package prefixes its messages with its own name and that of the call.
  if (!isResponse || !response)
    throw new Failure('unavailable', error.message.replace(/^consul: [\w.]+: /, ''), error);
  const { body, headers } = response;
  const status = response.statusCode ?? 0;
  const said = typeof body === 'string' && body !== '' ? body.trim().slice(0, 200) : `HTTP status ${status}`;
  if (status === 401 || status === 403) throw new Failure('forbidden', said, error);
  // 429: more connections than the agent allows one client (`limits.http_max_conns_per_client`).
  if (status >= 500 || status === 429 || status < 400) throw new Failure('unavailable', said, error);
  return { status, headers, body };
}

/** The parts of papi's own interface that the types of the consul package leave out: see papi's README, `_ext`. */
interface Papi {
  _ext(event: 'onRequest', extension: (request: PapiRequest, next: () => void) => void): void;
}

interface PapiRequest {
  ctx: Context;
  req: RequestOptions;
  transport: { request(options: RequestOptions): ClientRequest };
}

/** What papi does not look after: hosts that do not answer, answers that break off, brackets around an IPv6 address. */
function guard(request: PapiRequest, next: () => void): void {
  const { ctx, transport, req } = request;
  req.hostname = req.hostname?.replace(/^\[(.*)\]$/, '$1');
  request.transport = {
    request: (options) => {
      const outgoing = transport.request(options);
      outgoing.once('socket', (socket: Socket) => {
        if (socket.connecting) limitConnecting(outgoing, socket, ctx);
        else ctx.connected = true;
      });
      // Without this, papi would wait for the rest of an answer until its timeout.
      outgoing.once('response', (response) => {
        response.once('close', () => {
          if (!response.complete) outgoing.emit('error', new Error('the connection broke off'));
        });
      });
      return outgoing;
    },
  };
  next();
}

function limitConnecting(outgoing: ClientRequest, socket: Socket, context: Context): void {
  const timer = setTimeout(() => {
    outgoing.destroy(new Error(`no connection within ${connectTimeoutMs / 1000} s`));
  }, connectTimeoutMs);
  socket.once('encrypted' in socket ? 'secureConnect' : 'connect', () => {
    clearTimeout(timer);
    context.connected = true;
  });
  socket.once('close', () => clearTimeout(timer));
}
