// Owns how nf_tables' changes are put to the kernel: as messages of nfnetlink, all of a transaction or nothing.
// Must not know what is changed: net/nft-elements.ts and net/nft-tables.ts do.
import type { Netlink } from './netlink.ts';
import { type Request } from './netlink.ts';

/* <linux/netfilter/nfnetlink.h>, <linux/netfilter/nf_tables.h>. struct nfgenmsg: family, version, and whose batch it is. */
const NFNL_SUBSYS_NFTABLES = 10;
const NFNL_MSG_BATCH_BEGIN = 0x10;
const NFNL_MSG_BATCH_END = 0x11;
const messages = {
  addTable: 0,
  getTable: 1,
  deleteTable: 2,
  addChain: 3,
  addRule: 6,
  addElements: 12,
  deleteElements: 14,
} as const;
const families = { inet: 1, ip: 2 } as const;

/** One message about a table of this family. */
export function nftMessage(
  family: keyof typeof families,
  what: keyof typeof messages,
  flags: number,
  ...attributes: Buffer[]
): Request {
  return {
    type: (NFNL_SUBSYS_NFTABLES << 8) | messages[what],
    flags,
    body: Buffer.concat([Buffer.from([families[family], 0, 0, 0]), ...attributes]),
    answered: true,
  };
}

/** @throws {NetlinkError} when the kernel refuses any of it: nothing of it has been done then */
export function transact(netlink: Netlink, changes: readonly Request[]): void {
  netlink.batch([marker(NFNL_MSG_BATCH_BEGIN), ...changes, marker(NFNL_MSG_BATCH_END)]);
}

/**
 * Does none of it: a batch without its end is taken back by the kernel, which does not validate chains then.
 * @throws {NetlinkError} when it would refuse any of it else
 */
export function rehearse(netlink: Netlink, changes: readonly Request[]): void {
  netlink.batch([marker(NFNL_MSG_BATCH_BEGIN), ...changes]);
}

function marker(type: number): Request {
  return { type, flags: 0, body: Buffer.from([0, 0, 0, NFNL_SUBSYS_NFTABLES]), answered: false };
}
