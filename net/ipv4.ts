// Owns addresses of IPv4 as numbers, for what compares many of them. Must not know what they are of.
import { isIPv4 } from 'node:net';

/** From the first to the last, both included. */
export interface AddressRange {
  first: number;
  last: number;
}

/** @throws TypeError for what is not an address of IPv4 */
export function parseAddress(address: string): number {
  if (!isIPv4(address)) throw new TypeError(`no address of IPv4: ${JSON.stringify(address)}`);
  return address.split('.').reduce((sum, byte) => sum * 256 + Number(byte), 0);
}

export function formatAddress(address: number): string {
  return [24, 16, 8, 0].map((shift) => (address >>> shift) & 0xff).join('.');
}

/** @param subnet CIDR, or an address alone @throws TypeError for what is not one */
export function rangeOf(subnet: string): AddressRange {
  const [address = '', length = '32'] = subnet.split('/');
  const size = 2 ** (32 - Number(length));
  const number = parseAddress(address);
  const first = number - (number % size);
  return { first, last: first + size - 1 };
}
