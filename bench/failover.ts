// Owns the part `failover`: a node loses its power under new connections to the others, and gets it again.
// Must not know on which kernel, nor by which engine.
import { setTimeout as sleep } from 'node:timers/promises';
import { pluginName } from '../rootfs/create.ts';
import { startLoad, type Load } from '../test/lab/asking.ts';
import type { LabNode } from '../test/lab/node.ts';
import { reviveWhereSlow } from '../test/lab/slow.ts';
import { slowness } from '../test/slowness.ts';
import type { Cluster, Mesh, Meshes, MeshOptions } from './cluster.ts';
import { hasFailed, reportLoss, wasRetried, type LossReport } from './failover-outcome.ts';
import type { Finding } from './report.ts';
import { median } from './rounds.ts';

export interface FailoverOptions extends Pick<MeshOptions, 'dockersMesh' | 'tasks' | 'progress'> {
  cluster: Cluster;
  rounds: number;
  /** From the beginning of one connection to that of the next, on each of the surviving nodes. */
  intervalMs: number;
}

/** From the beginning of the last connection that failed; of the median. */
const goalMs = 1_000;
/** From the node's power to all tasks answering on all nodes. Swarm has to start tasks meanwhile. */
const returnGoalSeconds = 60;

/** A connection without an answer has failed after this. */
const timeoutMs = 5_000;
const beforeMs = 3_000;
/** How long the node stays off: far longer than anything should take to notice. */
const offMs = 12_000;
const afterMs = 3_000;

interface Round {
  losses: Map<Mesh, LossReport>;
  /** From the power's return to all tasks answering on all nodes by Causeway, in seconds. */
  returned: number;
  /** What failed or was late when it may not be any more, for a person to look into. */
  late: string[];
}

export async function measureFailover(o: FailoverOptions): Promise<Finding[]> {
  const { cluster, rounds, progress } = o;
  const meshes = await cluster.deploy(o);
  const done: Round[] = [];
  for (let round = 1; round <= rounds; round += 1) {
    await cluster.allServe(meshes.all);
    await cluster.allKnown();
    const one = await lose(o, meshes, (losses) => progress(`round ${round} of ${rounds}: ${tell(losses)}`));
    for (const line of one.late) progress(line);
    progress(`round ${round} of ${rounds}: all serve again after ${one.returned.toFixed(1)} s`);
    done.push(one);
  }
  return summarize(done, meshes);
}

function tell(losses: Round['losses']): string {
  return [...losses]
    .map(
      ([
        { name },
        { lastFailed, failed, retried, lastRetried, begun, failedBefore, failedAfter, retriedAfter },
      ]) =>
        `${name}: last failed ${lastFailed} ms after the cut, ${failed} of ${begun}; ${retried} had to try again, the last begun ` +
        `after ${lastRetried} ms; ${failedBefore} failed before, ${failedAfter} after the return, ${retriedAfter} had to try again then`,
    )
    .join('; ');
}

/**
 * One loss and one return of the last node.
 * @param told what was lost, also when the node does not come back
 */
async function lose(
  { cluster, intervalMs }: FailoverOptions,
  { all, causeway }: Meshes,
  told: (losses: Round['losses']) => void,
): Promise<Round> {
  const { lab } = cluster;
  const lost = lab.nodes.at(-1)!;
  const others = lab.nodes.filter((node) => node !== lost);
  const loads = await Promise.all(
    all.flatMap((mesh) =>
      others.map(async (node): Promise<[Mesh, Load]> => {
        const url = `http://${node.address}:${mesh.service.port}/`;
        return [mesh, await startLoad(lab.client, url, { intervalMs, timeoutMs })];
      }),
    ),
  );
  await sleep(beforeMs);
  // One clock for this and for the load: the machine's.
  const cut = Date.now();
  await lab.kill(lost);
  await sleep(offMs);
  const back = Date.now();
  const [comeback] = await Promise.allSettled([bringBack(cluster, lost, causeway)]);
  const outcomes = await Promise.all(loads.map(async ([mesh, load]) => ({ mesh, list: await load.stop() })));
  const losses = new Map(
    all.map((mesh) => {
      const own = outcomes.filter((one) => one.mesh === mesh).flatMap(({ list }) => list);
      return [mesh, reportLoss(own, { cut, back })];
    }),
  );
  told(losses);
  if (comeback.status === 'rejected') throw comeback.reason;
  const late = outcomes.flatMap(({ mesh, list }) =>
    list
      .filter((one) => one.at > cut + goalMs && (hasFailed(one) || wasRetried(one)))
      .map(
        ({ at, ms, error = 'then there' }) =>
          `${mesh.name}: ${at - cut} ms after the cut, for ${ms} ms: ${error}`,
      ),
  );
  return { losses, returned: comeback.value, late };
}

/** Gives a node its power back. @returns after how many seconds all tasks of the mesh answer on all nodes */
async function bringBack(cluster: Cluster, node: LabNode, mesh: Mesh): Promise<number> {
  const began = Date.now();
  await cluster.lab.boot(node);
  await reviveWhereSlow(node, pluginName);
  await cluster.allServe([mesh]);
  const seconds = (Date.now() - began) / 1000;
  await sleep(afterMs);
  return seconds;
}

function summarize(rounds: readonly Round[], { causeway, dockers }: Meshes): Finding[] {
  const figures = (mesh: Mesh): number[] => rounds.map(({ losses }) => losses.get(mesh)!.lastFailed);
  const sum = (mesh: Mesh, field: keyof LossReport): number =>
    rounds.reduce((total, { losses }) => total + losses.get(mesh)![field], 0);
  const retried = rounds.map(({ losses }) => losses.get(causeway)!.lastRetried);
  const list = (values: readonly number[]): string => values.map((value) => value.toFixed(0)).join(', ');
  const own = figures(causeway);
  const returns = rounds.map(({ returned }) => returned);
  const findings: Finding[] = [
    {
      what: 'last failed connection after a node lost its power',
      value: median(own),
      unit: 'ms',
      goal: { atMost: goalMs },
      detail: `median of ${list(own)}; ${sum(causeway, 'failed')} of ${sum(causeway, 'begun')} connections failed`,
      samples: { ms: own },
    },
    {
      what: 'failed connections when its power was back',
      value: sum(causeway, 'failedAfter'),
      unit: 'connections',
      goal: { atMost: 0 },
      detail: `${rounds.length} returns; ${sum(causeway, 'retriedAfter')} succeeded a second or more later`,
      samples: { connections: rounds.map(({ losses }) => losses.get(causeway)!.failedAfter) },
    },
    {
      what: 'last connection whose client had to try again',
      value: median(retried),
      unit: 'ms',
      goal: { atMost: goalMs },
      detail: `median of ${list(retried)}; ${sum(causeway, 'retried')} succeeded a second or more later`,
      samples: { ms: retried },
    },
    {
      what: `from its power to all ${causeway.service.replicas} tasks on all nodes`,
      value: median(returns),
      unit: 's',
      goal: { atMost: returnGoalSeconds },
      detail: `median of ${list(returns)}${slowness === 1 ? '; nothing was restarted' : ''}`,
      samples: { s: returns },
    },
  ];
  if (dockers === undefined) return findings;
  const theirs = figures(dockers);
  findings.push({
    what: "last failed connection, Causeway ÷ Docker's mesh",
    value: median(own) / median(theirs),
    unit: 'ratio',
    goal: { atMost: 1 },
    detail: `${median(own)} ÷ ${median(theirs)} ms (median of ${list(theirs)}); of Docker's ${sum(dockers, 'failed')} of ${sum(dockers, 'begun')} connections failed`,
    samples: { 'Causeway ms': own, "Docker's mesh ms": theirs },
  });
  return findings;
}
