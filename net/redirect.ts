// Owns leading the questions for names that a sandbox asks Docker's resolver to this node's name server, and back to
// Docker's resolver when nobody listens here. The reasons are in docs/adr/0010-names.md.
// Must not know what is asked or answered.
import type { Runner } from './run.ts';
import { table } from './names.ts';
import type { NftElements, NftLayout } from './table.ts';

/** Where every container on a user's network asks: Docker's resolver, inside the sandbox. */
const resolver = '127.0.0.11';

/** The ports Docker's resolver listens on in one sandbox: chosen anew for each. */
export interface ResolverPorts {
  udp: number;
  tcp: number;
}

export interface Redirection {
  /** Path of the sandbox's network namespace. */
  sandbox: string;
  /** An address of this node that the sandbox reaches: the gateway of one of its networks. */
  gateway: string;
  /** UDP and TCP port of the name server at the gateway, and of Docker's resolver as the node reaches it. */
  port: number;
  resolver: ResolverPorts;
}

/**
 * The node's part. A question whose name server is not there, because the plugin was stopped or crashed, is turned
 * round: to the same port at the sandbox it came from, where {@link redirect} hands it to Docker's resolver. The kernel
 * looks for the socket with each question, so nothing has to be kept alive, and no question is lost.
 * (The turn round is a hairpin, for which the balancer's rule already gives the gateway as the source.)
 */
export const redirectLayout: NftLayout = {
  sets: { name_ports: { kind: 'set', declaration: 'type inet_service;' } },
  chains: {
    names: {
      // Ahead of all balancing, Docker's and ours.
      hook: 'type nat hook prerouting priority dstnat - 20; policy accept;',
      rules: [
        'iifname "cw-*" meta l4proto { tcp, udp } th dport @name_ports fib daddr type local jump names_turn_round',
      ],
    },
    names_turn_round: {
      rules: ['socket wildcard 0 return', 'socket wildcard 1 return', 'dnat ip to ip saddr'],
    },
  },
};

/** The elements of {@link redirectLayout}'s set. */
export function redirectElements(port: number): Map<string, NftElements> {
  return new Map([['name_ports', new Map([[String(port), '']])]]);
}

/** Whether this kernel can tell if somebody listens (nft's `socket`), without which nothing may be redirected. */
export async function canRedirect(run: Runner): Promise<boolean> {
  const rules = ['socket wildcard 0 return', 'socket wildcard 1 return'].join('; ');
  const trial = `table inet ${table}-trial { chain names { type nat hook prerouting priority 0; ${rules}; }; }\n`;
  try {
    await run('nft', ['--check', '-f', '-'], { input: trial });
    return true;
  } catch {
    return false;
  }
}

/**
 * Sends what a sandbox asks Docker's resolver to the node, in place of where it was sent before.
 * @param sysctls where /proc/sys/net can be written
 * @throws CommandError
 */
export async function redirect(run: Runner, sysctls: string, to: Redirection): Promise<void> {
  const { sandbox } = to;
  // A question's source is 127.0.0.1, and so is the address its answer comes back to, by the sandbox's link.
  await run('tee', [`${sysctls}/ipv4/conf/all/route_localnet`], { input: '1', sandbox });
  await run('nft', ['-f', '-'], { input: redirection(to), sandbox });
}

/** Leaves a sandbox's questions to Docker's resolver again. @throws CommandError */
export async function undirect(run: Runner, sandbox: string): Promise<void> {
  await run('nft', ['-f', '-'], { input: `add table ip ${table}\ndelete table ip ${table}\n`, sandbox });
}

function redirection({ gateway, port, resolver: own }: Redirection): string {
  const asked = `ip daddr ${resolver}`;
  return [
    `add table ip ${table}`,
    `delete table ip ${table}`,
    `table ip ${table} {`,
    '  chain ask {',
    // Ahead of Docker's own rule for the same address (at -100), whether iptables made it or nft.
    '    type nat hook output priority -110; policy accept;',
    `    ${asked} udp dport 53 dnat to ${gateway}:${port}`,
    `    ${asked} tcp dport 53 dnat to ${gateway}:${port}`,
    '  }',
    '  chain leave {',
    '    type nat hook postrouting priority 90; policy accept;',
    `    ip saddr 127.0.0.0/8 ip daddr ${gateway} masquerade`,
    '  }',
    '  chain back {',
    '    type nat hook prerouting priority -110; policy accept;',
    `    iifname != "lo" ip saddr ${gateway} udp dport ${port} dnat to ${resolver}:${own.udp}`,
    `    iifname != "lo" ip saddr ${gateway} tcp dport ${port} dnat to ${resolver}:${own.tcp}`,
    '  }',
    '}',
    '',
  ].join('\n');
}

/**
 * @param sandbox path of its network namespace
 * @returns undefined while Docker's resolver does not listen there
 * @throws CommandError
 */
export async function readResolverPorts(run: Runner, sandbox: string): Promise<ResolverPorts | undefined> {
  const text = await run('cat', ['/proc/net/udp', '/proc/net/tcp'], { sandbox });
  return parseResolverPorts(text);
}

/** @param text of /proc/net/udp and /proc/net/tcp, one after the other, each with its line of titles (proc(5)) */
export function parseResolverPorts(text: string): ResolverPorts | undefined {
  const [udp, tcp] = text
    .split(/^ *sl .*$/m)
    .slice(1)
    .map((lines) => {
      // Local address and port, remote ones, state: 7 is UDP's unconnected, A is TCP's listening.
      const [, port] = /^ *\d+: 0B00007F:([0-9A-F]{4}) 00000000:0000 (?:07|0A) /m.exec(lines) ?? [];
      return port === undefined ? undefined : Number.parseInt(port, 16);
    });
  return udp === undefined || tcp === undefined ? undefined : { udp, tcp };
}
