// Owns the table of where the time of `npm test` went.
// Must not measure: the reporter and the run do.
import type { Time } from './reporter.ts';

/** How many files and tests are worth a look. */
const most = 10;

/**
 * @param stages seconds that each took, by the clock
 * @returns lines of text: the stages, the slowest files, and the slowest tests and hooks
 */
export function whereTheTimeWent(stages: ReadonlyMap<string, number>, times: readonly Time[]): string {
  const files = new Map<string, number>();
  for (const { file, milliseconds } of times) files.set(file, (files.get(file) ?? 0) + milliseconds / 1000);
  const tests = times.map(
    ({ file, title, milliseconds }) => [`${title} (${file})`, milliseconds / 1000] as const,
  );
  return [...table([...stages], stages.size), '', ...table([...files], most), '', ...table(tests, most)].join(
    '\n',
  );
}

function table(rows: readonly (readonly [string, number])[], count: number): string[] {
  return rows
    .toSorted(([, one], [, other]) => other - one)
    .slice(0, count)
    .map(([name, seconds]) => `${seconds.toFixed(1).padStart(8)} s  ${name}`);
}
