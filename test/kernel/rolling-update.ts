// Owns playing Swarm's part in `docker service update`, with the pauses that Docker was measured to make and no other:
// nobody waits for Causeway here, as Docker does not.
// Must not assert anything.
import { setTimeout as sleep } from 'node:timers/promises';
import type { Task } from '../../swarm/docker.ts';
import { slowness } from '../slowness.ts';
import type { Peer } from './peer.ts';
import type { TestEndpoint, TestNode, TestService, World } from './world.ts';

/** As Docker's `--update-order`. */
export type Order = 'stop-first' | 'start-first';

/** A task with a server in it. */
export interface ServedTask {
  endpoint: TestEndpoint;
  server: Peer;
  listed: Task;
}

/** From the moment in which a task is to stop until its container is told so. */
const leaveMs = 2_000 * slowness;
/** How long a server has for what it has begun: Docker's default for a task. */
const graceMs = 10_000 * slowness;
/** Two at a time, as `--update-parallelism 2`. */
const parallelism = 2;

let started = 0;

/** Starts one task of a service on a node: of no use to anybody before it is running. */
export async function startTask(world: World, service: TestService, node: TestNode): Promise<ServedTask> {
  const { network } = service;
  const address = await world.requestAddress(network.globalPool);
  const listed: Task = {
    ID: `task${(started += 1)}`,
    ServiceID: service.id,
    NodeID: node.docker.id,
    DesiredState: 'running',
    Status: { State: 'preparing' },
    NetworksAttachments: [{ Network: { ID: network.id }, Addresses: [address] }],
  };
  world.docker.tasks.push(listed);
  const endpoint = await world.attach(network, node, address);
  const server = world.peer(endpoint.sandbox);
  await server.serve({ name: listed.ID, tcp: 80 });
  listed.Status = { State: 'running' };
  node.docker.hint({ Type: 'container', Action: 'start' });
  return { endpoint, server, listed };
}

export async function stopTask(world: World, { endpoint, server, listed }: ServedTask): Promise<void> {
  listed.DesiredState = 'shutdown';
  await sleep(leaveMs);
  await Promise.race([server.retire(), sleep(graceMs, undefined, { ref: false })]);
  await server.stop();
  endpoint.node.docker.hint({ Type: 'container', Action: 'die' });
  await world.detach(endpoint);
  world.docker.tasks = world.docker.tasks.filter((task) => task !== listed);
}

/** Replaces all tasks of a service, each on its node. @returns the new ones */
export async function rollingUpdate(
  world: World,
  service: TestService,
  tasks: readonly ServedTask[],
  order: Order,
): Promise<ServedTask[]> {
  const say = (State: string): void => {
    for (const listed of world.docker.services) if (listed.ID === service.id) listed.UpdateStatus = { State };
    world.docker.hint();
  };
  const replace = async (old: ServedTask): Promise<[ServedTask, Promise<void>]> => {
    const { node } = old.endpoint;
    if (order === 'start-first') return [await startTask(world, service, node), stopTask(world, old)];
    await stopTask(world, old);
    return [await startTask(world, service, node), Promise.resolve()];
  };
  say('updating');
  const replaced: [ServedTask, Promise<void>][] = [];
  for (let at = 0; at < tasks.length; at += parallelism)
    replaced.push(...(await Promise.all(tasks.slice(at, at + parallelism).map(replace))));
  await Promise.all(replaced.map(([, ended]) => ended));
  say('completed');
  return replaced.map(([task]) => task);
}
