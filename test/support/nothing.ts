// Owns the desired state of a node that has nothing to do: a field that is new is added here, and in no test.
// Must not know what a test adds to it.
import type { DesiredState } from '../../plugin/desired-state.ts';

export const nothing: DesiredState = {
  neighbours: [],
  networks: [],
  endpoints: [],
  gateways: [],
  routes: [],
  servers: [],
  hostPorts: [],
  anyIngress: [],
  flushed: [],
  flowTimeouts: [],
};
