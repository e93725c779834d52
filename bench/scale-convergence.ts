// Owns how long it takes from Swarm listing a task as running until all nodes balance to it: three plugins on real
// network namespaces and a real Consul, with this program playing Docker.
// Must not play Docker otherwise than it was measured to be.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  World,
  wireAddress,
  type TestEndpoint,
  type TestNode,
  type TestService,
} from '../test/kernel/world.ts';
import { consulPort, consulServer, prepareConsul } from '../test/lab/consul.ts';
import { startCommand, type Running } from '../test/lab/node.ts';

export interface Convergence {
  /** Of each round, milliseconds until the first of the other nodes, and until the last. */
  first: number[];
  last: number[];
}

/** Between Join and "running" in the manager's list, in milliseconds: image, start of the process, report. */
const startTimes = { from: 150, to: 1_400 };

export async function measureConvergence(
  rounds: number,
  progress: (line: string) => void,
): Promise<Convergence> {
  await prepareConsul();
  const directory = await mkdtemp(join(tmpdir(), 'causeway-convergence-'));
  let consul: Running | undefined;
  let world: World | undefined;
  try {
    world = await World.up({
      nodes: 3,
      env: (wire) => {
        const server = consulServer({
          name: 'wire',
          address: wireAddress,
          dataDir: join(directory, 'consul'),
        });
        const inWire = ['--pdeathsig', 'KILL', '--', 'nsenter', `--net=${wire.path}`];
        consul = startCommand(['setpriv', ...inWire, ...server]);
        return { CAUSEWAY_LB: 'nft', CAUSEWAY_STORE: `consul://${wireAddress}:${consulPort}` };
      },
    });
    await world.everywhere(({ nodes }) => nodes.length === 3);
    return await measure(world, rounds, progress);
  } finally {
    await world?.down();
    consul?.kill('SIGKILL');
    await consul;
    await rm(directory, { recursive: true });
  }
}

async function measure(world: World, rounds: number, progress: (line: string) => void): Promise<Convergence> {
  const network = await world.allocateNetwork('front', { subnet: '10.77.0.0/16' });
  for (const node of world.nodes) await world.createNetwork(network, node);
  const resident = await world.attach(network, world.nodes[0]);
  const service = await world.service('web', network, ['8080:80'], [resident]);
  const found: Convergence = { first: [], last: [] };
  for (let round = 1; round <= rounds; round += 1) {
    if (round % 10 === 1) progress(`a task starts, round ${round} of ${rounds}`);
    const home = world.nodes[round % 3]!;
    const endpoint = await world.attach(network, home);
    await sleep(startTimes.from + Math.random() * (startTimes.to - startTimes.from));
    const listed = performance.now();
    // Without an event: the one of the container came to its own node, before.
    list(world, service, endpoint);
    const others = world.nodes.filter((node) => node !== home);
    const times = await Promise.all(others.map((node) => balanced(node, service, endpoint, listed)));
    found.first.push(Math.min(...times));
    found.last.push(Math.max(...times));
    await world.scale(service, [resident]);
    await world.detach(endpoint);
    // Until the publisher looks seldom again, as it does in a cluster where nothing happens.
    await sleep(2_000);
  }
  return found;
}

function list(
  { docker }: World,
  { id, network }: TestService,
  { id: endpoint, address }: TestEndpoint,
): void {
  docker.tasks.push({
    ID: endpoint.slice(0, 25),
    ServiceID: id,
    NodeID: 'node',
    DesiredState: 'running',
    Status: { State: 'running' },
    NetworksAttachments: [{ Network: { ID: network.id }, Addresses: [`${address}/16`] }],
  });
}

/** Milliseconds since `listed` until the node's kernel balances to the endpoint; shown by the rules themselves. */
async function balanced(
  node: TestNode,
  service: TestService,
  { address }: TestEndpoint,
  listed: number,
): Promise<number> {
  for (;;) {
    const { kernel, services } = await node.status();
    const record = services.find(({ id }) => id === service.id);
    const known = record?.tasks.some(({ addresses }) => Object.values(addresses).includes(address)) === true;
    // Settled: the kernel took what these records say.
    if (known && kernel.settled) {
      const elapsed = performance.now() - listed;
      const rules = await node.plugin.tool('nft', ['list', 'table', 'inet', 'causeway']);
      if (!rules.includes(`: ${address}`))
        throw new Error(`${address} is not in the rules of a settled node`);
      return elapsed;
    }
    if (performance.now() - listed > 30_000) throw new Error(`${address} is no real server after 30 s`);
    await sleep(3);
  }
}
