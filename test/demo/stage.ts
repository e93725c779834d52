// Owns what every demo is made of: saying what happens, and asking a service until it has been seen to answer.
// Must not know which demo it is for.
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { createPlugin, pluginName } from '../../rootfs/create.ts';
import type { Image } from '../lab/image.ts';
import type { Lab } from '../lab/lab.ts';
import type { Command, Host, LabNode } from '../lab/node.ts';
import { until } from '../support/until.ts';

/** What is shown on a lab. */
export interface Show {
  /** How many nodes there are, Docker on each. */
  nodes: number;
  /** Makes the cluster and its services. */
  deploy: (lab: Lab, image: Image, signal: AbortSignal) => Promise<void>;
  /** Shows them. @returns what was not as it should be */
  show: (lab: Lab, signal: AbortSignal) => Promise<string[]>;
  /** What is said when all was as it should be. */
  conclusion: string;
  /** What a person can try while it stays up. */
  printNext: (lab: Lab) => Promise<void>;
}

export const published = 8080;

/** What one request came to, as the echo program prints it. */
export interface Answer {
  ms: number;
  task?: string;
  client?: string;
  error?: string;
}

/** The echo program as the client starts it, and as it is in a container. */
export const echoOutside: Command = [process.execPath, join(import.meta.dirname, '../lab/image/echo.ts')];
export const echoInside: Command = ['/usr/bin/node', '/echo.ts'];

/** How often each task is asked, when all are asked in turn. */
const rounds = 3;

const started = performance.now();

/** Prints a line with the time since the start. */
export function say(line: string): void {
  console.log(`${((performance.now() - started) / 1000).toFixed(1).padStart(6)} s  ${line}`);
}

/** Who asks what, and what is expected of the answers. */
export interface Question {
  from: Pick<Host, 'exec'>;
  program: Command;
  url: string;
  /** The address of who asks. */
  real: string;
  /** How many tasks there are to answer. Each is asked several times, by a new connection each time. */
  tasks: number;
  /** How long to wait until all is as it should be, in milliseconds. */
  patienceMs?: number;
}

/**
 * Asks by the echo program until every task has answered as it should, or patience ends: a task is known on all nodes a
 * moment after it runs.
 * @returns the last round
 */
export async function ask(question: Question, signal: AbortSignal): Promise<Answer[]> {
  const { from, program, url, tasks, patienceMs = 60_000 } = question;
  const deadline = performance.now() + patienceMs;
  for (;;) {
    const words = ['http', url, '--count', String(rounds * tasks)];
    const { stdout } = await from.exec([...program, ...words], { reject: false, signal });
    const lines = stdout.split('\n').filter((line) => line.startsWith('{'));
    const answers = lines.map((line) => JSON.parse(line) as Answer);
    if (troublesOf(answers, question).length === 0 || performance.now() > deadline) return answers;
    await sleep(500, undefined, { signal });
  }
}

/** @returns what is wrong with the answers: requests that failed, another client than the real one, too few tasks */
export function troublesOf(
  answers: Answer[],
  { url, real, tasks }: Pick<Question, 'url' | 'real' | 'tasks'>,
): string[] {
  const troubles: string[] = [];
  const failed = answers.filter(({ error }) => error !== undefined).length;
  if (failed > 0) troubles.push(`${url}: ${failed} of ${answers.length} requests were not answered`);
  if (answers.some(({ client, error }) => error === undefined && client !== real)) {
    troubles.push(`${url}: a task saw another address than the client's own, ${real}`);
  }
  const seen = new Set(answers.flatMap(({ task }) => task ?? [])).size;
  if (seen < tasks) troubles.push(`${url}: ${seen} of ${tasks} tasks answered`);
  return troubles;
}

/** A running container of a service, and the address it has on the network `front`. */
export interface Visitor extends Pick<Host, 'exec'> {
  address: string;
  /** Of the network `front`, in Swarm's words. */
  network: string;
}

/** Waits until a container of the service runs on the node. */
export async function visitorOn(node: LabNode, service: string, signal: AbortSignal): Promise<Visitor> {
  const filter = `label=com.docker.swarm.service.name=${service}`;
  const container = await until(
    `a task of ${service} runs on ${node.name}`,
    async () => {
      const { stdout } = await node.docker(['ps', '--quiet', '--filter', filter], { signal });
      return stdout.split('\n')[0] || undefined;
    },
    { timeoutMs: 120_000, everyMs: 300, signal },
  );
  const own = '{{with index .NetworkSettings.Networks "front"}}{{.NetworkID}} {{.IPAddress}}{{end}}';
  const { stdout } = await node.docker(['inspect', '--format', own, container]);
  const [network = '', address = ''] = stdout.split(' ');
  return { address, network, exec: (command, o) => node.docker(['exec', container, ...command], o) };
}

/** Makes the network `front`. */
export async function createNetwork(node: LabNode, signal: AbortSignal): Promise<void> {
  const words = ['--ipam-driver', pluginName, '--scope', 'swarm', 'front'];
  say(`network: docker network create -d ${pluginName} ${words.join(' ')}`);
  await node.docker(['network', 'create', '-d', pluginName, ...words], { signal });
}

/** Creates a service on the network `front`. */
export async function createService(
  node: LabNode,
  image: Image,
  words: readonly string[],
  signal: AbortSignal,
): Promise<void> {
  const create = ['service', 'create', '--detach', '--quiet', '--no-resolve-image', '--network', 'front'];
  await node.docker([...create, ...words, image.id], { signal });
}

/** Waits until every service has as many tasks as it shall have. */
export async function allRun(node: LabNode, signal: AbortSignal): Promise<void> {
  await until(
    'all tasks run',
    async () => {
      const { stdout } = await node.docker(['service', 'ls', '--format', '{{.Replicas}}'], { signal });
      return stdout.split('\n').every((line) => {
        const [running, wanted] = (line.split(' ')[0] ?? '').split('/');
        return wanted !== '0' && running === wanted;
      });
    },
    { timeoutMs: 180_000, everyMs: 300, signal },
  );
  say('service: all tasks run');
}

/** The address of a service on a network. */
export async function vipOf(node: LabNode, service: string, network: string): Promise<string> {
  const format = '{{range .Endpoint.VirtualIPs}}{{println .NetworkID .Addr}}{{end}}';
  const { stdout } = await node.docker(['service', 'inspect', '--format', format, service]);
  return new RegExp(`^${network} ([^/]+)`, 'm').exec(stdout)?.[1] ?? 'none';
}

/** Puts the plugin into a node's Docker, not enabled yet. */
export async function putPlugin(node: LabNode, signal: AbortSignal): Promise<void> {
  await createPlugin((args) => node.docker(args, { signal }));
}
