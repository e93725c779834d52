// Owns asking the echo servers of services, and summing up what they said.
// Must not assert anything.
import { join } from 'node:path';
import type { Host, LabNode } from '../lab/node.ts';

const echo = join(import.meta.dirname, '../lab/image/echo.ts');

/** One request's outcome. */
export interface Answer {
  task?: string;
  client?: string;
  error?: string;
}

/** @param words for echo.ts: `http URL --count N …`. @returns one answer per request, errors among them */
export async function ask(host: Host, words: readonly string[]): Promise<Answer[]> {
  const { stdout } = await host.exec([process.execPath, echo, ...words], { reject: false, timeout: 600_000 });
  return parse(stdout);
}

/** The same from inside a container of the lab's image. */
export async function askFrom(
  node: LabNode,
  container: string | undefined,
  words: readonly string[],
): Promise<Answer[]> {
  const { stdout } = await node.docker(['exec', container ?? '', 'node', '/echo.ts', ...words], {
    reject: false,
  });
  return parse(stdout);
}

function parse(stdout: string): Answer[] {
  return stdout
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as Answer);
}

export const tasks = (list: Answer[]): string[] =>
  [...new Set(list.flatMap(({ task }) => task ?? []))].sort();
export const clients = (list: Answer[]): string[] =>
  [...new Set(list.flatMap(({ client }) => client ?? []))].sort();
export const errors = (list: Answer[]): string[] => list.flatMap(({ error }) => error ?? []);
