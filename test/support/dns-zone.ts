// Owns the zone that tests of the name server ask: one network `front`, and on it one service `web` with these tasks.
// Must not assert anything.
import { ZoneBuilder, type Zone } from '../../dns/zone.ts';

/** @param live addresses of the tasks, in 10.0.0.0/24; the first one's container is called `web.1` */
export function zoneWith(live: readonly string[]): Zone {
  return new ZoneBuilder().build(
    {
      networks: [
        {
          v: 1,
          id: 'a',
          name: 'front',
          subnet: '10.0.0.0/24',
          gateway: '10.0.0.1',
          internal: false,
          allocated: true,
        },
      ],
      services: [
        {
          v: 1,
          id: 's',
          name: 'web',
          vips: { a: '10.0.0.2' },
          networks: ['a'],
          ports: [{ protocol: 'tcp', port: 8080, targetPort: 80, name: 'http' }],
          tasks: live.map((address) => ({ id: address, addresses: { a: address }, draining: false })),
        },
      ],
      endpoints: live.map((address) => ({
        v: 1,
        id: address,
        network: 'a',
        node: 'n',
        address,
        mac: '02:42:0a:4d:00:05',
        sandbox: '/run/docker/netns/s',
      })),
      names: live.slice(0, 1).map((endpoint) => ({
        v: 1,
        endpoint,
        network: 'a',
        node: 'n',
        container: 'c',
        names: ['web.1'],
        unhealthy: false,
      })),
    },
    new Set(),
  );
}
