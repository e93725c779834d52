// Owns which parts of what is desired the kernel refuses, and what is desired without them: one costs only itself.
// Must not touch the kernel: it asks whether a part would be taken.
import { BlockList } from 'node:net';
import { virtualServerId, type VirtualServer } from '../lb/model.ts';
import type { DesiredState } from './desired-state.ts';

/** A part that is left out, in words for the user. */
export interface Refusal {
  what: string;
  why: string;
}

/** What may be left out by itself; what others stand on first. */
const kinds = ['networks', 'endpoints', 'neighbours', 'servers', 'hostPorts', 'flowTimeouts'] as const;
type Kind = (typeof kinds)[number];
interface Part {
  kind: Kind;
  item: DesiredState[Kind][number];
}

/** To find one among n takes some 2 log2 n questions; where nearly all is refused, it is something else. */
const maxQuestions = 300;

/** How long it is taken for refused without asking again, in milliseconds: a module may have been loaded. */
const patience = 60_000;

export class Refusals {
  /** By {@link keyOf}. */
  readonly #parts = new Map<string, Refusal>();
  #since = 0;

  get list(): readonly Refusal[] {
    return [...this.#parts.values()];
  }

  /** What is desired, without what was refused. A virtual server that was is there without its servers: nobody else answers for it. */
  without(desired: DesiredState): DesiredState {
    if (this.#parts.size > 0 && performance.now() - this.#since > patience) this.#parts.clear();
    if (this.#parts.size === 0) return desired;
    const parts = partsOf(desired);
    const there = new Set(parts.map(keyOf));
    for (const key of this.#parts.keys()) if (!there.has(key)) this.#parts.delete(key);
    const left = only(
      desired,
      parts.filter((part) => !this.#parts.has(keyOf(part))),
    );
    const closed = parts.flatMap(({ kind, item }) =>
      kind === 'servers' && this.#parts.has(keyOf({ kind, item })) ? close(item as VirtualServer) : [],
    );
    return { ...left, servers: [...left.servers, ...closed] };
  }

  /** Takes note of virtual servers that somebody else found to be refused. */
  addServers(servers: readonly VirtualServer[], why: string): void {
    for (const item of servers) this.#add({ kind: 'servers', item }, why);
  }

  /**
   * Looks for the parts without which the rest would be taken.
   * @param refuses why the kernel would not take this, undefined if it would
   * @returns whether they were found
   */
  async find(
    desired: DesiredState,
    refuses: (desired: DesiredState) => Promise<string | undefined>,
  ): Promise<boolean> {
    let questions = 0;
    const good: Part[] = [];
    const bad: [Part, string][] = [];
    const search = async (some: readonly Part[]): Promise<boolean> => {
      if (some.length === 0) return true;
      if ((questions += 1) > maxQuestions) return false;
      const why = await refuses(only(desired, [...good, ...some]));
      if (why === undefined) good.push(...some);
      else if (some[0] !== undefined && some.length === 1) bad.push([some[0], why]);
      else {
        const half = some.length >> 1;
        return (await search(some.slice(0, half))) && (await search(some.slice(half)));
      }
      return true;
    };
    // Where not even nothing is taken, no part is to blame.
    if ((await refuses(only(desired, []))) !== undefined) return false;
    if (!(await search(partsOf(desired))) || bad.length === 0) return false;
    for (const [part, why] of bad) this.#add(part, why);
    return true;
  }

  #add(part: Part, why: string): void {
    if (this.#parts.size === 0) this.#since = performance.now();
    this.#parts.set(keyOf(part), { what: nameOf(part), why });
  }
}

function partsOf(desired: DesiredState): Part[] {
  return kinds.flatMap((kind) => desired[kind].map((item): Part => ({ kind, item })));
}

/** Endpoints of a network that is left out are, too: without its rules they would not be kept apart from others. */
function only(desired: DesiredState, parts: readonly Part[]): DesiredState {
  const of = <K extends Kind>(kind: K): DesiredState[K] =>
    parts.filter((part) => part.kind === kind).map(({ item }) => item) as unknown as DesiredState[K];
  const networks = of('networks');
  const left = new Set(networks);
  const apart = new BlockList();
  for (const network of desired.networks)
    if (!left.has(network)) {
      const [address = '', prefix = '32'] = network.subnet.split('/');
      apart.addSubnet(address, Number(prefix));
    }
  return {
    ...desired,
    networks,
    endpoints: of('endpoints').filter(({ address }) => !apart.check(address)),
    neighbours: of('neighbours'),
    servers: of('servers'),
    hostPorts: of('hostPorts'),
    flowTimeouts: of('flowTimeouts'),
  };
}

function close(server: VirtualServer): VirtualServer {
  const { policy: _, ...rest } = server;
  return { ...rest, realServers: [] };
}

/** By its content: a store on this node gives other objects each time. */
function keyOf({ kind, item }: Part): string {
  return `${kind} ${JSON.stringify(item)}`;
}

function nameOf({ kind, item }: Part): string {
  switch (kind) {
    case 'servers':
      return `the virtual server ${virtualServerId(item as VirtualServer)}`;
    case 'networks':
      return `the network ${(item as DesiredState['networks'][number]).subnet}`;
    case 'endpoints':
      return `the endpoint ${(item as DesiredState['endpoints'][number]).address}`;
    case 'neighbours':
      return `the node ${(item as DesiredState['neighbours'][number]).address}`;
    case 'hostPorts':
      return `what the container ${(item as DesiredState['hostPorts'][number]).address} publishes`;
    case 'flowTimeouts':
      return `the timeouts of ${(item as DesiredState['flowTimeouts'][number]).addresses.join(', ')}`;
  }
}
