// Owns what Docker's own health checks say of this node's containers: it tells all nodes, as the balancer and names ask no Docker.
// Must not check by itself (health-checks.ts).
import { endpointKey, type Records } from '../store/records.ts';
import type { ContainerHandler } from './containers.ts';

/** Writes whether the container of each of this node's endpoints fails its health check, where that differs. */
export function tellContainerHealth({ records }: { records: Records }): ContainerHandler {
  return async ({ joined, containers }) => {
    const failingAt = new Map(
      containers.flatMap(({ State, NetworkSettings }) =>
        Object.values(NetworkSettings.Networks).map(
          ({ EndpointID }) => [EndpointID, State.Health?.Status === 'unhealthy'] as const,
        ),
      ),
    );
    for (const endpoint of joined) {
      // Of a container that Docker does not tell of, what was known may still be so.
      const failing = failingAt.get(endpoint.id) ?? endpoint.failing === true;
      if (failing === (endpoint.failing === true)) continue;
      await records.endpoints.update(
        endpointKey(endpoint),
        (record) => {
          // Another sandbox may have joined since, of which nothing is known.
          if (record === undefined || record.sandbox !== endpoint.sandbox) return record;
          const { failing: _, ...rest } = record;
          return failing ? { ...rest, failing: true as const } : rest;
        },
        { offline: true },
      );
    }
    return true;
  };
}
