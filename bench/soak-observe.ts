// Owns reading which addresses are in use, from Docker on every node, and which are leased, from Consul.
// Must not judge (soak-audit.ts), nor trust anything that Causeway says of itself but which node is which.
import * as z from 'zod';
import type { LabNode } from '../test/lab/node.ts';
import type { Cluster } from './cluster.ts';
import type { Lease, Use } from './soak-audit.ts';

const container = z.object({
  Id: z.string(),
  Config: z.object({ Labels: z.record(z.string(), z.string()).nullish() }),
  NetworkSettings: z.object({
    Networks: z.record(z.string(), z.object({ NetworkID: z.string(), IPAddress: z.string() })),
  }),
});
const service = z.object({
  ID: z.string(),
  Spec: z.object({ Name: z.string() }),
  Endpoint: z
    .object({ VirtualIPs: z.array(z.object({ NetworkID: z.string(), Addr: z.string() })).nullish() })
    .nullish(),
});
const task = z.object({
  ID: z.string(),
  NetworksAttachments: z
    .array(z.object({ Network: z.object({ ID: z.string() }), Addresses: z.array(z.string()).nullish() }))
    .nullish(),
});
const entries = z.array(z.object({ key: z.string(), value: z.string() }));
const lease = z.object({ holders: z.array(z.string()) });
const taskLabel = 'com.docker.swarm.task.id';

const withoutPrefix = (address: string): string => address.split('/', 1)[0] ?? '';
const words = (text: string): string[] => text.split(/\s+/).filter(Boolean);

/**
 * What has an address on these networks: every running container, every VIP, and every task that shall run.
 * @param networks by id
 */
export async function observeUses(cluster: Cluster, networks: ReadonlySet<string>): Promise<Use[]> {
  const ids = await nodeIds(cluster);
  const containers = await Promise.all(
    cluster.lab.nodes.map(async (node) => {
      const list = await inspect(node, 'container', words((await node.docker(['ps', '--quiet'])).stdout));
      return z
        .array(container)
        .parse(list)
        .flatMap(({ Id, Config, NetworkSettings }) =>
          Object.values(NetworkSettings.Networks)
            .filter(({ NetworkID, IPAddress }) => networks.has(NetworkID) && IPAddress !== '')
            .map(({ IPAddress }): Use => {
              const ofTask = Config.Labels?.[taskLabel];
              const by = ofTask === undefined ? `container ${Id} on ${node.name}` : `task ${ofTask}`;
              return { address: IPAddress, holder: `node/${ids.get(node.name)}`, by };
            }),
        );
    }),
  );
  return [...containers.flat(), ...(await observeSwarm(cluster, networks))];
}

async function observeSwarm(cluster: Cluster, networks: ReadonlySet<string>): Promise<Use[]> {
  const { first } = cluster.lab;
  const services = z
    .array(service)
    .parse(await inspect(first, 'service', words(await cluster.docker('service', 'ls', '--quiet'))));
  const tasks =
    services.length === 0
      ? []
      : await listTasks(
          cluster,
          services.map(({ ID }) => ID),
        );
  return [
    ...services.flatMap(({ Spec, Endpoint }) =>
      (Endpoint?.VirtualIPs ?? [])
        .filter(({ NetworkID }) => networks.has(NetworkID))
        .map(({ Addr }) => ({ address: withoutPrefix(Addr), holder: 'global', by: `VIP of ${Spec.Name}` })),
    ),
    ...tasks.flatMap(({ ID, NetworksAttachments }) =>
      (NetworksAttachments ?? [])
        .filter(({ Network }) => networks.has(Network.ID))
        .flatMap(({ Addresses }) => Addresses ?? [])
        .map((address) => ({ address: withoutPrefix(address), holder: 'global', by: `task ${ID}` })),
    ),
  ];
}

/** One service at a time: one that was removed meanwhile has none. */
async function listTasks(cluster: Cluster, services: readonly string[]): Promise<z.infer<typeof task>[]> {
  const { first } = cluster.lab;
  const filter = ['--filter', 'desired-state=running', '--quiet', '--no-trunc'];
  const ids: string[] = [];
  for (const service of services) {
    const { stdout } = await first.docker(['service', 'ps', ...filter, service], { reject: false });
    ids.push(...words(stdout));
  }
  return z.array(task).parse(await inspect(first, 'task', ids));
}

/** The leases of the pools of these subnets, by the store itself. */
export async function observeLeases(cluster: Cluster, subnets: ReadonlySet<string>): Promise<Lease[]> {
  const prefix = 'causeway/ipam/leases/';
  const { stdout } = await cluster.lab.first.exec(['consul', 'kv', 'export', prefix]);
  return entries.parse(JSON.parse(stdout)).flatMap(({ key, value }) => {
    const [pool = '', address = ''] = key.slice(prefix.length).split('/');
    if (!subnets.has(pool.replace('-', '/'))) return [];
    const record = lease.parse(JSON.parse(Buffer.from(value, 'base64').toString()));
    return [{ address, holders: record.holders }];
  });
}

/** By the name of the node. */
async function nodeIds(cluster: Cluster): Promise<Map<string, string>> {
  const { nodes } = await cluster.status(cluster.lab.first);
  return new Map(nodes.map(({ name, id }) => [name, id]));
}

/** What ended between the list and the look is left out. */
async function inspect(node: LabNode, type: string, ids: readonly string[]): Promise<unknown[]> {
  if (ids.length === 0) return [];
  const { stdout } = await node.docker(['inspect', '--type', type, ...ids], { reject: false });
  return stdout === '' ? [] : (JSON.parse(stdout) as unknown[]);
}
