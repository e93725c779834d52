// Owns which addresses Docker's own networks have, and which ones Docker may yet give to one of them. Pure.
// Must not call Docker.
import type { InUse } from '../ipam/pools.ts';
import type { Network } from '../swarm/docker.ts';

/** Of the networks that Docker makes by itself; what other plugins do with a subnet is their own affair. */
const dockersDrivers = ['bridge', 'overlay', 'macvlan', 'ipvlan'];

/** What Docker takes subnets for its overlays from if nobody says otherwise: nearly all that there is. */
const dockersDefault = '10.0.0.0/8';

/** Of those that the whole Swarm has. What one node has besides, its routes tell. */
export function subnetsOf(networks: readonly Network[]): InUse[] {
  return networks
    .filter(({ Driver, Scope }) => Scope === 'swarm' && dockersDrivers.includes(Driver))
    .flatMap(({ Name, IPAM }) =>
      (IPAM?.Config ?? []).map(({ Subnet }) => ({
        cidr: Subnet,
        what: `the subnet of Docker's network ${Name}`,
      })),
    )
    .filter(({ cidr }) => cidr !== '');
}

/** @param pools as `docker swarm init --default-addr-pool` was told */
export function poolsOf(pools: readonly string[]): InUse[] {
  return pools
    .filter((cidr) => cidr !== dockersDefault)
    .map((cidr) => ({ cidr, what: 'a --default-addr-pool of Docker' }));
}
