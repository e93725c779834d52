// Owns speaking netlink(7) with the kernel from within this process: one request or transaction, and all its answers.
// Must not know what is asked for: net/iproute.ts and net/nfnetlink.ts do. Nobody waits for it: the kernel answers in the call itself.
import koffi from 'koffi';

/*
 * The kernel's numbers and layouts, as on Linux with the lowest byte first (x86-64, arm64, riscv64): see netlink(7) and
 * <linux/netlink.h>.
 */
const AF_NETLINK = 16;
const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0o2000000;
const protocols = { route: 0, netfilter: 12 } as const;
const SOL_SOCKET = 1;
const SO_RCVTIMEO = 20;
const NLMSG_ERROR = 2;
const NLMSG_DONE = 3;
/** What a dump's last message says: 0, or why it is not whole. */
const doneBytes = 4;
const NLM_F_REQUEST = 0x1;
const NLM_F_ACK = 0x4;
const NLM_F_DUMP = 0x300;
const NLM_F_DUMP_INTR = 0x10;
const { EINTR, EAGAIN } = koffi.os.errno;
const ETIMEDOUT = 110;
const ENOENT = 2;
/** ENOENT is also what the kernel answers for an expression it has not; EINVAL, ERANGE, EPROTONOSUPPORT, EOPNOTSUPP. */
const unsupported: ReadonlySet<number> = new Set([ENOENT, 22, 34, 93, 95]);

/** What a request may ask for besides: NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE. */
export const how = { replace: 0x100, exclusively: 0x200, create: 0x400 } as const;

/** struct nlmsghdr: length, type, flags, sequence, port. */
const header = { bytes: 16, type: 4, flags: 6, sequence: 8 } as const;
/** More than the kernel puts into one part of a dump. */
const receiveBytes = 1 << 16;
/** For all that speak: each has read its answers before it returns. */
const received = Buffer.alloc(receiveBytes);
/** The kernel has answered when send() returns; this is for a kernel that does not, in seconds. */
const patience = 5;
/** A dump in the middle of which the table changed is asked for again, so often. */
const tries = 10;

const libc = koffi.load(null);
const declare = (prototype: string): ((...args: (number | Buffer | string | null)[]) => number) =>
  libc.func(prototype);
const sys = {
  socket: declare('int socket(int, int, int)'),
  setsockopt: declare('int setsockopt(int, int, int, const void *, uint32_t)'),
  send: declare('int64_t send(int, const void *, uint64_t, int)'),
  recv: declare('int64_t recv(int, void *, uint64_t, int)'),
  close: declare('int close(int)'),
  nameToIndex: declare('uint32_t if_nametoindex(const char *)'),
};
const strerror = libc.func('const char *strerror(int)') as (code: number) => string;

/** The kernel has refused a request. */
export class NetlinkError extends Error {
  override readonly name = 'NetlinkError';
  readonly code: number;

  constructor(code: number) {
    super(strerror(code));
    this.code = code;
  }

  /** What was asked for, or for something in it, is not there. */
  get isMissing(): boolean {
    return this.code === ENOENT;
  }

  /** The kernel does not know what was asked for; any other reason may be one of the moment. */
  get isUnsupported(): boolean {
    return unsupported.has(this.code);
  }
}

/** A dump has more messages than were asked for. */
export class TooLarge extends Error {
  override readonly name = 'TooLarge';
}

/** One message of a dump. */
export interface Message {
  type: number;
  /** Behind the header. */
  body: Buffer;
}

/** One message of a transaction. */
export interface Request {
  type: number;
  flags: number;
  /** Behind the header. */
  body: Buffer;
  /** The kernel says what became of it. */
  answered: boolean;
}

/** Speaks for the network namespace in which it was made. */
export class Netlink {
  readonly #protocol: keyof typeof protocols;
  #socket = -1;
  #sequence = 0;

  /** @throws {NetlinkError} */
  constructor(protocol: keyof typeof protocols = 'route') {
    this.#protocol = protocol;
    this.#open();
  }

  #open(): void {
    this.#socket = sys.socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocols[this.#protocol]);
    if (this.#socket < 0) throw new NetlinkError(koffi.errno());
    const time = Buffer.alloc(16);
    time.writeBigInt64LE(BigInt(patience));
    sys.setsockopt(this.#socket, SOL_SOCKET, SO_RCVTIMEO, time, time.length);
  }

  /** Has the kernel change something. @throws {NetlinkError} with why it does not */
  change(type: number, flags: number, body: Buffer): void {
    this.batch([{ type, flags, body, answered: true }]);
  }

  /** Has the kernel change all of it, or nothing where it takes that for one. @throws {NetlinkError} with why it does not */
  batch(requests: readonly Request[]): void {
    this.#send(requests);
    let open = requests.filter(({ answered }) => answered).length;
    while (open > 0)
      for (const message of this.#receive())
        if (message.type === NLMSG_ERROR) {
          const code = -message.body.readInt32LE(0);
          if (code !== 0) throw new NetlinkError(code);
          open -= 1;
        }
  }

  /** Reads all there is of a kind. @throws {NetlinkError} @throws {TooLarge} when that is more than so many messages */
  dump(type: number, body: Buffer, atMost = Infinity): Message[] {
    for (let left = tries; ; left -= 1) {
      const { messages, torn } = this.#dumpOnce(type, body, atMost);
      if (!torn || left === 0) return messages;
    }
  }

  /**
   * Reads all there is of a kind, part by part: the kernel goes on when the next one is asked for. To be read to its end by one
   * that does not speak of anything else meanwhile. What changes meanwhile may be in it or not.
   * @returns a part's messages, which are there until the next part is asked for, or the event loop's next turn
   * @throws {NetlinkError}
   */
  *parts(type: number, body: Buffer): Generator<Message[]> {
    this.#send([{ type, flags: NLM_F_DUMP, body, answered: false }]);
    for (let done = false; !done;) {
      const part: Message[] = [];
      for (const message of this.#receive()) {
        done ||= isEnd(message);
        if (!done) part.push(message);
      }
      yield part;
    }
  }

  /** The next request opens it again. */
  close(): void {
    sys.close(this.#socket);
    this.#socket = -1;
  }

  #dumpOnce(type: number, body: Buffer, atMost: number): { messages: Message[]; torn: boolean } {
    this.#send([{ type, flags: NLM_F_DUMP, body, answered: false }]);
    const messages: Message[] = [];
    let torn = false;
    for (;;) {
      if (messages.length > atMost) {
        // The kernel begins no other dump for a socket before the last one is read to its end.
        this.close();
        throw new TooLarge(`more than ${atMost} messages`);
      }
      for (const message of this.#receive()) {
        torn ||= (message.flags & NLM_F_DUMP_INTR) !== 0;
        if (isEnd(message)) return { messages, torn };
        // The next part of the dump takes its place.
        messages.push({ type: message.type, body: Buffer.from(message.body) });
      }
    }
  }

  /** With one number for all of them, by which their answers are known. */
  #send(requests: readonly Request[]): void {
    this.#sequence = (this.#sequence + 1) >>> 0;
    const request = Buffer.concat(
      requests.map(({ type, flags, body, answered }) => {
        const head = Buffer.alloc(header.bytes);
        head.writeUInt32LE(head.length + body.length, 0);
        head.writeUInt16LE(type, header.type);
        head.writeUInt16LE(NLM_F_REQUEST | flags | (answered ? NLM_F_ACK : 0), header.flags);
        head.writeUInt32LE(this.#sequence, header.sequence);
        return Buffer.concat([head, body, Buffer.alloc(align(body.length) - body.length)]);
      }),
    );
    if (this.#socket < 0) this.#open();
    while (sys.send(this.#socket, request, request.length, 0) < 0) {
      const code = koffi.errno();
      if (code !== EINTR) throw new NetlinkError(code);
    }
  }

  /** What has come in for the last request; what is left of an earlier one that failed is passed over. */
  *#receive(): Generator<Message & { flags: number }> {
    const bytes = sys.recv(this.#socket, received, receiveBytes, 0);
    if (bytes < 0) {
      const code = koffi.errno();
      if (code === EINTR) return;
      throw new NetlinkError(code === EAGAIN ? ETIMEDOUT : code);
    }
    for (let at = 0; at + header.bytes <= bytes;) {
      const length = received.readUInt32LE(at);
      if (length < header.bytes) return;
      if (received.readUInt32LE(at + header.sequence) === this.#sequence)
        yield {
          type: received.readUInt16LE(at + header.type),
          flags: received.readUInt16LE(at + header.flags),
          body: received.subarray(at + header.bytes, at + length),
        };
      at += align(length);
    }
  }
}

/** @throws {NetlinkError} when it says that the dump is not whole */
function isEnd({ type, body }: Message): boolean {
  if (type !== NLMSG_DONE && type !== NLMSG_ERROR) return false;
  const code = body.length < doneBytes ? 0 : -body.readInt32LE(0);
  if (code > 0 || type === NLMSG_ERROR) throw new NetlinkError(code);
  return true;
}

function align(length: number): number {
  return (length + 3) & ~3;
}

/** One attribute, with what fills it up. */
export function attribute(type: number, value: Buffer): Buffer {
  const bytes = Buffer.alloc(align(4 + value.length));
  bytes.writeUInt16LE(4 + value.length, 0);
  bytes.writeUInt16LE(type, 2);
  value.copy(bytes, 4);
  return bytes;
}

const NLA_F_NESTED = 0x8000;

export function nested(type: number, ...attributes: Buffer[]): Buffer {
  return attribute(type | NLA_F_NESTED, Buffer.concat(attributes));
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value >>> 0);
  return bytes;
}

/** With the zero at its end. */
export function text(value: string): Buffer {
  return Buffer.from(`${value}\0`);
}

/** The attributes behind the fixed part of a message, by type. */
export function attributesOf(body: Buffer, from: number): Map<number, Buffer> {
  const found = new Map<number, Buffer>();
  for (let at = from; at + 4 <= body.length;) {
    const length = body.readUInt16LE(at);
    if (length < 4) break;
    found.set(body.readUInt16LE(at + 2) & 0x3fff, body.subarray(at + 4, at + length));
    at += align(length);
  }
  return found;
}

/** @returns undefined where there is no such link (any more) */
export function indexOf(link: string): number | undefined {
  const index = sys.nameToIndex(link);
  return index === 0 ? undefined : index;
}
