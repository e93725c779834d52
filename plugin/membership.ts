// Owns this node's record: under which number and address the other nodes know it.
// Must not touch the kernel, nor the records of other nodes than itself, under whatever id.
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import type { FabricSettings } from '../net/fabric.ts';
import type { Underlay } from '../net/host.ts';
import { maxNodeNumber, vethName } from '../net/names.ts';
import type { NodeRecord, Records } from '../store/records.ts';
import type { Store } from '../store/store.ts';
import type { Docker } from '../swarm/docker.ts';
import { succeed } from './former-nodes.ts';
import type { Log } from './log.ts';

export interface MembershipOptions {
  store: Store;
  records: Records;
  docker: Docker;
  /** This node's id in records. */
  node: string;
  /** The host's name. */
  name: string;
  /** `CAUSEWAY_NODE_ADDR`; '' to take the address by which Swarm knows the node. */
  address: string;
  fabric: FabricSettings;
  /** Whether the records are not, or no longer, those of the Swarm that this node is in. */
  ownership?: { readonly foreign: string | undefined; readonly left: boolean };
  /** Reads by which address this node speaks to others now. @throws when there is none */
  readUnderlay: () => Promise<Underlay>;
  /** Names of this node's links. */
  readLinks: () => Promise<ReadonlySet<string>>;
  log: Log;
}

/** What a node alone writes of itself, and by which another one is noticed that has its id. */
type Self = Pick<NodeRecord, 'name' | 'address' | 'swarm'>;

/** How often the address is looked at, in milliseconds. */
const lookEvery = 10_000;
const retryAfter = 1_000;

/** After so many looks without a word of a machine with this node's id it is gone. */
const twinLooks = 6;

/** How often two nodes that start at once may take each other's number away. */
const maxTries = 50;

export class Membership {
  readonly #options: MembershipOptions;
  /** What Swarm says of this node, as far as it was heard. */
  #swarm: { id?: string; address?: string } = {};
  #trouble: string | undefined;
  /** Ids of nodes that were told of in the log. */
  readonly #different = new Set<string>();
  /** What was last written of this node. */
  #written: Self | undefined;
  /** Another machine that writes under this node's id, and how many looks ago it did. */
  #twin: { reason: string; looks: number } | undefined;
  /** Ids whose records this node has taken over. */
  readonly #succeeded = new Set<string>();
  /** Why {@link succeed} is left alone. */
  #rival: string | undefined;
  readonly #settled = Promise.withResolvers<undefined>();
  /** Ends the pause before the next look. */
  #hurry = new AbortController();

  constructor(options: MembershipOptions) {
    this.#options = options;
  }

  /** The address this node shall speak by: the one set, or Swarm's; '' when neither is known. */
  get address(): string {
    return this.#options.address || (this.#swarm.address ?? '');
  }

  /** Resolves once Docker has said which node this is, and what an earlier installation here left is this one's. */
  get settled(): Promise<undefined> {
    return this.#settled.promise;
  }

  /** Something has changed: looks at once. */
  hint(): void {
    this.#hurry.abort();
  }

  /** What is wrong with how this node is known, in words for its operator. */
  get warnings(): readonly string[] {
    return [this.#twin?.reason, this.#rival].filter((reason) => reason !== undefined);
  }

  /** Keeps the record true until the signal aborts. */
  async run(signal: AbortSignal): Promise<void> {
    const { log } = this.#options;
    while (!signal.aborted) {
      let pause = lookEvery;
      this.#hurry = new AbortController();
      try {
        await this.#look(signal);
        if (this.#trouble !== undefined) log.info({}, 'own node record updated');
        this.#trouble = undefined;
      } catch (error) {
        const message = error instanceof Error ? error.message : String(error);
        if (this.#trouble !== message) log.warn({ error }, 'cannot update own node record, retrying');
        this.#trouble = message;
        pause = retryAfter;
      }
      const until = AbortSignal.any([signal, this.#hurry.signal]);
      await sleep(pause, undefined, { signal: until }).catch(() => undefined);
    }
  }

  async #look(signal: AbortSignal): Promise<void> {
    const { docker } = this.#options;
    // Docker starts plugins before it answers itself: what was known before counts until then.
    const swarm = await docker.info(signal).then(
      ({ Swarm }) => Swarm,
      () => undefined,
    );
    if (swarm?.NodeID !== undefined && swarm.NodeID !== '')
      this.#swarm = { id: swarm.NodeID, address: swarm.NodeAddr ?? '' };
    else await this.recall();
    await this.#register(await this.#currentUnderlay());
    const settled = await this.#succeedFormer();
    if (swarm !== undefined && settled) this.#settled.resolve(undefined);
    await this.#compare();
  }

  /**
   * Goes by what the record says of this node, until Docker has spoken. To be awaited before the first pass, which would
   * else make a fabric that stands anew on a node whose address in the Swarm is not that of its default route.
   * @throws StoreError
   */
  async recall(): Promise<void> {
    if (this.#swarm.address !== undefined) return;
    const { records, node } = this.#options;
    const before = (await records.nodes.get(node))?.value;
    if (before !== undefined) this.#swarm = { address: before.address };
  }

  async #currentUnderlay(): Promise<Underlay> {
    const { readUnderlay, address } = this.#options;
    try {
      return await readUnderlay();
    } catch (error) {
      // Swarm may know this node by an address that is none of its own, such as one a router translates.
      if (address !== '' || this.#swarm.address === undefined) throw error;
      delete this.#swarm.address;
      return await readUnderlay();
    }
  }

  /** @throws StoreError */
  async #register({ address, mtu }: Underlay): Promise<void> {
    const { records, store, node: id, name, fabric, ownership } = this.#options;
    const left = ownership?.left === true;
    const fields = {
      name,
      address,
      mtu,
      fabric,
      // As long as it has left one Swarm, that is the one it is known in.
      ...(this.#swarm.id === undefined || left ? {} : { swarm: this.#swarm.id }),
      ...(left && { left }),
    };
    this.#lookForTwin((await records.nodes.get(id))?.value);
    for (let tries = 0; tries < maxTries; tries += 1) {
      const known = await records.nodes.update(id, (record) => {
        if (record === undefined) return undefined;
        const { left: _, ...rest } = record;
        const next: NodeRecord = { ...rest, ...fields };
        return isDeepStrictEqual(record, next) ? record : next;
      });
      if (known !== undefined) this.#written = selfOf(known);
      // Whoever looks after these records would take a stranger's away again.
      if (known !== undefined || ownership?.foreign !== undefined) return;
      const taken = new Set((await records.numbers.ids()).map(Number));
      let number = 1;
      while (taken.has(number)) number += 1;
      if (number > maxNodeNumber) throw new Error(`there are ${maxNodeNumber} nodes already`);
      const record: NodeRecord = { v: 1, id, number, ...fields };
      const result = await store.commit([
        records.nodes.set(id, record, 0),
        records.numbers.set(String(number), { v: 1, node: id }, 0),
      ]);
      if (result.ok) {
        this.#written = selfOf(record);
        return;
      }
    }
    throw new Error(`this node got no number in ${maxTries} tries: too many nodes start at once`);
  }

  /** A machine that was copied with the plugin's data has this node's id too, and each writes over what the other says. */
  #lookForTwin(record: NodeRecord | undefined): void {
    const { log, node } = this.#options;
    const found = record && selfOf(record);
    if (found === undefined || this.#written === undefined || isDeepStrictEqual(found, this.#written)) {
      // The other one looks as often as this one.
      if (this.#twin && ++this.#twin.looks > twinLooks) this.#twin = undefined;
      return;
    }
    const reason =
      `${found.name} at ${found.address} has the same id in Causeway's records as this node, ${this.#written.name} at ` +
      `${this.#written.address} (${node}), so that each takes the other's place: one of them is a copy of the other's disk. ` +
      'On the copy, remove the plugin and install it again';
    if (this.#twin === undefined) log.error({ reason }, 'two machines use the same node id');
    this.#twin = { reason, looks: 0 };
  }

  /**
   * A plugin that was removed and installed anew has another id, on the same node of the Swarm: it is the one before.
   * @returns whether it is known that nothing is left to be taken over
   * @throws StoreError @throws Error when somebody else wrote meanwhile: the rest is to be tried again
   */
  async #succeedFormer(): Promise<boolean> {
    const { records, store, node, readLinks, ownership, log } = this.#options;
    const { id: swarm } = this.#swarm;
    if (ownership?.foreign !== undefined) return false;
    if (swarm === undefined) return true;
    const before = this.#rival;
    this.#rival = undefined;
    for (const { id, value, outdated } of (await records.nodes.list()).rows) {
      if (id === node || outdated === true || value.swarm !== swarm) continue;
      if (this.#succeeded.has(id)) {
        this.#rival = `another plugin of Causeway on this node registers as ${id}, too: remove one of them`;
        if (before === undefined)
          log.error({ node: id }, 'two plugins of Causeway are enabled on this node: remove one of them');
        continue;
      }
      const links = await readLinks();
      const isHere = (endpoint: string): boolean => links.has(vethName(endpoint));
      if (!(await succeed({ store, records }, value, node, isHere)))
        throw new Error('somebody wrote to the records of this node’s previous installation meanwhile');
      this.#succeeded.add(id);
      log.info({ node: id }, 'took over the records of this node’s previous installation');
    }
    return true;
  }

  /** Two nodes with different settings of the fabric would lose every packet between them without a word. */
  async #compare(): Promise<void> {
    const { records, node, fabric, log } = this.#options;
    for (const { value: other } of (await records.nodes.list()).rows) {
      const differs = other.id !== node && !isDeepStrictEqual(other.fabric, fabric);
      if (differs && !this.#different.has(other.id))
        log.error(
          { node: other.name, there: other.fabric, here: fabric },
          'a node has another fabric port or VNI, so tasks here and there cannot reach each other: ' +
            'set CAUSEWAY_FABRIC_PORT and CAUSEWAY_FABRIC_VNI alike on all nodes',
        );
      if (differs) this.#different.add(other.id);
      else this.#different.delete(other.id);
    }
  }
}

function selfOf({ name, address, swarm }: Self): Self {
  return { name, address, ...(swarm !== undefined && { swarm }) };
}
