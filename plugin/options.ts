// Owns what a user may write after -o on docker network create.
// Must not act on it.
import { RequestError } from './errors.ts';
import { label } from './protocol.ts';

export interface NetworkOptions {
  /** Bytes, of the links in the sandboxes; absent: derived from the underlay. */
  mtu?: number;
}

/**
 * Added by AllocateNetwork for CreateNetwork: why the network is refused. An error of AllocateNetwork only reaches the
 * log of Swarm's leader, while services on the network hang without a word; an error of CreateNetwork reaches
 * `docker service ps` and `docker run`.
 */
export const refusedOption = 'causeway.refused';

const known = ['mode', label.mtu];
// IPv4's smallest datagram that every host must take (RFC 791), and the largest there is.
const minimumMtu = 576;
const maximumMtu = 65535;

/** @throws {RequestError} */
export function parseNetworkOptions(options: Readonly<Record<string, unknown>>): NetworkOptions {
  for (const key of Object.keys(options)) {
    if (key !== refusedOption && !known.includes(key)) {
      throw new RequestError(
        'unknown-option',
        `unknown network option ${key}: the options of a Causeway network are ${known.join(', ')}`,
      );
    }
  }
  const { mode = 'overlay', [label.mtu]: mtu } = options;
  if (mode !== 'overlay') {
    throw new RequestError(
      'unknown-mode',
      `network option mode=${String(mode)} is not available: the one mode so far is overlay`,
    );
  }
  return mtu === undefined ? {} : { mtu: parseMtu(mtu) };
}

function parseMtu(value: unknown): number {
  const mtu = typeof value === 'string' && /^\d+$/.test(value) ? Number(value) : NaN;
  if (!(mtu >= minimumMtu && mtu <= maximumMtu)) {
    throw new RequestError(
      'bad-mtu',
      `network option ${label.mtu}=${String(value)} is not a number of bytes from ${minimumMtu} to ${maximumMtu}`,
    );
  }
  return mtu;
}
