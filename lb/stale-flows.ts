// Owns which flows lead where no new connection would: to who took connections a moment ago and takes none any more, and past
// what was published while they went on. Must not know what is done about it.
import { difference, flat, MapCache, memoLast } from '../delta/list.ts';
import type { Flow } from '../net/conntrack.ts';
import type { HostPortContainer } from './host-ports.ts';
import { activeServers, virtualServerId, type Protocol, type VirtualServer } from './model.ts';

/** By what connections are led to somebody: an address of the virtual server's own, or a port. */
export interface Frontend {
  /** Absent: of all nodes. */
  address?: string;
  protocol?: Protocol;
  port?: number;
  /** Of ports from that one on; absent: it alone. */
  count?: number;
}

export interface Stale {
  /** Addresses that took connections once and take none now. */
  addresses: readonly string[];
  /** Frontends that led to an address which others still lead to. */
  ways: readonly (Frontend & { to: string })[];
  /** Ports of datagrams that led nowhere: flows that began then are nobody's, and have no end of their own. */
  opened: readonly Frontend[];
}

/** A virtual server or a port of a single container, as far as flows go. */
interface Lead {
  id: string;
  frontend: Frontend;
  targetPort?: number;
  /** Addresses that take its new connections. */
  to: readonly string[];
}

/** Follows what is published from one state to the next; the cost is that of the change. */
export class StaleFlows {
  #leads: readonly Lead[] | undefined;
  /** Address to the number of leads it takes connections of. */
  readonly #taking = new Map<string, number>();
  readonly #addresses = new Set<string>();
  /** By lead and address. */
  readonly #ways = new Map<string, Frontend & { to: string }>();
  /** By lead. */
  readonly #opened = new Map<string, Frontend>();
  readonly #servers = new MapCache(leadOf);
  readonly #containers = new MapCache(leadsOf);
  readonly #all = memoLast(
    (servers: readonly Lead[], containers: readonly (readonly Lead[])[]): readonly Lead[] =>
      servers.concat(flat(containers)),
  );

  /** Nothing was followed yet: what changed before is only to be seen from the flows there are. */
  get isNew(): boolean {
    return this.#leads === undefined;
  }

  /**
   * @param found at first: flows of UDP to our endpoints or to the node itself, which a plugin that was away may have missed
   * @returns what is to be done, until it is {@link flushed}. What is there at first has been there before us.
   */
  update(
    servers: readonly VirtualServer[],
    containers: readonly HostPortContainer[],
    found: readonly Flow[] = [],
  ): Stale {
    const leads = this.#all(this.#servers.of(servers), this.#containers.of(containers));
    const { removed, added } = difference(this.#leads ?? [], leads);
    const first = this.#leads === undefined;
    this.#leads = leads;
    const [before, now] = [byId(removed), byId(added)];
    for (const lead of added) this.#add(lead, first ? lead : before.get(lead.id));
    for (const lead of removed) this.#remove(lead, now.get(lead.id));
    for (const flow of found) this.#check(flow, leads);
    for (const address of this.#addresses)
      if ((this.#taking.get(address) ?? 0) > 0) this.#addresses.delete(address);
    return {
      addresses: [...this.#addresses],
      ways: [...this.#ways.values()].filter(({ to }) => !this.#addresses.has(to)),
      opened: [...this.#opened.values()],
    };
  }

  /** What was to be done about these is done. */
  flushed({ addresses, ways, opened }: Stale): void {
    for (const address of addresses) this.#addresses.delete(address);
    const [led, open] = [new Set(ways), new Set(opened)];
    for (const [key, way] of this.#ways)
      if (led.has(way) || addresses.includes(way.to)) this.#ways.delete(key);
    for (const [key, frontend] of this.#opened) if (open.has(frontend)) this.#opened.delete(key);
  }

  /** Takes note of a flow that would go elsewhere if it began now. */
  #check(flow: Flow, leads: readonly Lead[]): void {
    const { address, port, to } = flow;
    const its = leads.filter((lead) => isLed(flow, lead));
    const led = its.some((lead) => lead.to.includes(to) && keepsPort(flow, lead));
    const direct = to === address && its.every((lead) => lead.to.length === 0);
    if (led || direct) return;
    if (to !== address && !this.#taking.has(to)) this.#addresses.add(to);
    else this.#ways.set(`${address} ${port} ${to}`, { protocol: 'udp', address, port, to });
  }

  #add({ id, frontend, to }: Lead, before: Lead | undefined): void {
    for (const address of to) {
      this.#taking.set(address, (this.#taking.get(address) ?? 0) + 1);
      this.#ways.delete(`${id} ${address}`);
    }
    if (frontend.protocol === 'udp' && to.length > 0 && (before?.to ?? []).length === 0)
      this.#opened.set(id, frontend);
  }

  #remove({ id, frontend, targetPort, to }: Lead, after: Lead | undefined): void {
    const stay = new Set(after?.targetPort === targetPort ? after?.to : []);
    for (const address of to) {
      const left = (this.#taking.get(address) ?? 0) - 1;
      if (left > 0) this.#taking.set(address, left);
      else {
        this.#taking.delete(address);
        this.#addresses.add(address);
      }
      if (!stay.has(address)) this.#ways.set(`${id} ${address}`, { ...frontend, to: address });
    }
    if ((after?.to ?? []).length === 0) this.#opened.delete(id);
  }
}

/** Whether a datagram to where the flow went is led by it. */
function isLed({ address, port }: Flow, { frontend }: Lead): boolean {
  const { protocol, port: first, count = 1 } = frontend;
  return (
    (frontend.address === undefined || frontend.address === address) &&
    (protocol === undefined || protocol === 'udp') &&
    (first === undefined || (port >= first && port < first + count))
  );
}

function keepsPort(flow: Flow, { frontend, targetPort }: Lead): boolean {
  const isOne = targetPort !== undefined && frontend.count === undefined;
  return flow.targetPort === (isOne ? targetPort : flow.port);
}

function leadOf(server: VirtualServer): Lead {
  const to = activeServers(server).map(({ address }) => address);
  const id = virtualServerId(server);
  if (server.kind === 'vip') return { id, frontend: { address: server.address }, to };
  const { protocol, port, count, targetPort } = server;
  return { id, frontend: { protocol, port, ...(count !== undefined && { count }) }, targetPort, to };
}

function leadsOf({ address: to, ports }: HostPortContainer): readonly Lead[] {
  return ports.map(({ protocol, address, port, targetPort }) => ({
    id: `host-${address ?? ''}-${protocol}-${port}`,
    frontend: { protocol, port, ...(address !== undefined && { address }) },
    targetPort,
    to: [to],
  }));
}

function byId(leads: readonly Lead[]): Map<string, Lead> {
  return new Map(leads.map((lead) => [lead.id, lead]));
}
