// Owns Docker's IPAM driver: the translation of its calls into requests to ipam/.
// Must not decide which address is given.
import type * as z from 'zod';
import { isForSandbox, type Ipam } from '../ipam/ipam.ts';
import { addressSpaces, spaceOf } from '../ipam/poolid.ts';
import type { Log } from './log.ts';
import type * as protocol from './protocol.ts';

type Request<S extends z.ZodType> = z.infer<S>;

export class IpamDriver {
  readonly #ipam: Ipam;
  readonly #log: Log;
  /** Pools of which the log tells already that there is no address left. */
  readonly #told = new Set<string>();

  constructor(ipam: Ipam, log: Log) {
    this.#ipam = ipam;
    this.#log = log;
  }

  capabilities() {
    return { RequiresMACAddress: false, RequiresRequestReplay: false };
  }

  /** Two, because one address is requested by Swarm's leader and again by the node of its task. */
  defaultAddressSpaces() {
    return { LocalDefaultAddressSpace: addressSpaces.local, GlobalDefaultAddressSpace: addressSpaces.global };
  }

  async requestPool({ AddressSpace, Pool, SubPool, V6 }: Request<typeof protocol.RequestPool>) {
    const { poolId, pool } = await this.#ipam.requestPool({
      space: spaceOf(AddressSpace),
      pool: Pool,
      subPool: SubPool,
      v6: V6,
    });
    return { PoolID: poolId, Pool: pool, Data: {} };
  }

  async releasePool({ PoolID }: Request<typeof protocol.ReleasePool>): Promise<void> {
    await this.#ipam.releasePool(PoolID);
  }

  /**
   * Endpoints are routed: a sandbox is told that its address is alone in its subnet (/32), so that it asks nobody but its
   * gateway for the way (plugin/join-answer.ts).
   */
  async requestAddress({ PoolID, Address, Options }: Request<typeof protocol.RequestAddress>) {
    const request = { poolId: PoolID, address: Address, options: Options };
    const { address, refused } = await this.#ipam.requestAddress(request);
    if (refused === undefined) this.#told.delete(PoolID);
    else if (!this.#told.has(PoolID)) {
      this.#told.add(PoolID);
      this.#log.error({ pool: PoolID, reason: refused }, 'Swarm asks for an address that cannot be had');
    }
    const [bare = ''] = address.split('/');
    return { Address: isForSandbox(request) ? `${bare}/32` : address, Data: {} };
  }

  async releaseAddress({ PoolID, Address }: Request<typeof protocol.ReleaseAddress>): Promise<void> {
    await this.#ipam.releaseAddress({ poolId: PoolID, address: Address });
  }
}
