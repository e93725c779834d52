// Owns the tests of what the engines render, the same for both where both must do the same.
// Must not assert whole texts: docs/kernel-state.md does.
import assert from 'node:assert/strict';
import { ipvsEngine } from '../../../lb/ipvs.ts';
import type { Engine, PortServer, VipServer, VirtualServer } from '../../../lb/model.ts';
import { nftEngine } from '../../../lb/nft.ts';
import { EngineUnavailable, selectEngine } from '../../../lb/select.ts';
import type { NftPart } from '../../../net/table.ts';
import { netLayout } from '../../../net/rules.ts';
import { FakeKernel } from '../../fake/kernel.ts';

const two = [
  { address: '10.64.0.3', weight: 1 },
  { address: '10.64.0.4', weight: 1 },
];
const leaving = [
  { address: '10.64.0.3', weight: 1 },
  { address: '10.64.0.4', weight: 0 },
];
const vip = (realServers: VipServer['realServers']): VipServer => ({
  kind: 'vip',
  address: '10.64.0.2',
  realServers,
});
const port = (
  realServers: PortServer['realServers'],
  protocol: PortServer['protocol'] = 'tcp',
): PortServer => ({
  kind: 'port',
  protocol,
  port: 8080,
  targetPort: 80,
  realServers,
});

const none = new Map<string, number>();

function rendered(engine: Engine, servers: readonly VirtualServer[]): readonly NftPart[] {
  return engine.render(servers, none).content.parts;
}

/** Every rule that translates for the server, in either engine: by nft. */
function rules(engine: Engine, server: VirtualServer): string {
  return rendered(engine, [server])
    .flatMap(({ chains }) => chains.flatMap(([, list]) => list))
    .join('\n');
}

function keys(engine: Engine, set: string, ...servers: VirtualServer[]): string[] {
  return rendered(engine, servers).flatMap(({ elements }) =>
    elements.filter(([name]) => name === set).map(([, key]) => key),
  );
}

/** @returns where the first rule that mentions the text is in a chain */
function position(engine: Engine, chain: string, text: string): number {
  return engine.layout.chains[chain]?.rules.findIndex((rule) => rule.includes(text)) ?? -1;
}

/** Neighbours that are the same on the tasks. */
const range: PortServer = {
  kind: 'port',
  protocol: 'udp',
  port: 100,
  targetPort: 100,
  count: 70,
  realServers: two,
};

it('engine nft spreads a larger share over the round, and begins with it', () => {
  const shared = (...weights: number[]): string =>
    rules(nftEngine, vip(weights.map((weight, at) => ({ address: `10.64.0.${at + 3}`, weight }))));
  assert.match(
    shared(1, 3),
    /numgen inc mod 4 map \{ 0 : 10\.64\.0\.4, 1 : 10\.64\.0\.3, 2-3 : 10\.64\.0\.4 \}/,
  );
  assert.match(shared(2, 2, 2), /mod 3 map \{ 0 : 10\.64\.0\.3, 1 : 10\.64\.0\.4, 2 : 10\.64\.0\.5 \}/);
  const hands = /map \{ (.*) \}/.exec(shared(1, 10, 10))?.[1]?.split(', ') ?? [];
  assert.equal(hands.length, 21, 'two that are grown take turns, and the new one has one');
  assert.match(hands[0] ?? '', /10\.64\.0\.4$/);
  assert.match(shared(100, 999), /mod 1099 map \{ 0-99 : 10\.64\.0\.3, 100-1098 : 10\.64\.0\.4 \}/);
});

it('engine nft offers a refused TCP connection to another task, where there is one', () => {
  const offered = (server: VirtualServer): string[] =>
    ['several_vips', 'several_tcp_ports'].flatMap((set) => keys(nftEngine, set, server));
  assert.deepEqual(offered(vip(two)), ['10.64.0.2']);
  assert.deepEqual(offered(port(two)), ['8080']);
  assert.deepEqual(offered({ ...range, protocol: 'tcp' }), ['100-169']);
  assert.deepEqual(offered(port(two, 'udp')), []);
  assert.deepEqual(offered(port(leaving)), []);
  assert.deepEqual(offered(vip([])), []);
});

it('engine ipvs leads a range of ports by one mark to the ports that were asked for', () => {
  const { services, marks } = ipvsEngine.render([range], none);
  assert.deepEqual([...(services[0]?.destinations.keys() ?? [])], ['10.64.0.3:0', '10.64.0.4:0']);
  assert.deepEqual([services.length, marks.size], [1, 1]);
  assert.equal(keys(ipvsEngine, 'port_marks', range).length, 70);
});

for (const engine of [nftEngine, ipvsEngine]) {
  describe(`engine ${engine.name}`, () => {
    it('a range of ports: each port is known, with one chain for all that keeps the port', () => {
      assert.deepEqual(keys(engine, 'published', range).slice(0, 2), ['udp . 100', 'udp . 101']);
      assert.equal(keys(engine, 'published', range).length, 70);
      assert.equal(rendered(engine, [range]).flatMap(({ chains }) => chains).length, 1);
      assert.doesNotMatch(rules(engine, range), /: 100/);
    });

    it('a published port is translated to the port of the tasks', () => {
      assert.match(
        rules(engine, port(two)),
        /numgen inc mod 2 map \{ 0 : 10\.64\.0\.3, 1 : 10\.64\.0\.4 \} : 80$/,
      );
    });

    it('a published port lets in whom its policy lets in, and leads others nowhere', () => {
      const policy = { bind: ['192.0.2.1', 'eth1'], deny: ['10.9.0.0/16'], allow: ['10.0.0.0/8'] };
      const text = rules(engine, { ...port(two), policy });
      for (const match of [
        'ip daddr != { 192.0.2.1 } iifname != { "eth1" }',
        'fib saddr type != local ip saddr { 10.9.0.0/16 }',
        'fib saddr type != local ip saddr != { 10.0.0.0/8 }',
      ])
        assert.ok(text.includes(`${match} dnat ip to ip daddr\n`), text);
      assert.doesNotMatch(rules(engine, { ...vip(two), policy }), /192\.0\.2|10\.9/);
    });

    it('a task that drains gets no new connection', () => {
      assert.doesNotMatch(rules(engine, port(leaving)), /10\.64\.0\.4/);
      assert.match(rules(engine, port(leaving)), /mod 1 /);
    });

    it('every VIP and published port is known, served or not, so that it can be refused', () => {
      assert.deepEqual(keys(engine, 'vips', vip([]), port([])), ['10.64.0.2']);
      assert.deepEqual(keys(engine, 'published', vip([]), port([])), ['tcp . 8080']);
    });

    it('a port without tasks is kept from Docker, and leads nowhere', () => {
      assert.equal(rules(engine, port([])), 'dnat ip to ip daddr');
    });

    it('balancing is decided ahead of Docker’s chains at -100', () => {
      for (const chain of ['balance_in', 'balance_out'])
        assert.match(engine.layout.chains[chain]?.hook ?? '', /type nat hook \w+ priority -101;/);
    });

    it('the engine’s tables share no name with the rules of the networks', () => {
      for (const part of ['sets', 'chains'] as const)
        for (const name of Object.keys(engine.layout[part])) assert.ok(!(name in netLayout[part]), name);
    });

    it('every set that the engine fills is declared', () => {
      const elements = rendered(engine, [vip(two), port(two)]).flatMap((part) => part.elements);
      for (const [name] of elements) assert.ok(name in engine.layout.sets, name);
    });

    it('the same servers render the same', () => {
      const servers = [vip(two), port(leaving), port(two, 'udp')];
      assert.deepEqual(engine.render(servers, none), engine.render(servers, none));
    });

    it('a server that is the same object renders the same objects, whatever else there is', () => {
      const server = port(two);
      const before = engine.render([server], none);
      const after = engine.render([vip(two), server], before.marks);
      assert.equal(after.content.parts[1], before.content.parts[0]);
      assert.equal(after.services[1], before.services[0]);
    });

    it('other real servers render other chains under another name', () => {
      const names = (server: VirtualServer): string[] =>
        rendered(engine, [server]).flatMap(({ chains }) => chains.map(([name]) => name));
      assert.notDeepEqual(names(port(two)), names(port(leaving)));
    });
  });
}

describe('engine nft', () => {
  it('nft asks for the VIP first: a VIP is a local address, and its ports are not the published ones', () => {
    for (const chain of ['balance_in', 'balance_out']) {
      const first = position(nftEngine, chain, '@vip_chains');
      assert.ok(first >= 0 && first < position(nftEngine, chain, '@port_chains'));
    }
  });

  const heavy = [
    { address: '10.64.0.3', weight: 2 },
    { address: '10.64.0.4', weight: 6 },
  ];

  it('tasks take turns by weight, in the smallest numbers', () => {
    const numbers = /numgen inc mod 4 map \{ 0 : 10\.64\.0\.4, 1 : 10\.64\.0\.3, 2-3 : 10\.64\.0\.4 \}/;
    assert.match(rules(nftEngine, port(heavy)), numbers);
    assert.match(rules(nftEngine, { ...port(heavy), policy: { scheduler: 'wlc' } }), numbers);
    for (const scheduler of ['rr', 'lc'] as const)
      assert.match(rules(nftEngine, { ...port(heavy), policy: { scheduler } }), /numgen inc mod 2 /);
  });

  it('hashing: the client, or client and port, picks from a table that is the same on every node', () => {
    for (const policy of [{ scheduler: 'sh' }, { affinity: 60 }] as const)
      assert.match(
        rules(nftEngine, { ...vip(two), policy }),
        /jhash ip saddr mod 251 seed 0x63617573 map \{ 0/,
      );
    const flows = rules(nftEngine, { ...port(two), policy: { scheduler: 'mh' } });
    assert.match(flows, /jhash ip saddr \. th sport mod 251 seed 0x63617573 map \{ .* \} : 80$/);
    const other = { ...port(two.toReversed()), policy: { scheduler: 'mh' } } as const;
    assert.equal(rules(nftEngine, other), flows);
  });

  it('nft tells what it cannot do, and what it does instead', () => {
    assert.deepEqual(nftEngine.unsupported(undefined), []);
    assert.deepEqual(nftEngine.unsupported({ scheduler: 'mh', locality: 'local' }), []);
    assert.match(nftEngine.unsupported({ scheduler: 'lc' }).join(), /lc is rr/);
    assert.match(nftEngine.unsupported({ affinity: 60 }).join(), /affinity=60 .* as long as the tasks stay/);
  });

  it('nft needs no IPVS', () => {
    assert.deepEqual(nftEngine.render([vip(two), port(two)], none).services, []);
  });
});

describe('engine ipvs', () => {
  it('ipvs schedules as the policy says, and by weight where weights differ', () => {
    const of = (policy: VirtualServer['policy'], servers = two): unknown => {
      const [service] = ipvsEngine.render([{ ...vip(servers), ...(policy && { policy }) }], none).services;
      return [service?.scheduler, service?.flags, service?.affinity];
    };
    assert.deepEqual(of(undefined), ['rr', [], undefined]);
    assert.deepEqual(of(undefined, [...two, { address: '10.64.0.5', weight: 2 }]), ['wrr', [], undefined]);
    assert.deepEqual(of({ scheduler: 'lc', affinity: 60 }), ['lc', [], 60]);
    const { services } = ipvsEngine.render([{ ...port(two), policy: { affinity: 60 } }], none);
    assert.deepEqual([services[0]?.scheduler, services[0]?.flags], ['mh', ['mh-fallback']]);
    assert.match(ipvsEngine.unsupported({ affinity: 60 }).join(), /published ports/);
    assert.deepEqual(of({ scheduler: 'sh' }), ['sh', ['sh-fallback'], undefined]);
    assert.deepEqual(of({ scheduler: 'mh' }), ['mh', ['mh-fallback', 'mh-port'], undefined]);
  });

  const destinations = (server: VirtualServer): Record<string, number> =>
    Object.fromEntries(
      ipvsEngine.render([server], none).services.flatMap((service) => [...service.destinations]),
    );

  it('ipvs asks for the VIP first: a VIP is a local address, and its ports are not the published ones', () => {
    for (const chain of ['mark_in', 'mark_out']) {
      const first = position(ipvsEngine, chain, '@vips');
      assert.ok(first >= 0 && first < position(ipvsEngine, chain, 'goto mark_port'));
    }
  });

  it('ipvs keeps the port that a VIP was asked for', () => {
    assert.deepEqual(destinations(vip(two)), { '10.64.0.3:0': 1, '10.64.0.4:0': 1 });
  });

  it('ipvs drains a TCP task at weight 0', () => {
    assert.deepEqual(destinations(port(leaving)), { '10.64.0.3:80': 1, '10.64.0.4:80': 0 });
  });

  it('ipvs removes a draining task from a UDP port at once, because UDP has no end of its own', () => {
    assert.deepEqual(destinations(port(leaving, 'udp')), { '10.64.0.3:80': 1 });
  });

  it('ipvs marks nothing that nobody serves, so that it is refused', () => {
    assert.deepEqual(keys(ipvsEngine, 'vip_marks', vip([])), []);
    assert.deepEqual(keys(ipvsEngine, 'port_marks', port([])), []);
    assert.deepEqual(ipvsEngine.render([vip([]), port([])], none).services, []);
  });

  it('ipvs keeps the service of what only drains, and with it its connections', () => {
    const drained = [{ address: '10.64.0.4', weight: 0 }];
    assert.deepEqual(destinations(port(drained)), { '10.64.0.4:80': 0 });
    assert.deepEqual(keys(ipvsEngine, 'port_marks', port(drained)), ['tcp . 8080']);
  });

  it('the nft mark is the number of the service in IPVS', () => {
    const { content, services } = ipvsEngine.render([vip(two), port(two)], none);
    const marks = content.parts.flatMap(({ elements }) =>
      elements.filter(([name]) => name.endsWith('_marks')).map(([, , mark]) => mark),
    );
    assert.deepEqual(
      services.map(({ mark }) => String(mark)),
      marks,
    );
  });

  it('marks that are in the kernel are kept', () => {
    const kept = new Map([['port-tcp-8080', 201326777]]);
    assert.equal(ipvsEngine.render([vip(two), port(two)], kept).services[1]?.mark, 201326777);
  });

  it('what the node sends to 127.0.0.0/8 is not marked: IPVS cannot deliver it', () => {
    assert.match(ipvsEngine.layout.chains['mark_out']?.rules[2] ?? '', /^ip daddr != 127\.0\.0\.0\/8 /);
    assert.deepEqual(keys(ipvsEngine, 'port_chains', port(two)), ['tcp . 8080']);
  });
});

describe('selectEngine', () => {
  const withIpvs = new FakeKernel();
  const without = new FakeKernel({ ipvs: false });

  it('selectEngine takes IPVS where the kernel has it, else nft, and says why', async () => {
    assert.deepEqual(await selectEngine(withIpvs.run, 'auto'), {
      engine: ipvsEngine,
      why: 'the kernel has IPVS',
    });
    const { engine, why } = await selectEngine(without.run, 'auto');
    assert.equal(engine, nftEngine);
    assert.match(why, /no IPVS \(Can't initialize ipvs: Protocol not available\)/);
  });

  it('selectEngine takes the engine of the setting', async () => {
    assert.equal((await selectEngine(withIpvs.run, 'nft')).engine, nftEngine);
    assert.equal((await selectEngine(withIpvs.run, 'ipvs')).engine, ipvsEngine);
  });

  it('selectEngine with IPVS demanded and missing: the error names the remedy', async () => {
    await assert.rejects(
      selectEngine(without.run, 'ipvs'),
      (error: unknown) => error instanceof EngineUnavailable && /ip_vs.*CAUSEWAY_LB=auto/.test(error.message),
    );
  });
});
