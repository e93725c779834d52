// Owns what runs inside the virtual machine for the part `failover-ipvs`: a lab there, and the loss of one of its nodes.
// Must not be run on a machine of anybody's: it is main.ts that boots a virtual one.
//
// usage: node bench/failover-guest.ts ROUNDS DATA-ROOT…
//   Progress goes to standard error, the result as one line of JSON to standard output.
import { release } from 'node:os';
import { Lab } from '../test/lab/lab.ts';
import { readDockersPrograms } from '../test/lab/slow.ts';
import { Cluster } from './failover-cluster.ts';
import { measureFailover } from './failover.ts';

const [rounds, ...data] = process.argv.slice(2);
if (data.length === 0) throw new Error('Which data roots? See the head of failover-guest.ts.');
const progress = (line: string): void => console.error(line);

progress("reading Docker's programs");
await readDockersPrograms();
await using lab = await Lab.up({ name: 'failover', nodes: data.length, data, progress });
// One of everything that elects: a processor that emulates is too slow for heartbeats between many.
const cluster = await Cluster.start({ lab, consuls: 1, managers: 1, prepared: true, progress });
const findings = await measureFailover({
  cluster,
  dockersMesh: true,
  rounds: Number(rounds),
  tasks: 4,
  intervalMs: 250,
  progress,
});
console.log(JSON.stringify({ kernel: release(), findings }));
