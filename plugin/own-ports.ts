// Owns the list of ports and addresses that nodes have for themselves: Causeway's own, its store's, Swarm's. No service or
// network can take them, and no container reaches them.
// Must not know how they are kept.
import { isIPv4 } from 'node:net';
import type { InUse } from '../net/host.ts';
import type { RuledHost, RuledPort } from '../net/rules.ts';
import type { NodeRecord } from '../store/records.ts';
import { parseStore, type Config } from './config.ts';

/** A port, and whose it is, in words for an error message. */
export interface OwnPort extends RuledPort {
  whose: string;
}

const both = (port: number, whose: string): OwnPort[] => [
  { protocol: 'tcp', port, whose },
  { protocol: 'udp', port, whose },
];

/** Docker's, see its documentation of Swarm; the last is that of its overlay. */
const swarm: readonly OwnPort[] = [
  { protocol: 'tcp', port: 2377, whose: 'Swarm’s managers' },
  ...both(7946, 'Swarm’s nodes'),
  { protocol: 'udp', port: 4789, whose: 'Docker’s overlay' },
];

/** Consul's servers and agents, beside the port by which they are asked. */
const consul = [8300, 8301, 8302];

/** Addresses that no network can have, though this host may reach them by its default route: nodes and the store. */
export function clusterInUse(config: Config, nodes: readonly NodeRecord[]): InUse[] {
  const store = parseStore(config.CAUSEWAY_STORE);
  const stores = store.kind === 'embedded' ? [] : store.addresses.filter(({ host }) => isIPv4(host));
  return [
    ...nodes.map(({ address, name }) => ({ cidr: `${address}/32`, what: `address of the node ${name}` })),
    ...stores
      .filter(({ host }) => !host.startsWith('127.'))
      .map(({ host }) => ({ cidr: `${host}/32`, what: 'address of Consul, CAUSEWAY_STORE' })),
  ];
}

/** The ports of other nodes that none may reach but nodes. */
export function controlPorts(config: Config): readonly OwnPort[] {
  const store = parseStore(config.CAUSEWAY_STORE);
  return [
    { protocol: 'udp', port: config.CAUSEWAY_FABRIC_PORT, whose: 'Causeway’s fabric, CAUSEWAY_FABRIC_PORT' },
    ...both(config.CAUSEWAY_PEER_PORT, 'Causeway’s nodes, CAUSEWAY_PEER_PORT'),
    ...both(config.CAUSEWAY_DNS_PORT, 'Causeway’s name server, CAUSEWAY_DNS_PORT'),
    ...swarm,
    ...(store.kind === 'embedded'
      ? []
      : [
          ...[...new Set(store.addresses.map(({ port }) => port))].map((port): OwnPort => ({
            protocol: 'tcp',
            port,
            whose: 'Consul, CAUSEWAY_STORE',
          })),
          ...consul.flatMap((port) => both(port, 'Consul')),
        ]),
  ];
}

/**
 * The ports that no service can publish: it would be given what is said to them, on every node.
 * @returns by {@link portName}, whose it is
 */
export function reservedPorts(config: Config): ReadonlyMap<string, string> {
  const admin = config.CAUSEWAY_ADMIN.startsWith('tcp:') ? Number(new URL(config.CAUSEWAY_ADMIN).port) : 0;
  const own = [
    ...controlPorts(config),
    ...(admin === 0 ? [] : [{ protocol: 'tcp', port: admin, whose: 'Causeway’s admin API, CAUSEWAY_ADMIN' }]),
  ];
  return new Map(own.map((port) => [portName(port), port.whose]));
}

/** As Docker writes a port, e.g. `8080/tcp`. */
export function portName({ protocol, port }: { protocol: string; port: number }): string {
  return `${port}/${protocol}`;
}

export function hostRules(config: Config): Omit<RuledHost, 'uplinks' | 'sourceRoutes'> {
  const store = parseStore(config.CAUSEWAY_STORE);
  return {
    peerPort: config.CAUSEWAY_PEER_PORT,
    control: controlPorts(config),
    stores:
      store.kind === 'embedded'
        ? []
        : store.addresses
            .filter(({ host }) => isIPv4(host) && !host.startsWith('127.'))
            .map(({ host, port }) => ({ address: host, port })),
    // A resolver that a container's /etc/resolv.conf names may be its own node's.
    openPorts: both(53, ''),
    access: config.CAUSEWAY_HOST_ACCESS === 'on',
  };
}
