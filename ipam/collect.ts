// Owns deciding what of IPAM's records nobody holds any more, and what is held but not recorded.
// Must stay pure, and must never take silence for an answer: what is unknown is held.
import type { Row } from '../store/table.ts';
import { nodeHolder, type Hold, type Holder, type Lease, type Pool } from './records.ts';
import { candidateKey, type CandidateMap } from './candidates.ts';

/** One subnet of one network, as Docker tells it. */
export interface HeldPool {
  /** for example 10.77.0.0/16 */
  pool: string;
  /** id of the network */
  network: string;
  gateway?: string | undefined;
  /** Addresses in use, without prefix length: of tasks, containers and VIPs. Others' and the gateway do no harm. */
  addresses: ReadonlySet<string>;
  /** Those of them that more than one has. */
  shared?: ReadonlySet<string>;
}

/**
 * What is really in use. A side that is undefined is unknown (no manager, no answer from Docker): nothing of it is
 * freed.
 */
export interface Truth {
  /** Every Swarm network whose IPAM driver is Causeway. Only on Swarm's leader: it alone hears of replays. */
  global?: readonly HeldPool[] | undefined;
  /** Every network on this node, of whatever scope, whose IPAM driver is Causeway. */
  local?: readonly HeldPool[] | undefined;
  /** Ids of the nodes that still belong to the cluster, reachable or not. What the others held is freed. */
  nodes?: ReadonlySet<string> | undefined;
}

export interface Recorded {
  pools: readonly Row<Pool>[];
  holds: readonly Row<Hold>[];
  leases: readonly Row<Lease>[];
}

/** `id` is the record's; `pool` and `address` are in key form (10.77.0.0-16). */
export type Step =
  | { do: 'adopt-lease' | 'free-lease'; id: string; holder: Holder; pool: string; address: string }
  | { do: 'adopt-pool'; id: string; holder: Holder; pool: string; held: HeldPool }
  | { do: 'recount-lease'; id: string; holder: Holder; pool: string; address: string; version: number }
  | { do: 'free-pool'; id: string; holder: Holder; pool: string; version: number }
  | { do: 'settle-pool'; pool: string };

export interface CollectOptions {
  nodeId: string;
  now: number;
  /** How long something must be unheld, in ms, at two looks or more with its record unchanged, before it is freed. */
  graceMs: number;
}

/** Adoptions come first, leases before their pool: once a side has its pool back, it gives out addresses again. */
export function planCollect(
  recorded: Recorded,
  truth: Truth,
  sightings: CandidateMap,
  options: CollectOptions,
): { steps: Step[]; sightings: CandidateMap } {
  const known = new Known(truth, options.nodeId);
  const unheld = new Unheld(sightings, options);
  const freed: Step[] = [];
  for (const lease of recorded.leases) {
    const [pool = '', address = ''] = lease.id.split('/');
    // A leader that was cut short begins to count anew, and one address may be counted twice.
    if (lease.value.claims !== undefined && known.isOnes(pool, address) && unheld.longEnough(lease, 'claims'))
      freed.push({
        do: 'recount-lease',
        ...{ id: lease.id, holder: 'global', pool, address, version: lease.version },
      });
    for (const holder of lease.value.holders) {
      const isHeld = ({ addresses }: Side): boolean => addresses.get(pool)?.has(address) ?? false;
      if (known.isGone(holder, isHeld) && unheld.longEnough(lease, holder))
        freed.push({ do: 'free-lease', id: lease.id, holder, pool, address });
    }
  }
  for (const hold of recorded.holds) {
    const { pool, holder } = splitHoldId(hold.id);
    const isHeld = (side: Side): boolean => holdsPool(side, pool, hold.value.network);
    if (known.isGone(holder, isHeld) && unheld.longEnough(hold, holder))
      freed.push({ do: 'free-pool', id: hold.id, holder, pool, version: hold.version });
  }
  const adopted = [...known.sides].flatMap(([holder, side]) => adoptions(holder, side, recorded));
  const settled = unsettled(recorded).map((pool): Step => ({ do: 'settle-pool', pool }));
  return { steps: [...adopted, ...freed, ...settled], sightings: unheld.seen };
}

/**
 * Pools whose record does not fit their holds: whoever let go of one died before it was settled. That needs no
 * truth. Holds that cannot be read count, as they do when it is settled.
 */
function unsettled({ pools, holds }: Recorded): string[] {
  const fitting = new Set(
    holds.flatMap(({ id, value }) => {
      const { pool } = splitHoldId(id);
      return [`${pool} held`, `${pool} ${value.network ?? ''}`];
    }),
  );
  return pools
    .filter(({ id, value }) => !fitting.has(`${id} ${value.network ?? 'held'}`))
    .map(({ id }) => id);
}

/** A hold's id is the pool's, '/', the holder, which may contain '/'. */
export function splitHoldId(id: string): { pool: string; holder: Holder } {
  const slash = id.indexOf('/');
  return { pool: id.slice(0, slash), holder: id.slice(slash + 1) };
}

/** What one side holds by the truth, by pool in key form. */
interface Side {
  pools: readonly { key: string; held: HeldPool }[];
  /** Of all networks of a pool together: two may claim it. */
  addresses: ReadonlyMap<string, ReadonlySet<string>>;
  shared: ReadonlySet<string>;
}

function sideOf(truth: readonly HeldPool[]): Side {
  const pools = truth.map((held) => ({ key: held.pool.replace('/', '-'), held }));
  const addresses = new Map<string, Set<string>>();
  for (const { key, held } of pools)
    addresses.set(key, new Set([...(addresses.get(key) ?? []), ...held.addresses]));
  const shared = pools.flatMap(({ key, held }) => [...(held.shared ?? [])].map((it) => `${key}/${it}`));
  return { pools, addresses, shared: new Set(shared) };
}

/** @param network by the record; undefined if it names none */
function holdsPool({ pools }: Side, pool: string, network: string | undefined): boolean {
  return pools.some(({ key, held }) => key === pool && (network === undefined || held.network === network));
}

/** What is known of whom. */
class Known {
  readonly sides = new Map<Holder, Side>();
  readonly #self: Holder;
  readonly #cluster: ReadonlySet<Holder> | undefined;

  constructor({ global, local, nodes }: Truth, nodeId: string) {
    this.#self = nodeHolder(nodeId);
    this.#cluster = nodes && new Set([...nodes].map(nodeHolder));
    if (global) this.sides.set('global', sideOf(global));
    if (local) this.sides.set(this.#self, sideOf(local));
  }

  /** Whether the holder certainly does not hold the thing, where `isHeld` says what a known side holds. */
  isGone(holder: Holder, isHeld: (side: Side) => boolean): boolean {
    const side = this.sides.get(holder);
    if (side) return !isHeld(side);
    if (holder === 'global' || holder === this.#self) return false;
    return this.#cluster !== undefined && !this.#cluster.has(holder);
  }

  /** Whether Swarm has certainly given the address to exactly one. */
  isOnes(pool: string, address: string): boolean {
    const side = this.sides.get('global');
    return (side?.addresses.get(pool)?.has(address) ?? false) && !side?.shared.has(`${pool}/${address}`);
  }
}

class Unheld {
  readonly seen = new Map<string, { version: number; since: number }>();
  readonly #before: CandidateMap;
  readonly #options: CollectOptions;

  constructor(before: CandidateMap, options: CollectOptions) {
    this.#before = before;
    this.#options = options;
  }

  /** Takes note of a record that is unheld now. A record that changed since is a new one. */
  longEnough(row: Row<unknown>, holder: Holder): boolean {
    const key = candidateKey(row.id, holder);
    const before = this.#before.get(key);
    const again = before?.version === row.version;
    const since = again ? before.since : this.#options.now;
    this.seen.set(key, { version: row.version, since });
    return again && this.#options.now - since >= this.#options.graceMs;
  }
}

function adoptions(holder: Holder, { pools }: Side, { holds, leases }: Recorded): Step[] {
  const held = new Set(holds.map((hold) => hold.id));
  const leased = new Map(leases.map((lease) => [lease.id, lease.value.holders]));
  return pools.flatMap(({ key, held: pool }): Step[] => {
    const missing = [...pool.addresses].filter(
      (address) => address !== pool.gateway && !leased.get(`${key}/${address}`)?.includes(holder),
    );
    const steps = missing.map((address): Step => {
      return { do: 'adopt-lease', id: `${key}/${address}`, holder, pool: key, address };
    });
    const id = `${key}/${holder}`;
    return held.has(id) ? steps : [...steps, { do: 'adopt-pool', id, holder, pool: key, held: pool }];
  });
}
