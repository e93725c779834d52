// Owns the tests of the nft table: reading what `nft -j` prints, and the transaction from one table to another.
// Must not know what rules mean; the kernel tests show that they do it.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  contentName,
  expectedTable,
  observeTable,
  parseTable,
  planTable,
  type NftElements,
  type NftLayout,
  type NftPart,
  type NftTable,
} from '../../../net/table.ts';
import { FakeKernel } from '../../fake/kernel.ts';
import { FakeNft } from '../../fake/nft.ts';
import { seeded, type Random } from '../../support/random.ts';

describe('parseTable', () => {
  for (const engine of ['nft', 'ipvs']) {
    it(`parseTable: a listed table of engine ${engine} is what was loaded`, async () => {
      const recorded = join(import.meta.dirname, '..', '..', 'recorded', `nft-table-${engine}`);
      const model = new FakeNft();
      model.load(await readFile(`${recorded}.nft`, 'utf8'));
      assert.deepEqual(parseTable(await readFile(`${recorded}.json`, 'utf8')), parseTable(model.list()));
    });
  }

  it('parseTable: adjacent subnets stay separate as written', async () => {
    const file = join(import.meta.dirname, '..', '..', 'recorded', 'nft-table-nft.json');
    const { elements } = parseTable(await readFile(file, 'utf8'));
    assert.deepEqual([...(elements.get('subnets')?.keys() ?? [])], ['10.64.0.0/20', '10.64.16.0/20']);
    assert.equal(elements.get('gateways')?.get('10.64.16.0/20'), '10.64.16.1');
    assert.ok(elements.get('same_network')?.has('10.64.0.0/20 . 10.64.0.0/20'));
  });

  it('parseTable: an element that somebody added with a comment can be deleted', () => {
    const set = { name: 'vips', elem: [{ elem: { val: '10.64.0.9', comment: 'mine' } }] };
    const { elements } = parseTable(JSON.stringify({ nftables: [{ set }] }));
    assert.deepEqual(elements.get('vips'), new Map([['10.64.0.9', '']]));
  });
});

it('parseTable: a range of a set of intervals is as it was written', () => {
  const elem = [8080, { range: [100, 169] }, { range: ['10.64.0.2', '10.64.0.9'] }];
  const { elements } = parseTable(JSON.stringify({ nftables: [{ set: { name: 's', elem } }] }));
  assert.deepEqual([...(elements.get('s')?.keys() ?? [])], ['8080', '100-169', '10.64.0.2-10.64.0.9']);
});

describe('observeTable', () => {
  it('observeTable: an absent table is undefined', async () => {
    assert.equal(await observeTable(new FakeKernel().run), undefined);
  });

  it('observeTable: another failure does not count as an absent table', async () => {
    const kernel = new FakeKernel();
    kernel.refuse = () => 'Error: Could not process rule: Operation not permitted\n';
    await assert.rejects(observeTable(kernel.run), /Operation not permitted/);
  });
});

const layout: NftLayout = {
  sets: {
    members: { kind: 'set', declaration: 'type ipv4_addr;' },
    numbers: { kind: 'map', declaration: 'type ipv4_addr : mark;' },
    verdicts: { kind: 'map', declaration: 'type inet_proto . inet_service : verdict;' },
  },
  chains: { entry: { hook: 'type filter hook input priority 0;', rules: ['ip saddr @members drop'] } },
};

function table(parts: {
  members?: string[];
  numbers?: Record<string, string>;
  /** Port to the rules it leads to. */
  verdicts?: Record<string, string[]>;
  /** Seconds for which what goes to a port is remembered. */
  times?: Record<string, number>;
}): NftTable {
  const { members = [], numbers = {}, verdicts = {}, times = {} } = parts;
  const timed = Object.entries(times).map(([port, seconds]) => {
    const declaration = `protocol udp; l3proto ip; policy = { replied: ${seconds} };`;
    return { port, declaration, name: contentName('timeout', [declaration]) };
  });
  return {
    layout,
    content: {
      parts: [
        ...Object.entries(verdicts).map(([port, rules]) => part('tcp', port, rules)),
        ...timed.map(({ port, name }) => part('udp', port, [`ct timeout set "${name}"`])),
      ],
      timeouts: new Map(timed.map(({ name, declaration }) => [name, declaration])),
      elements: new Map<string, NftElements>([
        ['members', new Map(members.map((key) => [key, '']))],
        ['numbers', new Map(Object.entries(numbers))],
      ]),
    },
  };
}

function part(protocol: string, port: string, rules: string[]): NftPart {
  const name = contentName(`${protocol}-${port}`, rules);
  return { chains: [[name, rules]], elements: [['verdicts', `${protocol} . ${port}`, `goto ${name}`]] };
}

function load(nft: FakeNft, transactions: readonly string[]): void {
  for (const one of transactions) nft.load(one);
}

/** A model of the kernel with this table in it. */
function loaded(desired: NftTable): FakeNft {
  const nft = new FakeNft();
  load(nft, planTable(undefined, desired));
  return nft;
}

describe('planTable', () => {
  it('planTable: no difference, or absent and not desired: nothing to do', () => {
    const desired = table({ members: ['10.0.0.1'], verdicts: { 80: ['drop'] } });
    assert.deepEqual(planTable(expectedTable(desired), desired), []);
    assert.deepEqual(planTable(undefined, undefined), []);
  });

  it('planTable: a table that is not desired is deleted', () => {
    assert.deepEqual(planTable(expectedTable(table({})), undefined), ['delete table inet causeway\n']);
  });

  it('planTable: only the difference is changed', () => {
    const before = table({
      members: ['10.0.0.1', '10.0.0.2'],
      numbers: { '10.0.0.1': '1', '10.0.0.2': '2' },
    });
    const after = table({ members: ['10.0.0.2', '10.0.0.3'], numbers: { '10.0.0.1': '1', '10.0.0.2': '9' } });
    assert.deepEqual(planTable(expectedTable(before), after).join('').split('\n'), [
      'delete element inet causeway members { 10.0.0.1 }',
      'delete element inet causeway numbers { 10.0.0.2 : 2 }',
      'add element inet causeway members { 10.0.0.3 }',
      'add element inet causeway numbers { 10.0.0.2 : 9 }',
      '',
    ]);
  });

  it('planTable: an element moves to a chain that was there before, and the old one is deleted after', () => {
    const transactions = planTable(
      expectedTable(table({ verdicts: { 80: ['accept'] } })),
      table({ verdicts: { 80: ['drop'] } }),
    ).map((lines) => lines.replaceAll(/\.[\da-f]{12}/g, '').split('\n'));
    assert.deepEqual(transactions, [
      ['add chain inet causeway tcp-80', 'add rule inet causeway tcp-80 drop', ''],
      [
        'delete element inet causeway verdicts { tcp . 80 : goto tcp-80 }',
        'add element inet causeway verdicts { tcp . 80 : goto tcp-80 }',
        '',
      ],
      ['flush chain inet causeway tcp-80', 'delete chain inet causeway tcp-80', ''],
    ]);
  });

  it('planTable: what comes or goes as a whole is one transaction', () => {
    const [none, one, other] = [
      table({}),
      table({ verdicts: { 80: ['accept'] } }),
      table({ verdicts: { 81: ['accept'] } }),
    ];
    for (const [before, after] of [
      [none, one],
      [one, none],
      [one, other],
    ] as const)
      assert.equal(planTable(expectedTable(before), after).length, 1);
  });

  /** What somebody else may do to the table. */
  const meddling: Record<string, string> = {
    'flushed a chain': 'flush chain inet causeway entry',
    'added a rule': 'add rule inet causeway entry accept',
    'added a rule to a chain of a service': `add rule inet causeway ${contentName('tcp-80', ['drop'])} accept`,
  };
  for (const [what, command] of Object.entries(meddling)) {
    it(`planTable: the table is replaced in one transaction when somebody ${what}`, () => {
      const desired = table({ members: ['10.0.0.1'], verdicts: { 80: ['drop'] } });
      const nft = loaded(desired);
      nft.load(command);
      const plan = planTable(parseTable(nft.list()), desired);
      assert.deepEqual(plan, [`delete table inet causeway\n${planTable(undefined, desired).join('')}`]);
      load(nft, plan);
      assert.deepEqual(parseTable(nft.list()), expectedTable(desired));
    });
  }

  it('planTable: a table of another version of the layout is replaced', () => {
    const [entry] = Object.values(layout.chains);
    assert.ok(entry);
    // As many rules as before, so that only the name of the layout tells.
    const other = { ...layout, chains: { entry: { ...entry, rules: ['ip saddr @members accept'] } } };
    const old = table({ members: ['10.0.0.1'] });
    const plan = planTable(expectedTable(old), { layout: other, content: old.content });
    assert.match(plan.join('---'), /^delete table inet causeway\nadd table inet causeway\n/);
  });

  it('planTable: elements and chains that somebody added are removed', () => {
    const desired = table({ members: ['10.0.0.1'] });
    const nft = loaded(desired);
    nft.load('add element inet causeway members { 10.0.0.9 }\nadd chain inet causeway mine\n');
    const plan = planTable(parseTable(nft.list()), desired);
    assert.doesNotMatch(plan.join(''), /delete table/);
    load(nft, plan);
    assert.deepEqual(parseTable(nft.list()), expectedTable(desired));
  });

  it('planTable: elements of a set that rules fill are left', () => {
    const desired: NftTable = {
      layout: {
        ...layout,
        sets: { ...layout.sets, seen: { kind: 'set', declaration: 'type ipv4_addr;', filledByRules: true } },
      },
      content: table({ members: ['10.0.0.1'] }).content,
    };
    const nft = loaded(desired);
    nft.load('add element inet causeway seen { 10.0.0.9 }\n');
    assert.deepEqual(planTable(parseTable(nft.list()), desired), []);
  });

  it('planTable: parts that are the same objects are not compared', () => {
    const before = table({ verdicts: { 80: ['drop'], 81: ['drop'] } });
    const [kept] = before.content.parts;
    assert.ok(kept);
    const poisoned = new Proxy(kept, {
      get: () => {
        throw new Error('it was looked into');
      },
    });
    const written = {
      layout,
      content: { ...before.content, parts: [poisoned, ...before.content.parts.slice(1)] },
    };
    const desired = { layout, content: { ...before.content, parts: [poisoned] } };
    assert.match(
      planTable(written, desired).join('---'),
      /^delete element .* \{ tcp \. 81 : goto tcp-81\.\w+ \}\nflush.*\ndelete chain.*\n$/,
    );
  });

  it('planTable: planning from what was written or from what is read back is the same', () => {
    const random = seeded(198);
    for (let round = 0; round < 300; round += 1) {
      let written = randomTable(random);
      const nft = loaded(written);
      for (let turn = 0; turn < 4; turn += 1) {
        // Some of its parts are the very same, as they are when little changes.
        const randomly = randomTable(random);
        const { content } = randomly;
        const stay = written.content.parts.filter(() => random(2) === 0);
        const names = new Set(stay.flatMap(({ elements }) => elements.map(([, key]) => key)));
        const come = content.parts.filter(({ elements }) => !elements.some(([, key]) => names.has(key)));
        const parts = [...stay, ...come];
        const timeouts = named(parts, [written, randomly]);
        const desired = { layout, content: { ...content, parts, timeouts } };
        load(nft, planTable(written, desired));
        assert.deepEqual(parseTable(nft.list()), expectedTable(desired), `round ${round}`);
        written = desired;
      }
    }
  });

  it('planTable leads from any table to any other, in transactions that the kernel accepts', () => {
    const random = seeded(197);
    for (let round = 0; round < 300; round += 1) {
      const nft = loaded(randomTable(random));
      // Several steps, as a chain left over by one would trip the next.
      for (let turn = 0; turn < 4; turn += 1) {
        const desired = randomTable(random);
        load(nft, planTable(parseTable(nft.list()), desired));
        assert.deepEqual(parseTable(nft.list()), expectedTable(desired), `round ${round}`);
        assert.deepEqual(planTable(parseTable(nft.list()), desired), [], 'and then there is nothing to do');
      }
    }
  });
});

/** The timeout policies of these tables that parts name. */
function named(parts: readonly NftPart[], tables: readonly NftTable[]): Map<string, string> {
  const rules = parts.flatMap(({ chains }) => chains.flatMap(([, list]) => list)).join('\n');
  const all = tables.flatMap(({ content }) => [...(content.timeouts ?? [])]);
  return new Map(all.filter(([name]) => rules.includes(`"${name}"`)));
}

function randomTable(random: Random): NftTable {
  const some = (): string[] => ['1', '2', '3', '4'].filter(() => random(2) === 0);
  return table({
    members: some().map((digit) => `10.0.0.${digit}`),
    numbers: Object.fromEntries(some().map((digit) => [`10.0.0.${digit}`, String(random(3))])),
    verdicts: Object.fromEntries(
      some().map((digit) => [`8${digit}`, [['drop'], ['accept'], ['drop', 'accept']][random(3)] ?? []]),
    ),
    times: Object.fromEntries(some().map((digit) => [`9${digit}`, random(3)])),
  });
}
