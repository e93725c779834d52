// Owns whether a task is to get new connections, as far as records of it tell.
// Must not know who balances or answers names by that.
import type { EndpointRecord, ServiceRecord } from './records.ts';

type Task = ServiceRecord['tasks'][number];

/** Whether a service's health check, if it has one, lets its task have connections at this endpoint. */
export function isHealthy(
  { policy }: Pick<ServiceRecord, 'policy'>,
  { assumed }: Pick<Task, 'assumed'>,
  { healthy }: Pick<EndpointRecord, 'healthy'>,
): boolean {
  return policy?.health === undefined || (healthy ?? assumed ?? false);
}
