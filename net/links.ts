// Owns Causeway's links in the host's namespace: the veth pairs of endpoints and the fabric device.
// Must not decide which endpoints there are.
import { fabricLink, linkPrefix, peerName, vethName } from './names.ts';
import { CommandError, type Runner } from './run.ts';
import { safe, words } from './safe.ts';
import { keepSettings, withoutIPv6, type Setting, type Sysctl } from './sysctl.ts';

/** A link of the host's namespace, of ours or not. */
export interface Link {
  name: string;
  mtu: number;
  up: boolean;
  /** IPv4, with prefix. */
  addresses: readonly string[];
}

interface IpLink {
  ifname: string;
  mtu: number;
  flags: string[];
  addr_info: { family: string; local: string; prefixlen: number }[];
}

/** Reads every link of the host's namespace. */
export async function observeLinks(run: Runner): Promise<Link[]> {
  const links = JSON.parse(await run('ip', ['-j', 'address', 'show'])) as IpLink[];
  return links.map(({ ifname, mtu, flags, addr_info }) => ({
    name: ifname,
    mtu,
    up: flags.includes('UP'),
    addresses: addr_info
      .filter(({ family }) => family === 'inet')
      .map(({ local, prefixlen }) => `${local}/${prefixlen}`),
  }));
}

/** Whether a link is the host's end of some endpoint's veth pair. */
export function isVeth(name: string): boolean {
  return name.startsWith(linkPrefix) && name !== fabricLink;
}

/**
 * Makes the veth pair of an endpoint, ready to be moved into a sandbox; makes it anew when one is left over.
 * @param mac of the sandbox's end
 * @throws {CommandError}
 */
export async function createVeth(
  run: Runner,
  sysctl: Sysctl,
  { endpointId, mac, mtu }: { endpointId: string; mac: string; mtu: number },
): Promise<void> {
  const host = vethName(endpointId);
  const peer = peerName(endpointId);
  const batch = [
    `link add ${host} mtu ${mtu} type veth peer name ${peer} address ${mac} mtu ${mtu}`,
    // No link-local IPv6 address on the host's end: nothing there speaks IPv6, and its neighbour discovery is noise.
    `link set ${host} addrgenmode none`,
  ];
  for (const line of batch) safe('ip', line, words);
  try {
    try {
      await run('ip', ['-batch', '-'], { input: batch.join('\n') + '\n' });
    } catch (error) {
      if (!(error instanceof CommandError && error.stderr.includes('File exists'))) throw error;
      // Docker asks again when an answer was lost: the pair of the first time is still here.
      await deleteLink(run, host);
      await run('ip', ['-batch', '-'], { input: batch.join('\n') + '\n' });
    }
    await withoutIPv6(sysctl, host);
    await keepSettings(sysctl, vethSettings(host));
    await run('ip', ['link', 'set', host, 'up']);
  } catch (error) {
    await deleteLink(run, host);
    throw error;
  }
}

/**
 * The settings without which a routed endpoint does not work, see docs/architecture.md. udev and administrators set them
 * anew at any time.
 */
export function vethSettings(link: string): readonly Setting[] {
  return [
    // A sandbox of an earlier version takes the subnet for one big LAN and asks for its neighbours; the host answers for
    // all of them.
    [`ipv4/conf/${link}/proxy_arp`, '1'],
    // The default delays each answer by up to 0.8 s.
    [`ipv4/neigh/${link}/proxy_delay`, '0'],
    // Replies to connections that the node made to 127.0.0.1:PORT come back here; rules refuse 127.0.0.0/8 from sandboxes.
    [`ipv4/conf/${link}/route_localnet`, '1'],
    // Nobody is asked, nor remembered, by ARP with a sender that is not the sandbox's.
    [`ipv4/conf/${link}/rp_filter`, '1'],
    [`ipv4/conf/${link}/forwarding`, '1'],
  ];
}

/** What the host's end of a veth pair needs to be the gateway of the sandbox behind it. */
export interface VethGateway {
  device: string;
  /** With the prefix of the network's subnet. */
  gateway: string;
  /** The sandbox's. */
  address: string;
  mac: string;
}

/**
 * Lines for `ip -batch`.
 *
 * The gateway is local on lo already, which is enough until somebody sets arp_ignore: then only addresses of the device
 * itself are answered for. With 2 also the asker has to be of the address's subnet, hence the prefix; routes do not come of
 * it. Its scope keeps it from those who look for an address of the host. The other way round there is nothing to ask:
 * the sandbox has taken over arp_ignore, and its own address is alone in its subnet.
 */
export function gatewayLines({ device, gateway, address, mac }: VethGateway): string[] {
  return [
    `address replace ${gateway} dev ${device} scope link noprefixroute`,
    `neigh replace ${address} lladdr ${mac} dev ${device} nud permanent`,
  ];
}

/**
 * Deletes a link that may be gone already, or may go at this moment: a veth pair ends with the sandbox that its other end is
 * in. ip looks the name up first, so the kernel's own answer comes when the link ends between the two.
 */
export async function deleteLink(run: Runner, name: string): Promise<void> {
  try {
    await run('ip', ['link', 'del', name]);
  } catch (error) {
    if (!(error instanceof CommandError && /Cannot find device|No such device/.test(error.stderr)))
      throw error;
  }
}
