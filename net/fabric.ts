// Owns the fabric: the one VXLAN device of a node, with its own UDP port and VNI beside Docker's overlay.
// Must not know the other nodes: net/neighbours.ts tells it where they are.
import type { Underlay } from './host.ts';
import { deleteLink } from './links.ts';
import { fabricLink, fabricMac } from './names.ts';
import { CommandError, type Runner } from './run.ts';
import { keepSettings, withoutIPv6, type Setting, type Sysctl } from './sysctl.ts';

export interface FabricSettings {
  /** UDP port of the encapsulation. */
  port: number;
  /** VXLAN network identifier, 1 to 16777215. */
  vni: number;
}

/** Bytes that VXLAN over IPv4 adds to a packet: outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14. */
export const fabricOverhead = 50;

/** The settings of the device, which udev and administrators set anew at any time. */
export const fabricDeviceSettings: readonly Setting[] = [
  // Clients of other nodes come out of it with the addresses they have in the world, which route elsewhere. The kernel takes
  // the larger of this value and that of `all`, so it may look all the same: then by the mark that net/rules.ts gives.
  [`ipv4/conf/${fabricLink}/rp_filter`, '0'],
  [`ipv4/conf/${fabricLink}/src_valid_mark`, '1'],
  // Answers to connections that the node made to 127.0.0.1:PORT come back by it.
  [`ipv4/conf/${fabricLink}/route_localnet`, '1'],
  [`ipv4/conf/${fabricLink}/forwarding`, '1'],
];

/** The port or VNI of the fabric is somebody else's. */
export class FabricTaken extends Error {
  override readonly name = 'FabricTaken';
}

interface IpVxlan {
  ifname: string;
  flags: string[];
  mtu: number;
  address: string;
  linkinfo?: { info_data?: { id?: number; port?: number; local?: string } };
}

/**
 * Makes the fabric device as wanted, and leaves one that is so already alone.
 * @throws {FabricTaken} when another VXLAN device has the VNI, or another program the UDP port
 */
export async function ensureFabric(
  run: Runner,
  sysctl: Sysctl,
  settings: FabricSettings,
  underlay: Underlay,
): Promise<void> {
  const address = fabricMac(underlay.address);
  const mtu = underlay.mtu - fabricOverhead;
  const present = await observeVxlans(run);
  const own = present.find(({ ifname }) => ifname === fabricLink);
  const data = own?.linkinfo?.info_data;
  if (data?.id === settings.vni && data.port === settings.port && data.local === underlay.address) {
    if (own?.flags.includes('UP') === true && own.mtu === mtu && own.address === address) return;
  }
  if (own !== undefined) await deleteLink(run, fabricLink);
  const twin = present.find(
    ({ ifname, linkinfo }) =>
      ifname !== fabricLink &&
      linkinfo?.info_data?.id === settings.vni &&
      linkinfo.info_data.port === settings.port,
  );
  if (twin !== undefined) {
    throw new FabricTaken(
      `VXLAN device ${twin.ifname} already has VNI ${settings.vni} on UDP port ${settings.port}: choose another VNI, ` +
        `docker plugin set PLUGIN CAUSEWAY_FABRIC_VNI=…`,
    );
  }
  const batch = [
    `link add ${fabricLink} address ${address} mtu ${mtu} type vxlan id ${settings.vni} dstport ${settings.port} local ${underlay.address} nolearning`,
    `link set ${fabricLink} addrgenmode none`,
  ];
  try {
    await run('ip', ['-batch', '-'], { input: batch.join('\n') + '\n' });
    await withoutIPv6(sysctl, fabricLink);
    // The UDP socket is bound when the device goes up: that is where a taken port shows.
    await run('ip', ['link', 'set', fabricLink, 'up']);
    await keepSettings(sysctl, fabricDeviceSettings);
  } catch (error) {
    await deleteLink(run, fabricLink);
    if (error instanceof CommandError && error.stderr.includes('Address already in use')) {
      throw new FabricTaken(
        `UDP port ${settings.port} is in use by another program on this node: free it or choose another port, ` +
          `docker plugin set PLUGIN CAUSEWAY_FABRIC_PORT=…`,
        { cause: error },
      );
    }
    throw error;
  }
}

/** Removes the fabric device, where there is one. */
export async function removeFabric(run: Runner): Promise<void> {
  await deleteLink(run, fabricLink);
}

async function observeVxlans(run: Runner): Promise<IpVxlan[]> {
  const text = await run('ip', ['-d', '-j', 'link', 'show', 'type', 'vxlan']);
  return text.trim() === '' ? [] : (JSON.parse(text) as IpVxlan[]).filter(({ ifname }) => ifname !== '');
}
