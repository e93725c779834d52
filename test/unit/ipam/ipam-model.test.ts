// Owns comparing IPAM with a naive model of it, over thousands of random calls of a leader and two nodes.
// Must not share code with what it checks: the model counts addresses on its fingers.
import assert from 'node:assert/strict';
import { IpamError } from '../../../ipam/errors.ts';
import type { Space } from '../../../ipam/poolid.ts';
import { openEmbedded } from '../../../store/embedded.ts';
import { Node } from '../../support/ipam-world.ts';
import { seeded, type Random } from '../../support/random.ts';

const cidr = '10.1.0.0/28';
const key = '10.1.0.0-28';
const address = (n: number): string => `10.1.0.${n}`;
/** Of a service, as long as network N has the pool. */
const vip = 5;
const hosts = Array.from({ length: 14 }, (_, n) => n + 1);

interface Call {
  do: 'pool' | 'releasePool' | 'bind' | 'unbind' | 'gateway' | 'address' | 'claim' | 'release';
  holder: string;
  /** last octet, for claim and release, sometimes the network's or the broadcast address */
  n: number;
  network: string;
}

/** What a call answers: an address, a code of an error, "taken" for a refused binding, or nothing. */
type Answer = string | undefined;

/** One subnet, as it ought to work. */
class Model {
  pool: { gateway?: number | undefined; network?: string | undefined; last: number } | undefined;
  holds = new Map<string, string | undefined>();
  leases = new Map<number, Set<string>>();
  /** How many of the leader's have an address, where there are several. */
  claims = new Map<number, number>();
  /** What the leader asked for since it allocated the network. */
  term: Set<number> | undefined;

  answer({ do: what, holder, n, network }: Call): Answer {
    switch (what) {
      case 'pool':
        this.#open(holder);
        return undefined;
      case 'releasePool':
        if (this.holds.get(holder) === undefined) this.#drop(holder);
        return undefined;
      case 'bind':
        this.#open(holder, true);
        if ((this.pool!.network ?? network) !== network || (this.holds.get(holder) ?? network) !== network)
          return 'taken';
        this.pool!.network = network;
        this.holds.set(holder, network);
        if (holder === 'global') this.term = new Set();
        return undefined;
      case 'unbind':
        if (this.holds.get(holder) === network) this.#drop(holder);
        return undefined;
      case 'gateway':
        if (!this.pool) this.#open(holder);
        this.pool!.gateway ??= hosts.find((host) => !this.leases.has(host));
        if (this.pool!.gateway === undefined) return holder === 'global' ? `${address(0)}/28` : 'pool-full';
        return `${address(this.pool!.gateway)}/28`;
      case 'address':
        return this.#allocate(holder);
      case 'claim':
        return holder === 'global' ? this.#claimGlobal(n) : this.#claim(holder, n);
      case 'release':
        if (holder === 'global' && this.claims.has(n)) {
          const left = this.claims.get(n)! - 1;
          this.claims.set(n, left);
          if (left === 1) this.claims.delete(n);
          return undefined;
        }
        this.leases.get(n)?.delete(holder);
        if (this.leases.get(n)?.size === 0) this.leases.delete(n);
        return undefined;
    }
  }

  #open(holder: string, onlyIfMissing = false): void {
    if (this.pool && onlyIfMissing) return;
    this.pool ??= { last: 14 };
    if (!this.holds.has(holder)) this.holds.set(holder, undefined);
  }

  #drop(holder: string): void {
    if (this.pool && holder === 'global' && this.holds.get(holder) === this.pool.network)
      this.pool.network = undefined;
    this.holds.delete(holder);
    if (this.holds.size === 0) {
      if (this.pool) {
        this.leases.clear();
        this.claims.clear();
      }
      this.pool = undefined;
    } else if (![...this.holds.values()].includes(this.pool!.network)) this.pool!.network = undefined;
  }

  #allocate(holder: string): Answer {
    if (!this.pool || !this.holds.has(holder)) return 'pool-unknown';
    const { last, gateway } = this.pool;
    const order = [...hosts.filter((host) => host > last), ...hosts.filter((host) => host <= last)];
    const next = order.find((host) => host !== gateway && !this.leases.has(host));
    if (next === undefined) return holder === 'global' ? `${address(0)}/28` : 'pool-full';
    this.pool.last = next;
    if (holder === 'global') this.term?.add(next);
    this.leases.set(next, new Set([holder]));
    return `${address(next)}/28`;
  }

  #claimGlobal(n: number): Answer {
    if (n === 0) return this.#allocate('global');
    if (!hosts.includes(n) || n === this.pool?.gateway) return `${address(n)}/28`;
    const holders = this.leases.get(n) ?? new Set();
    if (holders.has('global') && this.term && !this.term.has(n)) this.claims.delete(n);
    else if (holders.has('global')) this.claims.set(n, (this.claims.get(n) ?? 1) + 1);
    this.leases.set(n, holders.add('global'));
    this.term?.add(n);
    return `${address(n)}/28`;
  }

  #claim(holder: string, n: number): Answer {
    const isFull = hosts.every((host) => host === this.pool?.gateway || this.leases.has(host));
    if (n === 0 && isFull) return 'pool-full';
    if (!hosts.includes(n) || n === this.pool?.gateway) return 'address-unusable';
    const holders = this.leases.get(n) ?? new Set();
    if ([...holders].some((other) => other !== 'global' && other !== holder)) return 'address-in-use';
    const isAnothers = this.claims.has(n) || (n === vip && this.pool?.network === 'N');
    if (isAnothers && !holders.has(holder)) return 'address-in-use';
    this.leases.set(n, holders.add(holder));
    return `${address(n)}/28`;
  }

  /** In the form {@link recorded} has. */
  state(): unknown {
    return {
      pool: this.pool && {
        gateway: this.pool.gateway && address(this.pool.gateway),
        network: this.pool.network,
      },
      holds: Object.fromEntries(this.holds),
      leases: Object.fromEntries([...this.leases].map(([n, holders]) => [address(n), [...holders].sort()])),
      claims: Object.fromEntries([...this.claims].map(([n, count]) => [address(n), count])),
    };
  }
}

async function recorded(node: Node): Promise<unknown> {
  const state = {
    pool: undefined as unknown,
    holds: {} as Record<string, unknown>,
    leases: {} as Record<string, unknown>,
    claims: {} as Record<string, unknown>,
  };
  for (const { key: full, value } of (await node.store.list('ipam/')).entries) {
    const record = value as { gateway?: string; network?: string; holders?: string[]; claims?: number };
    const id = full.replace(/^ipam\/\w+\/[^/]+\/?/, '');
    if (full.startsWith('ipam/pools/')) state.pool = { gateway: record.gateway, network: record.network };
    if (full.startsWith('ipam/holds/')) state.holds[id] = record.network;
    if (full.startsWith('ipam/leases/')) state.leases[id] = record.holders?.toSorted();
    if (record.claims !== undefined) state.claims[id] = record.claims;
  }
  return state;
}

async function perform(nodes: Map<string, Node>, { do: what, holder, n, network }: Call): Promise<Answer> {
  const node = nodes.get(holder)!;
  const space: Space = holder === 'global' ? 'global' : 'local';
  const poolId = `${space}/${key}`;
  try {
    switch (what) {
      case 'pool':
        await node.pool(space, cidr);
        return undefined;
      case 'releasePool':
        await node.ipam.releasePool(poolId);
        return undefined;
      case 'bind':
        return (await node.bind(space, cidr, network)) === undefined ? undefined : 'taken';
      case 'unbind':
        await node.unbind(space, network);
        return undefined;
      case 'gateway':
        return await node.gateway(poolId);
      case 'address':
        return await node.address(poolId);
      case 'claim':
        return await node.address(poolId, address(n));
      case 'release':
        await node.release(poolId, address(n));
        return undefined;
    }
  } catch (error) {
    if (error instanceof IpamError) return error.code;
    throw error;
  }
}

const weights: [Call['do'], number][] = [
  ['pool', 3],
  ['releasePool', 2],
  ['bind', 2],
  ['unbind', 2],
  ['gateway', 2],
  ['address', 12],
  ['claim', 8],
  ['release', 12],
];
const calls = weights.flatMap(([what, weight]) => Array<Call['do']>(weight).fill(what));

function randomCall(random: Random): Call {
  return {
    do: calls[random(calls.length)]!,
    holder: ['global', 'node/a', 'node/b'][random(3)]!,
    n: random(16),
    network: ['N', 'M'][random(2)]!,
  };
}

describe('ipam against a naive model', function () {
  this.timeout(60_000);
  const answers = new Set<string>();
  for (let seed = 1; seed <= 12; seed++)
    it(`random calls: every answer and record is what a naive model says (seed ${seed})`, async () => {
      const random = seeded(seed);
      const store = openEmbedded(':memory:');
      const nodes = new Map(
        ['a', 'a', 'b'].map((nodeId, n) => [['global', 'node/a', 'node/b'][n]!, new Node(store, { nodeId })]),
      );
      for (const node of nodes.values()) node.vips.set(`N ${address(vip)}`, 'web');
      const model = new Model();
      const log: string[] = [];
      for (let step = 0; step < 300; step++) {
        const call = randomCall(random);
        const expected = model.answer(call);
        answers.add(`${call.do} ${expected?.startsWith('10.') ? 'address' : (expected ?? 'done')}`);
        log.push(`${call.do} ${call.holder} ${call.n} ${call.network} → ${expected ?? ''}`);
        const trail = `seed ${seed}, after:\n${log.slice(-12).join('\n')}\n`;
        assert.equal(await perform(nodes, call), expected, trail);
        assert.deepEqual(await recorded(nodes.get('global')!), model.state(), trail);
      }
      await store.close();
    });

  it('the random calls met every kind of answer', () => {
    assert.deepEqual([...answers].sort(), [
      'address address',
      'address pool-full',
      'address pool-unknown',
      'bind done',
      'bind taken',
      'claim address',
      'claim address-in-use',
      'claim address-unusable',
      'claim pool-full',
      'claim pool-unknown',
      'gateway address',
      'gateway pool-full',
      'pool done',
      'release done',
      'releasePool done',
      'unbind done',
    ]);
  });
});
