// Owns the comparison of ways to one container: by its own address, its service's VIP, its published port, and Docker's
// own mesh to its twin.
// Must not know on which kernel, nor by which engine.
import { prepareImage, loadImage, type Image } from '../test/lab/image.ts';
import type { Lab } from '../test/lab/lab.ts';
import type { Host } from '../test/lab/node.ts';
import { until } from '../test/support/until.ts';
import { Deployment, ports } from './deployment.ts';
import { withDirectWay } from './direct.ts';
import { newConnections, throughput } from './load.ts';
import type { Finding } from './report.ts';
import { interleave, median, ratio, type Way } from './rounds.ts';

/** The share of the container's own address that every other way must reach. */
const shareOfOwn = 0.9;
/** How much more than Docker's own mesh the published port must carry. */
const overDocker = 1.1;

/** A way that never works is given up after this. */
const readyMs = 120_000;

export interface PathsOptions {
  /** Up, with Docker on its first node. It is not cleaned up. */
  lab: Lab;
  engine: 'nft' | 'ipvs';
  /** Whether Docker's own mesh works on this kernel, and is to be compared with. */
  dockersMesh: boolean;
  rounds: number;
  seconds: number;
  progress: (line: string) => void;
  signal?: AbortSignal | undefined;
}

/** An end of a way, as seen from `from`. */
interface Target {
  name: string;
  from: Pick<Host, 'exec'>;
  address: string;
  web: number;
  iperf: number;
}

export async function comparePaths(o: PathsOptions): Promise<Finding[]> {
  const { lab, progress, signal } = o;
  const { first: node, client } = lab;
  progress('enabling the plugin');
  const deployment = new Deployment(lab, await imageIn(lab, o), signal);
  await deployment.prepare([`CAUSEWAY_LB=${o.engine}`]);
  progress('deploying');
  await deployment.network('front', 'causeway');
  const server = await deployment.server('web', 'front', { web: 8080, iperf: 5201 });
  const visitor = await deployment.visitor('visitor', 'front');
  const own = { name: 'own address', address: server.task.address, web: ports.webDirect, iperf: ports.iperf };
  const published = { name: 'published port', from: client, address: node.address, ...server.published };
  const outside: Target[] = [published, { ...own, from: client }];
  if (o.dockersMesh) {
    await deployment.network('overlay', 'overlay');
    const twin = await deployment.server('twin', 'overlay', { web: 8090, iperf: 5290 });
    outside.push({ name: "Docker's mesh", from: client, address: node.address, ...twin.published });
  }
  const vip = { name: 'VIP', from: visitor, address: server.vip, web: ports.web, iperf: ports.iperf };

  return withDirectWay(lab, server.subnet, async () => [
    ...(await compare('from outside', outside, o)),
    ...(await compare('from a task', [vip, { ...own, from: visitor }], o)),
  ]);
}

async function imageIn(lab: Lab, o: PathsOptions): Promise<string> {
  const image: Image = await prepareImage({
    progress: o.progress,
    ...(o.signal ? { signal: o.signal } : {}),
  });
  const { stdout: ids } = await lab.first.docker(['images', '--quiet', '--no-trunc']);
  if (!ids.split('\n').includes(image.id)) await loadImage(lab.first, image);
  return image.id;
}

/** @param targets the first is compared with each of the others */
async function compare(from: string, targets: readonly Target[], o: PathsOptions): Promise<Finding[]> {
  const { rounds, seconds, signal } = o;
  const length = { seconds, signal };
  const metrics: {
    name: string;
    unit: string;
    measure: (target: Target, seconds: number) => Promise<number>;
  }[] = [
    {
      name: 'new connections',
      unit: '/s',
      measure: ({ from, address, web }, s) =>
        newConnections(from, `${address}:${web}`, { ...length, seconds: s }),
    },
    ...(['down', 'up'] as const).map((direction) => ({
      name: `throughput ${direction}`,
      unit: 'Mbit/s',
      measure: ({ from, address, iperf }: Target, s: number) =>
        throughput(from, { address, port: iperf }, direction, { ...length, seconds: s }),
    })),
  ];
  const findings: Finding[] = [];
  for (const { name, unit, measure } of metrics) {
    const ways = targets.map((target): Way => ({
      name: target.name,
      measure: () => measure(target, seconds),
    }));
    // Also warms up: rules, neighbours, caches.
    for (const target of targets) await answers(target, () => measure(target, 1), o);
    const samples = await interleave(ways, rounds, (round) =>
      o.progress(`${name} ${from}: round ${round} of ${rounds}`),
    );
    const [first, ...others] = targets.map((target) => ({
      name: target.name,
      figures: samples.get(target.name)!,
    }));
    for (const other of others) {
      const { value, low, high } = ratio(first!.figures, other.figures);
      findings.push({
        what: `${first!.name} ÷ ${other.name}, ${name}`,
        value,
        unit: 'ratio',
        interval: [low, high],
        goal: { atLeast: other.name === "Docker's mesh" ? overDocker : shareOfOwn },
        detail: `${median(first!.figures).toFixed(0)} ÷ ${median(other.figures).toFixed(0)} ${unit}`,
        samples: { [first!.name]: first!.figures, [other.name]: other.figures },
      });
    }
  }
  return findings;
}

/** Waits until a way carries anything: a service is in the kernel a moment after its task runs. */
async function answers(target: Target, measure: () => Promise<unknown>, o: PathsOptions): Promise<void> {
  let why = 'it was never tried';
  await until(
    `${target.name} (${target.address}) answers`,
    () =>
      measure().then(
        () => true,
        (error: unknown) => {
          o.signal?.throwIfAborted();
          why = error instanceof Error ? error.message : String(error);
          return false;
        },
      ),
    { timeoutMs: readyMs, everyMs: 500, signal: o.signal },
  ).catch((error: unknown) => {
    throw new Error(`${target.name} (${target.address}) does not answer: ${why}`, { cause: error });
  });
}
