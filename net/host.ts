// Owns what is read of the host itself: its addresses and routes, so that pools do not collide with them, and the
// node's own address and MTU. Must not change anything.
import { linkPrefix, routeProtocol } from './names.ts';
import type { Runner } from './run.ts';

/** An address range that the host uses for something, and for what, in words for an error message. */
export interface InUse {
  cidr: string;
  what: string;
}

interface IpAddress {
  ifname: string;
  mtu: number;
  addr_info: { family: string; local: string; prefixlen: number; scope: string }[];
}

interface IpRoute {
  dst: string;
  dev?: string;
  gateway?: string;
  prefsrc?: string;
  protocol?: string;
  /** Of a route with several ways. */
  nexthops?: { gateway?: string; dev?: string }[];
}

async function readAddresses(run: Runner): Promise<IpAddress[]> {
  return JSON.parse(await run('ip', ['-4', '-j', 'address', 'show'])) as IpAddress[];
}

async function readRoutes(run: Runner): Promise<IpRoute[]> {
  const text = await run('ip', ['-4', '-N', '-j', 'route', 'show', 'table', 'main']);
  return (text.trim() === '' ? [] : JSON.parse(text)) as IpRoute[];
}

/** The host's IPv4 addresses and routes without Causeway's own and without the default route. */
export async function observeInUse(run: Runner): Promise<InUse[]> {
  const [links, routes] = await Promise.all([readAddresses(run), readRoutes(run)]);
  const addresses = links
    .filter(({ ifname }) => !ifname.startsWith(linkPrefix))
    .flatMap(({ ifname, addr_info }) =>
      addr_info.map(({ local, prefixlen }) => ({
        cidr: `${local}/${prefixlen}`,
        what: `address ${local} of ${ifname}`,
      })),
    );
  const ranges = routes
    .filter(({ dst, protocol }) => dst !== 'default' && protocol !== String(routeProtocol))
    .map(({ dst, dev, gateway }) => ({
      cidr: dst.includes('/') ? dst : `${dst}/32`,
      what: `route ${dst}${gateway === undefined ? '' : ` via ${gateway}`}${dev === undefined ? '' : ` dev ${dev}`}`,
    }));
  return [...addresses, ...ranges];
}

/** The IPv4 addresses of the host's links, loopback among them. */
export async function observeAddresses(run: Runner): Promise<string[]> {
  return (await readAddresses(run)).flatMap(({ addr_info }) => addr_info.map(({ local }) => local));
}

/** The address and MTU by which this node speaks to others. */
export interface Underlay {
  address: string;
  device: string;
  /** Bytes. */
  mtu: number;
}

/**
 * @param wanted the address set by the user; '' takes the source address of the default route, or the first global one
 * @returns undefined when the host has no such address
 */
export async function observeUnderlay(run: Runner, wanted: string): Promise<Underlay | undefined> {
  const [links, routes] = await Promise.all([readAddresses(run), readRoutes(run)]);
  const candidates = links
    .filter(({ ifname }) => !ifname.startsWith(linkPrefix))
    .flatMap(({ ifname, mtu, addr_info }) =>
      addr_info
        .filter(({ scope }) => scope === 'global')
        .map(({ local }) => ({ address: local, device: ifname, mtu })),
    );
  if (wanted !== '') return candidates.find(({ address }) => address === wanted);
  const way = routes.find(({ dst }) => dst === 'default');
  const onWay = candidates.filter(({ device }) => device === way?.dev);
  return onWay.find(({ address }) => address === way?.prefsrc) ?? onWay[0] ?? candidates[0];
}

/** The devices of table main's default route. */
export async function observeDefaultDevices(run: Runner): Promise<string[]> {
  const ways = (await readRoutes(run)).filter(({ dst }) => dst === 'default');
  return ways.flatMap((route) => [route, ...(route.nexthops ?? [])]).flatMap(({ dev }) => dev ?? []);
}

/** The devices by which this host reaches other networks, that of the underlay among them. */
export async function observeUplinks(run: Runner, underlay: string): Promise<string[]> {
  const ways = (await readRoutes(run)).flatMap((route) => [route, ...(route.nexthops ?? [])]);
  const devices = ways.flatMap(({ gateway, dev = '' }) =>
    gateway === undefined || dev === '' || dev.startsWith(linkPrefix) ? [] : dev,
  );
  return [...new Set([underlay, ...devices])].sort();
}
