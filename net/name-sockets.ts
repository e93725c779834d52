// Owns the name server's sockets in a sandbox, and the rules there that give them the questions for names that are sent to Docker's
// resolver, as long as somebody listens. The reasons are in docs/adr/0010-names.md.
// Must not know what is asked or answered.
import { closeSync } from 'node:fs';
import {
  inNamespace,
  localPort,
  openSocket,
  setTransparent,
  type Protocol,
  type SocketAddress,
} from './namespace.ts';
import { table } from './names.ts';
import { directions, priority, protocols, type SandboxTables, type Table } from './nft-tables.ts';

/** Where every container on a user's network asks: Docker's resolver, inside the sandbox. */
const resolver: SocketAddress = { address: '127.0.0.11', port: 53 };

/** Where the name server is in each sandbox, and what it asks Docker's resolver from. */
const own = '127.0.0.12';

/** File descriptors of sockets in a sandbox, both bound to the same port. */
export interface NameSockets {
  udp: number;
  tcp: number;
  port: number;
}

/** A port that is free for UDP may be taken for TCP. */
const attempts = 10;

/**
 * Opens them; nobody is led to them yet ({@link leadNames}).
 * @param sandbox path of its network namespace
 * @throws {NamespaceError} also while the sandbox is not made yet
 */
export function openNameSockets(sandbox: string): NameSockets {
  return inNamespace(sandbox, () => {
    for (let attempt = 1; ; attempt += 1) {
      const udp = openSocket({ protocol: 'udp', local: { address: own, port: 0 }, transparent: true });
      try {
        // Any port that is free: whatever number it had, a program in the container might want it.
        const port = localPort(udp);
        const tcp = openSocket({ protocol: 'tcp', local: { address: own, port }, transparent: true });
        return { udp, tcp, port };
      } catch (error) {
        closeSync(udp);
        if (attempt === attempts) throw error;
      }
    }
  });
}

/**
 * From now on they are given nothing more, and Docker's resolver answers. What they were given can still be read, and connections
 * go on: who closes them later than that loses no question.
 * @throws {NamespaceError}
 */
export function stopTaking({ udp, tcp }: Pick<NameSockets, 'udp' | 'tcp'>): void {
  // The rule takes for its own what is transparent, and lets go on all else.
  for (const socket of [udp, tcp]) setTransparent(socket, false);
}

/**
 * Opens a socket that asks Docker's resolver of a sandbox, from where the container would ask it, and is not led here again.
 * For TCP it is connected.
 * @throws {NamespaceError}
 */
export function openResolverSocket(sandbox: string, protocol: Protocol): number {
  const local = { address: own, port: 0 };
  return inNamespace(sandbox, () =>
    openSocket({ protocol, local, ...(protocol === 'tcp' && { remote: resolver }) }),
  );
}

/** Docker's resolver, as it is asked by {@link openResolverSocket}. */
export const resolverAddress = resolver;

/**
 * What a sandbox's table holds. Docker's own rules stay as they are: they translate to the port of its resolver, and what nobody
 * here takes goes on to it. Nothing has to be kept alive for that: the kernel looks for the
 * socket with each of them.
 */
function rules(port: number, name = table): Table {
  return {
    name,
    chains: [
      {
        ...{ name: 'ask', hook: 'prerouting', priority: priority.mangle },
        // A connection's every packet, but none of its answers; and nothing that is asked from here.
        rules: [protocols.tcp, protocols.udp].map((protocol) => [
          { field: 'iifname', is: 'lo' },
          { field: 'meta l4proto', is: protocol },
          { field: 'ct direction', is: directions.original },
          { field: 'ct original ip daddr', is: resolver.address },
          { field: 'ct original proto-dst', is: resolver.port },
          { field: 'ip saddr', isNot: own },
          { tproxy: { address: own, port } },
        ]),
      },
      {
        // A datagram that leaves a socket has the socket's own address. (A connection has the one that was asked.) It needs no
        // translation back then, which also does without knowing at which port Docker's resolver is.
        ...{ name: 'answer', hook: 'output', priority: priority.raw },
        rules: [
          [
            { field: 'ip saddr', is: own },
            { field: 'meta l4proto', is: protocols.udp },
            { field: 'udp sport', is: port },
            { field: 'ip saddr', set: resolver.address },
            { field: 'udp sport', set: resolver.port },
            'notrack',
          ],
        ],
      },
    ],
  };
}

/** Whether this kernel can do it (nft's `tproxy`). */
export function canLeadNames(tables: Pick<SandboxTables, 'takes'>): boolean {
  return tables.takes(rules(resolver.port, `${table}-trial`));
}

/**
 * Leads what a sandbox asks Docker's resolver to its name sockets, in place of others before.
 * @throws {NamespaceError} @throws {TableError}
 */
export function leadNames(tables: Pick<SandboxTables, 'put'>, sandbox: string, port: number): void {
  tables.put(sandbox, rules(port));
}

/** Leaves a sandbox as it would be without us. @throws {NamespaceError} @throws {TableError} */
export function unleadNames(tables: Pick<SandboxTables, 'remove'>, sandbox: string): void {
  tables.remove(sandbox, table);
}
