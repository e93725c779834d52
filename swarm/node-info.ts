// Owns what Docker says of the node itself, asked as seldom as can be: to answer, the engine starts programs (runc, its init) and
// goes through all containers, which on a busy node takes seconds.
// Must not go by what is outdated: a node that left its Swarm, or is in another one, is asked anew.
import type { Docker, Info, Node } from './docker.ts';

type SwarmInfo = Info['Swarm'];

/** How long what was said is good, in milliseconds, while the Swarm's list of nodes bears it out; and while there is no list. */
const goodFor = { listed: 10_000, unlisted: 1_000 };

export class NodeInfo {
  readonly #docker: Pick<Docker, 'info'>;
  readonly #now: () => number;
  #last: { info: SwarmInfo; at: number } | undefined;

  /** @param now in milliseconds, of a clock that never goes back */
  constructor(docker: Pick<Docker, 'info'>, now: () => number = () => performance.now()) {
    this.#docker = docker;
    this.#now = now;
  }

  /**
   * @param nodes the Swarm's nodes as just told; undefined where Docker does not tell them, as on a worker
   * @throws {DockerError}
   */
  async get(nodes: readonly Node[] | undefined, signal: AbortSignal): Promise<SwarmInfo> {
    const last = this.#last;
    if (last !== undefined) {
      const age = this.#now() - last.at;
      const isListed = nodes?.some(({ ID }) => ID === last.info.NodeID) === true;
      const isManager = last.info.ControlAvailable === true;
      if (isListed ? age < goodFor.listed : nodes === undefined && !isManager && age < goodFor.unlisted)
        return last.info;
    }
    const { Swarm } = await this.#docker.info(signal);
    this.#last = { info: Swarm, at: this.#now() };
    return Swarm;
  }
}
