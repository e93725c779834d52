// Owns which tasks of a service take new connections: the balancer, names and whoever else has to know ask here.
// Must not know who balances or answers names by that.
import type { EndpointRecord, ServiceRecord } from './records.ts';

type Task = ServiceRecord['tasks'][number];

/** Whether the health checks, Docker's and the service's, let a task have connections at this endpoint. */
export function isHealthy(
  { policy }: Pick<ServiceRecord, 'policy'>,
  { assumed }: Pick<Task, 'assumed'>,
  { healthy, failing }: Pick<EndpointRecord, 'healthy' | 'failing'>,
): boolean {
  return failing !== true && (policy?.health === undefined || (healthy ?? assumed ?? false));
}

/** What decides whether a task takes new connections. */
export interface Candidate {
  /** See {@link isHealthy}. */
  healthy: boolean;
  /** It shall stop. */
  draining: boolean;
  /** Its node does not answer. */
  unreachable: boolean;
}

/**
 * Of the tasks of a service that have an endpoint, those that take new connections: the healthy ones that do not drain. While
 * none of those that run is healthy yet, the ones they replace are better than nobody: Docker leaves them alone for two
 * seconds more. And when all that could take some are on nodes that do not answer, it may be this node that is cut off:
 * asking them is better than refusing.
 */
export function activeTasksOf<T extends Candidate>(candidates: readonly T[]): readonly T[] {
  const isEarly = !candidates.some(({ healthy, draining }) => healthy && !draining);
  const areReplaced = isEarly && candidates.some(({ draining }) => !draining);
  const active = candidates.filter(({ healthy, draining }) => healthy && (!draining || areReplaced));
  const reachable = active.filter(({ unreachable }) => !unreachable);
  return reachable.length > 0 ? reachable : active;
}
