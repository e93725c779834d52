// Owns UDP sockets that are read and written many datagrams at a time, by the kernel's own calls, and waited on by a thread
// that does nothing else.
// Must not know what is in a datagram, nor be loaded by the main thread: whoever waits here does not hear anything else.
import koffi from 'koffi';
import { toNumber, toText } from './address.ts';

/** Datagrams of one call: what has come in meanwhile under full load. More only adds to the time the first one waits. */
export const batch = 32;
/** Whatever is longer is cut. Questions have a few dozen bytes, answers here 1,232 at most. */
const slotBytes = 4_096;
/** Sockets that one call tells of; others are told of by the next. */
const maxEvents = 64;

/*
 * The kernel's numbers and layouts, as on Linux with 64 bits and the lowest byte first (x86-64, arm64, riscv64): see socket(7),
 * recvmmsg(2), epoll(7) and eventfd(2).
 */
const AF_INET = 2;
const MSG_DONTWAIT = 0x40;
const EPOLL_CLOEXEC = 0o2000000;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLLIN = 1;
/** Of several threads that wait for a socket, one wakes. */
const EPOLLEXCLUSIVE = 1 << 28;
const EFD_CLOEXEC = 0o2000000;
const EFD_NONBLOCK = 0o4000;
const { EAGAIN, EINTR } = koffi.os.errno;

/** struct sockaddr_in: family, port, address. */
const sockaddr = { bytes: 16, port: 2, address: 4 };
/** struct mmsghdr: a struct msghdr, and how long the datagram is. */
const mmsghdr = { bytes: 64, name: 0, nameLength: 8, vector: 16, vectorLength: 24, length: 56 };
/** struct iovec. */
const iovec = { bytes: 16, base: 0, length: 8 };
/** struct epoll_event, which only x86-64 packs. */
const epollEvent = process.arch === 'x64' ? { bytes: 12, data: 4 } : { bytes: 16, data: 8 };

const libc = koffi.load(null);
/** What is called: numbers, and memory by its place. */
type Call = (...args: (number | Buffer | null)[]) => number;
const declare = (prototype: string): Call => libc.func(prototype);
const sys = {
  recvmmsg: declare('int recvmmsg(int, void *, uint32_t, int, void *)'),
  sendmmsg: declare('int sendmmsg(int, void *, uint32_t, int)'),
  epoll_create1: declare('int epoll_create1(int)'),
  epoll_ctl: declare('int epoll_ctl(int, int, int, const void *)'),
  epoll_wait: declare('int epoll_wait(int, void *, int, int)'),
  eventfd: declare('int eventfd(uint32_t, int)'),
  read: declare('int64_t read(int, void *, uint64_t)'),
};

/** A system call has failed. */
export class SystemError extends Error {
  override readonly name = 'SystemError';
}

function check(result: number, what: string): number {
  if (result < 0) throw new SystemError(`${what} failed with errno ${koffi.errno()}`);
  return result;
}

/** Memory for one call, which must not move: headers, then vectors, then addresses, then datagrams. */
class Batch {
  readonly memory: Buffer;
  readonly #pointer: unknown;
  static readonly #vectors = batch * mmsghdr.bytes;
  static readonly #addresses = Batch.#vectors + batch * iovec.bytes;
  static readonly #slots = Batch.#addresses + batch * sockaddr.bytes;
  static readonly #bytes = Batch.#slots + batch * slotBytes;

  constructor() {
    this.#pointer = koffi.alloc('uint8_t', Batch.#bytes);
    this.memory = Buffer.from(koffi.view(this.#pointer, Batch.#bytes)).fill(0);
    const start = koffi.address(this.#pointer);
    for (let at = 0; at < batch; at += 1) {
      const header = at * mmsghdr.bytes;
      const vector = Batch.#vectors + at * iovec.bytes;
      this.memory.writeBigUInt64LE(start + BigInt(this.addressOf(at)), header + mmsghdr.name);
      this.memory.writeUInt32LE(sockaddr.bytes, header + mmsghdr.nameLength);
      this.memory.writeBigUInt64LE(start + BigInt(vector), header + mmsghdr.vector);
      this.memory.writeBigUInt64LE(1n, header + mmsghdr.vectorLength);
      this.memory.writeBigUInt64LE(start + BigInt(this.slotOf(at)), vector + iovec.base);
      this.memory.writeUInt32LE(slotBytes, vector + iovec.length);
    }
  }

  /** Where the socket address is. */
  addressOf(at: number): number {
    return Batch.#addresses + at * sockaddr.bytes;
  }

  /** Where the datagram is. */
  slotOf(at: number): number {
    return Batch.#slots + at * slotBytes;
  }

  /** How long the datagram is that has been received. */
  lengthOf(at: number): number {
    return this.memory.readUInt32LE(at * mmsghdr.bytes + mmsghdr.length);
  }

  /** How long the datagram is that shall be sent. */
  setLength(at: number, bytes: number): void {
    this.memory.writeUInt32LE(bytes, Batch.#vectors + at * iovec.bytes + iovec.length);
  }

  /** Nothing of it may be used any more. */
  free(): void {
    koffi.free(this.#pointer);
  }
}

/** File descriptors, which outlive a thread that ends badly: somebody else has to close them. */
export interface Descriptors {
  /** Knows which sockets are waited for (epoll(7)). */
  interest: number;
  /** Wakes {@link Datagrams.wait}, when eight bytes with a number are written to it (eventfd(2)), by whichever thread. */
  bell: number;
}

export class Datagrams {
  readonly descriptors: Descriptors;
  readonly #in = new Batch();
  readonly #out = new Batch();
  readonly #events = Buffer.alloc(maxEvents * epollEvent.bytes);
  readonly #rung = Buffer.alloc(8);
  /** Where what was received last came in. */
  #from = -1;
  #toSend = 0;
  /** By which socket that goes. */
  #by = -1;

  /** @throws {SystemError} */
  constructor() {
    const interest = check(sys.epoll_create1(EPOLL_CLOEXEC), 'epoll_create1()');
    const bell = check(sys.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), 'eventfd()');
    this.descriptors = { interest, bell };
    this.#watch(EPOLL_CTL_ADD, bell, EPOLLIN);
  }

  /** From now on it is waited for. Other threads may do so, too. @throws {SystemError} */
  add(socket: number): void {
    this.#watch(EPOLL_CTL_ADD, socket, EPOLLIN | EPOLLEXCLUSIVE);
  }

  /** @throws {SystemError} */
  remove(socket: number): void {
    this.#watch(EPOLL_CTL_DEL, socket, 0);
  }

  #watch(operation: number, descriptor: number, events: number): void {
    const event = Buffer.alloc(epollEvent.bytes);
    event.writeUInt32LE(events, 0);
    event.writeInt32LE(descriptor, epollEvent.data);
    check(
      sys.epoll_ctl(this.descriptors.interest, operation, descriptor, event),
      `epoll_ctl(${operation}, ${descriptor})`,
    );
  }

  /** Takes what has come in at a socket, in place of what was taken before. @returns how many; 0 if nothing has */
  receive(socket: number): number {
    this.#from = socket;
    const count = sys.recvmmsg(socket, this.#in.memory, batch, MSG_DONTWAIT, null);
    if (count > 0) return count;
    const code = koffi.errno();
    if (code !== EAGAIN && code !== EINTR) check(count, 'recvmmsg()');
    return 0;
  }

  /** A view, until the next {@link receive}. */
  message(at: number): Buffer {
    const slot = this.#in.slotOf(at);
    return this.#in.memory.subarray(slot, slot + Math.min(this.#in.lengthOf(at), slotBytes));
  }

  address(at: number): string {
    return toText(this.#in.memory.readUInt32BE(this.#in.addressOf(at) + sockaddr.address));
  }

  port(at: number): number {
    return this.#in.memory.readUInt16BE(this.#in.addressOf(at) + sockaddr.port);
  }

  /** Sends to where a received one came from, with the next {@link flush}. */
  reply(at: number, message: Uint8Array): void {
    const from = this.#in.addressOf(at);
    const to = this.#put(this.#from, message);
    this.#in.memory.copy(this.#out.memory, to, from, from + sockaddr.bytes);
  }

  /** Sends with the next {@link flush}. @param address IPv4 */
  send(socket: number, message: Uint8Array, address: string, port: number): void {
    const to = this.#put(socket, message);
    this.#out.memory.set(socketAddress(toNumber(address) ?? 0, port), to);
  }

  /** @returns where its address belongs */
  #put(socket: number, message: Uint8Array): number {
    if (message.length > slotBytes) throw new RangeError(`A datagram has ${message.length} bytes.`);
    if (this.#toSend === batch || socket !== this.#by) this.flush();
    this.#by = socket;
    const at = this.#toSend;
    this.#out.memory.set(message, this.#out.slotOf(at));
    this.#out.setLength(at, message.length);
    this.#toSend += 1;
    return this.#out.addressOf(at);
  }

  /** What cannot be sent is lost, as on the way. */
  flush(): void {
    for (let sent = 0; sent < this.#toSend;) {
      const rest = this.#out.memory.subarray(sent * mmsghdr.bytes);
      const count = sys.sendmmsg(this.#by, rest, this.#toSend - sent, MSG_DONTWAIT);
      // The first of the rest, such as one to port 0.
      sent += Math.max(count, 1);
    }
    this.#toSend = 0;
  }

  /** Returns when something has come in, the bell was rung or the time is over. @returns the sockets with something to receive */
  wait(ms: number): number[] {
    const { interest, bell } = this.descriptors;
    const count = sys.epoll_wait(interest, this.#events, maxEvents, ms);
    const sockets: number[] = [];
    for (let at = 0; at < count; at += 1) {
      const descriptor = this.#events.readInt32LE(at * epollEvent.bytes + epollEvent.data);
      if (descriptor === bell) sys.read(bell, this.#rung, this.#rung.length);
      else sockets.push(descriptor);
    }
    return sockets;
  }

  /** Nothing of it may be used any more; the descriptors stay open. */
  free(): void {
    this.#in.free();
    this.#out.free();
  }
}

function socketAddress(address: number, port: number): Buffer {
  const bytes = Buffer.alloc(sockaddr.bytes);
  bytes.writeUInt16LE(AF_INET, 0);
  bytes.writeUInt16BE(port, sockaddr.port);
  bytes.writeUInt32BE(address, sockaddr.address);
  return bytes;
}
