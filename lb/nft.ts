// Owns the engine for kernels without IPVS: nftables alone balances, one look-up per new connection.
// Must not run anything.
import { Mapped } from '../delta/list.ts';
import type { NftLayout, NftPart } from '../net/table.ts';
import {
  aheadOfDocker,
  balanced,
  knownElement,
  knownSets,
  portKey,
  refusal,
  refuseKnown,
  toNode,
  translation,
} from './chains.ts';
import { hostPortRules, hostPortSets } from './host-ports.ts';
import type { Engine, VirtualServer } from './model.ts';

const dispatch = [
  `${balanced} ip daddr vmap @vip_chains`,
  `${toNode} ${balanced} meta l4proto . th dport vmap @port_chains`,
  ...hostPortRules,
];

const layout: NftLayout = {
  sets: {
    ...knownSets,
    ...hostPortSets,
    vip_chains: { kind: 'map', declaration: 'type ipv4_addr : verdict;' },
    port_chains: { kind: 'map', declaration: 'type inet_proto . inet_service : verdict;' },
  },
  chains: {
    balance_in: {
      hook: `type nat hook prerouting priority ${aheadOfDocker}; policy accept;`,
      rules: dispatch,
    },
    balance_out: { hook: `type nat hook output priority ${aheadOfDocker}; policy accept;`, rules: dispatch },
    refuse_known: refuseKnown,
    refuse: refusal,
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
  shortcomings({ scheduler, affinity } = {}) {
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
const parts = new Mapped((server: VirtualServer): NftPart => {
  const { name, rules } = translation(server);
  const [set, key] =
    server.kind === 'vip' ? ['vip_chains', server.address] : ['port_chains', portKey(server)];
  return { chains: [[name, rules]], elements: [knownElement(server), [set, key, `goto ${name}`]] };
});
