// Owns the part `rollout`: a service is updated task by task, again and again, under new connections and long requests.
// Must not know on which kernel, nor by which engine.
import { setTimeout as sleep } from 'node:timers/promises';
import { startFlows, startLoad, type Flow, type Load, type Outcome } from '../test/lab/asking.ts';
import type { Cluster, Mesh, Meshes, MeshOptions } from './cluster.ts';
import type { Finding } from './report.ts';
import { median } from './rounds.ts';
import { slowness } from '../test/slowness.ts';

export interface RolloutOptions extends Pick<MeshOptions, 'dockersMesh' | 'tasks'> {
  progress: (line: string) => void;
  cluster: Cluster;
  /** Updates, of which every other one starts the new task first. */
  rounds: number;
  /** Tasks that are updated at a time. */
  parallelism: number;
  /** New connections per second and mesh, over all nodes. */
  perSecond: number;
  /** Long requests that are under way at any time per mesh, over all nodes, each by a connection of its own. */
  long: number;
  /** Clients with UDP from one port each, per mesh and node. */
  flows: number;
}

/** What a long request takes; its task gets far longer to end it. */
const longMs = 3_000;
const graceSeconds = 15;
/** A request without an answer has failed after this and what its task takes. */
const timeoutMs = 5_000 * slowness;

/** From one datagram to the next of each flow. */
const datagramMs = 50 * slowness;
/** A flow may be without an answer for so long. */
const silentGoalMs = 1_000 * slowness;
const firstFlowPort = 20_000;

const beforeMs = 1_000;
/** Of one mesh and update; where there are more, they are alike. */
const toldTroubles = 20;
const orders = ['stop-first', 'start-first'] as const;
type Order = (typeof orders)[number];

interface Count {
  begun: number;
  failed: number;
}

/** What became of the requests to one mesh during one update. */
interface Round {
  order: Order;
  mesh: Mesh;
  brief: Count;
  long: Count;
  flows: Flow[];
  /** Each failure and long silence, for a person to look into. */
  troubles: string[];
}

export async function measureRollouts(o: RolloutOptions): Promise<Finding[]> {
  const { cluster, rounds, parallelism, progress } = o;
  // While a new task runs beside the old one there are more.
  const meshes = cluster.meshes({ ...o, spare: parallelism, graceSeconds });
  const done: Round[] = [];
  for (const mesh of meshes.all)
    await cluster.serve(mesh, progress, async () => {
      for (let at = 0; at < rounds; at += 1) {
        const order = orders[at % orders.length]!;
        await cluster.allServe(mesh.service);
        const began = performance.now();
        const round = await update(o, mesh, order);
        const seconds = (performance.now() - began) / 1000;
        for (const trouble of round.troubles.slice(0, toldTroubles)) progress(`${mesh.name}: ${trouble}`);
        const { brief, long, flows } = round;
        progress(
          `update ${at + 1} of ${rounds}, ${order}, ${seconds.toFixed(0)} s, ${mesh.name}: ${share(brief)} new connections ` +
            `and ${share(long)} long requests failed, UDP was silent for ${silence(flows)} ms at most`,
        );
        done.push(round);
      }
    });
  return summarize(o, done, meshes);
}

const silence = (flows: readonly Flow[]): number => Math.max(...flows.map(({ silentMs }) => silentMs));

const share = ({ begun, failed }: Count): string => `${failed} of ${begun}`;

/** One update of a mesh's service, under its load. */
async function update(
  { cluster, perSecond, long, flows: flowsPerNode, parallelism }: RolloutOptions,
  mesh: Mesh,
  order: Order,
): Promise<Round> {
  const { nodes, client } = cluster.lab;
  const { service } = mesh;
  const each = (path: string, intervalMs: number, withinMs: number): Promise<Load[]> =>
    Promise.all(
      nodes.map((node) =>
        startLoad(client, `http://${node.address}:${service.port}${path}`, {
          intervalMs: intervalMs * nodes.length,
          timeoutMs: withinMs,
        }),
      ),
    );
  const [brief, slow, running] = await Promise.all([
    each('/', 1_000 / perSecond, timeoutMs),
    each(`/slow?ms=${longMs}`, longMs / long, timeoutMs + longMs),
    Promise.all(
      nodes.map((node, index) => {
        const first = firstFlowPort + index * flowsPerNode;
        const localPorts = Array.from({ length: flowsPerNode }, (_, number) => first + number);
        const to = { host: node.address, port: service.udpPort };
        return startFlows(client, { to, localPorts, intervalMs: datagramMs });
      }),
    ),
  ]);
  await sleep(beforeMs);
  const start = Date.now();
  await cluster.update(service, { order, parallelism });
  const stop = async (loads: Load[]): Promise<Outcome[]> =>
    (await Promise.all(loads.map((load) => load.stop()))).flat();
  const [briefs, longs, ...ended] = await Promise.all([
    stop(brief),
    stop(slow),
    ...running.map((flow) => flow.stop()),
  ]);
  const flows = ended.flat();
  const failures = [...briefs, ...longs].flatMap(({ at, connected, task, error }) =>
    error === undefined
      ? []
      : `begun ${at - start} ms after the update, connected after ${connected ?? '–'} ms to ${task ?? 'nobody'}: ${error}`,
  );
  const silences = flows.flatMap(({ port, answers, silentMs, silentAt, moved, tasks }) =>
    silentMs <= silentGoalMs
      ? []
      : `UDP from port ${port}, ${answers} answers of ${tasks} tasks: silent for ${silentMs} ms from ${silentAt - start} ms after the update on, then ${moved ? 'another' : 'the same'} task`,
  );
  return {
    order,
    mesh,
    brief: count(briefs),
    long: count(longs),
    flows,
    troubles: [...failures, ...silences],
  };
}

function count(outcomes: readonly Outcome[]): Count {
  return { begun: outcomes.length, failed: outcomes.filter(({ error }) => error !== undefined).length };
}

function summarize(
  { perSecond, long, flows: flowsPerNode, tasks, cluster }: RolloutOptions,
  rounds: readonly Round[],
  { causeway, dockers }: Meshes,
): Finding[] {
  const total = (mesh: Mesh, order: Order, kind: 'brief' | 'long'): Count & { each: number[] } => {
    const own = rounds.filter((round) => round.mesh === mesh && round.order === order);
    const each = own.map((round) => round[kind].failed);
    return {
      begun: own.reduce((sum, round) => sum + round[kind].begun, 0),
      failed: each.reduce((sum, failed) => sum + failed, 0),
      each,
    };
  };
  const kinds = {
    brief: `new connections, ${perSecond} a second`,
    long: `requests of ${longMs / 1000} s, ${long} at a time`,
  };
  const silences = (mesh: Mesh): number[] =>
    rounds.filter((round) => round.mesh === mesh).map(({ flows }) => silence(flows));
  const [silent, theirSilences] = [silences(causeway), dockers && silences(dockers)];
  const flows: Finding = {
    what: 'longest silence of a UDP client with one port, when its task was replaced',
    value: Math.max(...silent),
    unit: 'ms',
    goal: { atMost: silentGoalMs },
    detail:
      `at most ${median(silent)} ms in half of the updates; ${flowsPerNode * cluster.lab.nodes.length} clients, a datagram every ${datagramMs} ms` +
      (theirSilences === undefined ? '' : `; by Docker's mesh beside it ${Math.max(...theirSilences)} ms`),
    samples: { ms: silent, ...(theirSilences && { "Docker's mesh ms": theirSilences }) },
  };
  const seen = orders.filter((order) => rounds.some((round) => round.order === order));
  const failures = seen.flatMap((order) =>
    (['brief', 'long'] as const).map((kind): Finding => {
      const own = total(causeway, order, kind);
      const theirs = dockers && total(dockers, order, kind);
      const beside = theirs === undefined ? '' : `; by Docker's mesh beside it ${share(theirs)}`;
      return {
        what: `failed in updates, ${order}: ${kinds[kind]}`,
        value: own.failed,
        unit: 'requests',
        goal: { atMost: 0 },
        detail:
          `${share(own)} in ${own.each.length} updates of ${tasks} tasks on ${cluster.lab.nodes.length} nodes` +
          beside,
        samples: { requests: own.each, ...(theirs && { "Docker's mesh": theirs.each }) },
      };
    }),
  );
  return [...failures, flows];
}
