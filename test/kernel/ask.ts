// Owns asking many times and summing up who answered.
// Must not assert anything.
import type { Peer } from './peer.ts';
import type { Seen } from './peer-program.ts';

/** Asks several times, one after the other. @returns who answered, sorted, and which client addresses they saw */
export async function askMany(
  peer: Peer,
  host: string,
  port: number,
  times: number,
  protocol: 'tcp' | 'udp' = 'tcp',
): Promise<{ servers: string[]; clients: string[] }> {
  const seen: Seen[] = [];
  for (let turn = 0; turn < times; turn += 1) seen.push(await peer.ask(host, port, { protocol }));
  return {
    servers: [...new Set(seen.map(({ server }) => server))].sort(),
    clients: [...new Set(seen.map(({ client }) => client))],
  };
}

/** Asks several times, one after the other. @returns how often each server answered */
export async function countMany(
  peer: Peer,
  host: string,
  port: number,
  times: number,
): Promise<Record<string, number>> {
  const counts: Record<string, number> = {};
  for (let turn = 0; turn < times; turn += 1) {
    const { server } = await peer.ask(host, port);
    counts[server] = (counts[server] ?? 0) + 1;
  }
  return counts;
}
