// Owns asking the echo servers of services, and summing up what they said.
// Must not assert anything.
import { join } from 'node:path';
import type { Host, LabNode } from '../lab/node.ts';
import { slowness } from '../slowness.ts';

/** The program that asks and answers. */
export const echo = join(import.meta.dirname, '../lab/image/echo.ts');

/** One request's outcome. */
export interface Answer {
  task?: string;
  client?: string;
  error?: string;
}

/** The options that give each request this long. */
export const within = (seconds: number): string[] => ['--timeout', String(seconds * 1000 * slowness)];

/**
 * @param words for echo.ts: `http URL --count N …`. Each request may take 3 s, unless they say otherwise.
 * @returns one answer per request, errors among them
 */
export async function ask(host: Host, words: readonly string[]): Promise<Answer[]> {
  return outcome(
    await host.exec([process.execPath, echo, ...within(3), ...words], {
      reject: false,
      timeout: 600_000 * slowness,
    }),
  );
}

/** The same from inside a container of the lab's image. */
export async function askFrom(
  node: LabNode,
  container: string | undefined,
  words: readonly string[],
): Promise<Answer[]> {
  const command = ['exec', container ?? '', 'node', '/echo.ts', ...within(3), ...words];
  return outcome(await node.docker(command, { reject: false }));
}

/** @param stdout what an echo client has printed, of which the last line may not be whole yet */
export const answers = (stdout: string): Answer[] =>
  stdout
    .slice(0, stdout.lastIndexOf('\n') + 1)
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as Answer);

/** What could not ask at all is an error too. */
function outcome({ stdout, stderr }: { stdout: string; stderr: string }): Answer[] {
  const list = answers(`${stdout}\n`);
  return list.length === 0 ? [{ error: stderr || 'no answer' }] : list;
}

export const tasks = (list: Answer[]): string[] =>
  [...new Set(list.flatMap(({ task }) => task ?? []))].sort();
export const clients = (list: Answer[]): string[] =>
  [...new Set(list.flatMap(({ client }) => client ?? []))].sort();
export const errors = (list: Answer[]): string[] => list.flatMap(({ error }) => error ?? []);

/** A name looked up in a container: the records, or the code of the failure. */
export type Looked = unknown[] | string;

/**
 * Looks names up in a container, by the name server of its /etc/resolv.conf and without its search list.
 * @param questions each a name and a type, as `tasks.web A`
 * @returns an outcome for each question: addresses sorted, TXT records joined, or `ENOTFOUND`, `ENODATA`, …
 */
export async function lookUp(
  node: LabNode,
  container: string | undefined,
  questions: readonly string[],
): Promise<Looked[]> {
  const { stdout } = await node.docker(['exec', container ?? '', 'node', '-e', lookUpProgram, ...questions]);
  return JSON.parse(stdout) as Looked[];
}

const lookUpProgram = `
const { Resolver } = require('node:dns').promises;
const resolver = new Resolver({ timeout: 2000, tries: 2 });
const one = async (question) => {
  const [name, type] = question.split(' ');
  try {
    const list = await resolver.resolve(name, type);
    return list.map((item) => (type === 'TXT' ? item.join(' ') : item)).sort();
  } catch (error) { return error.code; }
};
Promise.all(process.argv.slice(1).map(one)).then((all) => console.log(JSON.stringify(all)));
`;

/** The IPv4 addresses that getaddrinfo(3) of either C library gives for a name; none when it fails. */
export interface Found {
  glibc: string[];
  musl: string[];
}

/** Looks names up in a container as programs do that know nothing of DNS. @returns what was found for each */
export async function findAddresses(
  node: LabNode,
  container: string | undefined,
  names: readonly string[],
): Promise<Found[]> {
  const inside = async (...command: string[]): Promise<string> =>
    (await node.docker(['exec', container ?? '', ...command])).stdout;
  const glibc = JSON.parse(await inside('node', '-e', findProgram, ...names)) as string[][];
  const musl = (await inside('look', ...names)).split('\n').map((line) => line.split(' ').slice(1));
  return names.map((_, at) => ({
    glibc: (glibc[at] ?? []).toSorted(),
    // In place of addresses there may be the number of an error.
    musl: (musl[at] ?? []).filter((word) => word.includes('.')).toSorted(),
  }));
}

const findProgram = `
const { lookup } = require('node:dns').promises;
const one = (name) => lookup(name, { all: true, family: 4 }).then((all) => all.map((one) => one.address), () => []);
Promise.all(process.argv.slice(1).map(one)).then((all) => console.log(JSON.stringify(all)));
`;

/** What came of looking up again and again: how often it was tried, and what did not succeed. */
export interface Looking {
  asked: number;
  failed: string[];
}

/** Looks names up in a container, ten times a second and each at most twice, until it is ended. */
export function keepLookingUp(
  node: LabNode,
  container: string,
  names: readonly string[],
): { end: () => Promise<Looking> } {
  const running = node.docker(['exec', container, 'node', '-e', keepLookingUpProgram, ...names], {
    timeout: 600_000 * slowness,
  });
  return {
    end: async () => {
      await node.docker(['exec', container, 'sh', '-c', '>/tmp/end']);
      return JSON.parse((await running).stdout) as Looking;
    },
  };
}

const keepLookingUpProgram = `
const { Resolver } = require('node:dns').promises;
const failed = [];
let asked = 0;
const one = async (name) => {
  asked += 1;
  const at = new Date().toISOString();
  try { await new Resolver({ timeout: 1000, tries: 2 }).resolve4(name); }
  catch (error) { failed.push(at + ' ' + name + ' ' + error.code); }
};
const open = new Set();
const timer = setInterval(async () => {
  for (const name of process.argv.slice(1)) {
    const asking = one(name).then(() => open.delete(asking));
    open.add(asking);
  }
  if (!require('node:fs').existsSync('/tmp/end')) return;
  clearInterval(timer);
  await Promise.all(open);
  console.log(JSON.stringify({ asked, failed }));
}, 100);
`;
