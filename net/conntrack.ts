// Owns flows in conntrack: reading those of UDP, and forgetting what leads to an address that answers no more, or shall not.
// Must not touch flows of any other address, nor flows of IPv6.
import { formatAddress, parseAddress, rangeOf } from './ipv4.ts';
import { inNamespace } from './namespace.ts';
import { attribute, attributesOf, nested, Netlink, NetlinkError } from './netlink.ts';

/** A published port that some may use no longer. */
export interface ShutOut {
  protocol: Protocol;
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
  /** What was asked: an address and a port, or as many ports from that one on. */
  address?: string;
  protocol?: Protocol;
  port?: number;
  count?: number;
  /** Who answers, or would. */
  to?: string;
}

export interface Flows {
  /**
   * Those without an end: of UDP, and TCP connections that were not answered yet; one that was ever answered stays. Without an
   * entry the client's next packet, which for the latter is the same SYN again after a second, is balanced anew; with it, it
   * would be sent to the old address, as would a later connection from the same port, for two minutes.
   */
  endless: readonly FlowsTo[];
  /**
   * Addresses from which answers come or would, of which all are to be forgotten, established connections among them: what
   * comes next is balanced anew, or refused by whom it is not for.
   */
  all: readonly string[];
  /** Those from there: what comes next is refused. */
  shutOut: readonly ShutOut[];
}

/** The connections that the kernel remembers; tests that need no kernel pass their own. */
export interface Conntrack {
  /** Reads the flows of UDP, all of the node. Those of many clients that lead the same way are one. */
  observe: () => Promise<Flow[]>;
  /** Deletes such flows. @throws {ConntrackError} when the kernel refuses */
  forget: (flows: Flows) => Promise<void>;
}

/** The kernel does not list connections, or does not let one be deleted. */
export class ConntrackError extends Error {
  override readonly name = 'ConntrackError';
}

const protocols = { tcp: 6, udp: 17, sctp: 132 } as const;
type Protocol = keyof typeof protocols;

/*
 * <linux/netfilter/nfnetlink_conntrack.h>, <linux/netfilter/nf_conntrack_tcp.h>. struct nfgenmsg: family, version, and nothing.
 * Addresses and ports are sent with the highest byte first.
 */
const NFNL_SUBSYS_CTNETLINK = 1;
const messages = { get: (NFNL_SUBSYS_CTNETLINK << 8) | 1, delete: (NFNL_SUBSYS_CTNETLINK << 8) | 2 } as const;
const nfgenmsgBytes = 4;
const AF_INET = 2;
const ofFlow = { original: 1, reply: 2, protocolState: 4, id: 12, zone: 18 } as const;
const ofTuple = { addresses: 1, protocol: 2 } as const;
const ofAddresses = { source: 1, destination: 2 } as const;
const ofProtocol = { number: 1, sourcePort: 2, destinationPort: 3 } as const;
const ofState = { tcp: 1 } as const;
const ofTcp = { state: 1 } as const;
const TCP_CONNTRACK_SYN_SENT = 1;

/** Addresses are numbers here: there may be a million of them. */
interface Entry {
  protocol: number;
  source: number;
  address: number;
  port: number;
  to: number;
  targetPort: number;
  /** TCP alone: nobody has answered yet. */
  unanswered: boolean;
}

export interface ConntrackOptions {
  /** Called for each time that something was to be forgotten, for the debug log. */
  onForgotten?: (flows: Flows, forgotten: number, milliseconds: number) => void;
  /** Path of the network namespace whose connections these are; absent: the one that this process is in. */
  namespace?: string;
}

/**
 * The table is read once, whatever is looked for. conntrack(8) reads it once for each thing to look for, and gives up when
 * somebody else deletes what it found.
 */
export function kernelConntrack({ onForgotten, namespace }: ConntrackOptions = {}): Conntrack {
  const connect = (): Netlink => new Netlink('netfilter');
  const open = namespace === undefined ? connect : () => inNamespace(namespace, connect);
  return {
    observe: async () => {
      const flows = new Map<string, Flow>();
      await scan(open, (entry) => {
        if (entry.protocol !== protocols.udp) return;
        const { port, targetPort } = entry;
        const flow = { address: formatAddress(entry.address), port, to: formatAddress(entry.to), targetPort };
        flows.set(Object.values(flow).join(' '), flow);
      });
      return [...flows.values()];
    },
    forget: async (flows) => {
      const { endless, all, shutOut } = flows;
      if (endless.length + all.length + shutOut.length === 0) return;
      const began = performance.now();
      const forgotten = await forget(open, matcher(flows));
      onForgotten?.(flows, forgotten, performance.now() - began);
    },
  };
}

/** @returns how many there were */
async function forget(open: () => Netlink, isMeant: (entry: Entry) => boolean): Promise<number> {
  const found: Buffer[] = [];
  await scan(open, (entry, attributes) => {
    if (isMeant(entry)) found.push(identity(attributes));
  });
  await speak(open, 'delete a connection', async (netlink) => {
    const turn = new Turn();
    for (const body of found) {
      try {
        netlink.change(messages.delete, 0, body);
      } catch (error) {
        // Its time was over, or somebody else deleted it.
        if (!(error instanceof NetlinkError && error.isMissing)) throw error;
      }
      await turn.pass();
    }
  });
  return found.length;
}

function scan(
  open: () => Netlink,
  each: (entry: Entry, attributes: ReadonlyMap<number, Buffer>) => void,
): Promise<void> {
  return speak(open, 'list connections', async (netlink) => {
    const turn = new Turn();
    for (const part of netlink.parts(messages.get, family())) {
      for (const { body } of part) {
        const attributes = attributesOf(body, nfgenmsgBytes);
        const entry = entryOf(attributes);
        if (entry !== undefined) each(entry, attributes);
      }
      await turn.pass();
    }
  });
}

async function speak(
  open: () => Netlink,
  what: string,
  say: (netlink: Netlink) => Promise<void>,
): Promise<void> {
  // A socket of its own each time: a dump goes on over several turns of the event loop.
  const netlink = open();
  try {
    await say(netlink);
  } catch (error) {
    if (!(error instanceof NetlinkError)) throw error;
    throw new ConntrackError(`conntrack: the kernel does not ${what}: ${error.message}`, { cause: error });
  } finally {
    netlink.close();
  }
}

/** For how long nobody else in this process has a turn, in milliseconds. */
const turnMs = 5;

/** Lets others have theirs once it has taken long enough. */
class Turn {
  #began = performance.now();

  async pass(): Promise<void> {
    if (performance.now() - this.#began < turnMs) return;
    await new Promise(setImmediate);
    this.#began = performance.now();
  }
}
function family(): Buffer {
  return Buffer.from([AF_INET, 0, 0, 0]);
}

/** What names an entry, and no later one of the same addresses and ports. */
function identity(attributes: ReadonlyMap<number, Buffer>): Buffer {
  const [original, zone, id] = [ofFlow.original, ofFlow.zone, ofFlow.id].map((type) => attributes.get(type));
  return Buffer.concat([
    family(),
    ...(original === undefined ? [] : [nested(ofFlow.original, original)]),
    ...(zone === undefined ? [] : [attribute(ofFlow.zone, zone)]),
    ...(id === undefined ? [] : [attribute(ofFlow.id, id)]),
  ]);
}

/** @returns undefined for what has no ports */
function entryOf(attributes: ReadonlyMap<number, Buffer>): Entry | undefined {
  const [asked, answer] = [tupleOf(attributes.get(ofFlow.original)), tupleOf(attributes.get(ofFlow.reply))];
  if (asked === undefined || answer === undefined) return undefined;
  return {
    protocol: asked.protocol,
    source: asked.source,
    address: asked.destination,
    port: asked.destinationPort,
    to: answer.source,
    targetPort: answer.sourcePort,
    unanswered:
      asked.protocol === protocols.tcp &&
      tcpState(attributes.get(ofFlow.protocolState)) === TCP_CONNTRACK_SYN_SENT,
  };
}

interface Tuple {
  protocol: number;
  source: number;
  destination: number;
  sourcePort: number;
  destinationPort: number;
}

function tupleOf(tuple: Buffer | undefined): Tuple | undefined {
  if (tuple === undefined) return undefined;
  const parts = attributesOf(tuple, 0);
  const [addresses, protocol] = [parts.get(ofTuple.addresses), parts.get(ofTuple.protocol)];
  if (addresses === undefined || protocol === undefined) return undefined;
  const [ip, l4] = [attributesOf(addresses, 0), attributesOf(protocol, 0)];
  const source = ip.get(ofAddresses.source)?.readUInt32BE();
  const destination = ip.get(ofAddresses.destination)?.readUInt32BE();
  const number = l4.get(ofProtocol.number)?.readUInt8();
  const sourcePort = l4.get(ofProtocol.sourcePort)?.readUInt16BE();
  const destinationPort = l4.get(ofProtocol.destinationPort)?.readUInt16BE();
  if (source === undefined || destination === undefined || number === undefined) return undefined;
  if (sourcePort === undefined || destinationPort === undefined) return undefined;
  return { protocol: number, source, destination, sourcePort, destinationPort };
}

function tcpState(state: Buffer | undefined): number | undefined {
  const tcp = state && attributesOf(state, 0).get(ofState.tcp);
  return tcp && attributesOf(tcp, 0).get(ofTcp.state)?.readUInt8();
}

/** Looks at who answers first: of nearly all entries nothing else is looked at. */
function matcher({ endless, all, shutOut }: Flows): (entry: Entry) => boolean {
  const whole = new Set(all.map(parseAddress));
  const byAnswer = Map.groupBy(endless.map(endlessFlows), ({ to }) => to);
  const anybody = byAnswer.get(undefined) ?? [];
  const closed = Map.groupBy(
    shutOut.flatMap(({ addresses, sources, ...rest }) => {
      const ranges = sources.map(rangeOf);
      return addresses.map((to) => ({ ...rest, ranges, to: parseAddress(to) }));
    }),
    ({ to }) => to,
  );
  return (entry) => {
    const { protocol, source, port, to } = entry;
    const isEndless = protocol === protocols.udp || entry.unanswered;
    return (
      whole.has(to) ||
      (isEndless &&
        (anybody.some(({ has }) => has(entry)) || byAnswer.get(to)?.some(({ has }) => has(entry)))) ||
      closed
        .get(to)
        ?.some(
          (one) =>
            protocols[one.protocol] === protocol &&
            (one.port === undefined || one.port === port) &&
            one.ranges.some(({ first, last }) => source >= first && source <= last),
        ) === true
    );
  };
}

function endlessFlows({ address, protocol, port, count = 1, to }: FlowsTo): {
  to: number | undefined;
  has: (entry: Entry) => boolean;
} {
  const asked = address === undefined ? undefined : parseAddress(address);
  return {
    to: to === undefined ? undefined : parseAddress(to),
    has: (entry) =>
      (asked === undefined || entry.address === asked) &&
      (protocol === undefined || entry.protocol === protocols[protocol]) &&
      (port === undefined || (entry.port >= port && entry.port < port + count)),
  };
}
