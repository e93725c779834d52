// Owns the part `failover`: a node loses its power under new connections to the others, and gets it again.
// Must not know on which kernel, nor by which engine.
import { setTimeout as sleep } from 'node:timers/promises';
import { pluginName } from '../rootfs/create.ts';
import { startLoad, type Load } from '../test/lab/asking.ts';
import type { LabNode } from '../test/lab/node.ts';
import { reviveWhereSlow } from '../test/lab/slow.ts';
import { slowness } from '../test/slowness.ts';
import type { Cluster, Mesh, Meshes, MeshOptions, PublishedService } from './cluster.ts';
import { hasFailed, reportLoss, wasRetried, type LossReport } from './failover-outcome.ts';
import type { Finding } from './report.ts';
import { median } from './rounds.ts';

export interface FailoverOptions extends Pick<MeshOptions, 'dockersMesh' | 'tasks'> {
  cluster: Cluster;
  progress: (line: string) => void;
  rounds: number;
  /** From the beginning of one connection to that of the next, on each of the surviving nodes. */
  intervalMs: number;
}

/** From the beginning of the last connection that failed; of the median. */
const goalMs = 1_000;
/** From the node's power to all tasks answering on all nodes. Swarm has to start tasks meanwhile. */
const returnGoalSeconds = 60 * slowness;

/** A connection without an answer has failed after this. */
const timeoutMs = 5_000;
const beforeMs = 3_000;
/** How long the node stays off: far longer than anything should take to notice. */
const offMs = 12_000;
const afterMs = 3_000;

interface Round {
  loss: LossReport;
  /** From the power's return to all tasks answering on all nodes, in seconds. */
  returned: number;
}

export async function measureFailover(o: FailoverOptions): Promise<Finding[]> {
  const { cluster, rounds, progress } = o;
  const meshes = cluster.meshes(o);
  const done = new Map<Mesh, Round[]>();
  for (const mesh of meshes.all)
    await cluster.serve(mesh, progress, async () => {
      const own: Round[] = [];
      done.set(mesh, own);
      for (let round = 1; round <= rounds; round += 1) {
        await cluster.allServe(mesh.service);
        await cluster.allKnown();
        const tell = (line: string): void => progress(`round ${round} of ${rounds}, ${mesh.name}: ${line}`);
        own.push(await lose(o, mesh, tell));
      }
    });
  return summarize(done, meshes);
}

/** One loss and one return of the last node. */
async function lose(
  { cluster, intervalMs }: FailoverOptions,
  { service }: Mesh,
  tell: (line: string) => void,
): Promise<Round> {
  const { lab } = cluster;
  const lost = lab.nodes.at(-1)!;
  const others = lab.nodes.filter((node) => node !== lost);
  const loads = await Promise.all(
    others.map(({ address }): Promise<Load> =>
      startLoad(lab.client, `http://${address}:${service.port}/`, { intervalMs, timeoutMs }),
    ),
  );
  await sleep(beforeMs);
  // One clock for this and for the load: the machine's.
  const cut = Date.now();
  await lab.kill(lost);
  await sleep(offMs);
  const back = Date.now();
  const [comeback] = await Promise.allSettled([bringBack(cluster, lost, service)]);
  const outcomes = (await Promise.all(loads.map((load) => load.stop()))).flat();
  const loss = reportLoss(outcomes, { cut, back });
  // What was lost is told also when the node does not come back.
  tell(describe(loss));
  const late = outcomes.filter((one) => one.at > cut + goalMs && (hasFailed(one) || wasRetried(one)));
  for (const { at, ms, error = 'then there' } of late)
    tell(`${at - cut} ms after the cut, for ${ms} ms: ${error}`);
  if (comeback.status === 'rejected') throw comeback.reason;
  tell(`all serve again after ${comeback.value.toFixed(1)} s`);
  return { loss, returned: comeback.value };
}

function describe(loss: LossReport): string {
  const { lastFailed, failed, retried, lastRetried, begun, failedBefore, failedAfter, retriedAfter } = loss;
  return (
    `last failed ${lastFailed} ms after the cut, ${failed} of ${begun}; ${retried} had to try again, the last begun ` +
    `after ${lastRetried} ms; ${failedBefore} failed before; after the return ${failedAfter} failed, ${retriedAfter} had to try again`
  );
}

/** Gives a node its power back. @returns after how many seconds all tasks of the service answer on all nodes */
async function bringBack(cluster: Cluster, node: LabNode, service: PublishedService): Promise<number> {
  const began = Date.now();
  await cluster.lab.boot(node);
  await reviveWhereSlow(node, pluginName);
  await cluster.allServe(service);
  const seconds = (Date.now() - began) / 1000;
  await sleep(afterMs);
  return seconds;
}

function summarize(done: ReadonlyMap<Mesh, readonly Round[]>, { causeway, dockers }: Meshes): Finding[] {
  const of = (mesh: Mesh): readonly Round[] => done.get(mesh) ?? [];
  const figures = (mesh: Mesh): number[] => of(mesh).map(({ loss }) => loss.lastFailed);
  const sum = (mesh: Mesh, field: keyof LossReport): number =>
    of(mesh).reduce((total, { loss }) => total + loss[field], 0);
  const rounds = of(causeway);
  const retried = rounds.map(({ loss }) => loss.lastRetried);
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
      samples: { connections: rounds.map(({ loss }) => loss.failedAfter) },
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
    value: median(own) / Math.max(median(theirs), 1),
    unit: 'ratio',
    goal: { atMost: 1 },
    detail: `${median(own)} ÷ ${median(theirs)} ms (median of ${list(theirs)}); of Docker's ${sum(dockers, 'failed')} of ${sum(dockers, 'begun')} connections failed`,
    samples: { 'Causeway ms': own, "Docker's mesh ms": theirs },
  });
  return findings;
}
