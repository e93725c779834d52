// Owns the records IPAM keeps in the store: their keys, versions and schemas (the key table is in store/README.md).
// Must not decide anything about them.
import * as z from 'zod';
import type { Store } from '../store/store.ts';
import { Table } from '../store/table.ts';
import { isSubnetKey, type Space } from './poolid.ts';

/** A subnet that Causeway gave out. Key: {@link keyOf} the subnet. It lives as long as somebody has a hold on it. */
const pool = z.object({
  v: z.literal(1),
  /** Reserved together with the pool: no lease, so that a thousand nodes can "request" it without a write. */
  gateway: z.ipv4().optional(),
  /** Id of the network that owns the subnet. Whoever else comes is told so. */
  network: z.string().optional(),
  /** Why no network may use it: see {@link Ipam.requestPool}. Counts for nobody else's overlaps. */
  refused: z.string().optional(),
  /** Set while its last leases are being deleted; whoever takes a hold clears it, and the deletion stops. */
  closing: z.literal(true).optional(),
});

/** One side's hold on a pool. Key: the pool's, '/', the holder. A record of its own, so that nodes never contend. */
const hold = z.object({
  v: z.literal(1),
  /** The network this side uses the pool for, once it said so (bindPool). Only unbinding takes such a hold away. */
  network: z.string().optional(),
});

/** An address in use. Key: the pool's, '/', the address. Free when the last holder let go. */
const lease = z.object({
  v: z.literal(1),
  holders: z.array(z.string()).min(1),
  /** How many of Swarm's services and tasks have it, if more than one: all but the first have no right to it. */
  claims: z.number().int().min(2).optional(),
});

/** Where the rotation stands: the address given out last. Key: the pool's, '/', the range. A hint, written blindly. */
const cursor = z.object({ v: z.literal(1), last: z.ipv4() });

/** Changes with every pool that is created or becomes usable, so that two overlapping ones cannot slip in at once. */
const guard = z.object({ v: z.literal(1), changes: z.number() });

export type Pool = z.infer<typeof pool>;
export type Hold = z.infer<typeof hold>;
export type Lease = z.infer<typeof lease>;

/** Who holds something: Swarm's leader ("global"), or the node with this id. */
export type Holder = string;

export function holderOf(space: Space, nodeId: string): Holder {
  return space === 'global' ? 'global' : nodeHolder(nodeId);
}

export function nodeHolder(nodeId: string): Holder {
  return `node/${nodeId}`;
}

/** Id of the one record in the guard's table. */
export const guardId = 'pools';

// What a key has to be for the record to be read, which need not be all that is true of one that Causeway writes: there are
// thousands of leases.
const octet = '(?:25[0-5]|2[0-4]\\d|1?\\d?\\d)';
const address = `${octet}(?:\\.${octet}){3}`;
const subnet = `${address}-(?:3[0-2]|[12]?\\d)`;
const holdId = new RegExp(`^${subnet}/(?:global|node/.+)$`);
const leaseId = new RegExp(`^${subnet}/${address}$`);
const cursorId = new RegExp(`^${subnet}/${subnet}$`);

export interface Tables {
  pools: Table<Pool>;
  holds: Table<Hold>;
  leases: Table<Lease>;
  cursors: Table<z.infer<typeof cursor>>;
  guard: Table<z.infer<typeof guard>>;
}

export function tables(store: Store): Tables {
  return {
    pools: new Table(store, 'ipam/pools/', pool, { isId: isSubnetKey }),
    holds: new Table(store, 'ipam/holds/', hold, { isId: (id) => holdId.test(id) }),
    leases: new Table(store, 'ipam/leases/', lease, { isId: (id) => leaseId.test(id) }),
    cursors: new Table(store, 'ipam/cursors/', cursor, { isId: (id) => cursorId.test(id) }),
    guard: new Table(store, 'ipam/guard/', guard),
  };
}
