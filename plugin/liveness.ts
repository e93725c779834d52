// Owns which nodes are unreachable: it has them watched, and passes on their pending writes while the store is away.
// Must not judge a node (peers/), nor take anything of a lost node away: what is unreachable comes back.
import { createSecretKey, randomBytes, type KeyObject } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { openPeers, type Peers, type PeersOptions, type PeerView } from '../peers/peers.ts';
import type { NodeRecord, Records } from '../store/records.ts';
import type { Log } from './log.ts';
import { Told } from './told.ts';

export interface LivenessOptions {
  records: Records;
  /** This node's id in records. */
  node: string;
  /** UDP and TCP, the same on every node. */
  port: number;
  log: Log;
  pendingWrites: NonNullable<PeersOptions['pendingWrites']>;
  onPendingWrites: NonNullable<PeersOptions['onPendingWrites']>;
  /** Told when a node was lost or is back. */
  onChange: () => void;
  /** Pause before the sockets are tried again, in milliseconds. */
  retryAfter?: number;
}

export class Liveness {
  readonly #options: LivenessOptions;
  #peers: Peers | undefined;
  /** By which {@link #peers} speaks. */
  #address: string | undefined;
  #secret: KeyObject | undefined;
  readonly #told = new Told();
  #unreachable: ReadonlySet<string> = new Set();

  constructor(options: LivenessOptions) {
    this.#options = options;
  }

  /** Ids of the unreachable nodes. */
  get unreachable(): ReadonlySet<string> {
    return this.#unreachable;
  }

  /** What is known of each watched node, by its id. */
  get state(): ReadonlyMap<string, PeerView> {
    return this.#peers?.state() ?? new Map<string, PeerView>();
  }

  /** Follows the records of the nodes until the signal aborts. */
  async run(signal: AbortSignal): Promise<void> {
    const { records, node, log, retryAfter = 5_000 } = this.#options;
    for await (let { rows } of records.nodes.watch({ signal })) {
      while (!signal.aborted) {
        try {
          const nodes = rows.map(({ value }) => value);
          const self = nodes.find(({ id }) => id === node);
          if (self !== undefined) await this.#watch(self, nodes);
          this.#told.news([]);
          break;
        } catch (error) {
          const [news] = this.#told.news([String(error)]);
          if (news !== undefined)
            log.warn({ error }, 'failure detection is off: an unreachable node is noticed late');
          await sleep(retryAfter, undefined, { signal }).catch(() => undefined);
          // The address may have been another one by now: that of a host that was started with a new one.
          ({ rows } = await records.nodes.list().catch(() => ({ rows })));
        }
      }
    }
    await this.#peers?.close();
  }

  async #watch(self: NodeRecord, nodes: readonly NodeRecord[]): Promise<void> {
    const { port, log, pendingWrites, onPendingWrites } = this.#options;
    this.#secret ??= await this.#readSecret();
    if (this.#address !== self.address) {
      await this.#peers?.close();
      this.#peers = undefined;
      this.#address = undefined;
      const peers = await openPeers({
        self: { id: self.id, address: self.address },
        port,
        secret: () => this.#secret,
        log,
        pendingWrites,
        onPendingWrites,
      });
      peers.onChange(() => this.#review(peers));
      this.#peers = peers;
      this.#address = self.address;
    }
    this.#peers?.watch(nodes.map(({ id, address }) => ({ id, address })));
  }

  #review(peers: Peers): void {
    const lost = [...peers.state()].filter(([, { alive }]) => !alive).map(([id]) => id);
    const before = this.#unreachable;
    this.#unreachable = new Set(lost);
    const { log, onChange } = this.#options;
    for (const id of lost)
      if (!before.has(id)) log.warn({ node: id }, 'node unreachable: its tasks take no new connections');
    for (const id of before) if (!this.#unreachable.has(id)) log.info({ node: id }, 'node reachable again');
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
