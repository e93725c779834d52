// Owns address arithmetic: subnets as ranges of numbers, and the text forms of both.
// Must not know pools, leases or the store.
import { Address4 } from 'ip-address';
import { IpamError } from './errors.ts';

/** Addresses from `first` to `last`, both included. Numbers are bigints so that IPv6 fits the same arithmetic. */
export interface Range {
  first: bigint;
  last: bigint;
}

/** A subnet in its canonical form: no host bits. */
export interface Subnet extends Range {
  /** for example 10.77.0.0/16 */
  cidr: string;
  /** prefix length */
  prefix: number;
}

/** Length of an address in bits. IPv6 will make this a property of the subnet. */
const addressBits = 32;

/**
 * Host bits are cleared, as Docker's own allocator does: 10.77.0.5/16 is 10.77.0.0/16.
 * @throws IpamError `invalid-request`
 */
export function parseSubnet(text: string): Subnet {
  if (!text.includes('/'))
    throw new IpamError(
      'invalid-request',
      `"${text}" is no subnet. Write it as address/length, such as 10.77.0.0/16.`,
    );
  const address = parse(text, 'subnet', '10.77.0.0/16');
  return subnetAt(address.startAddress().bigInt(), address.subnetMask);
}

/** @throws IpamError `invalid-request` */
export function parseAddress(text: string): bigint {
  if (text.includes('/'))
    throw new IpamError('invalid-request', `"${text}" is a subnet where an address is needed.`);
  return parse(text, 'address', '10.77.0.5').bigInt();
}

function parse(text: string, what: string, example: string): Address4 {
  try {
    return new Address4(text);
  } catch (cause) {
    throw new IpamError('invalid-request', `"${text}" is no IPv4 ${what}. Write it like ${example}.`, {
      cause,
    });
  }
}

/** The subnet of this prefix length that begins at the address. */
export function subnetAt(first: bigint, prefix: number): Subnet {
  const size = 1n << BigInt(addressBits - prefix);
  return { cidr: `${formatAddress(first)}/${prefix}`, prefix, first, last: first + size - 1n };
}

export function formatAddress(address: bigint): string {
  return Address4.fromBigInt(address).correctForm();
}

export function contains(range: Range, address: bigint): boolean {
  return range.first <= address && address <= range.last;
}

export function encloses(outer: Range, inner: Range): boolean {
  return outer.first <= inner.first && inner.last <= outer.last;
}

export function overlaps(one: Range, other: Range): boolean {
  return one.first <= other.last && other.first <= one.last;
}

/**
 * The addresses of the subnet that a host can have: all but the network's and the broadcast address. Of a /31 both
 * (RFC 3021), of a /32 the one, as Docker's own allocator does.
 */
export function hostRange(subnet: Subnet): Range {
  if (addressBits - subnet.prefix <= 1) return { first: subnet.first, last: subnet.last };
  return { first: subnet.first + 1n, last: subnet.last - 1n };
}

/** @returns undefined if they have no address in common */
export function intersect(one: Range, other: Range): Range | undefined {
  const range = {
    first: one.first > other.first ? one.first : other.first,
    last: one.last < other.last ? one.last : other.last,
  };
  return range.first <= range.last ? range : undefined;
}

export function sizeOf(range: Range): bigint {
  return range.last - range.first + 1n;
}
