// Owns the wires of a lab: network namespaces, the underlay between the nodes, and the client outside the cluster.
// Must not touch the machine's own network: every device is made inside a namespace of the lab.
import { readdir, stat, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { toolsEnv } from './tools.ts';

/** IPv4 documentation ranges (RFC 5737): whatever else the machine talks to, it is not these. */
const documentation = ['198.51.100', '203.0.113', '192.0.2'];

/** The addresses of a lab. All are within /24 subnets. */
export interface Plan {
  /** First three bytes of the nodes' subnet; node n has .n, the router .254. */
  nodes: string;
  /** First three bytes of the client's subnet; the client has .10, the router .254. */
  clients: string;
}

/** Nodes are called n1, n2, … */
const numberOf = (node: string) => Number(node.slice(1));
export const nodeAddress = (plan: Plan, node: string) => `${plan.nodes}.${numberOf(node)}`;
export const clientAddress = (plan: Plan) => `${plan.clients}.10`;
export const routerAddress = (plan: Plan) => `${plan.nodes}.254`;

/** Picks two documentation ranges the machine has no address in and no route to. */
export async function planAddresses(): Promise<Plan> {
  const { stdout } = await execa('ip', ['-json', '-4', 'route', 'show', 'table', 'all'], { env: toolsEnv() });
  const routes = (JSON.parse(stdout) as { dst?: string }[]).map((route) => route.dst ?? '');
  const [nodes, clients] = documentation.filter(
    (range) => !routes.some((dst) => dst.startsWith(`${range}.`)),
  );
  if (nodes === undefined || clients === undefined) {
    throw new Error(`The machine uses too many of the documentation ranges ${documentation.join(', ')}.`);
  }
  return { nodes, clients };
}

/** The namespaces of a lab are files in one directory: not in /run/netns, which `ip netns` never cleans away. */
export class Namespaces {
  readonly dir: string;

  constructor(dir: string) {
    this.dir = dir;
  }

  path(name: string): string {
    return join(this.dir, name);
  }

  async create(name: string): Promise<void> {
    await writeFile(this.path(name), '', { flag: 'wx' });
    await execa('unshare', [`--net=${this.path(name)}`, 'true']);
    await this.ip(name, ['link set lo up']);
  }

  /** Runs `ip` commands, given as lines, in one process inside a namespace. */
  async ip(name: string, lines: string[]): Promise<void> {
    await execa('nsenter', [`--net=${this.path(name)}`, 'ip', '-batch', '-'], {
      input: lines.join('\n'),
      env: toolsEnv(),
    });
  }

  /** @returns the inode number of a namespace. */
  async inode(name: string): Promise<number> {
    return (await stat(this.path(name))).ino;
  }

  /** @returns the inode numbers by which the processes inside can be told. */
  async inodes(): Promise<Set<number>> {
    const names = await readdir(this.dir).catch(() => []);
    return new Set(await Promise.all(names.map((name) => this.inode(name))));
  }

  /** Removes a namespace, whole or half-made. It vanishes with all its devices once nothing runs in it. */
  async remove(name: string): Promise<void> {
    // Fails when the namespace was never mounted there.
    await execa('umount', [this.path(name)], { reject: false });
    // Unlinking also takes away the copies of the mount that other labs' mount namespaces may hold.
    await unlink(this.path(name));
  }

  async removeAll(): Promise<void> {
    for (const name of await readdir(this.dir).catch(() => [])) await this.remove(name);
  }
}

/**
 * Builds the underlay: a router with a bridge to which all nodes are tied, and behind the router, on a subnet of
 * its own, the client.
 */
export async function wire(spaces: Namespaces, plan: Plan, nodes: string[]): Promise<void> {
  await spaces.create('router');
  await spaces.ip('router', [
    // A bridge takes the lowest address of its ports unless told: it would change with a port that goes, and the nodes
    // would send to the old one.
    'link add nodes address 02:00:00:00:00:fe type bridge',
    `address add ${routerAddress(plan)}/24 dev nodes`,
    'link set nodes up',
  ]);
  // A directory of sysctls shows the namespace of the process that opens it.
  await execa('nsenter', [`--net=${spaces.path('router')}`, 'tee', '/proc/sys/net/ipv4/ip_forward'], {
    input: '1',
  });

  for (const name of nodes) await wireNode(spaces, plan, name);

  await spaces.create('client');
  await spaces.ip('router', [
    `link add client type veth peer name eth0 netns "${spaces.path('client')}"`,
    `address add ${plan.clients}.254/24 dev client`,
    'link set client up',
  ]);
  await spaces.ip('client', [
    `address add ${clientAddress(plan)}/24 dev eth0`,
    'link set eth0 up',
    `route add default via ${plan.clients}.254`,
  ]);
}

/** Makes the network of one node and ties it to the router. */
export async function wireNode(spaces: Namespaces, plan: Plan, name: string): Promise<void> {
  // Always the same, as a machine's is: what others remember of a node that was off is right when it is back.
  const mac = `02:00:00:00:00:${numberOf(name).toString(16).padStart(2, '0')}`;
  await spaces.create(name);
  await spaces.ip('router', [
    `link add ${name} type veth peer name eth0 address ${mac} netns "${spaces.path(name)}"`,
    `link set ${name} master nodes up`,
  ]);
  await spaces.ip(name, [
    `address add ${nodeAddress(plan, name)}/24 dev eth0`,
    'link set eth0 up',
    `route add default via ${routerAddress(plan)}`,
  ]);
}

/** Takes a node's wire away, both ends. No packet leaves the node from then on, not even to say that it ends. */
export async function unwireNode(spaces: Namespaces, name: string): Promise<void> {
  await spaces.ip('router', [`link delete ${name}`]);
}
