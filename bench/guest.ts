// Owns what runs inside the virtual machine for the parts that need a kernel with IPVS, or Docker's own mesh beside.
// Must not be run on a machine of anybody's: it is main.ts that boots a virtual one.
//
// usage: node bench/guest.ts PART ROUNDS SECONDS DATA-ROOT…
//   With a node of the lab for each data root. Progress goes to standard error, the result as one line of JSON to
//   standard output.
import { readFile, writeFile } from 'node:fs/promises';
import { release } from 'node:os';
import { join } from 'node:path';
import { Lab } from '../test/lab/lab.ts';
import { readDockersPrograms } from '../test/lab/slow.ts';
import { Cluster } from './cluster.ts';
import { measureFailover } from './failover.ts';
import { comparePaths } from './paths.ts';
import { measurePorts } from './ports.ts';
import type { Finding, Part } from './report.ts';
import { measureRollouts } from './rollout.ts';

interface Settings {
  rounds: number;
  seconds: number;
  /** Data roots of nodes, each with the image and the plugin. */
  data: string[];
}

const progress = (line: string): void => console.error(line);

const measure: Partial<Record<Part, (settings: Settings) => Promise<Finding[]>>> = {
  ipvs: ({ rounds, seconds, data }) =>
    inLab('bench', data, (lab) =>
      comparePaths({ lab, engine: 'ipvs', dockersMesh: true, rounds, seconds, progress }),
    ),

  'ports-ipvs': ({ rounds, seconds }) => measurePorts({ engine: 'ipvs', rounds, seconds, progress }),

  // As much as such a processor can do without being late by itself, here and below.
  'failover-ipvs': ({ rounds, data }) =>
    inCluster('failover', data, (cluster) =>
      measureFailover({ cluster, dockersMesh: true, rounds, tasks: 2, intervalMs: 250, progress }),
    ),

  'rollout-ipvs': ({ rounds, data }) =>
    inCluster('rollout', data, (cluster) =>
      measureRollouts({
        ...{ cluster, dockersMesh: true, rounds, tasks: 2, parallelism: 1, progress },
        ...{ perSecond: 1, long: 1, flows: 2 },
      }),
    ),
};

/** Runs `work` in a lab; a node of it does what Docker's own mesh needs as well. */
async function inLab(
  name: string,
  data: string[],
  work: (lab: Lab) => Promise<Finding[]>,
): Promise<Finding[]> {
  progress("reading Docker's programs");
  await readDockersPrograms();
  // Docker's sandboxes take this from the machine's first namespace, where a Docker Engine would be that is not in a lab;
  // without it Docker's own mesh gets no answer back.
  await writeFile('/proc/sys/net/ipv4/ip_forward', '1');
  await using lab = await Lab.up({ name, nodes: data.length, data, progress });
  try {
    return await work(lab);
  } catch (error) {
    // It is gone with the machine.
    const log = await readFile(join(lab.first.dir, 'dockerd.log'), 'utf8');
    const troubles = log.split('\n').filter((line) => /level=(warning|error|fatal)/.test(line));
    progress(`Docker's last troubles:\n${troubles.slice(-20).join('\n')}`);
    throw error;
  }
}

/** Runs `work` with a cluster of one of everything that elects: the processor is too slow for heartbeats between many. */
function inCluster(
  name: string,
  data: string[],
  work: (cluster: Cluster) => Promise<Finding[]>,
): Promise<Finding[]> {
  return inLab(name, data, async (lab) =>
    work(await Cluster.start({ lab, consuls: 1, managers: 1, prepared: true, progress })),
  );
}

const [part, rounds, seconds, ...data] = process.argv.slice(2);
const work = measure[part as Part];
if (work === undefined) throw new Error('Which part? See the head of guest.ts.');
const findings = await work({ rounds: Number(rounds), seconds: Number(seconds), data });
console.log(JSON.stringify({ kernel: release(), findings }));
