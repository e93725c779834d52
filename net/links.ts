// Owns Causeway's links in the host's namespace: the veth pairs of endpoints and the fabric device.
// Must not decide which endpoints there are.
import { fabricLink, linkPrefix, peerName, vethName } from './names.ts';
import { CommandError, type Runner } from './run.ts';
import type { Sysctl } from './sysctl.ts';

/** A link of the host's namespace, of ours or not. */
export interface Link {
  name: string;
  mtu: number;
  up: boolean;
}

interface IpLink {
  ifname: string;
  mtu: number;
  flags: string[];
}

/** Reads every link of the host's namespace. */
export async function observeLinks(run: Runner): Promise<Link[]> {
  const links = JSON.parse(await run('ip', ['-j', 'link', 'show'])) as IpLink[];
  return links.map(({ ifname, mtu, flags }) => ({ name: ifname, mtu, up: flags.includes('UP') }));
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
  try {
    try {
      await run('ip', ['-batch', '-'], { input: batch.join('\n') + '\n' });
    } catch (error) {
      if (!(error instanceof CommandError && error.stderr.includes('File exists'))) throw error;
      // Docker asks again when an answer was lost: the pair of the first time is still here.
      await deleteLink(run, host);
      await run('ip', ['-batch', '-'], { input: batch.join('\n') + '\n' });
    }
    await tuneVeth(sysctl, host);
    await run('ip', ['link', 'set', host, 'up']);
  } catch (error) {
    await deleteLink(run, host);
    throw error;
  }
}

/** The settings without which a routed endpoint does not work, see docs/architecture.md. */
async function tuneVeth(sysctl: Sysctl, link: string): Promise<void> {
  // The sandbox takes the subnet for one big LAN and asks for its neighbours; the host answers for all of them.
  await sysctl.write(`ipv4/conf/${link}/proxy_arp`, '1');
  // The default delays each answer by up to 0.8 s.
  await sysctl.write(`ipv4/neigh/${link}/proxy_delay`, '0');
  // Replies to connections that the node made to 127.0.0.1:PORT come back here; rules refuse 127.0.0.0/8 from sandboxes.
  await sysctl.write(`ipv4/conf/${link}/route_localnet`, '1');
}

/** Deletes a link that may be gone already. */
export async function deleteLink(run: Runner, name: string): Promise<void> {
  try {
    await run('ip', ['link', 'del', name]);
  } catch (error) {
    if (!(error instanceof CommandError && error.stderr.includes('Cannot find device'))) throw error;
  }
}
