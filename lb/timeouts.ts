// Owns for how long a node remembers a silent connection of a service whose policy says so.
// Must not know which engine balances, nor end a connection by itself.
import { table } from '../net/names.ts';
import { CommandError, type Runner } from '../net/run.ts';
import { contentName, type NftContent, type NftLayout, type NftPart } from '../net/table.ts';
import type { PolicyRecord, Timeouts } from '../store/records.ts';
import type { Engine } from './model.ts';

/** A service, or a container, whose connections are remembered for another time than conntrack's own. */
export interface TimedService {
  timeout: Timeouts;
  /** Of its tasks, on any node. */
  addresses: readonly string[];
}

/**
 * Each node that a connection passes has an entry for it: the one that balances, and that of the task. So it is chosen by
 * where the packet leaves to, behind all balancing.
 */
export const timeoutLayout: NftLayout = {
  sets: { timeout_by_address: { kind: 'map', declaration: 'type ipv4_addr : verdict;' } },
  chains: {
    ct_timeout: {
      hook: 'type filter hook postrouting priority mangle; policy accept;',
      rules: ['ct state new ip daddr vmap @timeout_by_address'],
    },
  },
};

/** The content of {@link timeoutLayout}: services with the same times share a chain. */
export function renderTimeouts(
  services: readonly TimedService[],
): Required<Pick<NftContent, 'timeouts' | 'parts'>> {
  const timeouts = new Map<string, string>();
  const addresses = new Map<string, { rules: string[]; addresses: Set<string> }>();
  for (const service of services) {
    const policies = policiesOf(service.timeout);
    const rules = policies.map(({ protocol, name }) => `meta l4proto ${protocol} ct timeout set "${name}"`);
    for (const { name, declaration } of policies) timeouts.set(name, declaration);
    const chain = contentName('ct_timeout', rules);
    const those = addresses.get(chain) ?? { rules, addresses: new Set() };
    addresses.set(chain, those);
    for (const address of service.addresses) those.addresses.add(address);
  }
  const parts = [...addresses].map(([chain, { rules, addresses: those }]): NftPart => ({
    chains: [[chain, rules]],
    elements: [...those].map((address) => ['timeout_by_address', address, `goto ${chain}`]),
  }));
  return { timeouts, parts };
}

/** As nft declares them; what is not said there is as the node has it. */
function policiesOf({ tcp, fin, udp }: Timeouts): { protocol: string; name: string; declaration: string }[] {
  const seconds = {
    // One side has closed, the other not yet.
    tcp: { established: tcp, fin_wait: fin, close_wait: fin },
    udp: { unreplied: udp, replied: udp },
  };
  return Object.entries(seconds).flatMap(([protocol, states]) => {
    const said = Object.entries(states).flatMap(([state, time]) =>
      time === undefined ? [] : `${state}: ${time}`,
    );
    if (said.length === 0) return [];
    const declaration = `protocol ${protocol}; l3proto ip; policy = { ${said.join(', ')} };`;
    return { protocol, name: contentName(`timeout-${protocol}`, [declaration]), declaration };
  });
}

/**
 * What of a policy's times cannot be kept here, in words for the user.
 * @param trouble from {@link whyNoTimeouts}
 */
export function timeoutShortcomings(
  { timeout }: PolicyRecord = {},
  engine: Engine['name'],
  trouble: string | undefined,
): string[] {
  if (timeout === undefined) return [];
  const ipvs = 'the longest that any of them asks for, and tcp:432000 at least';
  return [
    ...(engine === 'ipvs' ? [`engine ipvs has one set of times for all services: ${ipvs}`] : []),
    ...(trouble === undefined
      ? []
      : [`this kernel has no timeout policies (${trouble}): timeout is left out of account`]),
  ];
}

/** The times that are enough for all services. */
export function longest(services: readonly TimedService[]): Timeouts {
  const all: Timeouts = {};
  for (const { timeout } of services)
    for (const kind of ['tcp', 'fin', 'udp'] as const)
      if ((timeout[kind] ?? 0) > (all[kind] ?? 0)) all[kind] = timeout[kind];
  return all;
}

/** Whether this kernel lets a rule choose such times. @returns undefined when it does, else why not, in words */
export async function whyNoTimeouts(run: Runner): Promise<string | undefined> {
  const policy = 'protocol udp; l3proto ip; policy = { replied: 1 };';
  try {
    await run('nft', ['--check', '-f', '-'], {
      input: `table inet ${table}-trial { ct timeout trial { ${policy} }; }\n`,
    });
    return undefined;
  } catch (error) {
    if (error instanceof CommandError) return error.stderr.trim().split('\n')[0] ?? error.message;
    throw error;
  }
}
