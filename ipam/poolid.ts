// Owns the pool ids that Docker hands back to us: which side asks, which subnet, which part of it.
// Must not need the store: an id says enough to take a pool over again when the store was lost.
import { IpamError } from './errors.ts';
import { hostRange, intersect, parseSubnet, type Range, type Subnet } from './subnet.ts';

/** The side of Swarm's leader, or that of the node on which a network is used. */
export type Space = 'global' | 'local';

/** What GetDefaultAddressSpaces answers. The names differ, so that each request tells its side. */
export const addressSpaces: Readonly<Record<Space, string>> = {
  global: 'causeway-global',
  local: 'causeway-local',
};

/** @throws IpamError `invalid-request` */
export function spaceOf(addressSpace: string): Space {
  if (addressSpace === addressSpaces.global) return 'global';
  if (addressSpace === addressSpaces.local) return 'local';
  throw new IpamError(
    'invalid-request',
    `"${addressSpace}" is no address space of Causeway; there are ${addressSpaces.global} and ${addressSpaces.local}.`,
  );
}

export interface PoolRef {
  space: Space;
  subnet: Subnet;
  /** `--ip-range`: where addresses come from that nobody asked for by name. The whole subnet if there is none. */
  range: Subnet;
}

/**
 * `global/10.77.0.0-16`, and with an `--ip-range` `global/10.77.0.0-16/10.77.5.0-24`. The range belongs to the id, not
 * to the stored pool: a second network with the same subnet and another range changes nothing for the first.
 */
export function formatPoolId({ space, subnet, range }: PoolRef): string {
  const id = `${space}/${keyOf(subnet)}`;
  return range.cidr === subnet.cidr ? id : `${id}/${keyOf(range)}`;
}

/** @throws IpamError `invalid-request` */
export function parsePoolId(id: string): PoolRef {
  const [space, subnetKey, rangeKey, ...rest] = id.split('/');
  if ((space !== 'global' && space !== 'local') || subnetKey === undefined || rest.length > 0)
    throw new IpamError('invalid-request', `"${id}" is no pool id of Causeway, such as global/10.77.0.0-16.`);
  const subnet = subnetOf(subnetKey);
  return { space, subnet, range: rangeKey === undefined ? subnet : subnetOf(rangeKey) };
}

/** A subnet as part of a key or id, where '/' separates: 10.77.0.0-16. */
export function keyOf(subnet: Subnet): string {
  return subnet.cidr.replace('/', '-');
}

/** The counterpart of {@link keyOf}. */
export function subnetOf(key: string): Subnet {
  return parseSubnet(key.replace('-', '/'));
}

/** Whether it is what {@link keyOf} makes of some subnet. */
export function isSubnetKey(key: string): boolean {
  try {
    return keyOf(subnetOf(key)) === key;
  } catch {
    return false;
  }
}

/** The addresses to choose from. Undefined if the range has none that a host can have. */
export function choices({ subnet, range }: PoolRef): Range | undefined {
  return intersect(hostRange(subnet), range);
}
