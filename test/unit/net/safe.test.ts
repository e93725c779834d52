// Owns the tests of what may be given to a tool on its standard input.
// Must not test what the tools do with it.
import assert from 'node:assert/strict';
import { createVeth } from '../../../net/links.ts';
import { runBridgeBatch } from '../../../net/neighbours.ts';
import { runIpBatch, tryIpBatch } from '../../../net/routes.ts';
import type { Runner } from '../../../net/run.ts';
import { UnsafeInput } from '../../../net/safe.ts';
import { contentName, planTable, type NftTable } from '../../../net/table.ts';
import { runIpvsBatch } from '../../../lb/ipvsadm.ts';
import { FakeKernel } from '../../fake/kernel.ts';

describe('what is given to a tool', () => {
  const never: Runner = (tool) => Promise.reject(new Error(`${tool} was run`));
  const line = 'route del 10.0.0.1\nnetns exec x id';
  const table = (rule: string, key = '10.0.0.1'): NftTable => ({
    layout: { sets: { vips: { kind: 'set', declaration: 'type ipv4_addr;' } }, chains: {} },
    content: {
      elements: new Map(),
      parts: [{ chains: [[contentName('one', [rule]), [rule]]], elements: [['vips', key, '']] }],
    },
  });
  const load = (wanted: NftTable): Promise<unknown> =>
    Promise.resolve().then(() => planTable(undefined, wanted));
  const { sysctl } = new FakeKernel();

  const ways: Record<string, () => Promise<unknown>> = {
    'ip -batch': () => runIpBatch(never, [line]),
    'ip -batch of a link': () =>
      createVeth(never, sysctl, { endpointId: 'feed', mac: `02:42:00:00:00:01\n${line}`, mtu: 1450 }),
    'bridge -batch': () => runBridgeBatch(never, [line]),
    'ipvsadm --restore': () => runIpvsBatch(never, ['-A -f 1 -s rr\n-C']),
    'nft: a rule that ends': () => load(table('accept; flush ruleset')),
    'nft: a rule with a line break': () => load(table('accept\nadd table inet x')),
    'nft: a rule with a comment': () => load(table('accept # and no more')),
    'nft: an element with a brace': () => load(table('accept', '10.0.0.1 } ; flush')),
  };
  for (const [way, run] of Object.entries(ways))
    it(`an argument with a tool’s syntax in it is refused: ${way}`, () => assert.rejects(run, UnsafeInput));

  it('an unsafe value costs its own line only, where lines stand on their own', async () => {
    const given: (string | undefined)[] = [];
    const run: Runner = (_tool, _args, { input } = {}) => Promise.resolve((given.push(input), ''));
    const refused = await tryIpBatch(run, ['route replace 10.0.0.1 dev a', line]);
    assert.deepEqual(given, ['route replace 10.0.0.1 dev a\n']);
    assert.deepEqual(
      refused.map((one) => one.line),
      [line],
    );
  });
});
