// Owns the proof that a node that remembers comes to the same as one that starts: over random histories of records, what
// is wanted, and what is in the kernel, are those of a computation from scratch.
// Must not measure: bench/scale.ts does.
import assert from 'node:assert/strict';
import { ipvsEngine } from '../../lb/ipvs.ts';
import type { Engine } from '../../lb/model.ts';
import { nftEngine } from '../../lb/nft.ts';
import { vethName } from '../../net/names.ts';
import { Datapath } from '../../plugin/datapath.ts';
import { isEmpty, planDesiredState, DesiredStatePlanner } from '../../plugin/desired-state.ts';
import { FakeKernel } from '../fake/kernel.ts';
import { seeded } from '../support/random.ts';
import { digits, fabric, History, netIds } from './history.ts';

const here = 'node-1';
/** A node's kernel with links for whatever endpoints it may get. */
function startKernel(): FakeKernel {
  const kernel = new FakeKernel();
  for (const net of netIds.keys())
    for (const digit of digits)
      kernel.host.links.set(vethName(`${net}${digit}`.padEnd(32, 'e')), {
        up: true,
        mtu: 1450,
        addresses: [],
      });
  return kernel;
}

function startNode({ run, conntrack, sysctl }: FakeKernel, engine: Engine): Datapath {
  return new Datapath({ run, conntrack, sysctl, engine, fabric, nodeAddress: () => '' });
}

describe('incremental planning', () => {
  it('over random changes, a node that plans by changes desires what a freshly started one does', () => {
    for (let seed = 0; seed < 20; seed += 1) {
      const history = new History(seeded(seed));
      const planner = new DesiredStatePlanner(here);
      for (let turn = 0; turn < 60; turn += 1) {
        history.steps();
        const { records, unreachable } = history;
        assert.deepEqual(
          planner.plan(records, unreachable, 0),
          planDesiredState(records, here, unreachable),
          `seed ${seed}, turn ${turn}`,
        );
      }
    }
  });

  for (const engine of [nftEngine, ipvsEngine])
    it(`over random changes, a freshly started node finds nothing to do in the kernel, engine ${engine.name}`, async () => {
      for (let seed = 0; seed < 6; seed += 1) {
        const history = new History(seeded(seed));
        const planner = new DesiredStatePlanner(here);
        const kernel = startKernel();
        const datapath = startNode(kernel, engine);
        for (let turn = 0; turn < 40; turn += 1) {
          history.steps();
          const { records, unreachable } = history;
          await datapath.apply(planner.plan(records, unreachable, 0));
          await datapath.cleanedUp();
          // Connections that were ended already, of tasks that have drained, it ends once more.
          const changes = (): number =>
            kernel.changes.filter(({ command }) => command !== 'forget flows').length;
          const before = [kernel.dump(), changes()];
          const wanted = planDesiredState(records, here, unreachable);
          // Where nothing is wanted, one that starts makes sure of it by commands.
          if (isEmpty(wanted)) continue;
          await startNode(kernel, engine).apply(wanted);
          assert.deepEqual([kernel.dump(), changes()], before, `seed ${seed}, turn ${turn}`);
        }
      }
    });
});
