// Owns what Docker is told of a sandbox's link and ways when an endpoint joins it. Pure.
// Must not know how the link is made.
import { peerName } from '../net/names.ts';
import type { EndpointRecord, NetworkRecord } from '../store/records.ts';

/** libnetwork's types.StaticRoute. */
export interface StaticRoute {
  Destination: string;
  /** 0: by `NextHop`; 1: on the link. */
  RouteType: 0 | 1;
  NextHop?: string;
}

export interface JoinAnswer {
  InterfaceName: { SrcName: string; DstPrefix: string };
  Gateway?: string;
  DisableGatewayService?: boolean;
  StaticRoutes?: StaticRoute[];
}

/**
 * A sandbox whose address is alone in its subnet (/32) is told the way to the gateway and, by that, to the rest of the
 * network: without the latter, one on several networks would go to all of them by the first, with the first's address.
 */
export function joinAnswer(
  { id, prefix }: Pick<EndpointRecord, 'id' | 'prefix'>,
  { subnet, gateway, internal }: Pick<NetworkRecord, 'subnet' | 'gateway' | 'internal'>,
): JoinAnswer {
  return {
    InterfaceName: { SrcName: peerName(id), DstPrefix: 'eth' },
    // An internal network is nobody's way out: with a gateway Docker would take it for one, before that of its own
    // networks. What it answers on its published ports finds its way by sandboxes.ts.
    ...(internal ? { DisableGatewayService: true } : { Gateway: gateway }),
    ...(prefix === 32 && {
      StaticRoutes: [
        { Destination: `${gateway}/32`, RouteType: 1 },
        { Destination: subnet, RouteType: 0, NextHop: gateway },
      ],
    }),
  };
}
