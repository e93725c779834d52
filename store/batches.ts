// Owns the split of many operations into commits that keep the store's limits.
// Must not commit anything.
import { maxCommitBytes, maxOps, type Op } from './store.ts';

/**
 * @param ops that may be committed apart from each other
 * @param fence operations that every commit carries, such as the `check` of a lock
 * @returns the commits, in order; a single operation above the limit has one of its own, which the store will refuse
 */
export function batches(ops: readonly Op[], fence: readonly Op[] = []): Op[][] {
  const found: Op[][] = [];
  const carried = fence.reduce((sum, op) => sum + bytesOf(op), 0);
  let bytes = 0;
  for (const op of ops) {
    const more = bytesOf(op);
    const last = found.at(-1);
    if (last === undefined || last.length === maxOps || bytes + more > maxCommitBytes) {
      found.push([...fence, op]);
      bytes = carried + more;
    } else {
      last.push(op);
      bytes += more;
    }
  }
  return found;
}

/** As `encode` in store.ts counts. */
function bytesOf(op: Op): number {
  const value = op.op === 'set' ? Buffer.byteLength(JSON.stringify(op.value)) : 0;
  return Buffer.byteLength(op.key) + value;
}
