// Owns what goes wrong between the nodes of a lab: cables pulled, and partitions.
// Must not reach into a node: all of it happens at the router, as with a real switch.
import { execa } from 'execa';
import { toolsEnv } from './tools.ts';
import type { Namespaces } from './underlay.ts';

const table = 'lab_partition';

/** Pulls a node's cable: both ends lose the carrier, nothing passes in either direction. */
export async function cutWire(spaces: Namespaces, node: string): Promise<void> {
  await spaces.ip('router', [`link set ${node} down`]);
}

/** Plugs a node's cable in again; does nothing when it is. */
export async function healWire(spaces: Namespaces, node: string): Promise<void> {
  await spaces.ip('router', [`link set ${node} up`]);
}

/** @returns the names of the nodes whose cable is pulled. */
export async function cutWires(spaces: Namespaces): Promise<string[]> {
  const { stdout } = await execa(
    'nsenter',
    [`--net=${spaces.path('router')}`, 'ip', '-json', 'link', 'show', 'master', 'nodes'],
    { env: toolsEnv() },
  );
  const links = JSON.parse(stdout) as { ifname: string; flags: string[] }[];
  return links.flatMap(({ ifname, flags }) => (flags.includes('UP') ? [] : [ifname]));
}

/**
 * Lets nothing pass between two sets of nodes, in addition to partitions that exist. Each node keeps its carrier,
 * its own side, the router and what is behind it.
 */
export async function separate(
  spaces: Namespaces,
  left: readonly string[],
  right: readonly string[],
): Promise<void> {
  const set = (names: readonly string[]): string => `{ ${names.join(', ')} }`;
  await nft(
    spaces,
    `table bridge ${table} {
       chain forward {
         type filter hook forward priority 0
         iifname ${set(left)} oifname ${set(right)} drop
         iifname ${set(right)} oifname ${set(left)} drop
       }
     }`,
  );
}

/** Ends all partitions; does nothing when there is none. */
export async function unite(spaces: Namespaces): Promise<void> {
  // Adding first makes the deletion succeed also when there is none.
  await nft(spaces, `add table bridge ${table}\ndelete table bridge ${table}`);
}

async function nft(spaces: Namespaces, input: string): Promise<void> {
  await execa('nsenter', [`--net=${spaces.path('router')}`, 'nft', '-f', '-'], { input, env: toolsEnv() });
}
