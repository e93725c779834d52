// Owns the proof that names made of what changed are those of a computation from scratch, over random histories of records.
// Must not test what the names are: unit/dns/resolve.test.ts does.
import assert from 'node:assert/strict';
import { ZoneBuilder, type ZoneRecords } from '../../dns/zone.ts';
import type { NameRecord } from '../../store/records.ts';
import { seeded, type Random } from '../support/random.ts';
import { change, digits, History, netIds, nodeIds } from './history.ts';

/** What some endpoint's container is called; two may have the same name. */
function nameOf(random: Random): NameRecord {
  const net = random(3);
  return {
    v: 1,
    endpoint: `${net}${digits[random(12)] ?? ''}`.padEnd(32, 'e'),
    network: netIds[net] ?? '',
    node: nodeIds[random(4)] ?? '',
    container: 'c',
    names: [`name-${random(6)}`],
    unhealthy: random(4) === 0,
  };
}

describe('incremental zone', () => {
  it('over random changes, the zone is what a freshly started node builds, and an unchanged network is the same object', () => {
    let kept = 0;
    for (let seed = 0; seed < 30; seed += 1) {
      const random = seeded(seed);
      const history = new History(random);
      const builder = new ZoneBuilder();
      let names: ZoneRecords['names'] = [];
      let before = builder.build({ ...history.records, names }, history.unreachable).networks;
      for (let turn = 0; turn < 60; turn += 1) {
        if (random(3) === 0) {
          const record = nameOf(random);
          names = change(names, ({ endpoint }) => endpoint, record.endpoint, random(3) ? record : undefined);
        } else history.step();
        const records = { ...history.records, names };
        const zone = builder.build(records, history.unreachable);
        const { networks, networksByName } = new ZoneBuilder().build(records, history.unreachable);
        const where = `seed ${seed}, turn ${turn}`;
        assert.deepEqual(zone.networks, networks, where);
        assert.deepEqual(zone.networksByName, networksByName, where);
        for (const [id, network] of zone.networks) if (before.get(id) === network) kept += 1;
        before = zone.networks;
      }
    }
    assert.ok(kept > 1_000, `networks were made anew ${3 * 30 * 60 - kept} times`);
  });
});
