// Owns taking a node's records away: one that left the Swarm, or an earlier life of this one, whose sandboxes it goes on with.
// Must not decide who is gone.
import { batches } from '../store/batches.ts';
import { endpointKey, presenceKey, type NodeRecord, type Records } from '../store/records.ts';
import type { Op, Store } from '../store/store.ts';

interface Where {
  store: Store;
  records: Records;
}

/**
 * Its leases are freed once it is not known any more: the elected manager's collector does so.
 * @returns whether all is done; else some of it was written meanwhile, and is to be tried again
 */
export function forgetNode(where: Where, gone: NodeRecord): Promise<boolean> {
  return takeAway(where, gone, undefined, () => false);
}

/**
 * Makes this node's what is still there of what it had under another id.
 * @param isHere of an endpoint's id, whether this node has its link
 * @returns as {@link forgetNode}
 */
export function succeed(
  where: Where,
  former: NodeRecord,
  node: string,
  isHere: (endpoint: string) => boolean,
): Promise<boolean> {
  return takeAway(where, former, node, isHere);
}

async function takeAway(
  { store, records }: Where,
  gone: NodeRecord,
  heir: string | undefined,
  isHere: (endpoint: string) => boolean,
): Promise<boolean> {
  const [endpoints, presence, names] = await Promise.all([
    records.endpoints.list(),
    records.presence.list(),
    records.names.list(),
  ]);
  const ops: Op[] = [];
  const inherited = new Set<string>();
  for (const { id, value, version } of endpoints.rows) {
    if (value.node !== gone.id) continue;
    if (heir === undefined || !isHere(value.id)) ops.push(records.endpoints.remove(id, version));
    else {
      ops.push(records.endpoints.set(endpointKey(value), { ...value, node: heir }, version));
      inherited.add(value.network);
    }
  }
  for (const { id, value, version } of presence.rows) {
    if (value.node !== gone.id) continue;
    ops.push(records.presence.remove(id, version));
    if (heir === undefined || !inherited.has(value.network)) continue;
    const now = { ...value, node: heir };
    ops.push(records.presence.set(presenceKey(now), now));
  }
  // What runs here is named anew.
  for (const { id, value, version } of names.rows)
    if (value.node === gone.id) ops.push(records.names.remove(id, version));
  // Last: as long as it is there, the rest is tried again.
  ops.push(records.numbers.remove(String(gone.number)), records.nodes.remove(gone.id));
  for (const commit of batches(ops)) if (!(await store.commit(commit)).ok) return false;
  return true;
}
