// Owns telling whether the records are those of the Swarm that this node is in: a shared store belongs to one Swarm.
// Must not keep anybody from writing (store/gate.ts does), nor conclude anything from Docker's silence.
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import type { NodeRecord, Records, SwarmRecord } from '../store/records.ts';
import type { Node } from '../swarm/docker.ts';
import type { Belonging } from '../swarm/publisher.ts';
import type { Log } from './log.ts';

/** How long a look waits for the store's word that the records are its Swarm's, in milliseconds: see leadership.ts. */
const patience = 300;

export interface OwnershipOptions {
  records: Records;
  /** This node's id in records. */
  node: string;
  /** The prefix of all keys, if other nodes share the store; one of this node alone goes with it into another Swarm. */
  shared: string | undefined;
  log: Log;
  /** Told when the verdict has changed. */
  onChange?: () => void;
}

export class Ownership {
  readonly #options: OwnershipOptions;
  #foreign: string | undefined;
  #told: string | undefined;
  #judged = Promise.withResolvers<undefined>();
  #left = false;
  /** The claim that is under way. */
  #claiming: Promise<void> | undefined;

  constructor(options: OwnershipOptions) {
    this.#options = options;
  }

  /** Why nothing is written from here, in words for the user; undefined while the records are this Swarm's, or may be. */
  get foreign(): string | undefined {
    return this.#foreign;
  }

  /** This node is not, or no longer, in the Swarm whose records these are. */
  get left(): boolean {
    return this.#left;
  }

  /** Resolves once Docker has said which Swarm this node is in. */
  get judged(): Promise<undefined> {
    return this.#judged.promise;
  }

  /**
   * Before Docker has spoken: who is not known in the records of a Swarm may be of another one.
   * @throws StoreError
   */
  async recall(): Promise<void> {
    const { records, node, shared } = this.#options;
    if (shared === undefined) return;
    const [swarm, self] = await Promise.all([records.swarm.get('swarm'), records.nodes.get(node)]);
    if (swarm === undefined || self !== undefined) return;
    this.#foreign = `it is not known yet whether this node is in the Swarm whose records are under ${shared} in Consul: it is as soon as Docker’s API answers`;
  }

  /**
   * Compares the Swarm that this node is in with the one that the records are of. The elected manager makes them its
   * Swarm's where they are nobody's, or nobody of the other Swarm is left.
   * @returns whether they are this node's, too; as before, while the store cannot be asked
   */
  async judge(seen: Belonging): Promise<boolean> {
    const { log, onChange } = this.#options;
    let reason = this.#foreign;
    try {
      reason = await this.#compare(seen);
      this.#judged.resolve(undefined);
    } catch (error) {
      log.debug({ error }, 'cannot tell which Swarm the records belong to');
    }
    const left = reason !== undefined || seen.info.LocalNodeState === 'inactive';
    const changed = this.#foreign !== reason || left !== this.#left;
    this.#foreign = reason;
    this.#left = left;
    if (reason === undefined && this.#told !== undefined)
      log.info({}, 'the records belong to this Swarm again');
    if (reason !== undefined && this.#told === undefined)
      log.error({ reason }, 'the records belong to another Swarm than this node');
    this.#told = reason;
    if (changed) onChange?.();
    return reason === undefined;
  }

  async #compare({ info, leader, nodes }: Belonging): Promise<string | undefined> {
    const { records, shared } = this.#options;
    const id = info.Cluster?.ID;
    const before = (await records.swarm.get('swarm'))?.value;
    if (id === undefined || id === '') {
      // A worker is not told which Swarm it is in, but by whom it is led.
      const leaders = (info.RemoteManagers ?? []).map(({ NodeID }) => NodeID);
      const known = before?.managers ?? [];
      const strange = leaders.length > 0 && known.length > 0 && !leaders.some((one) => known.includes(one));
      return strange && shared !== undefined ? strangers(shared, before?.id ?? '', undefined) : undefined;
    }
    const others =
      before === undefined || before.id === id || shared === undefined || !leader
        ? []
        : await this.#membersBut(nodes);
    if (leader && others.length === 0) {
      const managers = nodes.filter(({ ManagerStatus }) => ManagerStatus).map(({ ID }) => ID);
      await this.#claim(before, { v: 1, id, managers: managers.sort() });
    }
    const after = (await records.swarm.get('swarm'))?.value ?? before;
    if (after === undefined || after.id === id || shared === undefined) return undefined;
    return strangers(shared, after.id, id, others);
  }

  /** By compare-and-set: of two Swarms that come at once, one has it. Balancing does not wait for a store that is away. */
  async #claim(before: SwarmRecord | undefined, wanted: SwarmRecord): Promise<void> {
    const { records, log } = this.#options;
    if (isDeepStrictEqual(before, wanted)) return;
    this.#claiming ??= records.swarm
      .update('swarm', (now) => (now === undefined || now.id === before?.id ? wanted : now))
      .then((after) => {
        if (after?.id === wanted.id && before?.id !== wanted.id)
          log.info({ swarm: wanted.id, before: before?.id }, 'the records now belong to this Swarm');
      })
      .catch((error: unknown) => log.debug({ error }, 'cannot write which Swarm the records belong to'))
      .finally(() => (this.#claiming = undefined));
    await Promise.race([this.#claiming, sleep(patience, undefined, { ref: false })]);
  }

  /** Names of the nodes that are still in the other Swarm, as far as the records tell. */
  async #membersBut(nodes: readonly Node[]): Promise<string[]> {
    const { records, node } = this.#options;
    const here = new Set(nodes.map(({ ID }) => ID));
    const isThere = ({ id, left, swarm }: NodeRecord): boolean =>
      id !== node && left !== true && swarm !== undefined && !here.has(swarm);
    const read = async (fresh: boolean): Promise<string[]> => {
      const { rows, corrupt } = await records.nodes.list('', { fresh });
      const named = rows.filter(({ value }) => isThere(value)).map(({ value }) => value.name);
      return [...named, ...corrupt.map(({ id }) => id)];
    };
    const known = await read(false);
    // Nobody is taken for gone by what this node remembers.
    return known.length > 0 ? known : read(true);
  }
}

function strangers(
  prefix: string,
  theirs: string,
  own: string | undefined,
  nodes: readonly string[] = [],
): string {
  const here = own === undefined ? 'another one' : `Swarm ${own}`;
  const there =
    nodes.length > 0 ? `, of which ${nodes.join(', ')} ${nodes.length > 1 ? 'are' : 'is'} left` : '';
  return (
    `the records under ${prefix} in Consul are those of Swarm ${theirs}${there}, and this node is in ${here}: nothing is written or ` +
    'published from here. Give each Swarm a prefix of its own, by CAUSEWAY_CONSUL_PREFIX on all of its nodes; if the ' +
    `other Swarm is gone for good, delete the key ${prefix}cluster/swarm`
  );
}
