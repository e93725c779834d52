// Owns the engine for kernels with IPVS: nft marks what belongs to a virtual server, one IPVS service per mark balances.
// Must not run anything; lb/ipvsadm.ts does.
import { memoByObject } from '../delta/list.ts';
import { fabricLink, hex, markMask, returnMarkBase } from '../net/names.ts';
import { contentName, type NftLayout, type NftPart } from '../net/table.ts';
import {
  aheadOfDocker,
  balanced,
  noopDnat,
  detours,
  elementsOf,
  knownElements,
  knownSets,
  marked,
  refusal,
  policyOfPort,
  refused,
  refuseDetour,
  refuseKnown,
  toNode,
  toOtherNode,
  translation,
} from './chains.ts';
import { hostPortRules, hostPortSets } from './host-ports.ts';
import type { IpvsService } from './ipvsadm.ts';
import { assignMarks } from './marks.ts';
import { activeServers, virtualServerId, type Engine, type RealServer, type VirtualServer } from './model.ts';

/**
 * Half of all packets: they are IPVS's already, and one to a client whose own port happens to be a published one must
 * not be taken for a question to it.
 */
const isReply = 'ct direction reply return';

/** A VIP is a local address too: what goes to one is no business of the published ports, served or not. */
const toVip = `${balanced} ip daddr @vips goto mark_vip`;
/**
 * One look at the routing table for both look-ups of the port. IPVS refuses to send a packet from 127.0.0.0/8 to another
 * host, so those to 127.0.0.1 are translated by nft.
 */
const toPort = `ip daddr != 127.0.0.0/8 fib daddr type local ${balanced} goto mark_port`;

/** Whoever was not let in, Docker's mesh shall not let in either. */
const published = `${toNode} ${balanced} meta l4proto . th dport @published ${noopDnat}`;

/** What IPVS cannot do is done as by engine nft. */
const translated = `${balanced} meta l4proto . th dport vmap @port_chains`;

/** What another node balanced to a task of this one, on its way back. */
const balancedElsewhere = `oifname "${fabricLink}" meta mark & ${hex(markMask)} == ${hex(returnMarkBase)}`;

/** Nobody has it (RFC 7600). */
const nobody = '192.0.0.8';

const layout: NftLayout = {
  sets: {
    ...knownSets,
    ...hostPortSets,
    vip_marks: { kind: 'map', declaration: 'type ipv4_addr : mark;' },
    port_guards: { kind: 'map', declaration: 'type inet_proto . inet_service : verdict;' },
    port_marks: { kind: 'map', declaration: 'type inet_proto . inet_service : mark;' },
    port_chains: { kind: 'map', declaration: 'type inet_proto . inet_service : verdict;' },
  },
  chains: {
    mark_vip: { rules: ['meta mark set ip daddr map @vip_marks'] },
    mark_port: {
      rules: [
        // Ports that not everybody may come in by: who may not is not marked, and refused where everything unmarked is.
        'meta l4proto . th dport vmap @port_guards',
        'meta mark set meta l4proto . th dport map @port_marks',
      ],
    },
    mark_in: {
      hook: 'type filter hook prerouting priority mangle; policy accept;',
      rules: [isReply, toVip, toPort],
    },
    mark_out: {
      hook: 'type filter hook output priority mangle; policy accept;',
      rules: [isReply, toVip, toPort],
    },
    balance_in: {
      hook: `type nat hook prerouting priority ${aheadOfDocker}; policy accept;`,
      rules: [
        `${marked} ${noopDnat}`,
        published,
        ...hostPortRules,
        // IPVS takes what is for this node alone.
        `${toOtherNode} ${translated}`,
      ],
    },
    balance_out: {
      hook: `type nat hook output priority ${aheadOfDocker}; policy accept;`,
      rules: [`ip daddr 127.0.0.1 ${translated}`, `${marked} ${noopDnat}`, published, ...hostPortRules],
    },
    // IPVS (at 100) knows connections by task and client alone. A client with one port of its own may have one by this node
    // and one by another to the same task: the replies of the latter are none of its business, and would be sent to the
    // client as the former's.
    hide_from_ipvs: {
      hook: 'type filter hook forward priority 99; policy accept;',
      rules: [`${balancedElsewhere} ip saddr set ${nobody}`],
    },
    restore_source: {
      hook: 'type filter hook postrouting priority raw; policy accept;',
      rules: [`${balancedElsewhere} ip saddr ${nobody} ip saddr set ct reply ip saddr`],
    },
    refuse_known: refuseKnown,
    refuse: refusal,
    refuse_detour: refuseDetour,
    detours,
  },
};

/** Balances with IPVS, in the kernel's own balancer, by its schedulers. */
export const ipvsEngine: Engine = {
  name: 'ipvs',
  layout,
  render(servers, kept) {
    const rendered = servers.map((server) => ({ server, ...drafts(server) }));
    // A virtual server nobody can serve gets no mark, and is refused where everything unmarked is. One that only drains
    // keeps its IPVS service, and with it its established connections.
    const marked = rendered.filter(({ server }) => server.realServers.length > 0);
    const ids = marked.map(({ id }) => id);
    const settled = ids.length === kept.size && ids.every((id) => kept.has(id));
    const marks = settled ? kept : assignMarks(ids, kept);
    const parts = rendered.map(({ id, draft }) => draft(marks.get(id) ?? 0));
    return {
      content: { elements: new Map(), parts: parts.map(({ part }) => part) },
      services: parts.flatMap(({ service }) => service ?? []),
      marks,
    };
  },
  unsupported({ affinity } = {}) {
    if (affinity === undefined) return [];
    const what = `affinity=${affinity} keeps a client with its task for as long as the tasks stay`;
    return [`engine ipvs does not count seconds for published ports, only for VIPs: ${what}`];
  },
};

interface Rendered {
  part: NftPart;
  service?: IpvsService;
}

/** By server: its id, and what it is with a mark, made again only for another mark. */
const drafts = memoByObject((server: VirtualServer) => {
  let last: { mark: number; rendered: Rendered } | undefined;
  const draft = (mark: number): Rendered => {
    if (last?.mark !== mark) last = { mark, rendered: renderServer(server, mark) };
    return last.rendered;
  };
  return { id: virtualServerId(server), draft };
});

function renderServer(server: VirtualServer, mark: number): Rendered {
  const elements: NftPart['elements'] = [
    ...knownElements(server),
    ...(mark === 0 ? [] : elementsOf(server, { vip: 'vip_marks', port: 'port_marks' }, String(mark))),
  ];
  const service = mark === 0 ? {} : { service: renderService(server, mark) };
  if (server.kind === 'vip') return { part: { chains: [], elements }, ...service };
  const { name, rules } = translation(server);
  const at = (set: string, value: string) => elementsOf(server, { vip: '', port: set }, value);
  const guarding = guardOf(server);
  return {
    part: {
      chains: [[name, rules], ...guarding],
      elements: [
        ...elements,
        ...at('port_chains', `goto ${name}`),
        ...guarding.flatMap(([chain]) => at('port_guards', `jump ${chain}`)),
      ],
    },
    ...service,
  };
}

function guardOf(server: VirtualServer): NftPart['chains'][number][] {
  const rules = refused(policyOfPort(server), 'accept');
  return rules.length === 0 ? [] : [[contentName(`guard-${virtualServerId(server)}`, rules), rules]];
}

function renderService(server: VirtualServer, mark: number): IpvsService {
  return {
    mark,
    ...schedulingOf(server),
    // Port 0: the connection keeps the port it asked for.
    destinations: new Map(
      connected(server).map(({ address, weight }) => [
        `${address}:${server.kind === 'vip' || server.count !== undefined ? 0 : server.targetPort}`,
        weight,
      ]),
    ),
  };
}

/** Without the fallback these two send to a task that drains what hashes to it. */
const schedulerFlags: Record<string, readonly string[]> = {
  sh: ['sh-fallback'],
  mh: ['mh-fallback', 'mh-port'],
};

/** By the client's address alone. */
const bySource = { scheduler: 'mh', flags: ['mh-fallback'] } as const;

function schedulingOf(server: VirtualServer): Pick<IpvsService, 'scheduler' | 'flags' | 'affinity'> {
  const { scheduler, affinity } = server.policy ?? {};
  // Of a service that is chosen by mark, IPVS does not translate the port of a connection that stays with its task.
  if (affinity !== undefined && server.kind === 'port') return bySource;
  const weighted = new Set(activeServers(server).map(({ weight }) => weight)).size > 1;
  const chosen = scheduler ?? (weighted ? 'wrr' : 'rr');
  return {
    scheduler: chosen,
    flags: schedulerFlags[chosen] ?? [],
    ...(affinity === undefined ? {} : { affinity }),
  };
}

/**
 * UDP has no end of a connection: at weight 0 a flow would stay with a task that leaves for as long as it sends.
 * Removed, its next packet goes to another.
 */
function connected(server: VirtualServer): readonly RealServer[] {
  return server.kind === 'port' && server.protocol === 'udp' ? activeServers(server) : server.realServers;
}
