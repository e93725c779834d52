// Owns asking many times, one after the other or all the time, and summing up who answered.
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

export interface Load {
  /** @returns what became of each request: who answered, or why nobody did */
  stop(): Promise<{ server?: string; failure?: string }[]>;
}

/** Asks these addresses in turn, on a new connection each time, and as often as is said, whoever is answered or not. */
export function startLoad(
  client: Peer,
  {
    addresses,
    port,
    everyMs,
    pauseMs,
  }: { addresses: readonly string[]; port: number; everyMs: number; pauseMs: number },
): Load {
  const requests: Promise<{ server?: string; failure?: string }>[] = [];
  const ask = (): void => {
    const address = addresses[requests.length % addresses.length] ?? '';
    const begun = Date.now();
    requests.push(
      client.ask(address, port, { pause: pauseMs }).then(
        ({ server }) => ({ server }),
        (error: unknown) => ({
          failure: `${new Date(begun).toISOString()} by ${address}: ${(error as Error).message} after ${Date.now() - begun} ms`,
        }),
      ),
    );
  };
  const timer = setInterval(ask, everyMs);
  return {
    stop() {
      clearInterval(timer);
      return Promise.all(requests);
    },
  };
}
