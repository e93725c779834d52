// Owns the parts `leaders` and `outage`: the leading manager lost again and again under churn, and Consul away for long.
// Must not repair anything: what is lost comes back by itself, or the part has failed.
import { setTimeout as sleep } from 'node:timers/promises';
import * as z from 'zod';
import type { LabNode } from '../test/lab/node.ts';
import { startLoad } from '../test/lab/asking.ts';
import type { Cluster } from './cluster.ts';
import type { Finding } from './report.ts';
import { audit, type Audit } from './soak-audit.ts';
import { Churn } from './soak-churn.ts';
import { observeLeases, observeUses } from './soak-observe.ts';

export interface SoakOptions {
  cluster: Cluster;
  progress: (line: string) => void;
}

const network = z.array(
  z.object({ Id: z.string(), IPAM: z.object({ Config: z.array(z.object({ Subnet: z.string() })) }) }),
);

/** Of churn, after each return. */
const betweenMs = 5_000;
/** A killed dockerd is started again after this, a node without power later than Swarm takes to notice. */
const offMs = { daemon: 3_000, power: 20_000 };
/** The collector frees what nobody has held for a minute; Swarm and Docker are to have settled before. */
const settleMs = 300_000;

/** Loses the leading manager so many times under churn, and looks at every address afterwards. */
export async function soakLeaders(
  { cluster, progress }: SoakOptions,
  { losses }: { losses: number },
): Promise<Finding[]> {
  const names = ['front', 'back'];
  for (const name of names) await cluster.network(name, 'causeway');
  const web = { name: 'web', network: 'front', port: 8080, udpPort: 9080, replicas: 6, perNode: 2 };
  await cluster.service(web);
  for (const node of cluster.lab.nodes) await cluster.serving(node, web.port, web.replicas);
  const networks = network.parse(JSON.parse(await cluster.docker('network', 'inspect', ...names)));
  const ids = new Set(networks.map(({ Id }) => Id));
  const subnets = new Set(networks.flatMap(({ IPAM }) => IPAM.Config.map(({ Subnet }) => Subnet)));
  const look = async (): Promise<Audit> => {
    const leases = await observeLeases(cluster, subnets);
    return audit(await observeUses(cluster, ids), leases);
  };

  await using churn = new Churn(cluster, names);
  const duplicates: string[] = [];
  for (let loss = 1; loss <= losses; loss += 1) {
    await sleep(betweenMs);
    const lost = await loseLeader(cluster, loss % 2 === 1 ? 'daemon' : 'power');
    const seen = await look();
    duplicates.push(...seen.duplicates);
    const { done, refused } = churn.report;
    progress(
      `${loss} of ${losses}: ${lost}; ${done} changes, ${refused} refused; duplicates: ${seen.duplicates.length}`,
    );
  }
  const { done, refused } = await churn.stop();
  progress('waiting for what nobody holds to be freed');
  const stopped = Date.now();
  let last = await look();
  const isClean = ({ leaked, unleased }: Audit): boolean => leaked.length + unleased.length === 0;
  while (!isClean(last) && Date.now() - stopped < settleMs) {
    await sleep(5_000);
    last = await look();
  }
  const seconds = Math.round((Date.now() - stopped) / 1000);
  for (const [kind, list] of Object.entries({ ...last, duplicates: [...duplicates, ...last.duplicates] }))
    for (const line of list) progress(`${kind}: ${line}`);
  for (const node of cluster.lab.nodes) await cluster.serving(node, web.port, web.replicas);
  const uses = await observeUses(cluster, ids);
  const finding = (what: string, value: number, detail: string): Finding => {
    return { what, value, unit: 'addresses', goal: { atMost: 0 }, detail, samples: { addresses: [value] } };
  };
  return [
    finding(
      'that two have, looked for after each loss and at the end',
      duplicates.length + last.duplicates.length,
      `${losses} losses of the leading manager, ${done} changes, ${refused} refused`,
    ),
    finding(
      'leased that nobody has',
      last.leaked.length,
      `looked at for the last time ${seconds} s after the churn`,
    ),
    finding(
      'in use without a lease',
      last.unleased.length,
      `${new Set(uses.map(({ address }) => address)).size} in use at the end; port ${web.port} answers on every node`,
    ),
  ];
}

/** @returns what was done, for a person */
async function loseLeader(cluster: Cluster, how: 'daemon' | 'power'): Promise<string> {
  const { lab } = cluster;
  const leader = await cluster.until('there is a leading manager', () => findLeader(lab.nodes));
  const others = lab.nodes.filter((node) => node !== leader);
  await (how === 'power' ? lab.kill(leader) : leader.stopDocker({ kill: true }));
  const next = await cluster.until('another manager leads', () => findLeader(others));
  await sleep(offMs[how]);
  await (how === 'power' ? lab.boot(leader) : leader.startDocker());
  await cluster.until('all managers are there', async () => {
    const { failed, stdout } = await next.docker(
      ['node', 'ls', '--format', '{{.Status}} {{.ManagerStatus}}'],
      { reject: false },
    );
    const ready = stdout.split('\n').filter((line) => /^Ready (Leader|Reachable)$/.test(line));
    return !failed && ready.length === lab.nodes.length;
  });
  await cluster.allKnown();
  return `${leader.name} lost its ${how}, ${next.name} took over`;
}

async function findLeader(nodes: readonly LabNode[]): Promise<LabNode | undefined> {
  for (const node of nodes) {
    if (!node.isOn) continue;
    const { failed, stdout } = await node.docker(
      ['node', 'ls', '--format', '{{.Hostname}} {{.ManagerStatus}}'],
      {
        reject: false,
        timeout: 10_000,
      },
    );
    const leader = failed ? undefined : /^(\S+) Leader$/m.exec(stdout)?.[1];
    const found = nodes.find(({ name }) => name === leader);
    if (found !== undefined) return found;
  }
  return undefined;
}

/** Of the load, on each node. */
const pace = { intervalMs: 50, timeoutMs: 5_000 };
/** From Consul's return to the end of the load. */
const afterMs = 30_000;
/** Docker waits 5 s before it starts a task again. */
const replacedGoalSeconds = 30;
const agreedGoalSeconds = 60;

/** Stops all Consul servers for so long under load, and sees whether anybody notices, and what remains of it. */
export async function soakOutage(
  { cluster, progress }: SoakOptions,
  { seconds }: { seconds: number },
): Promise<Finding[]> {
  const { lab } = cluster;
  await cluster.network('front', 'causeway');
  const web = { name: 'web', network: 'front', port: 8080, udpPort: 9080, replicas: 6, perNode: 2 };
  const other = { name: 'other', network: 'front', port: 8081, udpPort: 9081, replicas: 3, perNode: 1 };
  for (const service of [web, other]) await cluster.service(service);
  for (const { port, replicas } of [web, other])
    for (const node of lab.nodes) await cluster.serving(node, port, replicas);
  const loads = await Promise.all(
    lab.nodes.map((node) => startLoad(lab.client, `http://${node.address}:${web.port}/`, pace)),
  );
  const gone = Date.now();
  await lab.stopConsul();
  progress('Consul is stopped');
  await sleep((seconds * 1000) / 10);
  const crashed = Date.now();
  await crash(lab.first, other.name);
  await sleep(1_000);
  for (const node of lab.nodes) await cluster.serving(node, other.port, other.replicas);
  const replaced = (Date.now() - crashed) / 1000;
  progress(`a crashed task was replaced, and all nodes reach it, after ${replaced.toFixed(1)} s`);
  await sleep(Math.max(0, gone + seconds * 1000 - Date.now()));
  const away = Math.round((Date.now() - gone) / 1000);
  const back = Date.now();
  await lab.startConsul();
  await cluster.until('every node and the store agree', () => allAgree(cluster));
  const agreed = (Date.now() - back) / 1000;
  progress(`all agree ${agreed.toFixed(1)} s after Consul’s return`);
  await sleep(afterMs);
  const outcomes = (await Promise.all(loads.map((load) => load.stop()))).flat();
  const failures = outcomes.filter(({ error }) => error !== undefined);
  for (const { at, error } of failures.slice(0, 20))
    progress(`failed ${at - gone} ms after the stop: ${error}`);
  for (const node of lab.nodes) await cluster.serving(node, other.port, other.replicas);
  return [
    {
      what: 'failed requests while Consul was away, and after',
      value: failures.length,
      unit: 'requests',
      goal: { atMost: 0 },
      detail: `of ${outcomes.length}; away for ${away} s`,
      samples: { requests: [failures.length] },
    },
    {
      what: 'from the crash of a task to its replacement answering on all nodes, without Consul',
      value: replaced,
      unit: 's',
      goal: { atMost: replacedGoalSeconds },
      detail: 'Docker itself waits 5 s',
      samples: { s: [replaced] },
    },
    {
      what: "from Consul's start to every node's diff being empty and its kernel settled",
      value: agreed,
      unit: 's',
      goal: { atMost: agreedGoalSeconds },
      detail: 'GET /diff and /status of each node',
      samples: { s: [agreed] },
    },
  ];
}

async function crash(node: LabNode, service: string): Promise<void> {
  const filter = ['--filter', `label=com.docker.swarm.service.name=${service}`];
  const { stdout } = await node.docker(['ps', '--quiet', ...filter]);
  await node.docker(['kill', ...stdout.split('\n').slice(0, 1)]);
}

const difference = z.object({
  missing: z.array(z.unknown()),
  extra: z.array(z.unknown()),
  different: z.array(z.unknown()),
});

async function allAgree(cluster: Cluster): Promise<boolean> {
  for (const node of cluster.lab.nodes) {
    const { store, kernel } = await cluster.status(node);
    if (!store.connected || store.pending > 0 || !kernel.settled) return false;
    const answer = difference.safeParse(await node.admin('/diff'));
    if (!answer.success || Object.values(answer.data).some((list) => list.length > 0)) return false;
  }
  return true;
}
