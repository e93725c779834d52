// Owns flows in conntrack: reading those of UDP, and forgetting what leads to an address that answers no more, or shall not.
// Must not touch flows of any other address.
import { CommandError, type Runner } from './run.ts';
import { safe, words } from './safe.ts';

/** A published port that some may use no longer. */
export interface ShutOut {
  protocol: string;
  /** That the client asked for; absent: any. */
  port?: number;
  /** CIDR: who. */
  sources: readonly string[];
  /** Who answers at it. */
  addresses: readonly string[];
}

/** A flow of UDP. */
export interface Flow {
  /** What was asked. */
  address: string;
  port: number;
  /** Who answers, or would, and by which port: the same where nobody translated. */
  to: string;
  targetPort: number;
}

/** Which flows: all that have in common what is said. */
export interface FlowsTo {
  /** What was asked: an address and a port. */
  address?: string;
  protocol?: 'tcp' | 'udp' | 'sctp';
  port?: number;
  /** Who answers, or would. */
  to?: string;
}

export interface Flows {
  /** Those without an end (below): a connection that was ever answered stays. */
  endless: readonly FlowsTo[];
  /**
   * Addresses from which answers come or would, of which all are to be forgotten, established connections among them: what
   * comes next is balanced anew, or refused by whom it is not for.
   */
  all: readonly string[];
  /** Those from there: what comes next is refused. Absent: none. */
  shutOut?: readonly ShutOut[];
}

/**
 * Flows without an end: of UDP, and TCP connections that were not answered yet. Without an entry the client's next
 * packet, which for the latter is the same SYN again after a second, is balanced anew; with it, it would be sent to the
 * old address, as would a later connection from the same port, for two minutes.
 */
const endless = { udp: '-p udp', tcp: '-p tcp --state SYN_SENT' };

function wordsOf({ protocol, address, port, to }: FlowsTo): string[] {
  const words = [
    ...(address === undefined ? [] : [`--orig-dst ${address}`]),
    ...(port === undefined ? [] : [`--orig-port-dst ${port}`]),
    ...(to === undefined ? [] : [`--reply-src ${to}`]),
  ].join(' ');
  return Object.entries(endless).flatMap(([of, which]) =>
    protocol === undefined || protocol === of ? [`-D ${which} ${words}\n`] : [],
  );
}

/**
 * conntrack(8) lists what it is to delete, and gives up with the rest undone when one of them is gone before its turn:
 * its time was over, or somebody else deleted it. Nothing of it comes back, so that every try gets further.
 */
const goneMeanwhile = /such conntrack doesn't exist/;
const tries = 20;

/**
 * Deletes such flows, in one process where nobody else deletes them at the same time.
 * @throws {CommandError} when the kernel refuses
 */
export async function forgetFlows(run: Runner, flows: Flows): Promise<void> {
  const lines = [
    ...flows.all.map((address) => `-D --reply-src ${address}\n`),
    ...(flows.shutOut ?? []).flatMap(({ protocol, port, sources, addresses }) => {
      const asked = port === undefined ? '' : ` --orig-port-dst ${port}`;
      return addresses.flatMap((address) =>
        sources.map((source) => `-D -p ${protocol} -s ${source}${asked} --reply-src ${address}\n`),
      );
    }),
    ...flows.endless.flatMap(wordsOf),
  ];
  if (lines.length === 0) return;
  for (const line of lines) safe('conntrack', line.trimEnd(), words);
  for (let left = tries; left > 0; left -= 1) {
    try {
      await run('conntrack', ['-R', '-'], { input: lines.join(''), opensInput: true });
      return;
    } catch (error) {
      if (!(error instanceof CommandError && goneMeanwhile.test(error.stderr) && left > 1)) throw error;
    }
  }
}

/** One line of conntrack(8): the addresses and ports of the question, then those of its answer. */
const line = / dst=(\S+) sport=\d+ dport=(\d+) .*?src=(\S+) dst=\S+ sport=(\d+) /;

/**
 * Reads the flows of UDP by IPv4, all of the node. Those of many clients that lead the same way are one.
 * @throws {CommandError} when the kernel refuses
 */
export async function observeFlows(run: Runner): Promise<Flow[]> {
  const flows = new Map<string, Flow>();
  for (const text of (await run('conntrack', ['-L', '-f', 'ipv4', '-p', 'udp'])).split('\n')) {
    const [, address, port, to, targetPort] = line.exec(text) ?? [];
    if (address === undefined || to === undefined) continue;
    const flow = { address, port: Number(port), to, targetPort: Number(targetPort) };
    flows.set(Object.values(flow).join(' '), flow);
  }
  return [...flows.values()];
}
