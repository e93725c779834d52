// Owns the way the published port is compared with: from outside to the container's own address, which Causeway's
// rules do not allow.
// Must not leave that way open, nor make it any cheaper or dearer than the published one.
import { table } from '../net/names.ts';
import { signal } from '../test/lab/processes.ts';
import type { Lab } from '../test/lab/lab.ts';
import type { LabNode } from '../test/lab/node.ts';

/** One object of `nft -j list chain` (libnftables-json(5)), as far as it matters here. */
interface NftRule {
  family: string;
  table: string;
  chain: string;
  handle: number;
  expr: object[];
}

/**
 * Lets the client outside reach the endpoints of a subnet by their own addresses while `work` runs, through the node
 * and its very same chains: the rules (net/rules.ts) that drop it only get one more condition,
 * "not from the client", behind all others. So a packet by the published way meets what it always meets. The plugin's
 * process is halted meanwhile, lest it find its table edited and put it right.
 */
export async function withDirectWay<T>(lab: Lab, subnet: string, work: () => Promise<T>): Promise<T> {
  const { first: node, client, router } = lab;
  await router.exec(['ip', 'route', 'replace', subnet, 'via', node.address]);
  const pids = await node.pidsOf('causeway');
  for (const pid of pids) signal(pid, 'SIGSTOP');
  try {
    const rules = await dropRules(node);
    const notClient = {
      match: {
        op: '!=',
        left: { payload: { protocol: 'ip', field: 'saddr' } },
        right: client.address,
      },
    };
    await replace(
      node,
      rules.map((rule) => ({ ...rule, expr: [...rule.expr.slice(0, -1), notClient, rule.expr.at(-1)!] })),
    );
    try {
      return await work();
    } finally {
      await replace(node, rules);
    }
  } finally {
    for (const pid of pids) signal(pid, 'SIGCONT');
    await router.exec(['ip', 'route', 'delete', subnet]);
  }
}

/** What comes from outside to an endpoint passes these. */
const chains = ['guard', 'forward', 'to_endpoint'];

/** @returns the rules of these chains that end in a drop. @throws Error when there are none */
async function dropRules(node: LabNode): Promise<NftRule[]> {
  const { stdout } = await node.exec(['nft', '-j', '-a', 'list', 'table', 'inet', table]);
  const { nftables } = JSON.parse(stdout) as { nftables: { rule?: NftRule }[] };
  const rules = nftables.flatMap(({ rule }) =>
    rule !== undefined && chains.includes(rule.chain) && 'drop' in rule.expr.at(-1)! ? [rule] : [],
  );
  if (rules.length === 0) throw new Error(`No rule of table ${table} keeps anything from an endpoint.`);
  return rules;
}

async function replace(node: LabNode, rules: readonly NftRule[]): Promise<void> {
  // As an argument: nft opens JSON input by name, and /dev/stdin cannot be opened when it is a socket.
  await node.exec(['nft', '-j', JSON.stringify({ nftables: rules.map((rule) => ({ replace: { rule } })) })]);
}
