// Owns leases: which address of a pool is held by whom, the gateway, and which free one comes next.
// Must not open or release pools, except to find one again that vanished between two calls of Docker.
import type { Op, Store } from '../store/store.ts';
import type { Row } from '../store/table.ts';
import { Behind } from './behind.ts';
import { IpamError } from './errors.ts';
import { addressProblem, candidatesFrom, standIn } from './plan.ts';
import { choices, keyOf, subnetOf, type PoolRef } from './poolid.ts';
import { taken, type Pools } from './pools.ts';
import type { Holder, Lease, Pool, Tables } from './records.ts';
import { conflict, retryOnConflict } from './retry-on-conflict.ts';
import { contains, formatAddress, parseAddress, sizeOf, type Range, type Subnet } from './subnet.ts';
import { KeyedMutex } from './keyed-mutex.ts';
import type { Candidates } from './candidates.ts';

/**
 * Addresses are given out and taken back also while the store is away: by Swarm's leader, of which there is one at most,
 * and by each node for itself.
 */
const offline = { offline: true };

/** An address together with the subnet it turned out to belong to. */
export interface Granted {
  address: string;
  subnet: Subnet;
}

/** The name of the service that has the address for its VIP on the network, if any has. */
export type ServiceAt = (network: string, address: string) => Promise<string | undefined>;

/** How many taken addresses are met one by one before leases are read by blocks: mostly the first one is free. */
const maxProbes = 8;

/** The addresses of a block differ in their last byte only, so one list by prefix reads it whole. */
const blockBits = 8n;

/** What the ids of a block's leases begin with, behind the pool's key: 10.77.5. of 10.77.5.9. */
function blockPrefix(address: bigint): string {
  const text = formatAddress(address);
  return text.slice(0, text.lastIndexOf('.') + 1);
}

export class Addresses {
  readonly #store: Store;
  readonly #tables: Tables;
  readonly #sightings: Candidates;
  readonly #pools: Pools;
  readonly #serviceAt: ServiceAt;
  readonly #turns = new KeyedMutex();
  /** By the lease's id. */
  readonly #behind: Behind;
  /** What Swarm's leader has asked for since its term began, by pool; see {@link beginTerm}. */
  readonly #term = new Map<string, Set<string>>();

  constructor(
    store: Store,
    tables: Tables,
    sightings: Candidates,
    pools: Pools,
    { serviceAt, onFailure }: { serviceAt: ServiceAt; onFailure: (leaseId: string, error: unknown) => void },
  ) {
    this.#store = store;
    this.#tables = tables;
    this.#sightings = sightings;
    this.#pools = pools;
    this.#serviceAt = serviceAt;
    this.#behind = new Behind((id, body) => sightings.inTurn(id, body), onFailure);
  }

  /**
   * A leader that was elected allocates every network again, and then each address of it once. An address that it asks
   * for a second time before the next election is wanted for somebody else, such as a container that names the VIP of a
   * service.
   */
  beginTerm(subnet: Subnet): void {
    this.#term.set(keyOf(subnet), new Set());
  }

  /**
   * The pool's gateway: the one that is set, else `wanted`, else the first free address to choose from. As with
   * pools, Swarm's leader is never told that it cannot be had; the pool is marked as refused instead.
   */
  gateway(ref: PoolRef, wanted: string | undefined): Promise<Granted> {
    return retryOnConflict(`Setting the gateway of ${ref.subnet.cidr}`, async () => {
      const pool = await this.#pools.get(ref.subnet);
      if (!pool) {
        await this.#pools.open(ref);
        return conflict;
      }
      const current = pool.value.gateway;
      if (current !== undefined && (wanted === undefined || wanted === current))
        return { address: current, subnet: ref.subnet };
      const problem = wanted === undefined ? undefined : await this.#gatewayProblem(ref, pool.value, wanted);
      if (problem && ref.space === 'local') throw problem;
      const address = wanted ?? (await this.#firstFree(ref));
      if (problem) await this.#pools.refuse(ref.subnet, problem.message);
      else if (await this.#pools.setGateway(pool, address)) return conflict;
      return { address, subnet: ref.subnet };
    });
  }

  /**
   * Adds this side to the holders of an address somebody named. Needs no pool: when the store was lost, what
   * containers hold must become known again, in whatever order it is heard of. Swarm's leader is given also what it has
   * given to somebody already, as it would not tell the user: the nodes do.
   *
   * A node is answered before its half is in the store, where nothing speaks against it and the leader's half is there:
   * nobody else is given the address meanwhile. Whoever uses it waits for {@link settled}.
   * @throws IpamError `address-unusable`; on a node also `address-in-use` if another node holds it, or Swarm has given
   *   it to somebody else, and `pool-full` for what stands for an address of a full pool
   */
  async claim(ref: PoolRef, address: bigint): Promise<Granted> {
    const subnet = await this.#subnetFor(ref, address);
    const granted = { address: formatAddress(address), subnet };
    const id = `${keyOf(subnet)}/${granted.address}`;
    const holder = this.#pools.holder(ref.space);
    return this.#behind.run<Granted>(id, (answer) =>
      retryOnConflict(`Requesting the address ${granted.address}`, async () => {
        const pool = await this.#pools.get(subnet);
        const problem = addressProblem(subnet, address, pool?.value.gateway);
        if (problem && ref.space === 'local' && address === standIn(subnet)) await this.#assertRoom(ref);
        if (problem) throw problem;
        const lease = await this.#tables.leases.get(id);
        const { holders = [], claims = 1 } = lease?.value ?? {};
        const isHeld = holders.includes(holder);
        if (ref.space === 'local' && !isHeld)
          await this.#assertOwn(lease?.value, granted.address, pool?.value.network);
        const counted = ref.space === 'global' && isHeld ? this.#count(id, claims) : claims;
        if (!isHeld || counted !== claims) {
          const next = { holders: isHeld ? holders : [...holders, holder], claims: counted };
          if (ref.space === 'local' && holders.includes('global')) answer(granted);
          // The address must not become the gateway meanwhile.
          const same = this.#tables.pools.check(keyOf(subnet), pool?.version ?? 0);
          if (await this.#setLease(id, lease, next, same)) return conflict;
        }
        this.#sightings.forget(id, holder);
        if (ref.space === 'global') this.#claimed(id);
        return granted;
      }),
    );
  }

  /** Resolves once nothing is under way for the address. @throws what a claim that was answered has failed by */
  async settled(ref: PoolRef, address: bigint): Promise<void> {
    const subnet = await this.#subnetFor(ref, address);
    await this.#behind.settled(`${keyOf(subnet)}/${formatAddress(address)}`);
  }

  /** Resolves once all is done that was answered before. */
  async idle(): Promise<void> {
    await this.#behind.idle();
  }

  /** @throws IpamError unless this node may have an address that it does not hold yet */
  async #assertOwn(
    { holders, claims }: Pick<Lease, 'holders' | 'claims'> = { holders: [] },
    address: string,
    network: string | undefined,
  ): Promise<void> {
    const other = holders.find((held) => held !== 'global');
    if (other !== undefined) throw onAnotherNode(address, other);
    const service = network === undefined ? undefined : await this.#serviceAt(network, address);
    if (service !== undefined) throw inUse(address, `service ${service}`);
    if (claims !== undefined) throw inUse(address, 'a service or a starting task of Swarm');
  }

  /** @returns how many claims there are with one more */
  #count(id: string, before: number): number {
    const [pool = ''] = id.split('/');
    const term = this.#term.get(pool);
    // Of a term that began before this process nothing is known, but that it is past its beginning.
    return term === undefined || term.has(id) ? before + 1 : 1;
  }

  #claimed(id: string): void {
    const [pool = ''] = id.split('/');
    this.#term.get(pool)?.add(id);
  }

  /**
   * The next free address behind the one that was given out last.
   * @throws IpamError `pool-full`, or `pool-unknown` if this side has no hold on the pool: then its leases may be
   *   missing too, and a "free" address may be a container's
   */
  async allocate(ref: PoolRef): Promise<Granted> {
    const pool = await this.#pools.get(ref.subnet);
    try {
      return await this.#allocateIn(ref);
    } catch (error) {
      if (!(error instanceof IpamError) || error.code !== 'pool-full') throw error;
      // Docker tries the next subnet of a network only if its own allocator says that one is full, never a plugin's.
      for (const subnet of await this.#siblings(ref, pool?.value))
        try {
          return await this.#allocateIn({ ...ref, subnet, range: subnet });
        } catch (other) {
          if (!(other instanceof IpamError) || other.code !== 'pool-full') throw other;
        }
      throw error;
    }
  }

  /**
   * Of several claims of Swarm's leader one ends, and the address stays its holder's. An address that is unknown, or the
   * gateway, is nobody's lease.
   *
   * Nobody waits for it: who asks for the address again has his turn behind it, and what fails is left to the collector.
   */
  async release(ref: PoolRef, address: bigint): Promise<void> {
    const subnet = await this.#subnetFor(ref, address);
    const id = `${keyOf(subnet)}/${formatAddress(address)}`;
    this.#behind.begin(id, () =>
      ref.space === 'local' ? this.letGo(id, this.#pools.holder('local')) : this.#endClaim(id),
    );
  }

  #endClaim(id: string): Promise<boolean> {
    return retryOnConflict(`Releasing ${id}`, async () => {
      const lease = await this.#tables.leases.get(id);
      if (lease?.value.claims === undefined) return this.letGo(id, 'global');
      const { holders, claims } = lease.value;
      return (await this.#setLease(id, lease, { holders, claims: claims - 1 })) ?? true;
    });
  }

  /** Takes one holder off a lease; the last one takes the lease with it. @returns whether it was a holder */
  letGo(id: string, holder: Holder): Promise<boolean> {
    return retryOnConflict(`Releasing ${id}`, async () => {
      const lease = await this.#tables.leases.get(id);
      if (!lease?.value.holders.includes(holder)) return false;
      const holders = lease.value.holders.filter((other) => other !== holder);
      const claims = holder === 'global' ? 1 : lease.value.claims;
      return (await this.#setLease(id, lease, { holders, claims })) ?? true;
    });
  }

  /** Adds a holder to a lease whoever else has it. @returns whether it was none before */
  adopt(id: string, holder: Holder): Promise<boolean> {
    return retryOnConflict(`Taking over ${id}`, async () => {
      const lease = await this.#tables.leases.get(id);
      const { holders = [], claims } = lease?.value ?? {};
      if (holders.includes(holder)) return false;
      return (await this.#setLease(id, lease, { holders: [...holders, holder], claims })) ?? true;
    });
  }

  /** Says that Swarm has given the address to one only. @returns false if the lease has changed */
  async recount(id: string, version: number): Promise<boolean> {
    const lease = await this.#tables.leases.get(id);
    if (lease?.version !== version || lease.value.claims === undefined) return false;
    return (await this.#setLease(id, lease, { holders: lease.value.holders })) !== conflict;
  }

  #allocateIn(ref: PoolRef): Promise<Granted> {
    // In turns, because all would begin at the same cursor: n callers would make n² attempts.
    const attempt = (): Promise<Granted> =>
      retryOnConflict(`Requesting an address of ${ref.subnet.cidr}`, () => this.#tryAllocate(ref));
    return this.#turns.runExclusive(keyOf(ref.subnet), async () => {
      try {
        return await attempt();
      } catch (error) {
        // What was released a moment ago may not be free yet.
        const isFull = error instanceof IpamError && error.code === 'pool-full';
        if (isFull && (await this.#behind.idle())) return attempt();
        throw error;
      }
    });
  }

  async #tryAllocate(ref: PoolRef): Promise<Granted | typeof conflict> {
    const key = keyOf(ref.subnet);
    const holder = this.#pools.holder(ref.space);
    const cursorId = `${key}/${keyOf(ref.range)}`;
    const [pool, hold, cursor] = await Promise.all([
      this.#pools.get(ref.subnet),
      this.#tables.holds.get(`${key}/${holder}`),
      this.#cursor(cursorId),
    ]);
    if (!pool || !hold) throw unknown(ref);
    const range = this.#choices(ref);
    const gateway = pool.value.gateway === undefined ? undefined : parseAddress(pool.value.gateway);
    let leased: ReadonlySet<bigint> | undefined;
    let block: bigint | undefined;
    let probes = 0;
    for (const candidate of candidatesFrom(range, cursor)) {
      if (probes >= maxProbes && candidate >> blockBits !== block) {
        block = candidate >> blockBits;
        leased = await this.#leased(`${key}/${blockPrefix(candidate)}`);
      }
      if (candidate === gateway || leased?.has(candidate)) continue;
      const address = formatAddress(candidate);
      const id = `${key}/${address}`;
      const result = await this.#store.commit(
        [
          this.#tables.leases.set(id, { v: 1, holders: [holder] }, 0),
          this.#tables.cursors.set(cursorId, { v: 1, last: address }),
          this.#tables.pools.check(key, pool.version),
        ],
        offline,
      );
      if (result.ok) {
        if (ref.space === 'global') this.#claimed(id);
        return { address, subnet: ref.subnet };
      }
      if (result.conflicts.includes(this.#tables.pools.key(key))) return conflict;
      probes++;
    }
    throw full(ref, range, gateway, await this.#leased(`${key}/`));
  }

  /** A hint, which is written over: one that cannot be read is none. */
  async #cursor(id: string): Promise<bigint | undefined> {
    const { rows } = await this.#tables.cursors.list(id);
    const last = rows.find((row) => row.id === id)?.value.last;
    return last === undefined ? undefined : parseAddress(last);
  }

  /** Addresses of every lease whose id begins like this, readable or not: what cannot be read is not free. */
  async #leased(under: string): Promise<ReadonlySet<bigint>> {
    const ids = await this.#tables.leases.ids(under);
    return new Set(ids.map((id) => parseAddress(id.slice(id.indexOf('/') + 1))));
  }

  /** The lowest, as Docker's own allocator picks a gateway: people expect it there. */
  async #firstFree(ref: PoolRef): Promise<string> {
    const leased = await this.#leased(`${keyOf(ref.subnet)}/`);
    const range = this.#choices(ref);
    for (const candidate of candidatesFrom(range, undefined))
      if (!leased.has(candidate)) return formatAddress(candidate);
    throw full(ref, range, undefined, leased);
  }

  #choices(ref: PoolRef): Range {
    const range = choices(ref);
    if (range) return range;
    throw new IpamError(
      'pool-unusable',
      `The range ${ref.range.cidr} has no address that a host in ${ref.subnet.cidr} can have. Choose another --ip-range.`,
    );
  }

  async #gatewayProblem(ref: PoolRef, pool: Pool, wanted: string): Promise<IpamError | undefined> {
    // The owner's gateway is set. Whoever wants another one is a second network with the same subnet.
    if (pool.network !== undefined) return taken(ref.subnet, pool.network);
    return this.#pools.gatewayProblem(ref.subnet, wanted);
  }

  /**
   * The subnet an address belongs to. Of a network with several, Swarm names any one of them: it expects an error
   * that only Docker's own allocator can give, and then tries the next.
   */
  async #subnetFor(ref: PoolRef, address: bigint): Promise<Subnet> {
    if (contains(ref.subnet, address)) return ref.subnet;
    const siblings = await this.#siblings(ref, (await this.#pools.get(ref.subnet))?.value);
    return siblings.find((subnet) => contains(subnet, address)) ?? ref.subnet;
  }

  /** The other subnets of the network that owns the pool. */
  async #siblings(ref: PoolRef, pool: Pool | undefined): Promise<Subnet[]> {
    if (pool?.network === undefined) return [];
    const { rows } = await this.#tables.pools.list();
    return rows
      .filter((row) => row.value.network === pool.network && row.id !== keyOf(ref.subnet))
      .map((row) => subnetOf(row.id));
  }

  /** @throws IpamError when the pool has no free address */
  async #assertRoom(ref: PoolRef): Promise<void> {
    const pool = await this.#pools.get(ref.subnet);
    const range = this.#choices(ref);
    const leased = await this.#leased(`${keyOf(ref.subnet)}/`);
    const gateway = pool?.value.gateway === undefined ? undefined : parseAddress(pool.value.gateway);
    for (const candidate of candidatesFrom(range, undefined))
      if (candidate !== gateway && !leased.has(candidate)) return;
    throw full(ref, range, gateway, leased);
  }

  async #setLease(
    id: string,
    lease: Row<Lease> | undefined,
    { holders, claims = 1 }: { holders: Holder[]; claims?: number | undefined },
    ...more: Op[]
  ): Promise<typeof conflict | undefined> {
    const version = lease?.version ?? 0;
    const op =
      holders.length === 0
        ? this.#tables.leases.remove(id, version)
        : this.#tables.leases.set(id, { v: 1, holders, ...(claims > 1 && { claims }) }, version);
    return (await this.#store.commit([op, ...more], offline)).ok ? undefined : conflict;
  }
}

function inUse(address: string, by: string): IpamError {
  return new IpamError(
    'address-in-use',
    `The address ${address} is in use by ${by}. Choose another --ip, or none.`,
  );
}

function onAnotherNode(address: string, holder: Holder): IpamError {
  return new IpamError(
    'address-in-use',
    `The address ${address} is in use on another node (${holder.slice('node/'.length)}). Choose another one; ` +
      'if that node is gone for good, the address becomes free once it is removed from the swarm.',
  );
}

function unknown(ref: PoolRef): IpamError {
  return new IpamError(
    'pool-unknown',
    `The pool ${ref.subnet.cidr} is not known: the store was lost, or the network was removed. Causeway takes over ` +
      'from Docker what is in use and gives out no address before that is done. Try again in a minute.',
  );
}

function full(
  ref: PoolRef,
  range: Range,
  gateway: bigint | undefined,
  leased: ReadonlySet<bigint>,
): IpamError {
  const taken = gateway === undefined ? [...leased] : [...leased, gateway];
  const used = taken.filter((address) => contains(range, address)).length;
  const where = ref.range.cidr === ref.subnet.cidr ? '' : ` (range ${ref.range.cidr})`;
  return new IpamError(
    'pool-full',
    `The pool ${ref.subnet.cidr}${where} is full: ${used} of ${sizeOf(range)} addresses are in use. ` +
      'Remove services or containers from the network, or create it with a larger --subnet.',
  );
}
