// Owns which nodes count as lost: it has them watched, and tells what they offer while the store is away.
// Must not judge a node (peers/), nor take anything of a lost node away: what is hidden comes back.
import { createSecretKey, randomBytes, type KeyObject } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { openPeers, type Peers, type PeersOptions, type PeerView } from '../peers/peers.ts';
import type { NodeRecord, Records } from '../store/records.ts';
import type { Log } from './log.ts';

export interface LivenessOptions {
  records: Records;
  /** This node's id in records. */
  node: string;
  /** UDP and TCP, the same on every node. */
  port: number;
  log: Log;
  offers: NonNullable<PeersOptions['offers']>;
  onOffer: NonNullable<PeersOptions['onOffer']>;
  /** Told when a node was lost or is back. */
  onChange: () => void;
}

/** Pause before the sockets are tried again, in milliseconds. */
const retryAfter = 5_000;

export class Liveness {
  readonly #options: LivenessOptions;
  #peers: Peers | undefined;
  /** By which {@link #peers} speaks. */
  #address: string | undefined;
  #secret: KeyObject | undefined;
  #hidden: ReadonlySet<string> = new Set();

  constructor(options: LivenessOptions) {
    this.#options = options;
  }

  /** Ids of the nodes that are lost now. */
  get hidden(): ReadonlySet<string> {
    return this.#hidden;
  }

  /** What is known of each watched node, by its id. */
  get state(): ReadonlyMap<string, PeerView> {
    return this.#peers?.state() ?? new Map<string, PeerView>();
  }

  /** Follows the records of the nodes until the signal aborts. */
  async run(signal: AbortSignal): Promise<void> {
    const { records, node, log } = this.#options;
    for await (const { rows } of records.nodes.watch({ signal })) {
      const nodes = rows.map(({ value }) => value);
      const self = nodes.find(({ id }) => id === node);
      if (self === undefined) continue;
      while (!signal.aborted) {
        try {
          await this.#watch(self, nodes);
          break;
        } catch (error) {
          log.warn({ error }, 'the other nodes cannot be watched: a lost one is noticed late');
          await sleep(retryAfter, undefined, { signal }).catch(() => undefined);
        }
      }
    }
    await this.#peers?.close();
  }

  async #watch(self: NodeRecord, nodes: readonly NodeRecord[]): Promise<void> {
    const { port, log, offers, onOffer } = this.#options;
    this.#secret ??= await this.#readSecret();
    if (this.#address !== self.address) {
      await this.#peers?.close();
      this.#peers = undefined;
      const peers = await openPeers({
        self: { id: self.id, address: self.address },
        port,
        secret: () => this.#secret,
        log,
        offers,
        onOffer,
      });
      peers.onChange(() => this.#review(peers));
      this.#peers = peers;
      this.#address = self.address;
    }
    this.#peers?.watch(nodes.map(({ id, address }) => ({ id, address })));
  }

  #review(peers: Peers): void {
    const lost = [...peers.state()].filter(([, { alive }]) => !alive).map(([id]) => id);
    const before = this.#hidden;
    this.#hidden = new Set(lost);
    const { log, onChange } = this.#options;
    for (const id of lost)
      if (!before.has(id)) log.warn({ node: id }, 'a node is lost: its tasks are hidden');
    for (const id of before) if (!this.#hidden.has(id)) log.info({ node: id }, 'a node is back');
    if (lost.length !== before.size || lost.some((id) => !before.has(id))) onChange();
  }

  /** The cluster's secret: made by whoever comes first. */
  async #readSecret(): Promise<KeyObject> {
    const { secret } = (await this.#options.records.cluster.update(
      'secret',
      (record) => record ?? { v: 1, secret: randomBytes(32).toString('hex') },
    )) ?? { secret: '' };
    return createSecretKey(secret, 'hex');
  }
}
