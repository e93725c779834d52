// Owns the part `one-client`: many short connections of one client, as of a load balancer before the nodes, to one task by
// several nodes.
// Must not know on which kernel, nor by which engine.
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { LabNode } from '../test/lab/node.ts';
import { until } from '../test/support/until.ts';
import type { Cluster } from './cluster.ts';
import { newConnections } from './load.ts';
import type { OneClientOutcome } from './one-client-program.ts';
import type { Finding } from './report.ts';
import { median } from './rounds.ts';

export interface OneClientOptions {
  cluster: Cluster;
  progress: (line: string) => void;
  /** Of bursts. */
  rounds: number;
  /** Of the steady load. */
  seconds: number;
  signal?: AbortSignal | undefined;
}

const program = join(import.meta.dirname, 'one-client-program.ts');
const port = 8088;
/** Of the task's web server, which ends each connection itself: what it remembers of it stays with the task. */
const webPort = 8000;
const perSecond = 450;
/** By each node. */
const kept = 10;

/** By which node each burst comes, in seconds each. The first ones by a node are what later ones are held against. */
const bursts = [0, 2, 0, 1, 2] as const;
const burstSeconds = 4;

export async function measureOneClient(o: OneClientOptions): Promise<Finding[]> {
  const { cluster, progress, rounds, seconds, signal } = o;
  const { nodes } = cluster.lab;
  await cluster.network('one-client', 'causeway');
  const create = ['service', 'create', '--detach', '--quiet', '--no-resolve-image', '--name', 'one-client'];
  const where = ['--constraint', `node.hostname==${nodes.at(-1)?.name ?? ''}`];
  const serves = ['--network', 'one-client', '--publish', `${port}:${webPort}`];
  const entry = ['--entrypoint', '/usr/sbin/nginx', cluster.image, '-c', '/etc/nginx/nginx.conf'];
  await cluster.docker(...create, ...where, ...serves, ...entry);
  for (const node of nodes) await answering(cluster, node, signal);

  progress(`${perSecond} new connections a second by three nodes for ${seconds} s`);
  const steady = await (await startClient(o, perSecond, seconds)).ended();
  progress(
    `${steady.begun} begun, ${steady.failed} failed, ${steady.slow} took more than 800 ms, ${steady.synsSentAgain} SYNs sent again`,
  );

  const held: number[] = [];
  const rates: number[][] = [];
  const ends: OneClientOutcome[] = [];
  for (let round = 1; round <= rounds; round += 1) {
    const client = await startClient(o, 0, 0);
    const first = new Map<number, number>();
    const later: number[] = [];
    const all: number[] = [];
    for (const at of bursts) {
      const target = `${nodes[at]?.address ?? ''}:${port}`;
      const rate = await newConnections(cluster.lab.client, target, { seconds: burstSeconds, signal });
      all.push(Math.round(rate));
      const before = first.get(at);
      if (before === undefined) first.set(at, rate);
      else later.push(rate / before);
    }
    rates.push(all);
    held.push(Math.min(...later));
    client.stop();
    const end = await client.ended();
    ends.push(end);
    progress(
      `bursts, round ${round} of ${rounds}: ${all.join(', ')} connections/s, ${end.synsSentAgain} SYNs sent again`,
    );
  }
  return summarize(o, steady, { held, rates, ends });
}

interface Bursts {
  /** Of each round, the slowest later burst by a node over the first one by it. */
  held: number[];
  rates: number[][];
  ends: OneClientOutcome[];
}

function summarize(
  { seconds, rounds }: OneClientOptions,
  steady: OneClientOutcome,
  { held, rates, ends }: Bursts,
): Finding[] {
  const all = [steady, ...ends];
  const load = `${perSecond}/s by three nodes for ${seconds} s to one task`;
  const of = (what: string, unit: string, samples: number[], detail: string): Finding => ({
    ...{ what, value: samples.reduce((sum, one) => sum + one, 0), unit, goal: { atMost: 0 }, detail },
    samples: { [unit]: samples },
  });
  return [
    of(
      'of one client, connections that took more than 800 ms or failed',
      'connections',
      [steady.slow + steady.failed],
      `${load}, ${steady.begun} in all; the longest ${Math.round(steady.longestMs)} ms, where the client itself was late by ${Math.round(steady.stalledMs)} ms at most`,
    ),
    of('the same, SYNs sent again', 'SYNs', [steady.synsSentAgain], load),
    of(
      'the same, whose address the task saw wrong',
      'connections',
      [steady.wrongClients],
      `${steady.begun - steady.failed} looked at`,
    ),
    {
      what: 'bursts by several nodes, the slowest later one ÷ the first by the same node',
      value: median(held),
      unit: 'ratio',
      goal: { atLeast: 0.5 },
      detail: `${rounds} rounds of 5 × ${burstSeconds} s by nodes 1, 3, 1, 2 and 3; connections/s ${rates.map((each) => each.join(' ')).join('; ')}`,
      samples: { ratio: held },
    },
    of(
      'in these bursts, SYNs sent again',
      'SYNs',
      ends.map(({ synsSentAgain }) => synsSentAgain),
      `${rounds} rounds`,
    ),
    of(
      'connections that stayed, and broke under all of it',
      'connections',
      all.map(({ broken }) => broken),
      `${steady.kept} by three nodes in each run, asked once a second`,
    ),
  ];
}

/** @param seconds 0: until it is stopped */
async function startClient(
  { cluster }: OneClientOptions,
  rate: number,
  seconds: number,
): Promise<{ stop: () => void; ended: () => Promise<OneClientOutcome> }> {
  const { client, nodes } = cluster.lab;
  const words = [rate, seconds, port, kept].map(String);
  const running = client.start([process.execPath, program, ...words, ...nodes.map(({ address }) => address)]);
  const lines = createInterface({ input: running.stdout })[Symbol.asyncIterator]();
  if ((await lines.next()).value !== 'ready') throw new Error('The client could not open its connections.');
  return {
    stop: () => void running.kill('SIGTERM'),
    ended: async () => JSON.parse(String((await lines.next()).value)) as OneClientOutcome,
  };
}

async function answering({ lab }: Cluster, node: LabNode, signal?: AbortSignal): Promise<void> {
  const url = `http://${node.address}:${port}/who`;
  const ask = ['node', '-e', `fetch('${url}').then(() => process.exit(0), () => process.exit(1))`];
  await until(
    `${url} answers`,
    async () => !(await lab.client.exec(ask as [string, ...string[]], { reject: false })).failed,
    { timeoutMs: 120_000, everyMs: 500, signal },
  );
}
