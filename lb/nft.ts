// Owns the engine for kernels without IPVS: nftables alone balances, one look-up per new connection.
// Must not run anything.
import { MapCache } from '../delta/list.ts';
import type { NftLayout, NftPart } from '../net/table.ts';
import {
  aheadOfDocker,
  balanced,
  detours,
  elementsOf,
  knownElements,
  knownSets,
  refusal,
  refuseDetour,
  refuseKnown,
  toNode,
  toOtherNode,
  translation,
} from './chains.ts';
import { hostPortRules, hostPortSets } from './host-ports.ts';
import type { Engine, VirtualServer } from './model.ts';
import { secondChoiceChains, secondChoiceElements, secondChoiceSets } from './second-choice.ts';

const byPort = `${balanced} meta l4proto . th dport vmap @port_chains`;
const dispatch = [`${balanced} ip daddr vmap @vip_chains`, `${toNode} ${byPort}`, ...hostPortRules];

const layout: NftLayout = {
  sets: {
    ...knownSets,
    ...hostPortSets,
    ...secondChoiceSets,
    vip_chains: { kind: 'map', declaration: 'type ipv4_addr : verdict;' },
    port_chains: { kind: 'map', declaration: 'type inet_proto . inet_service : verdict;' },
  },
  chains: {
    balance_in: {
      hook: `type nat hook prerouting priority ${aheadOfDocker}; policy accept;`,
      rules: [...dispatch, `${toOtherNode} ${byPort}`],
    },
    balance_out: { hook: `type nat hook output priority ${aheadOfDocker}; policy accept;`, rules: dispatch },
    refuse_known: refuseKnown,
    refuse: refusal,
    refuse_detour: refuseDetour,
    detours,
    ...secondChoiceChains,
  },
};

/** Balances with nftables: connections are translated once and then remembered by conntrack. */
export const nftEngine: Engine = {
  name: 'nft',
  layout,
  render(servers) {
    return {
      content: { elements: new Map(), parts: parts.of(servers) },
      services: [],
      marks: new Map(),
    };
  },
  unsupported({ scheduler, affinity } = {}) {
    return [
      ...(scheduler === 'lc' || scheduler === 'wlc'
        ? [
            `engine nft does not count connections: scheduler ${scheduler} is ${scheduler === 'lc' ? 'rr' : 'wrr'} here`,
          ]
        : []),
      ...(affinity === undefined
        ? []
        : [
            `engine nft does not count seconds: affinity=${affinity} keeps a client with its task for as long as the tasks stay`,
          ]),
    ];
  },
};

/** There is one node to a process, and its servers hardly change from one time to the next. */
const parts = new MapCache((server: VirtualServer): NftPart => {
  const { name, rules } = translation(server);
  const leading = elementsOf(server, { vip: 'vip_chains', port: 'port_chains' }, `goto ${name}`);
  return {
    chains: [[name, rules]],
    elements: [...knownElements(server), ...leading, ...secondChoiceElements(server)],
  };
});
