// Owns watching other nodes directly: the sockets, the clock, and who is watched.
// Must not judge (failure-detector.ts), nor know what a node or its pending writes are to the rest.
import { randomBytes, type KeyObject } from 'node:crypto';
import { createSocket, type RemoteInfo, type Socket as UdpSocket } from 'node:dgram';
import { once } from 'node:events';
import { createServer, isIPv6, type Server, type Socket } from 'node:net';
import { decode, digestOf, encode, noRevision, revisionDigestOf, type Datagram } from './datagram.ts';
import { fetchPendingWrites, servePendingWrites, type PendingWrites } from './pending-writes.ts';
import { agreedInterval, intervalFor, pendingTimeoutMs, quietFor, sleptMs, tickMs } from './pace.ts';
import { reach } from './tcp-probe.ts';
import {
  begin,
  step,
  type Action,
  type PeerEvent,
  type PeerState,
  type PeerStatus,
} from './failure-detector.ts';

/** The part of pino that is used here. */
export interface Log {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  debug(fields: object, message: string): void;
}

export interface Node {
  id: string;
  /** Its address on the network between nodes, IPv4 or IPv6. */
  address: string;
}

export interface PeersOptions {
  self: Node;
  /** UDP and TCP, the same on every node. */
  port: number;
  /** The secret of the cluster, as far as it is known. Asked for with every datagram: a key made ready once, not bytes. */
  secret: () => KeyObject | undefined;
  log: Log;
  /** A monotonic clock in milliseconds. */
  now?: () => number;
  /** What this node has written and the store does not have, for those that watch it. A new payload needs a new revision; '' is none. */
  pendingWrites?: { revision: () => string; read: () => unknown };
  /** Told the pending writes of a watched node, and undefined when there are none any more. May be told the same twice. */
  onPendingWrites?: (node: string, payload: unknown) => void;
}

export interface PeerView {
  /** False only for a peer that was alive before and does not answer now. */
  alive: boolean;
  verdict: PeerStatus;
  /** Since when, in milliseconds of Unix time. */
  since: number;
  /** Round trip of the last answered question. */
  rttMs?: number;
}

/** See {@link openPeers}. */
export interface Peers {
  /** Watches these nodes and no others. May be called as often as one likes; this node itself is left out. */
  watch: (nodes: readonly Node[]) => void;
  /** Calls back whenever a verdict changed. @returns ends that */
  onChange: (callback: () => void) => () => void;
  /** All watched nodes, by their ids. */
  state: () => ReadonlyMap<string, PeerView>;
  close: () => Promise<void>;
}

/** The port or the address cannot be used. */
export class PeersUnavailable extends Error {
  override readonly name = 'PeersUnavailable';
}

interface Watched extends Node {
  digest: string;
  state: PeerState;
  /** What it says about itself, from its last datagram. */
  stamp: bigint;
  interval: number;
  rttMs?: number;
  /** The revision that was fetched last, as a digest. */
  fetched: string;
  /** Gives up the fetch that is under way. */
  fetching?: AbortController;
  fetchAt: number;
  /** Gives up the connections that are open to see whether it is alive. */
  hangUps: Set<() => void>;
  /** When it was first asked by a datagram. */
  askedAt?: number;
  /** When a peer that counts as dead gave the first sign of life of those that follow each other, and the last. */
  signs?: { first: number; last: number };
  /** Whether it ever sent a datagram, and ever accepted a connection. */
  heard: boolean;
  accepted: boolean;
  /** Whether the log has been told what is wrong with its heartbeats, or with its pending writes. */
  warned: boolean;
  warnedOfPending: boolean;
}

/** Payloads are up to 16 MiB, so not all nodes' at once. */
const maxFetches = 4;
const fetchRetryMs = 1_000;

/**
 * Connections served at once, and of them from one node, which opens three at most to see whether this one is alive, and
 * fetches pending writes. Those beyond are closed, which is a sign of life too.
 */
const maxConnections = 256;
const maxConnectionsOfOne = 16;

/**
 * Connections the kernel takes while this process hangs; it takes no more than net.core.somaxconn. When they are used
 * up, it answers no further ones, and this node looks dead.
 */
const backlog = 4_096;

/** The share of a pause that chance may take off it, as in BFD (RFC 5880 §6.8.7). */
const maxJitter = 0.25;

/** A node may take this long to come up before a firewall is suspected. */
const warnAfterMs = 10_000;

/**
 * Answers other nodes' heartbeats from now on, and watches those it is told to watch.
 * @throws {PeersUnavailable} when the port is taken, or the address is not this node's
 */
export async function openPeers(options: PeersOptions): Promise<Peers> {
  const { address } = options.self;
  const udp = createSocket(isIPv6(address) ? 'udp6' : 'udp4');
  const tcp = createServer({ noDelay: true });
  tcp.maxConnections = maxConnections;
  try {
    udp.bind({ port: options.port, address });
    await once(udp, 'listening');
    tcp.listen({ port: options.port, host: address, backlog });
    await once(tcp, 'listening');
  } catch (error) {
    udp.close();
    tcp.close();
    throw unavailable(error as NodeJS.ErrnoException, options);
  }
  return new OpenPeers(options, udp, tcp);
}

function unavailable(error: NodeJS.ErrnoException, { self, port }: PeersOptions): PeersUnavailable {
  const reasons: Record<string, string> = {
    EADDRINUSE: `port ${port} of ${self.address} is in use by another program: free it, or choose another port on every node`,
    EADDRNOTAVAIL: `${self.address} is not an address of this node: set the one it has`,
  };
  const reason = reasons[error.code ?? ''] ?? `${self.address}:${port} cannot be used: ${error.message}`;
  return new PeersUnavailable(`Other nodes cannot be watched: ${reason}`, { cause: error });
}

class OpenPeers implements Peers {
  readonly #options: PeersOptions;
  readonly #udp: UdpSocket;
  readonly #tcp: Server;
  readonly #now: () => number;
  readonly #self: string;
  // Stamps of an earlier process are none of this one.
  readonly #epoch = randomBytes(8).readBigUInt64BE() >> 1n;
  /** By id and by digest. */
  readonly #peers = new Map<string, Watched>();
  readonly #byDigest = new Map<string, Watched>();
  /** Of whom is watched. Nodes speak with the addresses in their records; nobody else is listened to. */
  #addresses: ReadonlySet<string> = new Set();
  readonly #callbacks = new Set<() => void>();
  /** By the address they come from. */
  readonly #connections = new Map<string, Set<Socket>>();
  readonly #closing = new AbortController();
  #fetches = 0;
  #timer: NodeJS.Timeout | undefined;
  #tickAt = 0;

  constructor(options: PeersOptions, udp: UdpSocket, tcp: Server) {
    this.#options = options;
    this.#udp = udp;
    this.#tcp = tcp;
    this.#now = options.now ?? (() => performance.now());
    this.#self = digestOf(options.self.id);
    udp.on('message', (bytes, from) => this.#receive(bytes, from));
    udp.on('error', (error) => options.log.warn({ error }, 'socket for heartbeats failed'));
    tcp.on('connection', (socket) => void this.#serve(socket));
    tcp.on('error', (error) => options.log.warn({ error }, 'socket for pending writes failed'));
  }

  watch(nodes: readonly Node[]): void {
    if (this.#closing.signal.aborted) return;
    const wanted = new Map(
      nodes.filter(({ id }) => id !== this.#options.self.id).map((node) => [node.id, node]),
    );
    for (const peer of [...this.#peers.values()]) {
      if (wanted.get(peer.id)?.address !== peer.address) this.#forget(peer);
    }
    const interval = intervalFor(wanted.size);
    for (const { id, address } of wanted.values()) {
      if (this.#peers.has(id)) continue;
      const moment = { now: this.#now(), interval, jitter: 1 };
      const peer: Watched = {
        id,
        address,
        digest: digestOf(id),
        state: begin(moment, Math.random()),
        stamp: 0n,
        interval: 0,
        fetched: noRevision,
        fetchAt: 0,
        hangUps: new Set(),
        heard: false,
        accepted: false,
        warned: false,
        warnedOfPending: false,
      };
      this.#peers.set(id, peer);
      this.#byDigest.set(peer.digest, peer);
    }
    this.#addresses = new Set([...wanted.values()].map(({ address }) => address));
    if (this.#peers.size > 0 && this.#timer === undefined) this.#wind(this.#now());
  }

  onChange(callback: () => void): () => void {
    this.#callbacks.add(callback);
    return () => this.#callbacks.delete(callback);
  }

  state(): ReadonlyMap<string, PeerView> {
    const epoch = Date.now() - this.#now();
    return new Map(
      [...this.#peers.values()].map(({ id, state: { status: verdict, since }, rttMs }) => [
        id,
        {
          alive: verdict !== 'unreachable',
          verdict,
          since: Math.round(epoch + since),
          ...(rttMs === undefined ? {} : { rttMs }),
        },
      ]),
    );
  }

  async close(): Promise<void> {
    if (this.#closing.signal.aborted) return;
    this.#closing.abort();
    clearTimeout(this.#timer);
    for (const peer of [...this.#peers.values()]) this.#forget(peer);
    for (const sockets of this.#connections.values()) for (const socket of sockets) socket.destroy();
    await Promise.all([
      new Promise<void>((resolve) => this.#udp.close(() => resolve())),
      new Promise<void>((resolve) => this.#tcp.close(() => resolve())),
    ]);
  }

  #forget(peer: Watched): void {
    this.#act(peer, ['hang up']);
    this.#peers.delete(peer.id);
    this.#byDigest.delete(peer.digest);
  }

  /** Sets the clock for the next look. */
  #wind(now: number): void {
    this.#tickAt = now + tickMs;
    this.#timer = setTimeout(() => this.#tick(), tickMs);
  }

  #tick(): void {
    this.#timer = undefined;
    if (this.#peers.size === 0) return;
    const now = this.#now();
    const late = now - this.#tickAt;
    // Timers run before what arrived meanwhile is read, so this is known before anything could be concluded.
    const events: PeerEvent[] = late > sleptMs ? [{ type: 'slept', ms: late }] : [];
    events.push({ type: 'tick' });
    let changed = false;
    for (const peer of this.#peers.values()) {
      for (const event of events) changed = this.#step(peer, event, now) || changed;
      this.#warn(peer, now);
    }
    this.#wind(now);
    if (changed) this.#notify();
  }

  #notify(): void {
    for (const callback of [...this.#callbacks]) callback();
  }

  #interval(peer: Watched): number {
    return agreedInterval(intervalFor(this.#peers.size), peer.interval);
  }

  /** @returns whether the verdict changed */
  #step(peer: Watched, event: PeerEvent, now: number): boolean {
    const before = peer.state;
    const moment = { now, interval: this.#interval(peer), jitter: 1 - Math.random() * maxJitter };
    const { state, actions } = step(before, event, moment);
    peer.state = state;
    this.#act(peer, actions);
    if (state.status === before.status) return false;
    const fields = { peer: peer.id, address: peer.address, quietMs: Math.round(now - before.quietSince) };
    this.#options.log.info(fields, state.status === 'unreachable' ? 'peer unreachable' : 'peer alive');
    delete peer.signs;
    return true;
  }

  #act(peer: Watched, actions: readonly Action[]): void {
    for (const action of actions) {
      if (action === 'ask' && this.#send('ask', peer.digest, peer.stamp, peer.address, this.#options.port)) {
        peer.askedAt ??= this.#now();
      }
      if (action === 'connect') this.#connect(peer);
      if (action === 'hang up') {
        for (const hangUp of peer.hangUps) hangUp();
        peer.hangUps.clear();
      }
    }
  }

  #connect(peer: Watched): void {
    const { address } = peer;
    const { port, self, log } = this.#options;
    const hangUp = reach({ address, port, localAddress: self.address }, (reached, code) => {
      peer.hangUps.delete(hangUp);
      if (this.#peers.get(peer.id) !== peer) return;
      if (reached === 'accepted') {
        peer.accepted = true;
        // It does not say which pending writes there are.
        if (this.#waitsForNews(peer)) {
          this.#refetch(peer);
          return;
        }
      }
      if (reached === 'blind') log.debug({ peer: peer.id, code }, 'a peer could not be tried');
      if (this.#step(peer, { type: reached }, this.#now())) this.#notify();
    });
    peer.hangUps.add(hangUp);
  }

  /** @returns whether the secret is known, without which nothing is sent */
  #send(kind: Datagram['kind'], recipient: string, echo: bigint, address: string, port: number): boolean {
    const secret = this.#options.secret();
    if (secret === undefined) return false;
    const datagram: Datagram = {
      kind,
      interval: intervalFor(this.#peers.size),
      sender: this.#self,
      stamp: this.#stamp(),
      echo,
      revision: revisionDigestOf(this.#options.pendingWrites?.revision() ?? ''),
    };
    // What cannot be sent is not answered, and silence is what this room is about.
    this.#udp.send(encode(datagram, recipient, secret), port, address, () => undefined);
    return true;
  }

  #stamp(): bigint {
    return this.#epoch + BigInt(Math.round(this.#now() * 1_000));
  }

  #receive(bytes: Buffer, from: RemoteInfo): void {
    // Before its signature is looked at, which takes time.
    if (!this.#addresses.has(from.address)) return;
    const secret = this.#options.secret();
    const datagram = secret === undefined ? undefined : decode(bytes, this.#self, secret);
    if (datagram === undefined || this.#closing.signal.aborted) return;
    const { kind, sender, stamp, echo, interval, revision } = datagram;
    if (kind === 'ask') this.#send('answer', sender, stamp, from.address, from.port);
    const peer = this.#byDigest.get(sender);
    // The way to its other addresses may be another one.
    if (peer?.address !== from.address) return;
    peer.stamp = stamp;
    peer.heard = true;
    // Only who has lately heard this node echoes its stamp: so it is no replay, and the way back works too.
    const age = Number(this.#stamp() - echo) / 1_000;
    if (age < 0 || age > quietFor(this.#interval(peer))) return;
    peer.interval = interval;
    if (kind === 'answer') peer.rttMs = age;
    const isNews = !this.#follow(peer, revision);
    if (isNews && this.#waitsForNews(peer)) return;
    if (this.#step(peer, { type: 'heard' }, this.#now())) this.#notify();
  }

  /**
   * A peer that returns may not be as it was: its pending writes say so, and count before it is sent traffic again.
   * @returns whether a sign of life of the peer waits for that
   */
  #waitsForNews(peer: Watched): boolean {
    const { onPendingWrites, secret } = this.#options;
    if (peer.state.status !== 'unreachable' || onPendingWrites === undefined || secret() === undefined)
      return false;
    const now = this.#now();
    const { first, last } = peer.signs ?? { first: now, last: -Infinity };
    if (now - last > pendingTimeoutMs) {
      // It was silent, and what it has to say may have changed since. An answer from before would be waited for in vain.
      peer.fetching?.abort();
      delete peer.fetching;
      peer.signs = { first: now, last: now };
    } else {
      peer.signs = { first, last: now };
    }
    return now - peer.signs.first < pendingTimeoutMs;
  }

  /**
   * Fetches a peer's pending writes if their revision is another one than before. The next heartbeat is the next try.
   * @returns whether they are known
   */
  #follow(peer: Watched, revision: string): boolean {
    const { onPendingWrites } = this.#options;
    if (onPendingWrites === undefined || revision === peer.fetched) return true;
    if (revision === noRevision) {
      peer.fetched = revision;
      onPendingWrites(peer.id, undefined);
      return true;
    }
    this.#refetch(peer);
    return false;
  }

  #refetch(peer: Watched): void {
    const { onPendingWrites } = this.#options;
    if (
      onPendingWrites === undefined ||
      peer.fetching !== undefined ||
      this.#fetches >= maxFetches ||
      this.#now() < peer.fetchAt
    )
      return;
    void this.#fetch(peer, onPendingWrites);
  }

  async #fetch(peer: Watched, onPendingWrites: (node: string, payload: unknown) => void): Promise<void> {
    const { port, self, log } = this.#options;
    const secret = this.#options.secret();
    if (secret === undefined) return;
    const fetching = new AbortController();
    peer.fetching = fetching;
    this.#fetches += 1;
    let pending: PendingWrites;
    try {
      pending = await fetchPendingWrites({
        address: peer.address,
        port,
        localAddress: self.address,
        self: this.#self,
        peer: peer.digest,
        secret,
        signal: AbortSignal.any([this.#closing.signal, fetching.signal]),
      });
    } catch (error) {
      if (fetching.signal.aborted) return;
      peer.fetchAt = this.#now() + fetchRetryMs;
      if (!peer.warnedOfPending)
        log.warn({ peer: peer.id, error }, 'cannot fetch pending writes from peer, retrying');
      peer.warnedOfPending = true;
      return;
    } finally {
      if (peer.fetching === fetching) delete peer.fetching;
      this.#fetches -= 1;
    }
    if (fetching.signal.aborted || this.#peers.get(peer.id) !== peer) return;
    peer.warnedOfPending = false;
    peer.fetched = revisionDigestOf(pending.revision);
    onPendingWrites(peer.id, pending.revision === '' ? undefined : pending.payload);
    // It has proved just now that it is there.
    if (this.#step(peer, { type: 'heard' }, this.#now())) this.#notify();
  }

  async #serve(socket: Socket): Promise<void> {
    const { pendingWrites, log } = this.#options;
    const secret = this.#options.secret();
    const address = socket.remoteAddress ?? '';
    const own = this.#connections.get(address) ?? new Set();
    // Who is no node, or keeps too many, is not waited for: others could not fetch meanwhile.
    if (secret === undefined || !this.#addresses.has(address) || own.size >= maxConnectionsOfOne) {
      socket.on('error', () => undefined);
      socket.destroy();
      return;
    }
    this.#connections.set(address, own.add(socket));
    socket.once('close', () => {
      own.delete(socket);
      if (own.size === 0 && this.#connections.get(address) === own) this.#connections.delete(address);
    });
    try {
      await servePendingWrites(socket, this.#self, secret, () => ({
        revision: pendingWrites?.revision() ?? '',
        payload: pendingWrites?.read(),
      }));
    } catch (error) {
      log.debug({ address, error }, 'connection for pending writes failed');
    }
  }

  /** Says once what an administrator can do about a peer that cannot be watched as it should be. */
  #warn(peer: Watched, now: number): void {
    if (peer.warned) return;
    const { port, log } = this.#options;
    const fields = { peer: peer.id, address: peer.address, port };
    const remedy = `open UDP and TCP port ${port} between the nodes`;
    if (peer.state.status === 'unknown' && now - peer.state.since > warnAfterMs) {
      peer.warned = true;
      log.warn(fields, `a peer was never heard, so its failure cannot be seen directly: ${remedy}`);
    } else if (peer.accepted && !peer.heard && now - (peer.askedAt ?? now) > warnAfterMs) {
      peer.warned = true;
      log.warn(
        fields,
        `a peer takes connections and sends no heartbeats: ${remedy}, and let both have the same store and version`,
      );
    }
  }
}
