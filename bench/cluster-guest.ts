// Owns what runs inside the virtual machine for the parts `failover-ipvs` and `rollout-ipvs`: a lab there, and what is done
// to its cluster.
// Must not be run on a machine of anybody's: it is main.ts that boots a virtual one.
//
// usage: node bench/cluster-guest.ts failover|rollout ROUNDS DATA-ROOT…
//   Progress goes to standard error, the result as one line of JSON to standard output.
import { release } from 'node:os';
import { Lab } from '../test/lab/lab.ts';
import { readDockersPrograms } from '../test/lab/slow.ts';
import { Cluster } from './cluster.ts';
import { measureFailover } from './failover.ts';
import { measureRollouts } from './rollout.ts';

const [part, rounds, ...data] = process.argv.slice(2);
if ((part !== 'failover' && part !== 'rollout') || data.length === 0)
  throw new Error('Which part, and which data roots? See the head of cluster-guest.ts.');
const progress = (line: string): void => console.error(line);

progress("reading Docker's programs");
await readDockersPrograms();
await using lab = await Lab.up({ name: part, nodes: data.length, data, progress });
// One of everything that elects: a processor that emulates is too slow for heartbeats between many.
const cluster = await Cluster.start({ lab, consuls: 1, managers: 1, prepared: true, progress });
// As much as such a processor can do without being late by itself.
const common = { cluster, dockersMesh: true, rounds: Number(rounds), progress };
const findings =
  part === 'failover'
    ? await measureFailover({ ...common, tasks: 4, intervalMs: 250 })
    : await measureRollouts({ ...common, tasks: 3, parallelism: 1, perSecond: 4, long: 4, flows: 2 });
console.log(JSON.stringify({ kernel: release(), findings }));
