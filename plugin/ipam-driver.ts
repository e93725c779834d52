// Owns Docker's IPAM driver: the translation of its calls into requests to ipam/.
// Must not decide which address is given.
import type { z } from 'zod';
import type { Ipam } from '../ipam/ipam.ts';
import { addressSpaces, spaceOf } from '../ipam/poolid.ts';
import type * as protocol from './protocol.ts';

type Request<S extends z.ZodType> = z.infer<S>;

export class IpamDriver {
  readonly #ipam: Ipam;

  constructor(ipam: Ipam) {
    this.#ipam = ipam;
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

  async requestAddress({ PoolID, Address, Options }: Request<typeof protocol.RequestAddress>) {
    const { address } = await this.#ipam.requestAddress({
      poolId: PoolID,
      address: Address,
      options: Options,
    });
    return { Address: address, Data: {} };
  }

  async releaseAddress({ PoolID, Address }: Request<typeof protocol.ReleaseAddress>): Promise<void> {
    await this.#ipam.releaseAddress({ poolId: PoolID, address: Address });
  }
}
