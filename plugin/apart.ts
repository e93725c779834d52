// Owns telling whether a node whose records are its own alone is in a Swarm that needs them shared.
// Must not act on it.
import type { Records } from '../store/records.ts';
import type { Observation } from '../swarm/publisher.ts';

/** Whether other nodes allocate networks, or may come to: a worker allocates none, and of several managers any may lead. */
export function isApart({ swarm }: Observation): boolean {
  return swarm === undefined || swarm.nodes.filter(({ ManagerStatus }) => ManagerStatus).length > 1;
}

/** @returns what is wrong, in words for the user; undefined if only one node of the Swarm has Causeway, or that is not known */
export async function whyNotAlone(
  { networks, swarm }: Observation,
  records: Records,
): Promise<string | undefined> {
  const ours = new Set(await records.networks.ids());
  const drivers = new Set(networks.filter(({ Id }) => ours.has(Id)).map(({ Driver }) => Driver));
  const names = (swarm?.nodes ?? [])
    .filter(({ Description }) =>
      Description?.Engine?.Plugins?.some(({ Type, Name }) => Type === 'Network' && drivers.has(Name)),
    )
    .map(({ ID, Description }) => Description?.Hostname ?? ID)
    .sort();
  if (names.length < 2) return undefined;
  return (
    `Causeway is on ${names.join(', ')}, but this node keeps its records to itself (CAUSEWAY_STORE=embedded), so the others know ` +
    'nothing of its networks: set CAUSEWAY_STORE to one Consul on all nodes'
  );
}
