// Owns what this node's containers are called: it tells the others by records.
// Must not answer questions (dns/), nor lead them here (name-redirects.ts).
import { isDeepStrictEqual } from 'node:util';
import { batches } from '../store/batches.ts';
import { nameKey, type NameRecord, type Records } from '../store/records.ts';
import type { Op, Store } from '../store/store.ts';
import type { ContainerDetails } from '../swarm/docker.ts';
import type { ContainerHandler } from './containers.ts';

export interface NamingOptions {
  store: Store;
  records: Records;
  node: string;
}

/** Writes what this node's containers are called, where it differs. */
export function nameContainers({ store, records, node }: NamingOptions): ContainerHandler {
  return async ({ joined, containers, untold }) => {
    const mine = new Set(joined.map(({ id }) => id));
    const wanted = new Map(
      containers
        .flatMap((container) => renderNames(container, node))
        .filter(({ endpoint }) => mine.has(endpoint))
        .map((record) => [nameKey(record), record]),
    );
    const ops: Op[] = [];
    for (const { id, value } of (await records.names.list()).rows) {
      if (value.node !== node) continue;
      const record = wanted.get(id);
      const mayBe = untold.has(value.container) && mine.has(value.endpoint);
      if (record === undefined && !mayBe) ops.push(records.names.remove(id));
      else if (isDeepStrictEqual(record, value)) wanted.delete(id);
    }
    for (const [id, record] of wanted) ops.push(records.names.set(id, record));
    // Each node writes its own only, so it may while the store is away.
    for (const commit of batches(ops)) await store.commit(commit, { offline: true });
    return true;
  };
}

/** What a container is called on each of its networks. */
export function renderNames(container: ContainerDetails, node: string): NameRecord[] {
  const { Id, Name, Config, State, NetworkSettings } = container;
  return Object.values(NetworkSettings.Networks)
    .filter(({ EndpointID }) => EndpointID !== '')
    .map(({ NetworkID, EndpointID, Aliases }) => ({
      v: 1,
      endpoint: EndpointID,
      network: NetworkID,
      node,
      container: Id,
      names: [
        ...new Set([Name.replace(/^\//, ''), Id.slice(0, 12), Config.Hostname, ...(Aliases ?? [])]),
      ].filter(Boolean),
      unhealthy: State.Health?.Status === 'unhealthy',
    }));
}
