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
