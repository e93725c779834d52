// Owns the words of the load balancer: virtual servers, real servers, and what an engine is.
// Must not know Docker, nor how an engine does it.
import type { NftContent, NftLayout } from '../net/table.ts';
import type { PolicyRecord } from '../store/records.ts';
import type { IpvsService } from './ipvsadm.ts';

export type Protocol = 'tcp' | 'udp' | 'sctp';

export interface RealServer {
  /** IPv4 address of the task. */
  address: string;
  /** Share of new connections; 0 drains: established connections go on, new ones go elsewhere. */
  weight: number;
}

/** An address, all ports of it, that stands for the tasks of a service on one network. */
export interface VipServer {
  kind: 'vip';
  address: string;
  realServers: readonly RealServer[];
  policy?: PolicyRecord;
}

/** A port on every address of every node that stands for a port of the tasks of a service. */
export interface PortServer {
  kind: 'port';
  protocol: Protocol;
  /** The published port. */
  port: number;
  /** The port the tasks listen on. */
  targetPort: number;
  /** How many neighbours it stands for, itself among them: each is the same on the tasks. Absent: this one. */
  count?: number;
  realServers: readonly RealServer[];
  policy?: PolicyRecord;
}

export type VirtualServer = VipServer | PortServer;

/** Identity: at most one virtual server of a node has it. E.g. `vip-10.0.0.4`, `port-tcp-8080`, `port-udp-10000-20000`. */
export function virtualServerId(server: VirtualServer): string {
  if (server.kind === 'vip') return `vip-${server.address}`;
  const { protocol, port, count } = server;
  return `port-${protocol}-${port}${count === undefined ? '' : `-${port + count - 1}`}`;
}

/** The real servers that take new connections. */
export function activeServers({ realServers }: VirtualServer): readonly RealServer[] {
  return realServers.filter(({ weight }) => weight > 0);
}

/** By what the next real server is chosen. */
export type Choice =
  /** In turn, each by its weight. */
  | 'turn'
  /** By the client's address: it gets the same one as long as the real servers stay. */
  | 'source'
  /** By the client's address and port: any node makes the same choice for the same connection. */
  | 'flow';

/** What an engine puts into the kernel for a set of virtual servers. */
export interface EngineState {
  content: NftContent;
  services: readonly IpvsService[];
  /** By {@link virtualServerId}: what to give to the next {@link Engine.render}. */
  marks: ReadonlyMap<string, number>;
}

/**
 * A way to balance. Pure: it renders, net/ and {@link IpvsService}'s plan bring it into the kernel. For the same server
 * object there are the same parts and services.
 */
export interface Engine {
  readonly name: 'ipvs' | 'nft';
  readonly layout: NftLayout;
  /**
   * @param kept marks that virtual servers have in the kernel now, by {@link virtualServerId}: they keep them
   */
  render(servers: readonly VirtualServer[], kept: ReadonlyMap<string, number>): EngineState;
  /** What of the policy it cannot do, and what it does instead; in words for the user. */
  unsupported(policy: PolicyRecord | undefined): string[];
}
