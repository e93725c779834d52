// Owns who may use the ports that this node's containers publish by themselves: read from their labels, told by records.
// Must not know how others are kept out (lb/host-ports.ts).
import { isDeepStrictEqual } from 'node:util';
import { endpointKey, type PortAccess, type Records } from '../store/records.ts';
import type { ContainerDetails } from '../swarm/docker.ts';
import { readContainerPolicy } from '../swarm/policy.ts';
import type { ContainerHandler } from './containers.ts';
import type { Log } from './log.ts';

/** By which Swarm tells of a task's container whose it is. */
const serviceLabel = 'com.docker.swarm.service.id';

/** Writes who may use the ports of this node's containers, where it differs. */
export function openPorts({ records, log }: { records: Records; log: Log }): ContainerHandler {
  return async ({ joined, containers }) => {
    const publishing = joined.filter(({ ports }) => ports !== undefined);
    if (publishing.length === 0) return true;
    const byEndpoint = new Map(
      containers.flatMap((container) =>
        Object.values(container.NetworkSettings.Networks).map(
          ({ EndpointID }) => [EndpointID, container] as const,
        ),
      ),
    );
    for (const { id, network, access: before } of publishing) {
      const container = byEndpoint.get(id);
      // Docker publishes the ports before it has started the container, and tells of that by an event.
      if (container === undefined) continue;
      const access = readAccess(container);
      if (isDeepStrictEqual(access, before)) continue;
      await records.endpoints.update(
        endpointKey({ network, id }),
        (record) => (record?.ports === undefined ? record : { ...record, access }),
        { offline: true },
      );
      if (access.by === 'container' && access.problems !== undefined)
        log.warn(
          { container: container.Name.replace(/^\//, ''), problems: access.problems },
          'invalid container labels ignored',
        );
    }
    return true;
  };
}

/** Whose word counts: that of the service, for a task of one, and else that of the container's own labels. */
export function readAccess({ Config: { Labels } }: Pick<ContainerDetails, 'Config'>): PortAccess {
  const service = Labels?.[serviceLabel];
  if (service !== undefined) return { by: 'service', service };
  const { value: policy, problems } = readContainerPolicy(Labels);
  return { by: 'container', policy, ...(problems.length > 0 && { problems }) };
}
