// Owns the tests of when a node begins to watch the others.
// Must not test how it judges them; test/unit/peers/peers.test.ts does.
import assert from 'node:assert/strict';
import { Liveness } from '../../../plugin/liveness.ts';
import { openEmbedded } from '../../../store/embedded.ts';
import { openRecords, type NodeRecord } from '../../../store/records.ts';
import { captureLog } from '../../fake/log.ts';
import { eventually } from '../../support/until.ts';

const here = (address: string): NodeRecord => ({
  ...{ v: 1, id: 'here', name: 'here', address, number: 1, mtu: 1500 },
  fabric: { port: 4790, vni: 4790 },
});
const other: NodeRecord = { ...here('127.0.0.82'), id: 'other', number: 2 };

describe('liveness', () => {
  it('a node’s address changes: its peers are watched by the new one', async () => {
    const store = openEmbedded(':memory:');
    const records = openRecords(store);
    // As when a host was started anew with another one: the record is put right a moment later.
    await records.nodes.put('here', here('192.0.2.81'));
    await records.nodes.put('other', other);
    const { log, lines } = captureLog();
    const liveness = new Liveness({
      ...{ records, node: 'here', port: 47_931, log, retryAfter: 20 },
      pendingWrites: { revision: () => '', read: () => undefined },
      onPendingWrites: () => undefined,
      onChange: () => undefined,
    });
    const stop = new AbortController();
    const running = liveness.run(stop.signal);
    await eventually(() => lines.some(({ msg }) => msg.includes('failure detection is off')));
    assert.deepEqual([...liveness.state.keys()], []);
    await records.nodes.put('here', here('127.0.0.81'));
    await eventually(() => liveness.state.size > 0);
    assert.deepEqual([...liveness.state.keys()], ['other']);
    stop.abort();
    await running;
    await store.close();
  });
});
