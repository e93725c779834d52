// Owns running the store contract for the replica of a store, which answers from memory.
// Must not test what only a replica does: test/unit/store-replica.test.ts.
import { openEmbedded } from '../../store/embedded.ts';
import { openReplica } from '../../store/replica.ts';
import { describeStore } from './store.ts';

describeStore('replica', async () => {
  const replica = await openReplica({ remote: openEmbedded(':memory:'), file: ':memory:' });
  await replica.ready;
  return replica;
});
