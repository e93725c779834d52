// Owns opening the store that the settings name: one of this node alone, or Consul with a replica on this node.
// Must not know what is kept in it.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { openConsul, type ConsulOptions } from '../store/consul.ts';
import { openEmbedded } from '../store/embedded.ts';
import { clusterKey } from '../store/records.ts';
import { openReplica, type Replica } from '../store/replica.ts';
import type { Store } from '../store/store.ts';
import { ConfigError, parseStore, type Config } from './config.ts';
import { leaderKey } from './leadership.ts';
import type { Log } from './log.ts';

export interface OpenedStore {
  store: Store;
  /** Present when the store is shared with other nodes. */
  replica?: Replica;
}

/**
 * Does not wait for Consul: Docker starts plugins before anything else may run on the node.
 * @param mayRefill see {@link openReplica}
 * @throws {ConfigError} when a file of the settings cannot be read
 * @throws StoreError when the file of this node cannot be used
 */
export async function openStore(
  config: Config,
  log: Log,
  mayRefill: () => Promise<boolean>,
): Promise<OpenedStore> {
  const setting = parseStore(config.CAUSEWAY_STORE);
  if (setting.kind === 'embedded') return { store: openEmbedded(join(config.CAUSEWAY_DATA, 'store.db')) };
  let connected: boolean | undefined;
  const remote = openConsul({
    addresses: setting.addresses,
    ...(setting.tls ? { tls: await readTls(config) } : {}),
    ...ifSet('token', config.CAUSEWAY_CONSUL_TOKEN),
    ...ifSet('datacenter', config.CAUSEWAY_CONSUL_DC),
    prefix: config.CAUSEWAY_CONSUL_PREFIX,
  });
  const replica = await openReplica({
    remote,
    file: join(config.CAUSEWAY_DATA, 'replica.db'),
    onError: (error) => log.debug({ error }, 'store request failed, retrying'),
    onDisk: (reason) => log.error({ reason }, 'local state cannot be written to disk, going on in memory'),
    onState: (state) => {
      if (state.connected === connected) return;
      ({ connected } = state);
      if (connected) log.info({ ...state }, 'store reachable');
      else log.warn({ ...state }, 'store unreachable; serving from the replica');
    },
    sentinelKey: clusterKey,
    ephemeral: [leaderKey],
    mayRefill,
    onRefill: () =>
      log.error({}, 'the store has lost everything: filling it again from what this node knows'),
    onConflict: (key, ours, theirs) =>
      log.error({ key, ours, theirs }, 'written by two nodes while the store was away: the other one counts'),
  });
  return { store: replica, replica };
}

async function readTls(config: Config): Promise<NonNullable<ConsulOptions['tls']>> {
  return {
    ...ifSet('ca', await readPem(config, 'CAUSEWAY_CONSUL_CA')),
    ...ifSet('cert', await readPem(config, 'CAUSEWAY_CONSUL_CERT')),
    ...ifSet('key', await readPem(config, 'CAUSEWAY_CONSUL_KEY')),
  };
}

/** The text itself, or that of a file below the host's /run: nothing else of the host is there to be read. */
async function readPem(
  config: Config,
  name: 'CAUSEWAY_CONSUL_CA' | 'CAUSEWAY_CONSUL_CERT' | 'CAUSEWAY_CONSUL_KEY',
): Promise<string> {
  const setting = config[name];
  if (!setting.startsWith('/run/')) return setting;
  try {
    return await readFile(config.CAUSEWAY_HOST_RUN + setting.slice('/run'.length), 'utf8');
  } catch (cause) {
    throw new ConfigError(`${name}=${setting}: the file cannot be read; put it there, or give its text`, {
      cause,
    });
  }
}

function ifSet<K extends string>(key: K, value: string): { [P in K]?: string } {
  return value === '' ? {} : ({ [key]: value } as { [P in K]?: string });
}
