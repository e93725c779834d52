// Owns IPAM's interface for the plugin: Docker's requests in their text form, and the collection of what leaked.
// Must not know HTTP or Docker's JSON, and keeps nothing in memory that matters after a restart.
import { StoreError } from '../store/errors.ts';
import type { Store } from '../store/store.ts';
import { Addresses, type Granted, type ServiceAt } from './addresses.ts';
import { planCollect, type Step, type Truth } from './collect.ts';
import { IpamError } from './errors.ts';
import { formatPoolId, keyOf, parsePoolId, subnetOf, type PoolRef, type Space } from './poolid.ts';
import { Pools, type InUse } from './pools.ts';
import { tables, type Holder, type Tables } from './records.ts';
import { addressProblem, standIn } from './plan.ts';
import { Candidates } from './candidates.ts';
import {
  encloses,
  formatAddress,
  hostRange,
  parseAddress,
  parseSubnet,
  sizeOf,
  type Subnet,
} from './subnet.ts';

export interface IpamOptions {
  /** Where a pool comes from when a network names none: subnets of `defaultSize` (a prefix length) out of it. */
  defaultPool: string;
  defaultSize: number;
  /** Of this node, stable over restarts: what it held is recorded under this name. */
  nodeId: string;
  /** Routes and addresses of this host that are not Causeway's own. Asked at each new pool. */
  inUse: () => Promise<InUse[]>;
  /** What others than Causeway use in the whole cluster, such as Docker's own networks; undefined: not known yet. */
  taken: () => Promise<InUse[] | undefined>;
  /** What a default pool had better keep away from, as somebody else may come to use it. */
  avoided: () => Promise<InUse[]>;
  /** The name of the service whose VIP on the network the address is, if it is one. */
  serviceAt: ServiceAt;
  /** Told of an address's lease that could not be brought to what was answered: it is left to {@link Ipam.collect}. For the log. */
  onFailure: (leaseId: string, error: unknown) => void;
  /** The time in ms. */
  now: () => number;
}

export interface PoolRequest {
  space: Space;
  /** A subnet; '' for any; 0.0.0.0/24 for any of that size, as Docker 29 says it. */
  pool: string;
  /** Docker's SubPool, `--ip-range`; '' for the whole subnet. */
  subPool: string;
  v6: boolean;
}

/** `pool` is the subnet that was granted; `data` is for Docker, and empty: the gateway is requested as an address. */
export interface PoolGrant {
  poolId: string;
  pool: string;
  data: Record<string, string>;
}

export interface AddressRequest {
  poolId: string;
  /** '' for any. */
  address: string;
  options: Readonly<Record<string, string>>;
}

/** One thing collect did: which address, or which pool, of which holder. No holder: a pool that had none left. */
export interface Collected {
  what: 'address' | 'pool';
  pool: string;
  address?: string;
  holder?: Holder;
}

export interface CollectReport {
  freed: Collected[];
  adopted: Collected[];
  /** Held, but could not be taken over, and why. */
  failed: { what: Collected; reason: string }[];
  /** Records that cannot be read, each named by its error. They were left alone. */
  corrupt: StoreError[];
}

/** The mark of a gateway among the options of RequestAddress, and its value. */
const addressType = 'RequestAddressType';
const gatewayType = 'com.docker.network.gateway';

/** Whether an address is for a sandbox, on its own node: not Swarm's leader's choice, and not a gateway. */
export function isForSandbox({ poolId, options }: Pick<AddressRequest, 'poolId' | 'options'>): boolean {
  return parsePoolId(poolId).space === 'local' && options[addressType] !== gatewayType;
}

/**
 * Docker asks for everything twice, once on Swarm's leader (space `global`) and once on the node (`local`), and the
 * leader asks for everything again after each election. So every request may be repeated, every release too, and a
 * thing is free only when both sides let go of it.
 *
 * Methods throw {@link IpamError}, whose message is for the user, or a StoreError if the store cannot be used.
 */
export class Ipam {
  readonly #options: IpamOptions;
  readonly #tables: Tables;
  readonly #pools: Pools;
  readonly #addresses: Addresses;
  readonly #sightings = new Candidates();

  constructor(store: Store, options: IpamOptions) {
    this.#options = options;
    this.#tables = tables(store);
    const defaultPool = parseSubnet(options.defaultPool);
    this.#pools = new Pools(store, this.#tables, this.#sightings, { ...options, defaultPool });
    this.#addresses = new Addresses(store, this.#tables, this.#sightings, this.#pools, options);
  }

  /**
   * Grants a pool, or grants it again. In the local space it throws if the pool is impossible (`pool-unusable`), or
   * overlaps another one or what this host uses (`overlap`). In the global space it grants even then, and keeps the
   * reason: see {@link refusal}. That another network has the very same subnet can only be found by {@link bindPool}.
   */
  async requestPool(request: PoolRequest): Promise<PoolGrant> {
    const { space, pool, subPool } = request;
    if (request.v6 || pool.includes(':')) {
      // AllocateNetwork refuses such a network, and so does each node's own request.
      if (space === 'global' && pool !== '') return { poolId: `${ipv6Pool}${pool}`, pool, data: {} };
      throw noIPv6();
    }
    if (pool !== '' && !pool.startsWith(unspecified)) {
      const subnet = parseSubnet(pool);
      const ref = { space, subnet, range: subPool === '' ? subnet : rangeIn(subnet, subPool) };
      await this.#pools.open(ref);
      return grant(ref);
    }
    if (subPool !== '')
      throw new IpamError(
        'invalid-request',
        `The range ${subPool} needs a subnet. Add --subnet, or drop --ip-range.`,
      );
    const size = pool === '' ? 0 : parseSubnet(pool).prefix;
    return grant(await this.#pools.openDefault(space, size === 0 ? this.#options.defaultSize : size));
  }

  /** Lets go of a pool, unless a network uses it: that one keeps it until {@link unbindPool}. */
  async releasePool(poolId: string): Promise<void> {
    const ref = tryParsePoolId(poolId);
    if (ref) await this.#pools.release(ref);
  }

  /**
   * In the global space an address that cannot be had is granted all the same: Swarm would tell nobody of an error. It
   * is in no record, and no node takes it, so that the task is rejected there with the reason. In place of one of a full
   * pool it is that of the subnet itself.
   * @returns the address with the subnet's prefix length, such as 10.77.0.5/16; `refused`: why no node will take it
   */
  async requestAddress({
    poolId,
    address,
    options,
  }: AddressRequest): Promise<{ address: string; refused?: string }> {
    if (poolId.startsWith(ipv6Pool))
      return { address: poolId.slice(ipv6Pool.length), refused: noIPv6().message };
    const ref = parsePoolId(poolId);
    const named = address === '' ? undefined : parseAddress(address);
    // What stood for an address of a full pool is asked for again at each election: there may be one by now.
    const wanted = ref.space === 'global' && named === standIn(ref.subnet) ? undefined : named;
    try {
      const granted = await this.#request(ref, wanted, address, options[addressType] === gatewayType);
      return { address: `${granted.address}/${granted.subnet.prefix}` };
    } catch (error) {
      const instead = wanted ?? standIn(ref.subnet);
      if (ref.space === 'local' || instead === undefined || !toldByNodes(error)) throw error;
      return { address: `${formatAddress(instead)}/${ref.subnet.prefix}`, refused: error.message };
    }
  }

  #request(ref: PoolRef, wanted: bigint | undefined, text: string, isGateway: boolean): Promise<Granted> {
    if (isGateway) return this.#addresses.gateway(ref, wanted === undefined ? undefined : text);
    return wanted === undefined ? this.#addresses.allocate(ref) : this.#addresses.claim(ref, wanted);
  }

  /**
   * Lets go of an address. The gateway stays with its pool. What is unknown, or names no pool, is released; what Swarm's
   * leader has claimed for two is one's still.
   */
  async releaseAddress({ poolId, address }: { poolId: string; address: string }): Promise<void> {
    // Swarm forgets pool ids on some of its error paths and then sends an empty one.
    const ref = tryParsePoolId(poolId);
    if (ref && address !== '') await this.#addresses.release(ref, parseAddress(address));
  }

  /**
   * Resolves once the lease of an address of this node says what was answered.
   * @throws why it cannot be had after all
   */
  async settled({ pool, address }: { pool: string; address: string }): Promise<void> {
    const subnet = parseSubnet(pool);
    await this.#addresses.settled({ space: 'local', subnet, range: subnet }, parseAddress(address));
  }

  /** Resolves once all is in the store that was answered before. */
  idle(): Promise<void> {
    return this.#addresses.idle();
  }

  /**
   * Makes the network the owner of the pool: at AllocateNetwork (global) and at CreateNetwork (local).
   * @param gateway the network's, if Docker named one: reserved from now on, whatever was requested before
   * @returns why the network cannot have the pool, as a text for the user; undefined if it can
   */
  async bindPool(request: {
    space: Space;
    pool: string;
    network: string;
    gateway?: string | undefined;
  }): Promise<string | undefined> {
    const subnet = parseSubnet(request.pool);
    const gateway = request.gateway?.split('/')[0];
    const ref = { space: request.space, subnet, range: subnet };
    const refusal = await this.#pools.bind(ref, request.network, gateway);
    if (refusal === undefined && request.space === 'global') this.#addresses.beginTerm(subnet);
    return refusal;
  }

  /**
   * Gives back everything this side holds for the network: at FreeNetwork (global) and at DeleteNetwork (local).
   * Docker's releases of the same pool and gateway may come before or after it.
   */
  unbindPool(request: { space: Space; network: string }): Promise<void> {
    return this.#pools.unbind(request.space, request.network);
  }

  /** Id of the network that has the pool. */
  async ownerOf(pool: string): Promise<string | undefined> {
    return (await this.#pools.get(parseSubnet(pool)))?.value.network;
  }

  /** How many addresses of the pool are in use, its gateway among them, and how many there are. */
  async usage(pool: string): Promise<{ used: number; size: number }> {
    const subnet = parseSubnet(pool);
    const row = await this.#pools.get(subnet);
    const leases = await this.#tables.leases.ids(`${keyOf(subnet)}/`);
    return {
      used: leases.length + (row?.value.gateway === undefined ? 0 : 1),
      size: Number(sizeOf(hostRange(subnet))),
    };
  }

  /**
   * Looks again whether a network that was refused its pool can have it by now.
   * @returns as {@link bindPool} in the global space
   */
  async reconsider(request: { pool: string; network: string; gateway: string }): Promise<string | undefined> {
    const subnet = parseSubnet(request.pool);
    await this.#pools.open({ space: 'global', subnet, range: subnet });
    return (await this.refusal(request.pool)) ?? (await this.bindPool({ space: 'global', ...request }));
  }

  /** Why the pool must not be used, as a text for the user; undefined if it may, or is not known. */
  async refusal(pool: string): Promise<string | undefined> {
    return (await this.#pools.get(parseSubnet(pool)))?.value.refused;
  }

  /**
   * Compares the records with the truth: takes over what is held but not recorded, at once, and frees what is
   * recorded but was not held at two looks or more over `graceMs`. Call it from time to time, never twice at once.
   */
  async collect(truth: Truth & { graceMs: number }): Promise<CollectReport> {
    const { pools, holds, leases } = this.#tables;
    const tablesRead = await Promise.all([pools.list(), holds.list(), leases.list()]);
    const [poolRows, holdRows, leaseRows] = tablesRead;
    const recorded = { pools: poolRows.rows, holds: holdRows.rows, leases: leaseRows.rows };
    const { nodeId, now } = this.#options;
    const options = { nodeId, now: now(), graceMs: truth.graceMs };
    const plan = planCollect(recorded, truth, this.#sightings.seen, options);
    this.#sightings.replace(plan.sightings);
    const corrupt = tablesRead.flatMap((rows) => rows.corrupt.map(({ error }) => error));
    const report: CollectReport = { freed: [], adopted: [], failed: [], corrupt };
    for (const step of plan.steps) await this.#apply(step, report);
    return report;
  }

  async #apply(step: Step, report: CollectReport): Promise<void> {
    const what = describe(step);
    try {
      if (!(await this.#perform(step))) return;
      report[step.do.startsWith('adopt') ? 'adopted' : 'freed'].push(what);
    } catch (error) {
      const isOfThisOne =
        error instanceof IpamError || (error instanceof StoreError && error.code === 'corrupt');
      if (!isOfThisOne) throw error;
      report.failed.push({ what, reason: error.message });
    }
  }

  /** @returns false if it was not to be done after all */
  async #perform(step: Step): Promise<boolean> {
    const subnet = subnetOf(step.pool);
    switch (step.do) {
      case 'adopt-lease': {
        const gateway = (await this.#pools.get(subnet))?.value.gateway;
        const problem = addressProblem(subnet, parseAddress(step.address), gateway);
        // What Swarm was given to be refused is in no record.
        if (problem && step.holder === 'global') return false;
        if (problem) throw problem;
        return this.#addresses.adopt(step.id, step.holder);
      }
      case 'adopt-pool': {
        const ref: PoolRef = { space: step.holder === 'global' ? 'global' : 'local', subnet, range: subnet };
        await this.#pools.open(ref);
        const refusal = await this.#pools.bind(ref, step.held.network, step.held.gateway);
        if (refusal !== undefined) throw new IpamError('pool-taken', refusal);
        return true;
      }
      case 'free-lease':
        return this.#ifStillSighted(step, () => this.#addresses.letGo(step.id, step.holder));
      case 'recount-lease':
        return this.#addresses.recount(step.id, step.version);
      case 'free-pool':
        return this.#ifStillSighted(step, () => this.#pools.drop(subnet, step.holder, step.version));
      case 'settle-pool':
        return this.#pools.settle(subnet);
    }
  }

  /** Does it unless somebody asked for the thing since the plan was made. */
  #ifStillSighted(
    { id, holder }: { id: string; holder: Holder },
    free: () => Promise<boolean>,
  ): Promise<boolean> {
    return this.#sightings.inTurn(id, async () => (this.#sightings.has(id, holder) ? free() : false));
  }
}

/** How the id of a pool begins that is in no record, and all of whose addresses are refused. */
const ipv6Pool = 'global/ipv6/';

function noIPv6(): IpamError {
  return new IpamError(
    'not-supported',
    'Causeway has no IPv6 pools yet. Create the network without --ipv6 and with an IPv4 --subnet, or none.',
  );
}

/** Whether the nodes refuse the address for the same reason, when they are asked for it. */
function toldByNodes(error: unknown): error is IpamError {
  return (
    error instanceof IpamError && ['pool-full', 'pool-unusable', 'address-unusable'].includes(error.code)
  );
}

/** How a request for a size rather than a subnet begins: Docker 29, moby#50114. */
const unspecified = '0.0.0.0/';

/** As Docker does since before version 24: a range that is larger than its subnet means the whole subnet. */
function rangeIn(subnet: Subnet, text: string): Subnet {
  const range = parseSubnet(text);
  return encloses(range, subnet) ? subnet : range;
}

function grant(ref: PoolRef): PoolGrant {
  return { poolId: formatPoolId(ref), pool: ref.subnet.cidr, data: {} };
}

/** For releases: what is not ours is nothing to release. */
function tryParsePoolId(id: string): PoolRef | undefined {
  try {
    return parsePoolId(id);
  } catch (error) {
    if (error instanceof IpamError) return undefined;
    throw error;
  }
}

function describe(step: Step): Collected {
  const pool = subnetOf(step.pool).cidr;
  if (step.do === 'settle-pool') return { what: 'pool', pool };
  if ('address' in step) return { what: 'address', pool, address: step.address, holder: step.holder };
  return { what: 'pool', pool, holder: step.holder };
}
