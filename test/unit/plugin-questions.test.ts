// Owns the tests of when a sandbox is tried whose questions cannot be led yet.
// Must not test what leads them: net-redirect.test.ts and names.test.ts do.
import assert from 'node:assert/strict';
import { Questions } from '../../plugin/questions.ts';
import { openEmbedded } from '../../store/embedded.ts';
import { openRecords, type EndpointRecord } from '../../store/records.ts';
import { captureLog } from '../fake/log.ts';

const port = 5353;
const joined: EndpointRecord[] = [
  {
    ...{ v: 1, id: 'one', network: 'front', node: 'node-1', address: '10.77.0.2', mac: '', healthy: true },
    ...{ sandbox: '/var/run/docker/netns/one', ports: [], access: { by: 'nobody' } },
  },
];
const listening = [
  '  sl  local_address',
  '   0: 0B00007F:9C75 00000000:0000 07 ',
  '  sl  local_address',
  '   0: 0B00007F:9C76 00000000:0000 0A ',
].join('\n');

describe('who leads the questions of sandboxes', () => {
  it('tries one that Docker has not finished ever more slowly, tells of it once, and leads it at last', async () => {
    const store = openEmbedded(':memory:');
    const records = openRecords(store);
    await records.networks.put('front', {
      ...{
        v: 1,
        id: 'front',
        subnet: '10.77.0.0/16',
        gateway: '10.77.0.1',
        internal: false,
        allocated: true,
      },
    });
    const { log, lines } = captureLog();
    let now = 0;
    let sockets = '';
    const tries: number[] = [];
    const loaded: string[] = [];
    const questions = new Questions({
      ...{ records, log, port, hostRun: '/host/run', sysctls: '/host/sys-net', now: () => now },
      run: (tool, _args, { sandbox, input = '' } = {}) => {
        assert.equal(sandbox, '/host/run/docker/netns/one');
        if (tool === 'cat') tries.push(now);
        if (tool === 'nft') loaded.push(input);
        return Promise.resolve(tool === 'cat' ? sockets : '');
      },
    });
    // Asked as often as hints may come.
    let done = false;
    for (; now < 60_000 && !done; now += 50) done = await questions.lead(joined);
    assert.equal(tries.length, 20);
    assert.ok((tries[1] ?? 0) <= 100 && (tries[9] ?? 0) < 3_000, String(tries));
    assert.ok(now < 25_000, String(now));
    const warnings = (): number => lines.filter(({ level }) => level === 'warn').length;
    assert.equal(warnings(), 1);
    assert.match(lines.at(-1)?.msg ?? '', /nothing listens at 127\.0\.0\.11/);
    for (const until = now + 300_000; now < until; now += 50) assert.ok(await questions.lead(joined));
    assert.ok(tries.length < 20 + 25, String(tries.length));
    assert.equal(warnings(), 1);
    sockets = listening;
    for (const until = now + 31_000; now < until; now += 50) await questions.lead(joined);
    assert.equal(loaded.length, 1);
    assert.match(loaded[0] ?? '', /dnat to 10\.77\.0\.1:5353/);
    await store.close();
  });
});
