// Owns a UDP socket that is read and written many datagrams at a time, by the kernel's own calls, and waited on by a thread
// that does nothing else.
// Must not know what is in a datagram, nor be loaded by the main thread: whoever waits here does not hear anything else.
import koffi from 'koffi';
import { toNumber, toText } from './address.ts';

/** Datagrams of one call: what has come in meanwhile under full load. More only adds to the time the first one waits. */
const batch = 32;
/** Whatever is longer is cut. Questions have a few dozen bytes, answers here 1,232 at most. */
const slotBytes = 4_096;
/** Names of askers that are kept; then they are made anew. */
const maxAddresses = 4_096;

/** Discards what it gets (RFC 863): a socket that is connected there gets nothing any more. */
const nobody = { address: 0x7f000001, port: 9 };

/*
 * The kernel's numbers and layouts, as on Linux with 64 bits and the lowest byte first (x86-64, arm64, riscv64): see socket(7),
 * recvmmsg(2), poll(2) and eventfd(2).
 */
const AF_INET = 2;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_REUSEPORT = 15;
const MSG_DONTWAIT = 0x40;
const POLLIN = 1;
const EFD_CLOEXEC = 0o2000000;
const EFD_NONBLOCK = 0o4000;
const { EAGAIN, EINTR } = koffi.os.errno;

/** struct sockaddr_in: family, port, address. */
const sockaddr = { bytes: 16, port: 2, address: 4 };
/** struct mmsghdr: a struct msghdr, and how long the datagram is. */
const mmsghdr = { bytes: 64, name: 0, nameLength: 8, vector: 16, vectorLength: 24, length: 56 };
/** struct iovec. */
const iovec = { bytes: 16, base: 0, length: 8 };
/** struct pollfd. */
const pollfd = { bytes: 8, fd: 0, events: 4, revents: 6 };

const libc = koffi.load(null);
/** What is called: numbers, and memory by its place. */
type Call = (...args: (number | Buffer | null)[]) => number;
const declare = (prototype: string): Call => libc.func(prototype);
const sys = {
  socket: declare('int socket(int, int, int)'),
  setsockopt: declare('int setsockopt(int, int, int, const void *, uint32_t)'),
  bind: declare('int bind(int, const void *, uint32_t)'),
  connect: declare('int connect(int, const void *, uint32_t)'),
  recvmmsg: declare('int recvmmsg(int, void *, uint32_t, int, void *)'),
  sendmmsg: declare('int sendmmsg(int, void *, uint32_t, int)'),
  poll: declare('int poll(void *, uint64_t, int)'),
  eventfd: declare('int eventfd(uint32_t, int)'),
  read: declare('int64_t read(int, void *, uint64_t)'),
  close: declare('int close(int)'),
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
  socket: number;
  /** Wakes {@link Datagrams.wait}, when eight bytes with a number are written to it (eventfd(2)), by whichever thread. */
  bell: number;
}

export class Datagrams {
  readonly descriptors: Descriptors;
  readonly #in = new Batch();
  readonly #out = new Batch();
  readonly #polled = Buffer.alloc(2 * pollfd.bytes);
  readonly #rung = Buffer.alloc(8);
  readonly #texts = new Map<number, string>();
  #toSend = 0;

  /**
   * Others may listen at the port, too: the kernel spreads the askers.
   * @param address IPv4
   * @throws {SystemError}
   */
  constructor(port: number, address: string) {
    const socket = check(sys.socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), 'socket()');
    try {
      const on = Buffer.from([1, 0, 0, 0]);
      check(sys.setsockopt(socket, SOL_SOCKET, SO_REUSEPORT, on, on.length), 'setsockopt(SO_REUSEPORT)');
      const own = socketAddress(toNumber(address) ?? 0, port);
      check(sys.bind(socket, own, own.length), `bind(${address}:${port})`);
      const bell = check(sys.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), 'eventfd()');
      this.descriptors = { socket, bell };
    } catch (error) {
      sys.close(socket);
      throw error;
    }
    for (const [at, descriptor] of [this.descriptors.socket, this.descriptors.bell].entries()) {
      this.#polled.writeInt32LE(descriptor, at * pollfd.bytes + pollfd.fd);
      this.#polled.writeInt16LE(POLLIN, at * pollfd.bytes + pollfd.events);
    }
  }

  /** Takes what has come in, in place of what was taken before. @returns how many; 0 if nothing has */
  receive(): number {
    const count = sys.recvmmsg(this.descriptors.socket, this.#in.memory, batch, MSG_DONTWAIT, null);
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
    const number = this.#in.memory.readUInt32BE(this.#in.addressOf(at) + sockaddr.address);
    let text = this.#texts.get(number);
    if (text === undefined) {
      if (this.#texts.size >= maxAddresses) this.#texts.clear();
      this.#texts.set(number, (text = toText(number)));
    }
    return text;
  }

  port(at: number): number {
    return this.#in.memory.readUInt16BE(this.#in.addressOf(at) + sockaddr.port);
  }

  /** Sends to where a received one came from, with the next {@link flush}. */
  reply(at: number, message: Uint8Array): void {
    const from = this.#in.addressOf(at);
    const to = this.#put(message);
    this.#in.memory.copy(this.#out.memory, to, from, from + sockaddr.bytes);
  }

  /** Sends with the next {@link flush}. @param address IPv4 */
  send(message: Uint8Array, address: string, port: number): void {
    const to = this.#put(message);
    this.#out.memory.set(socketAddress(toNumber(address) ?? 0, port), to);
  }

  /** @returns where its address belongs */
  #put(message: Uint8Array): number {
    if (message.length > slotBytes) throw new RangeError(`A datagram has ${message.length} bytes.`);
    if (this.#toSend === batch) this.flush();
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
      const count = sys.sendmmsg(this.descriptors.socket, rest, this.#toSend - sent, MSG_DONTWAIT);
      // The first of the rest, such as one to port 0.
      sent += Math.max(count, 1);
    }
    this.#toSend = 0;
  }

  /** Returns when something has come in, the bell was rung or the time is over. @returns whether the bell was rung */
  wait(ms: number): boolean {
    sys.poll(this.#polled, 2, ms);
    if (this.#polled.readInt16LE(pollfd.bytes + pollfd.revents) === 0) return false;
    sys.read(this.descriptors.bell, this.#rung, this.#rung.length);
    return true;
  }

  /** From now on nothing comes in but what has come already. */
  leave(): void {
    const to = socketAddress(nobody.address, nobody.port);
    check(sys.connect(this.descriptors.socket, to, to.length), 'connect()');
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
