// Owns being in another network namespace for as long as one synchronous call takes, and the sockets that are opened there.
// Must not start a process, nor know what a socket is for.
import { closeSync, constants, openSync } from 'node:fs';
import koffi from 'koffi';

/*
 * The kernel's numbers and layouts, as on Linux with 64 bits and the lowest byte first (x86-64, arm64, riscv64): see setns(2), ip(7)
 * and socket(7).
 */
const CLONE_NEWNET = 0x40000000;
const AF_INET = 2;
const SOCK_TYPE = { tcp: 1, udp: 2 } as const;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_IP = 0;
const IP_TRANSPARENT = 19;
const { EINPROGRESS } = koffi.os.errno;

const libc = koffi.load(null);
/** What is called: numbers, and memory. */
type Call = (...args: (number | Buffer)[]) => number;
const declare = (prototype: string): Call => libc.func(prototype);
const sys = {
  setns: declare('int setns(int, int)'),
  socket: declare('int socket(int, int, int)'),
  setsockopt: declare('int setsockopt(int, int, int, const void *, uint32_t)'),
  bind: declare('int bind(int, const void *, uint32_t)'),
  connect: declare('int connect(int, const void *, uint32_t)'),
  getsockname: declare('int getsockname(int, void *, void *)'),
};

/** A namespace cannot be entered, or a socket not be had there. */
export class NamespaceError extends Error {
  override readonly name = 'NamespaceError';
}

export type Protocol = keyof typeof SOCK_TYPE;

export interface SocketAddress {
  /** IPv4. */
  address: string;
  port: number;
}

export interface SocketOptions {
  protocol: Protocol;
  /** Port 0: any that is free. */
  local: SocketAddress;
  /** May be given what was sent to another address, by a rule that says so (nft's tproxy). Takes CAP_NET_ADMIN. */
  transparent?: boolean;
  /** Whom it is connected to. The connection may not be there yet when the socket is. */
  remote?: SocketAddress;
}

/** Of this process. Kept: it is the way back. */
let own: number | undefined;

/**
 * @param path of the network namespace; takes CAP_SYS_ADMIN
 * @param act synchronous: when it returns, its thread is back
 * @throws {NamespaceError} when the namespace is not there (yet), and what `act` throws
 */
export function inNamespace<T>(path: string, act: () => T): T {
  own ??= openSync('/proc/thread-self/ns/net', constants.O_RDONLY);
  const back = own;
  let other: number;
  try {
    other = openSync(path, constants.O_RDONLY);
  } catch (error) {
    throw new NamespaceError(`${path} is not there: ${(error as Error).message}`, { cause: error });
  }
  try {
    check(sys.setns(other, CLONE_NEWNET), `${path} cannot be entered: setns()`);
  } finally {
    closeSync(other);
  }
  try {
    return act();
  } finally {
    // Nothing this process did from here on would be what it should.
    if (sys.setns(back, CLONE_NEWNET) < 0) process.abort();
  }
}

/** Whether it is there, and can be entered. */
export function canEnter(path: string): boolean {
  try {
    return inNamespace(path, () => true);
  } catch {
    return false;
  }
}

/**
 * Opens a socket of IPv4 in the namespace that its thread is in. The descriptor is the caller's to close.
 * @throws {NamespaceError}
 */
export function openSocket({ protocol, local, transparent = false, remote }: SocketOptions): number {
  const socket = check(
    sys.socket(AF_INET, SOCK_TYPE[protocol] | SOCK_NONBLOCK | SOCK_CLOEXEC, 0),
    'socket()',
  );
  try {
    if (transparent) setTransparent(socket, true);
    const from = toBytes(local);
    check(sys.bind(socket, from, from.length), `bind(${local.address}:${local.port})`);
    if (remote !== undefined) {
      const to = toBytes(remote);
      if (sys.connect(socket, to, to.length) < 0 && koffi.errno() !== EINPROGRESS)
        check(-1, `connect(${remote.address}:${remote.port})`);
    }
    return socket;
  } catch (error) {
    closeSync(socket);
    throw error;
  }
}

/** See {@link SocketOptions.transparent}. It counts from the next packet on. @throws {NamespaceError} */
export function setTransparent(socket: number, transparent: boolean): void {
  const value = Buffer.from([transparent ? 1 : 0, 0, 0, 0]);
  check(sys.setsockopt(socket, SOL_IP, IP_TRANSPARENT, value, value.length), 'setsockopt(IP_TRANSPARENT)');
}

/** @throws {NamespaceError} */
export function localPort(socket: number): number {
  const address = Buffer.alloc(sockaddr.bytes);
  const length = Buffer.from([sockaddr.bytes, 0, 0, 0]);
  check(sys.getsockname(socket, address, length), 'getsockname()');
  return address.readUInt16BE(sockaddr.port);
}

/** struct sockaddr_in: family, port, address. */
const sockaddr = { bytes: 16, port: 2, address: 4 };

function toBytes({ address, port }: SocketAddress): Buffer {
  const bytes = Buffer.alloc(sockaddr.bytes);
  bytes.writeUInt16LE(AF_INET, 0);
  bytes.writeUInt16BE(port, sockaddr.port);
  bytes.set(address.split('.').map(Number), sockaddr.address);
  return bytes;
}

function check(result: number, what: string): number {
  if (result < 0) throw new NamespaceError(`${what} failed with errno ${koffi.errno()}`);
  return result;
}
