// Owns that allocation stays quick in large and crowded pools.
// Must not be a benchmark: the bounds are wide enough for a busy machine.
import assert from 'node:assert/strict';
import type { Op } from '../../../store/store.ts';
import { formatAddress, parseAddress } from '../../../ipam/subnet.ts';
import { Node } from '../../support/ipam-world.ts';

/** Leases for `count` addresses in a row, straight into the store. */
async function occupy(node: Node, pool: string, first: string, count: number): Promise<void> {
  const start = parseAddress(first);
  for (let n = 0; n < count; n += 64) {
    const ops = Array.from({ length: Math.min(64, count - n) }, (_, i): Op => {
      const key = `ipam/leases/${pool}/${formatAddress(start + BigInt(n + i))}`;
      return { op: 'set', key, value: { v: 1, holders: ['global'] } };
    });
    await node.store.commit(ops);
  }
}

describe('ipam at scale', function () {
  this.timeout(60_000);

  it('a long row of taken addresses: the next free one is found', async () => {
    const node = new Node();
    const poolId = await node.pool('global', '10.1.0.0/21');
    await occupy(node, '10.1.0.0-21', '10.1.0.1', 700);
    await occupy(node, '10.1.0.0-21', '10.1.2.190', 1000);
    assert.equal(await node.address(poolId), '10.1.2.189/21');
    assert.equal(await node.address(poolId), '10.1.6.166/21');
    await occupy(node, '10.1.0.0-21', '10.1.6.167', 343);
    await node.release(poolId, '10.1.1.0');
    assert.equal(await node.address(poolId), '10.1.7.254/21');
    assert.equal(await node.address(poolId), '10.1.1.0/21', 'round to the beginning');
    assert.match((await node.refusedAddress(poolId)) ?? '', /2046 of 2046/);
  });

  it('a /12 with 100,000 leases: an address is found quickly', async () => {
    const node = new Node();
    const poolId = await node.pool('global', '10.64.0.0/12');
    await occupy(node, '10.64.0.0-12', '10.64.0.1', 100_000);
    const timed = async (): Promise<number> => {
      const start = performance.now();
      await node.address(poolId);
      return performance.now() - start;
    };
    assert.ok((await timed()) < 5000, 'over the whole row at once');
    const times = [];
    for (let n = 0; n < 200; n++) times.push(await timed());
    const median = times.sort((a, b) => a - b)[100]!;
    assert.ok(median < 10, `${median} ms`);
  });
});
