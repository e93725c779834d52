// Owns the decisions of IPAM that need no store: which subnets are usable, which is free, which address comes next.
// Must stay pure: everything it decides on is an argument.
import { IpamError } from './errors.ts';
import {
  contains,
  encloses,
  formatAddress,
  hostRange,
  overlaps,
  parseSubnet,
  sizeOf,
  subnetAt,
  type Range,
  type Subnet,
} from './subnet.ts';

/** A subnet that is taken, and by what, in words that fit behind "overlaps". */
export interface Occupied extends Range {
  cidr: string;
  what: string;
}

/** What no network can have, by the IANA IPv4 special-purpose registry (RFC 6890). */
const forbidden = [
  ['0.0.0.0/8', '"this network" addresses (RFC 791)'],
  ['127.0.0.0/8', 'loopback addresses (RFC 1122)'],
  ['169.254.0.0/16', 'link-local addresses (RFC 3927)'],
  ['192.0.0.0/24', 'addresses of protocols (RFC 6890), one of which engine ipvs uses'],
  ['224.0.0.0/4', 'multicast addresses (RFC 5771)'],
  ['240.0.0.0/4', 'reserved addresses (RFC 1112)'],
].map(([cidr = '', what = '']) => ({ ...parseSubnet(cidr), what }));

/** @returns the error that says why no network can have this subnet and range, or undefined */
export function poolProblem(subnet: Subnet, range: Subnet): IpamError | undefined {
  const bad = forbidden.find((block) => overlaps(block, subnet));
  if (bad)
    return new IpamError(
      'pool-unusable',
      `The subnet ${subnet.cidr} contains ${bad.what}, ${bad.cidr}, which cannot be routed to containers. Choose another --subnet.`,
    );
  if (!encloses(subnet, range))
    return new IpamError(
      'pool-unusable',
      `The range ${range.cidr} is not inside the subnet ${subnet.cidr}. Choose an --ip-range inside the --subnet.`,
    );
  return undefined;
}

/** @returns the error that says what the subnet overlaps, or undefined */
export function overlapProblem(subnet: Subnet, occupied: readonly Occupied[]): IpamError | undefined {
  const other = occupied.find((entry) => counts(entry) && overlaps(entry, subnet));
  return (
    other &&
    new IpamError(
      'overlap',
      `The subnet ${subnet.cidr} overlaps ${other.cidr}, ${other.what}. ` +
        'Choose another --subnet, or leave it out to let Causeway choose; if it was left out, set CAUSEWAY_DEFAULT_POOL to ' +
        'addresses that are free on all nodes.',
    )
  );
}

/**
 * A default route, or the two halves of it that VPN clients install, covers everything and says nothing about where
 * an address is.
 */
function counts(entry: Occupied): boolean {
  return sizeOf(entry) < 1n << 31n;
}

/** The first subnet of this prefix length inside `supernet` that overlaps nothing. */
export function firstFree(
  supernet: Subnet,
  prefix: number,
  occupied: readonly Occupied[],
): Subnet | undefined {
  if (prefix < supernet.prefix) return undefined;
  let candidate = subnetAt(supernet.first, prefix);
  const size = sizeOf(candidate);
  while (encloses(supernet, candidate)) {
    const other = occupied.find((entry) => counts(entry) && overlaps(entry, candidate));
    if (!other) return candidate;
    // Go on behind what is in the way, at the next multiple of the size.
    const next = (other.last / size + 1n) * size;
    if (next > supernet.last) return undefined;
    candidate = subnetAt(next, prefix);
  }
  return undefined;
}

/** @returns the error that says why no container can have this address of the subnet, or undefined */
export function addressProblem(subnet: Subnet, address: bigint, gateway?: string): IpamError | undefined {
  const text = formatAddress(address);
  const unusable = (why: string): IpamError =>
    new IpamError('address-unusable', `The address ${text} ${why}`);
  if (!contains(subnet, address)) return unusable(`is not in the subnet ${subnet.cidr}. Choose one that is.`);
  if (!contains(hostRange(subnet), address)) {
    const role = address === subnet.first ? 'network' : 'broadcast';
    return unusable(`is the ${role} address of ${subnet.cidr}. Choose another one.`);
  }
  if (text === gateway)
    return unusable(
      `is the gateway of ${subnet.cidr}. Choose another one, or another --gateway for the network.`,
    );
  return undefined;
}

/**
 * What Swarm's leader is given in place of an address where there is none: the network's own, which no host can have,
 * so that the node of the task refuses it with the reason. Undefined of a subnet that has no such address.
 */
export function standIn(subnet: Subnet): bigint | undefined {
  return contains(hostRange(subnet), subnet.first) ? undefined : subnet.first;
}

/**
 * The addresses of `range` in the order in which they are to be tried: behind the one given out last and round to it.
 * So an address that was just let go comes last, and caches that still know its old owner have time to forget.
 */
export function* candidatesFrom(range: Range, last: bigint | undefined): Generator<bigint> {
  const start = last !== undefined && contains(range, last) ? last : range.last;
  for (let address = start + 1n; address <= range.last; address++) yield address;
  for (let address = range.first; address <= start; address++) yield address;
}
