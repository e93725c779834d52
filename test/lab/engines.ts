// Owns the Docker Engines that a lab's nodes can run: those of Debian's releases, each unpacked in a directory of its own.
// Must not hold other programs: tools.ts does, and Docker 20.10 is among them.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { unpackDebian } from '../../rootfs/debian.ts';
import { toolsDir, toolsEnv } from './tools.ts';

/** Debian's releases and what they have besides the one of Debian 12, by the name that a person types. */
const suites = { '26': 'trixie', '28': 'forky' } as const;

export type EngineName = '20.10' | keyof typeof suites;

export const engineNames: readonly EngineName[] = [
  '20.10',
  ...(Object.keys(suites) as (keyof typeof suites)[]),
];

/**
 * What a lab runs that does not say which.
 * @throws Error CAUSEWAY_TEST_ENGINE names none
 */
export function defaultEngine(): EngineName {
  return parseEngine(process.env['CAUSEWAY_TEST_ENGINE'] ?? '20.10');
}

/** The name of a test's lab: tests with different engines run side by side. */
export function labNameFor(test: string): string {
  const engine = defaultEngine();
  return engine === '20.10' ? test : `${test}-${engine}`;
}

/** @throws Error there is no such engine */
export function parseEngine(name: string): EngineName {
  const known = engineNames.find((each) => each === name);
  if (known === undefined)
    throw new Error(`There is no engine ${name}: there are ${engineNames.join(', ')}.`);
  return known;
}

const directory = (name: EngineName): string => join(import.meta.dirname, '../../build/engines', name);

/**
 * Makes an engine's directory complete; a download of 65 MB the first time.
 * @throws {DebianError} when the packages cannot be had.
 */
export async function prepareEngine(
  name: EngineName,
  o: { progress?: (line: string) => void; signal?: AbortSignal } = {},
): Promise<void> {
  if (name === '20.10') return;
  // These need no newer C library than Debian 12 has. Their runc does, so the nodes go on with that of Debian 12.
  const packages = ['docker.io', 'docker-cli', 'containerd'];
  await unpackDebian({ packages, into: directory(name), suite: suites[name], closure: false, ...o });
}

/** @returns which version that is, such as 28.5.2; undefined where it has not been unpacked */
export async function engineVersion(name: EngineName): Promise<string | undefined> {
  const list = `${name === '20.10' ? toolsDir : directory(name)}.packages`;
  const packages = await readFile(list, 'utf8').catch(() => '');
  return /^docker\.io ([\d.]+)/m.exec(packages)?.[1];
}

/** The beginning of a command line whose programs find this engine's before the others. */
export function withEngine(name: EngineName): string[] {
  if (name === '20.10') return [];
  const own = ['usr/sbin', 'usr/bin'].map((bin) => join(directory(name), bin)).join(':');
  return ['env', `PATH=${own}:${toolsEnv()['PATH']}`];
}
