// Owns the proof that the balancer and names send to the same tasks, over random histories of records.
// Must not test which tasks these are: unit/lb/plan.test.ts does.
import assert from 'node:assert/strict';
import { ZoneBuilder } from '../../dns/zone.ts';
import { ServicePlanner } from '../../lb/plan.ts';
import { seeded } from '../support/random.ts';
import { History } from './history.ts';

describe('the balancer and names', () => {
  it('balancer and names lead to the same tasks, whatever is drained, unhealthy or unreachable', () => {
    let compared = 0;
    for (let seed = 0; seed < 60; seed += 1) {
      const history = new History(seeded(seed));
      const [planner, builder] = [new ServicePlanner('node-1'), new ZoneBuilder()];
      for (let turn = 0; turn < 60; turn += 1) {
        history.steps();
        const { services, networks, endpoints } = history.records;
        const plans = planner.plan(services, networks, endpoints, history.unreachable, 0);
        const zone = builder.build({ ...history.records, names: [] }, history.unreachable);
        for (const [at, { vips }] of plans.entries())
          for (const { network, server } of vips) {
            const name = services[at]!.name;
            const balanced = server.realServers.flatMap(({ address, weight }) => (weight > 0 ? address : []));
            const named = zone.networks.get(network)?.owners.get(`tasks.${name}`)?.addresses ?? [];
            assert.deepEqual(
              [...new Set(balanced)].sort(),
              [...named].sort(),
              `seed ${seed}, turn ${turn}, ${name} on ${network}`,
            );
            compared += balanced.length;
          }
      }
    }
    assert.ok(compared > 2_000, String(compared));
  });
});
