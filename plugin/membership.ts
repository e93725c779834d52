// Owns this node's record: under which number and address the other nodes know it.
// Must not touch the kernel, nor the records of other nodes.
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import type { FabricSettings } from '../net/fabric.ts';
import type { Underlay } from '../net/host.ts';
import { maxNodeNumber } from '../net/names.ts';
import type { NodeRecord, Records } from '../store/records.ts';
import type { Store } from '../store/store.ts';
import type { Docker } from '../swarm/docker.ts';
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
  /** Reads by which address this node speaks to others now. @throws when there is none */
  readUnderlay: () => Promise<Underlay>;
  log: Log;
}

/** How often the address is looked at, in milliseconds. */
const lookEvery = 10_000;
const retryAfter = 1_000;

/** How often two nodes that start at once may take each other's number away. */
const maxTries = 50;

export class Membership {
  readonly #options: MembershipOptions;
  /** What Swarm says of this node, as far as it was heard. */
  #swarm: { id?: string; address?: string } = {};
  #trouble: string | undefined;
  /** Ids of nodes that were told of in the log. */
  readonly #different = new Set<string>();

  constructor(options: MembershipOptions) {
    this.#options = options;
  }

  /** The address this node shall speak by: the one set, or Swarm's; '' when neither is known. */
  get address(): string {
    return this.#options.address || (this.#swarm.address ?? '');
  }

  /** Keeps the record true until the signal aborts. */
  async run(signal: AbortSignal): Promise<void> {
    const { log } = this.#options;
    while (!signal.aborted) {
      let pause = lookEvery;
      try {
        await this.#look(signal);
        if (this.#trouble !== undefined) log.info({}, 'the other nodes know this node again');
        this.#trouble = undefined;
      } catch (error) {
        const message = error instanceof Error ? error.message : String(error);
        if (this.#trouble !== message) log.warn({ error }, 'the other nodes cannot be told of this node');
        this.#trouble = message;
        pause = retryAfter;
      }
      await sleep(pause, undefined, { signal }).catch(() => undefined);
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
    const { records, store, node: id, name, fabric } = this.#options;
    const fields = {
      name,
      address,
      mtu,
      fabric,
      ...(this.#swarm.id === undefined ? {} : { swarm: this.#swarm.id }),
    };
    for (let tries = 0; tries < maxTries; tries += 1) {
      const known = await records.nodes.update(id, (record) => {
        if (record === undefined) return undefined;
        const next: NodeRecord = { ...record, ...fields };
        return isDeepStrictEqual(record, next) ? record : next;
      });
      if (known !== undefined) return;
      const taken = new Set((await records.numbers.ids()).map(Number));
      let number = 1;
      while (taken.has(number)) number += 1;
      if (number > maxNodeNumber) throw new Error(`there are ${maxNodeNumber} nodes already`);
      const record: NodeRecord = { v: 1, id, number, ...fields };
      const result = await store.commit([
        records.nodes.set(id, record, 0),
        records.numbers.set(String(number), { v: 1, node: id }, 0),
      ]);
      if (result.ok) return;
    }
    throw new Error(`this node got no number in ${maxTries} tries: too many nodes start at once`);
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
