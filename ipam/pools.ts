// Owns the life of a pool in the store: who has a hold on it, which network owns it, when it goes.
// Must not know addresses, beyond deleting the leases of a pool that nobody holds any more.
import type { Op, Store } from '../store/store.ts';
import type { Row } from '../store/table.ts';
import { StoreError } from '../store/errors.ts';
import { batches } from '../store/batches.ts';
import { IpamError } from './errors.ts';
import { addressProblem, firstFree, overlapProblem, poolProblem, type Occupied } from './plan.ts';
import { keyOf, subnetOf, type PoolRef, type Space } from './poolid.ts';
import { guardId, holderOf, type Holder, type Pool, type Tables } from './records.ts';
import { conflict, retryOnConflict } from './retry-on-conflict.ts';
import type { Candidates } from './candidates.ts';
import { parseAddress, parseSubnet, type Subnet } from './subnet.ts';

/**
 * A subnet or address (IPv6 is passed over) that this host uses for something that is not Causeway's.
 * `what` stands behind it in an error: "overlaps 10.0.0.0/8, a route by eth0".
 */
export interface InUse {
  cidr: string;
  what: string;
}

export interface PoolsOptions {
  nodeId: string;
  /** Where subnets come from that nobody asked for by name. */
  defaultPool: Subnet;
  /** What this host uses. It speaks against a pool on this node alone, whoever leads the Swarm. */
  inUse: () => Promise<InUse[]>;
  /** What others than Causeway use in the whole cluster; undefined while that is not known. */
  taken: () => Promise<InUse[] | undefined>;
  /** What is better left alone where there is a choice. */
  avoided: () => Promise<InUse[]>;
}

/** Where a pool comes from that is refused because there is none: no host can have such an address. */
const nowhere = parseSubnet('240.0.0.0/4');

export class Pools {
  readonly #store: Store;
  readonly #tables: Tables;
  readonly #sightings: Candidates;
  readonly #options: PoolsOptions;

  constructor(store: Store, tables: Tables, sightings: Candidates, options: PoolsOptions) {
    this.#store = store;
    this.#tables = tables;
    this.#sightings = sightings;
    this.#options = options;
  }

  holder(space: Space): Holder {
    return holderOf(space, this.#options.nodeId);
  }

  get(subnet: Subnet): Promise<Row<Pool> | undefined> {
    return this.#tables.pools.get(keyOf(subnet));
  }

  /**
   * Makes sure that the pool exists and this side has a hold on it. What speaks against a new pool is thrown on the
   * node, where Docker shows it to the user. Swarm's leader would only log it and leave the service in state "New":
   * there the pool is marked as refused instead, which costs nothing, and the nodes tell the user.
   */
  open(ref: PoolRef): Promise<void> {
    const holdId = this.#holdId(ref);
    return this.#sightings.inTurn(holdId, async () => {
      await retryOnConflict(`Requesting the pool ${ref.subnet.cidr}`, async () => {
        const pool = await this.get(ref.subnet);
        if (!pool) return this.#create(ref);
        const hold = await this.#tables.holds.get(holdId);
        if (ref.space === 'global') return this.#openGlobal(ref, pool, hold !== undefined);
        return hold ? undefined : this.#openLocal(ref, pool);
      });
      this.#sightings.forget(holdId, this.holder(ref.space));
    });
  }

  /**
   * Opens the first free subnet of the default pool. For Swarm's leader one that this host uses will do where there is
   * no other, as other nodes may be able to have it; and where none is left, one that is marked as refused.
   * @throws IpamError `no-pool-left`
   */
  openDefault(space: Space, prefix: number): Promise<PoolRef> {
    return retryOnConflict('Requesting a pool', async () => {
      const guard = await this.#guard();
      const supernet = this.#options.defaultPool;
      const pools = await this.#poolsInUse('all');
      const taken = [...pools, ...(await this.#takenInCluster())];
      const avoided = [...(await this.#hostInUse()), ...occupied(await this.#options.avoided())];
      const wanted =
        firstFree(supernet, prefix, [...taken, ...avoided]) ??
        (space === 'global' ? firstFree(supernet, prefix, taken) : undefined);
      const problem = wanted === undefined ? noPoolLeft(supernet, prefix) : undefined;
      const subnet = wanted ?? (space === 'global' ? firstFree(nowhere, prefix, pools) : undefined);
      if (!subnet) throw noPoolLeft(supernet, prefix);
      const ref = { space, subnet, range: subnet };
      return (await this.#commit([guard, ...this.#creation(ref, problem)])) ?? ref;
    });
  }

  /** @returns whether the hold is gone; a hold that is bound to a network stays until that is unbound */
  async release(ref: PoolRef): Promise<boolean> {
    const hold = await this.#tables.holds.get(this.#holdId(ref));
    if (!hold || hold.value.network !== undefined) return false;
    return this.drop(ref.subnet, this.holder(ref.space), hold.version);
  }

  /**
   * Says that this side uses the pool for the network, and names the gateway the network really has.
   * @returns why it cannot have the pool, or undefined
   */
  bind(ref: PoolRef, network: string, gateway: string | undefined): Promise<string | undefined> {
    return retryOnConflict(`Taking the pool ${ref.subnet.cidr} for network ${network}`, async () => {
      const pool = await this.get(ref.subnet);
      if (!pool) {
        await this.open(ref);
        return conflict;
      }
      const { refused, network: owner } = pool.value;
      if (refused !== undefined) return refused;
      if (owner !== undefined && owner !== network) return taken(ref.subnet, owner).message;
      const before = await this.#tables.holds.get(this.#holdId(ref));
      const other = before?.value.network;
      if (other !== undefined && other !== network) return stillThere(ref.subnet, other).message;
      const isSame = other === network && owner === network && !pool.value.closing;
      // A replay, which must succeed without the store too.
      if (isSame && (gateway === undefined || gateway === pool.value.gateway)) return undefined;
      const hold = this.#tables.holds.set(this.#holdId(ref), { v: 1, network }, before?.version ?? 0);
      const next = { ...pool.value, network };
      if (gateway === undefined || gateway === next.gateway)
        return this.#commit([hold, this.#keepOrSet(pool, next)], ref.space === 'local');
      const problem = await this.gatewayProblem(ref.subnet, gateway);
      if (problem) return problem.message;
      return this.#commit([hold, ...this.#settingGateway(pool, next, gateway)]);
    });
  }

  /** Gives back every pool that this side uses for the network. Their gateways go with them. */
  async unbind(space: Space, network: string): Promise<void> {
    const holder = this.holder(space);
    const pools = (await this.#tables.pools.list()).rows;
    const holds = await Promise.all(pools.map((pool) => this.#tables.holds.get(`${pool.id}/${holder}`)));
    for (const [n, pool] of pools.entries()) {
      const hold = holds[n];
      if (hold?.value.network === network) await this.drop(subnetOf(pool.id), holder, hold.version);
    }
  }

  /** Records why the pool must not be used, unless a network already uses it. */
  refuse(subnet: Subnet, reason: string): Promise<void> {
    return retryOnConflict(`Refusing the pool ${subnet.cidr}`, async () => {
      const pool = await this.get(subnet);
      if (!pool || pool.value.network !== undefined) return undefined;
      return this.#commit([this.#keepOrSet(pool, { ...pool.value, refused: reason })]);
    });
  }

  /** Takes one hold away, and the pool with it if that was the last. @returns false if the hold has changed */
  async drop(subnet: Subnet, holder: Holder, version: number): Promise<boolean> {
    const id = keyOf(subnet);
    const dropped = await retryOnConflict(`Letting go of the pool ${subnet.cidr}`, async () => {
      const pool = await this.get(subnet);
      const hold = await this.#tables.holds.get(`${id}/${holder}`);
      if (hold?.version !== version) return false;
      const ops: Op[] = [this.#tables.holds.remove(hold.id, version)];
      const { network } = hold.value;
      if (pool && holder === 'global' && network !== undefined && pool.value.network === network)
        ops.push(this.#disowning(pool));
      return (await this.#commit(ops, isOwn(holder))) ?? true;
    });
    if (dropped) await this.#settleNowOrLater(subnet);
    return dropped;
  }

  /**
   * Once Swarm has removed a network, its subnet is free for the next one, although nodes may still be stopping the
   * old one's containers: a stack that is removed and deployed again comes seconds later. Their holds and leases
   * stay, so none of their addresses is given out.
   */
  #disowning(pool: Row<Pool>): Op {
    const { network: _, ...rest } = pool.value;
    return this.#tables.pools.set(pool.id, rest, pool.version);
  }

  /**
   * Brings the pool's record in line with its holds. A hold may appear while we look: whoever takes one checks the
   * pool's version and clears `closing`. So the pool is marked first and the holds are read again afterwards; the
   * decision stands only if no record changed in between.
   * @returns whether anything was changed
   */
  settle(subnet: Subnet): Promise<boolean> {
    const id = keyOf(subnet);
    let changed = false;
    return retryOnConflict(`Releasing the pool ${subnet.cidr}`, async () => {
      const pool = await this.get(subnet);
      if (!pool) return changed;
      const next = await this.#settled(pool);
      const { closing, network } = pool.value;
      if (next.network !== network || next.closing !== closing) {
        changed = (await this.#commit([this.#tables.pools.set(id, next, pool.version)])) !== conflict;
        return conflict; // once more, now that whoever takes a hold has to change the pool
      }
      if (!closing) return changed;
      const left =
        (await this.#deleteAll(id)) ?? (await this.#commit([this.#tables.pools.remove(id, pool.version)]));
      return left ?? true;
    });
  }

  /** While the store is away nobody knows who else holds it; the collector settles it afterwards. */
  async #settleNowOrLater(subnet: Subnet): Promise<void> {
    try {
      await this.settle(subnet);
    } catch (error) {
      if (!(error instanceof StoreError && error.code === 'unavailable')) throw error;
    }
  }

  /** The pool as its holds want it. */
  async #settled(pool: Row<Pool>): Promise<Pool> {
    const { closing: _, network, ...rest } = pool.value;
    // While the leader uses the pool nothing can change: one read, where a thousand nodes would read a thousand.
    const leader = await this.#tables.holds.get(`${pool.id}/global`);
    if (leader && leader.value.network === network) return { ...rest, network };
    // Fresh: a node takes a hold without a change of the pool, so an old list would not lose its compare-and-set.
    const { rows, corrupt } = await this.#tables.holds.list(`${pool.id}/`, { fresh: true });
    // A hold that cannot be read may be the owner's.
    const unread = corrupt.filter(({ stray }) => stray !== true);
    if (rows.length + unread.length === 0) return { ...rest, closing: true };
    const owned = unread.length > 0 || rows.some((row) => row.value.network === network);
    return owned ? { ...rest, network } : rest;
  }

  /** @returns the error that says why the pool cannot have this gateway, or undefined */
  async gatewayProblem(subnet: Subnet, gateway: string): Promise<IpamError | undefined> {
    const problem = addressProblem(subnet, parseAddress(gateway));
    if (problem) return problem;
    if (!(await this.#tables.leases.get(`${keyOf(subnet)}/${gateway}`))) return undefined;
    return new IpamError(
      'address-in-use',
      `The gateway ${gateway} is the address of a container in ${subnet.cidr}. Choose another --gateway.`,
    );
  }

  /** Sets the pool's gateway if it and the address are still as they were read. @returns lost, or undefined */
  async setGateway(pool: Row<Pool>, gateway: string): Promise<typeof conflict | undefined> {
    return this.#commit(this.#settingGateway(pool, pool.value, gateway));
  }

  #settingGateway(pool: Row<Pool>, { closing: _, ...next }: Pool, gateway: string): Op[] {
    return [
      this.#tables.pools.set(pool.id, { ...next, gateway }, pool.version),
      this.#tables.leases.check(`${pool.id}/${gateway}`, 0),
    ];
  }

  async #create(ref: PoolRef): Promise<typeof conflict | undefined> {
    const guard = await this.#guard();
    const pools = await this.#poolsInUse('usable');
    // Somebody opened the very same one since we looked: then it is to be joined.
    if (pools.some(({ cidr }) => cidr === ref.subnet.cidr)) return conflict;
    const host = ref.space === 'local' ? await this.#hostInUse() : [];
    const problem =
      poolProblem(ref.subnet, ref.range) ??
      overlapProblem(ref.subnet, [...pools, ...(await this.#takenInCluster()), ...host]);
    if (problem && ref.space === 'local') throw problem;
    return this.#commit([guard, ...this.#creation(ref, problem)]);
  }

  #creation(ref: PoolRef, problem: IpamError | undefined): Op[] {
    const pool: Pool = { v: 1, ...(problem ? { refused: problem.message } : {}) };
    return [
      this.#tables.pools.set(keyOf(ref.subnet), pool, 0),
      this.#tables.holds.set(this.#holdId(ref), { v: 1 }),
    ];
  }

  /** A replay, unless the pool was refused: then the reason may be gone by now. */
  async #openGlobal(ref: PoolRef, pool: Row<Pool>, held: boolean): Promise<typeof conflict | undefined> {
    const { refused, ...usable } = pool.value;
    if (refused === undefined) return held ? undefined : this.#join(ref, pool, pool.value);
    const guard = await this.#guard();
    const others = await this.#poolsInUse('usable');
    const taken = await this.#options.taken();
    // What was a reason is none any more only if it is known to be gone.
    if (taken === undefined) return held ? undefined : this.#join(ref, pool, pool.value);
    const problem =
      poolProblem(ref.subnet, ref.range) ?? overlapProblem(ref.subnet, [...others, ...occupied(taken)]);
    if (problem) return held ? undefined : this.#join(ref, pool, { ...pool.value, refused: problem.message });
    return this.#join(ref, pool, usable, guard);
  }

  /** The pool is sound in itself, or refused; what this host uses is known to nobody but us. */
  async #openLocal(ref: PoolRef, pool: Row<Pool>): Promise<typeof conflict | undefined> {
    const problem =
      pool.value.refused !== undefined
        ? new IpamError('pool-unusable', pool.value.refused)
        : (poolProblem(ref.subnet, ref.range) ??
          overlapProblem(ref.subnet, [...(await this.#takenInCluster()), ...(await this.#hostInUse())]));
    if (problem) throw problem;
    return this.#join(ref, pool, pool.value);
  }

  #join(ref: PoolRef, pool: Row<Pool>, next: Pool, guard?: Op): Promise<typeof conflict | undefined> {
    const ops = [this.#tables.holds.set(this.#holdId(ref), { v: 1 }), this.#keepOrSet(pool, next)];
    return this.#commit(guard ? [...ops, guard] : ops, ref.space === 'local');
  }

  /** Nodes that only take a hold must not change the pool, or they would contend for it. */
  #keepOrSet(pool: Row<Pool>, { closing, ...next }: Pool): Op {
    const same = !closing && next.network === pool.value.network && next.refused === pool.value.refused;
    return same
      ? this.#tables.pools.check(pool.id, pool.version)
      : this.#tables.pools.set(pool.id, next, pool.version);
  }

  /** To be read before the pools are, and committed with the new one: then no overlapping one came between. */
  async #guard(): Promise<Op> {
    const row = await this.#tables.guard.get(guardId);
    return this.#tables.guard.set(
      guardId,
      { v: 1, changes: (row?.value.changes ?? 0) + 1 },
      row?.version ?? 0,
    );
  }

  async #poolsInUse(which: 'all' | 'usable'): Promise<Occupied[]> {
    const { rows, corrupt } = await this.#tables.pools.list();
    const counted = rows.filter((row) => which === 'all' || row.value.refused === undefined);
    return [
      ...counted.map(({ id, value }) => ({
        ...subnetOf(id),
        what:
          value.network === undefined ? 'another pool of Causeway' : `the pool of network ${value.network}`,
      })),
      // Its key still says which subnet it is about.
      ...corrupt
        .filter(({ stray }) => stray !== true)
        .map(({ id }) => ({
          ...subnetOf(id),
          what: 'a pool of Causeway whose record cannot be read',
        })),
    ];
  }

  async #hostInUse(): Promise<Occupied[]> {
    return occupied(await this.#options.inUse());
  }

  async #takenInCluster(): Promise<Occupied[]> {
    return occupied((await this.#options.taken()) ?? []);
  }

  async #deleteAll(pool: string): Promise<typeof conflict | undefined> {
    const leases = await this.#tables.leases.list(`${pool}/`);
    const cursors = await this.#tables.cursors.list(`${pool}/`);
    const ops = [
      ...leases.rows.map((row) => this.#tables.leases.remove(row.id, row.version)),
      ...cursors.rows.map((row) => this.#tables.cursors.remove(row.id)),
    ];
    for (const commit of batches(ops)) if (await this.#commit(commit)) return conflict;
    return undefined;
  }

  #holdId(ref: PoolRef): string {
    return `${keyOf(ref.subnet)}/${this.holder(ref.space)}`;
  }

  /** @param own what a node says of itself alone, which it may while the store is away */
  async #commit(ops: Op[], own = false): Promise<typeof conflict | undefined> {
    return (await this.#store.commit(ops, { offline: own })).ok ? undefined : conflict;
  }
}

function occupied(inUse: readonly InUse[]): Occupied[] {
  return inUse
    .filter(({ cidr }) => !cidr.includes(':'))
    .map(({ cidr, what }) => ({ ...parseSubnet(cidr.includes('/') ? cidr : `${cidr}/32`), what }));
}

function noPoolLeft(supernet: Subnet, prefix: number): IpamError {
  return new IpamError(
    'no-pool-left',
    `The default pool ${supernet.cidr} has no free /${prefix} left. ` +
      'Remove networks that are no longer used, choose a --subnet, or give Causeway a larger default pool.',
  );
}

/** Whether a holder is a node, and not the cluster. */
function isOwn(holder: Holder): boolean {
  return holder !== 'global';
}

/** The error for a network that follows another one on a node before that is gone from there. */
function stillThere(subnet: Subnet, network: string): IpamError {
  return new IpamError(
    'pool-taken',
    `The subnet ${subnet.cidr} is still in use on this node by network ${network}. ` +
      'If that one is being removed, try again in a moment; else choose another --subnet.',
  );
}

/** The error for whoever comes second with a subnet. */
export function taken(subnet: Subnet, owner: string): IpamError {
  return new IpamError(
    'pool-taken',
    `The subnet ${subnet.cidr} belongs to network ${owner}. Remove this network and create it with another --subnet.`,
  );
}
