// Owns IPv4 addresses and subnets as numbers: what a question needs to know of them, without making objects.
// Must not be used for what allocates addresses: that is ipam/.

const zero = 0x30;
const dot = 0x2e;

/** @returns the address as an unsigned number of 32 bits; undefined for anything but four decimals without leading zeros */
export function toNumber(text: string): number | undefined {
  let address = 0;
  let decimal = 0;
  let digits = 0;
  let dots = 0;
  for (let at = 0; at < text.length; at += 1) {
    const code = text.charCodeAt(at);
    if (code === dot) {
      if (digits === 0 || dots === 3) return undefined;
      address = address * 256 + decimal;
      [decimal, digits, dots] = [0, 0, dots + 1];
      continue;
    }
    const digit = code - zero;
    if (digit < 0 || digit > 9 || (digits > 0 && decimal === 0)) return undefined;
    decimal = decimal * 10 + digit;
    digits += 1;
    if (decimal > 255) return undefined;
  }
  return dots === 3 && digits > 0 ? address * 256 + decimal : undefined;
}

export function toText(address: number): string {
  return `${address >>> 24}.${(address >>> 16) & 255}.${(address >>> 8) & 255}.${address & 255}`;
}

/** Addresses from `first` to `last`, both included. */
export interface Range {
  first: number;
  last: number;
}

/** @param cidr as in a NetworkRecord, which has been checked */
export function rangeOf(cidr: string): Range {
  const [address = '', prefix = '32'] = cidr.split('/');
  const size = 2 ** (32 - Number(prefix));
  const first = Math.floor((toNumber(address) ?? 0) / size) * size;
  return { first, last: first + size - 1 };
}
