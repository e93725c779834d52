// Owns the settings that hosts are found with, as what a test does to a node and how it takes it back.
// Must not assert anything.
import { Firewalls } from '../lab/firewalls.ts';
import { clientAddress, type Namespace, type TestNode } from './world.ts';

/** One thing that a host has. */
export interface Part {
  apply(node: TestNode): Promise<unknown>;
  undo(node: TestNode): Promise<unknown>;
}

/** A host as it is found. */
export interface HostSetting {
  name: string;
  parts: readonly Part[];
  /** It takes a pass to put right what it does. */
  closes?: true;
  tags?: string;
}

const conf = '/proc/sys/net/ipv4/conf';

async function sh({ namespace }: TestNode, script: string): Promise<string> {
  return namespace.run('sh', '-c', script);
}

/** `net.ipv4.conf.all.NAME`, or that of the devices to come. */
export function all(name: string, value: number, where: 'all' | 'default' = 'all'): Part {
  const path = `${conf}/${where}/${name}`;
  return {
    apply: (node) => sh(node, `echo ${value} > ${path}`),
    undo: (node) => sh(node, `echo 0 > ${path}`),
  };
}

/** Beyond the second uplink: where its router is, and a client behind that. */
export const secondUplink = { device: 'eth1', router: '198.51.100.254', client: '192.0.2.7' } as const;

function wireOf(address: string): string {
  return address.replace(/\d+$/, '0/24');
}

/** A node's address on the second uplink. */
export function secondAddress({ address }: TestNode): string {
  return `198.51.100.${address.split('.').at(-1) ?? ''}`;
}

/**
 * A second uplink, whose address answers by its own router: of table main the default route leads by the first.
 * @param far the namespace of the router, with a bridge of this name
 */
export function twoUplinks(far: () => Namespace, bridge: string): Part {
  const { device, router } = secondUplink;
  return {
    async apply(node) {
      const { namespace } = node;
      const own = secondAddress(node);
      const port = `far${namespace.name.slice(-10)}`;
      await far().ip(
        ...['link', 'add', port, 'type', 'veth', 'peer', 'name', device, 'netns', namespace.name],
      );
      await far().ip('link', 'set', port, 'master', bridge, 'up');
      await namespace.ip('address', 'add', `${own}/24`, 'dev', device);
      await namespace.ip('link', 'set', device, 'up');
      for (const [table, from, dev, via] of [
        ['101', node.address, 'eth0', clientAddress],
        ['102', own, device, router],
      ] as const) {
        // Without what is on the wire itself, all that is sent from the address would go to the router, the fabric too.
        await namespace.ip('route', 'add', wireOf(from), 'dev', dev, 'table', table);
        await namespace.ip('route', 'add', 'default', 'via', via, 'table', table);
        await namespace.ip('rule', 'add', 'from', from, 'table', table);
      }
    },
    async undo(node) {
      const { namespace } = node;
      await namespace.ip('link', 'del', device);
      await namespace.ip('route', 'flush', 'table', '101');
      // By its source: Causeway has rules for these tables, too.
      for (const [table, from] of [
        ['101', node.address],
        ['102', secondAddress(node)],
      ] as const)
        await namespace.ip('rule', 'del', 'from', from, 'table', table);
    },
  };
}

/** The same setting of each device there is, Causeway's among them. */
export function perDevice(name: string, value: number): Part {
  const write = (to: number) => (node: TestNode) =>
    sh(
      node,
      `for f in ${conf}/*/${name}; do case $f in */all/*|*/default/*) ;; *) echo ${to} > $f;; esac; done`,
    );
  return { apply: write(value), undo: write(0) };
}

/** A sysctl that Causeway needs, switched off under way. */
export function off(path: string): Part {
  return {
    apply: (node) => sh(node, `for f in /proc/sys/net/${path}; do echo 0 > $f; done`),
    undo: (node) => sh(node, `for f in /proc/sys/net/${path}; do echo 1 > $f; done`),
  };
}

/** What is done to iptables, each as its arguments; taken back by emptying it. */
export function iptables(...commands: string[]): Part {
  return {
    async apply({ plugin }) {
      for (const command of commands)
        await plugin.tool('iptables-nft', ['--wait', '5', ...command.split(' ')]);
    },
    async undo({ plugin }) {
      for (const args of [['-P', 'INPUT', 'ACCEPT'], ['-P', 'FORWARD', 'ACCEPT'], ['-F'], ['-X']])
        await plugin.tool('iptables-nft', ['--wait', '5', ...args]);
      // iptables has made it and leaves it.
      await plugin.tool('nft', ['delete table ip filter']);
    },
  };
}

/** Moves the addresses of one device to another, and the default route with them. */
const moved = (from: string, to: string): string =>
  `list=$(ip -4 -o address show dev ${from} | sed 's/.*inet \\([^ ]*\\).*/\\1/')
  ip address flush dev ${from}
  for one in $list; do ip address add $one dev ${to}; done
  ip route add default via ${clientAddress}`;

/** The node's wire is a port of a bridge, as beside virtual machines, and the bridge's packets pass iptables. */
export const bridgedUplink: Part = {
  apply: (node) =>
    sh(
      node,
      `set -e; ip link add br0 type bridge; ip link set br0 up; ip link set eth0 master br0
      echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables
      ${moved('eth0', 'br0')}`,
    ),
  undo: (node) => sh(node, `set -e; ip link set eth0 nomaster\n${moved('br0', 'eth0')}\nip link del br0`),
};

/** What docs/getting-started.md says that nodes need of each other. */
const ports = { tcp: '2377,4793,7946,8300,8301,8500', udp: '4789,4790,4793,7946,8301' };

/** That, and what every firewall lets in. */
const cluster = [
  '-A INPUT -i lo -j ACCEPT',
  '-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT',
  `-A INPUT -p tcp -m multiport --dports 22,${ports.tcp} -j ACCEPT`,
  `-A INPUT -p udp -m multiport --dports ${ports.udp} -j ACCEPT`,
];
const established = '-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT';

export const policiesDrop = iptables(...cluster, established, '-P INPUT DROP', '-P FORWARD DROP');

export const endsInReject = iptables(
  ...cluster,
  established,
  '-A INPUT -j REJECT --reject-with icmp-host-prohibited',
  '-A FORWARD -m comment --comment the-rest -j REJECT --reject-with icmp-host-prohibited',
);

/** The end is in a chain of its own, behind a rule that logs. */
export const endsInChain = iptables(
  ...cluster,
  established,
  '-N the-end',
  '-A the-end -m limit --limit 3/min -j LOG',
  '-A the-end -j DROP',
  '-A INPUT -j the-end',
  '-A FORWARD -g the-end',
);

/** A firewall that is run, from its start to its end. It may be there before the node has a plugin. */
export interface FirewallPart extends Part {
  apply(node: { namespace: Namespace }): Promise<void>;
  undo(node: { namespace: Namespace }): Promise<void>;
}

function firewall(
  act: (firewalls: Firewalls) => Promise<unknown>,
  end: (firewalls: Firewalls) => Promise<unknown> = () => Promise.resolve(),
): FirewallPart {
  const running = new Map<Namespace, Firewalls>();
  return {
    async apply({ namespace }) {
      const firewalls = await Firewalls.up(namespace.path);
      running.set(namespace, firewalls);
      await act(firewalls);
    },
    async undo({ namespace }) {
      const firewalls = running.get(namespace);
      if (firewalls === undefined) return;
      running.delete(namespace);
      try {
        await end(firewalls);
      } finally {
        await firewalls.down();
      }
    },
  };
}

/** As it is installed, which keeps out what comes in and what is forwarded, with the ports of the cluster open. */
export const ufw = firewall(
  async (firewalls) => {
    await firewalls.run('ufw', 'allow', '22/tcp');
    for (const [protocol, list] of Object.entries(ports))
      await firewalls.run('ufw', 'allow', 'proto', protocol, 'to', 'any', 'port', list);
    await firewalls.run('ufw', '--force', 'enable');
  },
  async (firewalls) => {
    await firewalls.run('ufw', 'disable');
    // Empty chains of its own it leaves until the host starts anew.
    const own =
      "iptables -S | sed -n 's/^-A \\([A-Z]* -j ufw-.*\\)/\\1/p' | while read -r rule; do iptables -D $rule; done";
    await firewalls.run('sh', '-c', `${own}; iptables -X; ip6tables -F; ip6tables -X`);
  },
);

/** As it is installed, all links in the zone public, with the ports of the cluster open. */
const firewalldAlone = async (firewalls: Firewalls): Promise<void> => {
  await firewalls.startFirewalld();
  const open = Object.entries(ports).flatMap(([protocol, list]) =>
    list.split(',').map((port) => `--add-port=${port}/${protocol}`),
  );
  await firewalls.run('firewall-cmd', '--permanent', ...open);
  await firewalls.run('firewall-cmd', '--reload');
};

/** With the command of docs/hosts.md. */
export const firewalld = firewall(async (firewalls) => {
  await firewalldAlone(firewalls);
  await firewalls.run('firewall-cmd', '--permanent', '--zone=trusted', '--add-interface=cw-+');
  await firewalls.run('firewall-cmd', '--reload');
});
