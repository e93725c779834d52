// Owns which of the node's ports a container publishes by itself (docker run -p, mode=host): what was asked for, what is
// free, and what is chosen where the user left it open.
// Must not know how a port is led to its container (lb/host-ports.ts).
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { createServer, isIPv4 } from 'node:net';
import { setImmediate as breathe } from 'node:timers/promises';
import type { HostPort } from '../store/records.ts';
import { RequestError } from './errors.ts';
import type { PortBinding } from './protocol.ts';

/** By number, as IANA has them and Docker sends them. */
const protocols: Record<number, HostPort['protocol']> = { 6: 'tcp', 17: 'udp', 132: 'sctp' };

/** From where a port is chosen that the user left open, as Docker does it: the dynamic ports of RFC 6335. */
const dynamic = { first: 49_153, last: 65_535 } as const;

/** @returns why this node cannot give the port to a container, as an error's code; undefined when it can */
export type PortProbe = (
  protocol: HostPort['protocol'],
  address: string,
  port: number,
) => Promise<string | undefined>;

/** A port that is not to be had. */
export interface TakenPort extends Omit<HostPort, 'targetPort'> {
  /** Who has published it, as the subject of a sentence. */
  by: string;
}

/**
 * @param taken by other containers of this node, and by services
 * @param random from 0 and below 1: where the search for a port that was left open begins
 * @throws {RequestError} naming the port, and what to do
 */
export async function chooseHostPorts(
  bindings: readonly PortBinding[],
  taken: readonly TakenPort[],
  trial: PortProbe,
  random: () => number = Math.random,
): Promise<HostPort[]> {
  const holders = new Map<string, TakenPort[]>();
  const take = (port: TakenPort): void => {
    const key = portName(port);
    const others = holders.get(key);
    if (others === undefined) holders.set(key, [port]);
    else others.push(port);
  };
  for (const port of taken) take(port);
  const chosen: HostPort[] = [];
  for (const [index, binding] of bindings.entries()) {
    const port = await choose(binding, holders, trial, random);
    chosen.push(port);
    take({ ...port, by: 'the same container' });
    // Sockets open and close without a look at anything else: names are answered meanwhile.
    if (index % breathEvery === breathEvery - 1) await breathe();
  }
  // In the order in which neighbours are written as one.
  return chosen.length < long ? chosen : chosen.sort((one, other) => one.port - other.port);
}

/** So many ports have an order of ours. */
const long = 64;

/** After so many ports others have their turn. */
const breathEvery = 100;

const portName = ({ protocol, port }: Pick<HostPort, 'protocol' | 'port'>): string => `${port}/${protocol}`;

async function choose(
  { Proto, Port: targetPort, HostIP, HostPort: first, HostPortEnd }: PortBinding,
  holders: ReadonlyMap<string, readonly TakenPort[]>,
  trial: PortProbe,
  random: () => number,
): Promise<HostPort> {
  const protocol = protocols[Proto];
  if (protocol === undefined)
    throw new RequestError(
      'port-protocol',
      `a port of protocol ${Proto} cannot be published: tcp, udp and sctp can`,
    );
  const any = HostIP === '' || HostIP === '0.0.0.0' || HostIP === '::';
  if (!any && !isIPv4(HostIP))
    throw new RequestError(
      'no-ipv6',
      `ports cannot be published at ${HostIP} yet: publish them at an IPv4 address of this node, or at all`,
    );
  const address = any ? {} : { address: HostIP };
  const range = first === 0 ? dynamic : { first, last: Math.max(first, HostPortEnd) };
  const count = range.last - range.first + 1;
  const start = first === 0 ? Math.floor(random() * count) : 0;
  let why = '';
  for (let step = 0; step < count; step += 1) {
    const port: HostPort = { protocol, ...address, port: range.first + ((start + step) % count), targetPort };
    const other = holders.get(portName(port))?.find((one) => meet(one, port));
    if (other !== undefined) {
      why = `${other.by} has published it`;
      continue;
    }
    const trouble = await trial(protocol, any ? '' : HostIP, port.port);
    if (trouble === undefined) return port;
    if (trouble === 'EADDRNOTAVAIL')
      throw new RequestError('no-such-address', `${HostIP} is no address of this node: see ip address show`);
    why =
      trouble === 'EADDRINUSE'
        ? 'a program on this node listens there, or a service of another network has published it'
        : `this node does not give it (${trouble})`;
  }
  const name = `${range.first}${count > 1 ? `-${range.last}` : ''}/${protocol}`;
  throw new RequestError(
    'port-in-use',
    `port ${name} cannot be published: ${why}. Free it, or publish another one`,
  );
}

/** Whether two of the same number meet at an address. */
function meet(one: TakenPort, other: HostPort): boolean {
  return one.address === undefined || other.address === undefined || one.address === other.address;
}

/** Tries to listen there, in the namespace of this process: the host's. Of SCTP Node knows nothing, so it is not tried. */
export const tryHostPort: PortProbe = async (protocol, address, port) => {
  if (protocol === 'sctp') return undefined;
  const at = { port, ...(address === '' ? {} : { address, host: address }) };
  try {
    if (protocol === 'tcp') {
      const server = createServer().listen({ ...at, host: address === '' ? '0.0.0.0' : address });
      await once(server, 'listening');
      server.close();
      await once(server, 'close');
    } else {
      const socket = createSocket('udp4');
      try {
        const listening = once(socket, 'listening');
        socket.bind(at);
        await listening;
      } finally {
        socket.close();
      }
    }
    return undefined;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  }
};
