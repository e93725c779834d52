// Owns running the store contract for the replica of a store, which answers from memory.
// Must not test what only a replica does: test/unit/store/replica.test.ts.
import { openEmbedded } from '../../store/embedded.ts';
import { openReplica } from '../../store/replica.ts';
import { withLocks } from '../fake/locks.ts';
import { describeSharedStore } from './store.ts';

describeSharedStore('replica', async () => {
  const replica = await openReplica({ remote: withLocks(openEmbedded(':memory:')), file: ':memory:' });
  await replica.ready;
  return replica;
});
