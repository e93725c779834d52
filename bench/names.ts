// Owns the comparison of resolvers as a container meets them: Causeway, Docker's own, and dnsmasq beside them on the node.
// Must not know how any of them works.
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pluginName } from '../rootfs/create.ts';
import { imageName, loadImage, prepareImage } from '../test/lab/image.ts';
import type { Lab } from '../test/lab/lab.ts';
import type { Host, LabNode } from '../test/lab/node.ts';
import { until } from '../test/support/until.ts';
import { dnsmasq, questions, slowest } from './load.ts';
import type { Finding } from './report.ts';
import { interleave, median, ratio, type Way } from './rounds.ts';

/** What is asked for: so many names, in turn. */
const count = 100;
const own = Array.from({ length: count }, (_, at) => `alias${at}`);
const foreign = Array.from({ length: count }, (_, at) => `host${at}.example`);
/** What the world outside answers. */
const outside = '192.0.2.80';

const dnsmasqPort = 5353;
const readyMs = 60_000;

export interface NamesOptions {
  lab: Lab;
  rounds: number;
  seconds: number;
  progress: (line: string) => void;
  signal?: AbortSignal | undefined;
}

interface Resolver {
  name: string;
  from: Pick<Host, 'exec'>;
  server: string;
  port: number;
}

/** @returns what the ratios are, for own names and for those that were answered by others before */
export async function compareResolvers(o: NamesOptions): Promise<Finding[]> {
  const { lab, progress, signal } = o;
  const { first: node, client } = lab;
  const directory = await mkdtemp(join(tmpdir(), 'causeway-bench-'));
  try {
    progress('starting the resolvers');
    await loadImage(node, await prepareImage({ progress, ...(signal ? { signal } : {}) }));
    // dnsmasq answers on a port of the node, which sandboxes may not use otherwise.
    await lab.installPlugin({ set: { CAUSEWAY_HOST_ACCESS: 'on' } });
    await lab.formSwarm();
    const hosts = join(directory, 'hosts');
    client
      .start(
        dnsmasq(
          '--port=53',
          `--listen-address=${client.address}`,
          `--address=/example/${outside}`,
          '--local-ttl=300',
        ),
      )
      .catch(() => undefined);
    const drivers = ['--driver', pluginName, '--ipam-driver', pluginName, '--scope', 'swarm'];
    await node.docker(['network', 'create', ...drivers, '--attachable', 'ours']);
    await node.docker(['network', 'create', 'plain']);
    const [asker, twin] = [await container(lab, 'ours'), await container(lab, 'plain')];
    await writeFile(hosts, own.map((name) => `${asker.address} ${name}\n`).join(''));
    node
      .start(
        dnsmasq(
          `--port=${dnsmasqPort}`,
          `--addn-hosts=${hosts}`,
          `--server=${client.address}`,
          '--cache-size=10000',
        ),
      )
      .catch(() => undefined);

    const causeway = { name: 'Causeway', from: asker.sandbox, server: '127.0.0.11', port: 53 };
    const dockers = { name: 'Docker’s resolver', from: twin.sandbox, server: '127.0.0.11', port: 53 };
    const masq = { name: 'dnsmasq', from: asker.sandbox, server: node.address, port: dnsmasqPort };
    return [
      ...(await compare('own names', own, [causeway, masq, dockers], o, directory)),
      ...(await compare('cached names of others', foreign, [causeway, masq], o, directory)),
    ];
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** A container with all the names as its aliases. */
async function container(
  { first: node, client }: Lab,
  network: string,
): Promise<{ address: string; sandbox: Pick<Host, 'exec'> }> {
  const aliases = own.flatMap((name) => ['--network-alias', name]);
  const words = ['run', '--detach', '--network', network, '--dns', client.address, ...aliases];
  const { stdout: id } = await node.docker([...words, imageName, 'serve']);
  const format = `{{.State.Pid}} {{.NetworkSettings.Networks.${network}.IPAddress}}`;
  const [pid = '', address = ''] = (await node.docker(['inspect', '--format', format, id])).stdout.split(' ');
  return { address, sandbox: sandboxOf(node, pid) };
}

function sandboxOf(node: LabNode, pid: string): Pick<Host, 'exec'> {
  return {
    exec: (command, options) => node.exec(['nsenter', `--net=/proc/${pid}/ns/net`, ...command], options),
  };
}

/** @param resolvers Causeway first, dnsmasq second */
async function compare(
  what: string,
  names: readonly string[],
  resolvers: readonly Resolver[],
  o: NamesOptions,
  directory: string,
): Promise<Finding[]> {
  const file = join(directory, what.replaceAll(' ', '-'));
  await writeFile(file, names.map((name) => `${name} A\n`).join(''));
  const ask = (resolver: Resolver, seconds: number): Promise<number> =>
    questions(resolver.from, { ...resolver, file }, { seconds, signal: o.signal });
  // Also warms up: a container's resolver is led to us a moment after it has started, and answers of others are kept.
  for (const resolver of resolvers)
    await until(
      `${resolver.name} answers ${what}`,
      () =>
        ask(resolver, 1).then(
          () => true,
          () => false,
        ),
      { timeoutMs: readyMs, everyMs: 500, signal: o.signal },
    );

  const rates = await interleave(
    resolvers.map((resolver): Way => ({
      name: resolver.name,
      measure: () => ask(resolver, o.seconds),
    })),
    o.rounds,
    (round) => o.progress(`${what}: round ${round} of ${o.rounds}`),
  );
  const figures = (samples: typeof rates, { name }: Resolver): number[] => samples.get(name) ?? [];
  const [causeway, masq, ...others] = resolvers as [Resolver, Resolver, ...Resolver[]];
  const finding = (other: Resolver, atLeast: number): Finding => {
    const [over, under] = [figures(rates, causeway), figures(rates, other)];
    const { value, low, high } = ratio(over, under);
    return {
      what: `${causeway.name} ÷ ${other.name}, ${what}`,
      value,
      unit: 'ratio',
      interval: [low, high],
      goal: { atLeast },
      detail: `${median(over).toFixed(0)} ÷ ${median(under).toFixed(0)} questions/s`,
      samples: { [causeway.name]: over, [other.name]: under },
    };
  };

  const half = Math.round(median(figures(rates, causeway)) / 2);
  const late = await interleave(
    [causeway, masq].map((resolver): Way => ({
      name: resolver.name,
      measure: () =>
        slowest(
          resolver.from,
          { ...resolver, file },
          { seconds: o.seconds, signal: o.signal, perSecond: half },
        ),
    })),
    o.rounds,
    (round) => o.progress(`${what}, ${half} questions/s: round ${round} of ${o.rounds}`),
  );
  const [over, under] = [figures(late, causeway), figures(late, masq)];
  const { value, low, high } = ratio(over, under);
  return [
    finding(masq, 0.7),
    ...others.map((other) => finding(other, 1.1)),
    {
      what: `${causeway.name} ÷ ${masq.name}, ${what}, p99 of the time at half load`,
      value,
      unit: 'ratio',
      interval: [low, high],
      goal: { atMost: 2 },
      detail: `${median(over).toFixed(2)} ÷ ${median(under).toFixed(2)} ms at ${half} questions/s`,
      samples: { [causeway.name]: over, [masq.name]: under },
    },
  ];
}
