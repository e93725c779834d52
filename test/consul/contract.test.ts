// Owns running the store contract for Consul: one real server, a key prefix for every store.
// Must not test what only Consul does: outages.test.ts and its neighbours.
import { openConsul } from '../../store/consul.ts';
import { describeSharedStore } from '../contract/store.ts';
import { startConsul, type Consul } from '../lab/consul.ts';

/** Consul answers a blocked query some milliseconds after the change; this is for a busy machine. */
const settleMs = 200;

describe('a real Consul', function () {
  this.timeout(120_000);
  let consul: Consul;
  let stores = 0;
  before(async () => {
    consul = await startConsul();
  });
  after(() => consul[Symbol.asyncDispose]());

  describeSharedStore(
    'Consul',
    () => Promise.resolve(openConsul({ addresses: [consul.at], prefix: `store-${stores++}/` })),
    settleMs,
  );
});
