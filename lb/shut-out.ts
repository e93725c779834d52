// Owns who may no longer connect to a published port since its policy changed, so that connections from there can be ended.
// Must not end them; net/conntrack.ts does.
import { isDeepStrictEqual } from 'node:util';
import { difference } from '../delta/list.ts';
import type { ShutOut } from '../net/conntrack.ts';
import { formatAddress, rangeOf } from '../net/ipv4.ts';
import { virtualServerId, type PortServer, type VirtualServer } from './model.ts';

/**
 * @param before undefined: not known, as after a while without the plugin
 * @param own the node's addresses, CIDR: whom a port is open to or closed is no matter to them, unless it is closed to all
 * @returns for each port that closed itself to somebody, or may have, who is kept out now
 */
export function newlyShutOut(
  before: readonly VirtualServer[] | undefined,
  after: readonly VirtualServer[],
  own: readonly string[],
): readonly ShutOut[] {
  const { removed, added } = difference(before ?? [], after);
  const old = new Map(removed.filter(isPort).map((server) => [virtualServerId(server), server]));
  return added.filter(isPort).flatMap((server) => {
    const last = old.get(virtualServerId(server));
    const sources = keptOut(server, own);
    const isNew = before !== undefined && last === undefined;
    if (isNew || sources.length === 0 || (last && isDeepStrictEqual(sources, keptOut(last, own)))) return [];
    const { protocol, port, count, realServers } = server;
    const addresses = realServers.map(({ address }) => address);
    return [{ protocol, ...(count === undefined && { port }), sources, addresses }];
  });
}

function isPort(server: VirtualServer): server is PortServer {
  return server.kind === 'port';
}

/** @returns CIDR */
function keptOut(
  { policy: { allow, deny = [], closed } = {} }: PortServer,
  own: readonly string[],
): readonly string[] {
  if (closed === true) return ['0.0.0.0/0'];
  const denied = deny.length === 0 ? [] : outside([...outside(deny), ...own]);
  return allow === undefined ? denied : [...denied, ...outside([...allow, ...own])];
}

/**
 * The subnets that are in none of these.
 * @param subnets CIDR
 */
export function outside(subnets: readonly string[]): string[] {
  const ranges = subnets.map(rangeOf);
  const rest: string[] = [];
  const split = (first: number, length: number): void => {
    const last = first + 2 ** (32 - length) - 1;
    const touching = ranges.filter((range) => range.first <= last && range.last >= first);
    if (touching.length === 0) rest.push(`${formatAddress(first)}/${length}`);
    else if (!touching.some((range) => range.first <= first && range.last >= last)) {
      split(first, length + 1);
      split(first + 2 ** (31 - length), length + 1);
    }
  };
  split(0, 0);
  return rest;
}
