// Owns the one error class of the IPAM room: what a Docker user reads when an address or a pool is refused.
// Must not know how the error reaches Docker.

/**
 * - `invalid-request`: not an address, not a subnet, not a pool id of ours
 * - `not-supported`: IPv6
 * - `pool-unusable`: a subnet or range that no network can have (loopback, multicast, range outside the subnet, …)
 * - `overlap`: with another pool, a host route or a host address
 * - `pool-taken`: the subnet belongs to another network
 * - `pool-unknown`: the store knows nothing of it; what Docker holds is being taken over again
 * - `no-pool-left`: the default pool has no free subnet
 * - `pool-full`: no free address
 * - `address-unusable`: outside the subnet, or its network, broadcast or gateway address
 * - `address-in-use`: somebody else holds it
 * - `busy`: too many lost races with other nodes; may be repeated
 */
export type IpamErrorCode =
  | 'invalid-request'
  | 'not-supported'
  | 'pool-unusable'
  | 'overlap'
  | 'pool-taken'
  | 'pool-unknown'
  | 'no-pool-left'
  | 'pool-full'
  | 'address-unusable'
  | 'address-in-use'
  | 'busy';

/** `message` is a whole text for the user, with cause and remedy. */
export class IpamError extends Error {
  override readonly name = 'IpamError';
  readonly code: IpamErrorCode;

  constructor(code: IpamErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}
