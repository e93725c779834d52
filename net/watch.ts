// Owns noticing that somebody takes Causeway's objects out of the kernel: two netlink sockets that are read from time to time.
// Must not put anything back, nor wait: what the kernel has said meanwhile is read at once or not at all.
import koffi from 'koffi';
import { routeProtocol, table } from './names.ts';
import { attributesOf } from './netlink.ts';

/*
 * The kernel's numbers and layouts, as on Linux with 64 bits and the lowest byte first: see netlink(7), rtnetlink(7) and the
 * kernel's nfnetlink.h and nf_tables.h.
 */
const AF_NETLINK = 16;
const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0o2000000;
const MSG_DONTWAIT = 0x40;
const NETLINK_ROUTE = 0;
const NETLINK_NETFILTER = 12;
/** Multicast groups, as bits: RTNLGRP_IPV4_ROUTE and RTNLGRP_IPV4_RULE; NFNLGRP_NFTABLES. */
const routeGroups = 0x40 | 0x80;
const nftGroups = 0x40;
const RTM_DELROUTE = 25;
const RTM_DELRULE = 33;
const FRA_PROTOCOL = 21;
/** NFNL_SUBSYS_NFTABLES, and what of its messages takes something away: table, chain, rule, set, element. */
const nftables = 10;
const nftDeletes: ReadonlySet<number> = new Set([2, 5, 8, 11, 14]);
/** The first attribute of all of them. */
const NFTA_TABLE = 1;

const header = { bytes: 16, type: 4 };
/** struct rtmsg, and struct fib_rule_hdr, which is as long. */
const rtmsg = { bytes: 12, protocol: 5 };
const nfgenmsg = { bytes: 4 };
const align = (bytes: number): number => (bytes + 3) & ~3;

type Call = (...args: (number | Buffer | null)[]) => number;
const libc = koffi.load(null);
const declare = (prototype: string): Call => libc.func(prototype) as Call;
const sys = {
  socket: declare('int socket(int, int, int)'),
  bind: declare('int bind(int, const void *, uint32_t)'),
  recv: declare('int64_t recv(int, void *, uint64_t, int)'),
  close: declare('int close(int)'),
};
const { EAGAIN, EINTR } = koffi.os.errno;

/** What was taken away: routes and policy rules, or something of the nftables table. */
export type Loss = 'routes' | 'nft';

/** What of Causeway one netlink datagram says was taken away. */
export function lossIn(datagram: Buffer): Loss | undefined {
  for (let at = 0; at + header.bytes <= datagram.length;) {
    const length = datagram.readUInt32LE(at);
    if (length < header.bytes || at + length > datagram.length) return undefined;
    const type = datagram.readUInt16LE(at + header.type);
    const loss = lossOf(type, datagram.subarray(at + header.bytes, at + length));
    if (loss !== undefined) return loss;
    at += align(length);
  }
  return undefined;
}

function lossOf(type: number, body: Buffer): Loss | undefined {
  const isOurs =
    type === RTM_DELROUTE
      ? body[rtmsg.protocol] === routeProtocol
      : type === RTM_DELRULE && attributesOf(body, rtmsg.bytes).get(FRA_PROTOCOL)?.[0] === routeProtocol;
  if (isOurs) return 'routes';
  if (type >> 8 !== nftables || !nftDeletes.has(type & 0xff)) return undefined;
  const name = attributesOf(body, nfgenmsg.bytes).get(NFTA_TABLE)?.toString('latin1');
  return name === `${table}\0` ? 'nft' : undefined;
}

/** What can be said of losses since the last time. */
export class KernelWatch {
  readonly #sockets = new Map<Loss, number>();
  readonly #buffer = Buffer.alloc(32_768);

  /** @throws where the kernel has no such sockets */
  constructor() {
    try {
      this.#open('routes', NETLINK_ROUTE, routeGroups);
      this.#open('nft', NETLINK_NETFILTER, nftGroups);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  #open(tells: Loss, protocol: number, groups: number): void {
    const socket = sys.socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
    if (socket < 0) throw new Error(`socket(AF_NETLINK) failed with errno ${koffi.errno()}`);
    this.#sockets.set(tells, socket);
    // struct sockaddr_nl: family, padding, port, groups.
    const address = Buffer.alloc(12);
    address.writeUInt16LE(AF_NETLINK, 0);
    address.writeUInt32LE(groups, 8);
    if (sys.bind(socket, address, address.length) < 0)
      throw new Error(`bind(AF_NETLINK) failed with errno ${koffi.errno()}`);
  }

  /** What of Causeway's was taken away since the last call, by whomever. */
  lost(): ReadonlySet<Loss> {
    return new Set([...this.#sockets].flatMap(([tells, socket]) => (this.#drain(socket) ? tells : [])));
  }

  #drain(socket: number): boolean {
    let lost = false;
    for (;;) {
      const bytes = sys.recv(socket, this.#buffer, this.#buffer.length, MSG_DONTWAIT);
      if (bytes >= 0) {
        lost ||= lossIn(this.#buffer.subarray(0, bytes)) !== undefined;
        continue;
      }
      const code = koffi.errno();
      if (code === EINTR) continue;
      // ENOBUFS: there was more than the socket could hold, so nobody knows.
      return lost || code !== EAGAIN;
    }
  }

  close(): void {
    for (const socket of this.#sockets.values()) sys.close(socket);
    this.#sockets.clear();
  }
}
