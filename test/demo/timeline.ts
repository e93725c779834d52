// Owns the picture of failed connections over time. Pure.
// Must not judge what it shows.
import type { Outcome } from '../lab/asking.ts';

/** One character stands for this long, in milliseconds. */
const cell = 100;
const from = -1_000;
const to = 4_000;

/**
 * Draws a line per node from a second before the cut on: `·` all connections that began then were answered,
 * `✗` one was not, a blank for none that began.
 */
export function timeline(
  loads: readonly { name: string; outcomes: readonly Outcome[] }[],
  cut: number,
): string {
  const cells = Array.from({ length: (to - from) / cell }, (_, index) => from + index * cell);
  const lines = loads.map(({ name, outcomes }) => {
    const marks = cells.map((start) => {
      const begun = outcomes.filter(({ at }) => at - cut >= start && at - cut < start + cell);
      if (begun.length === 0) return ' ';
      return begun.some(({ error }) => error !== undefined) ? '✗' : '·';
    });
    return `   ${name.padEnd(5)}${marks.join('')}`;
  });
  const label = (start: number): string => (start === 0 ? '↑ the cut' : `↑ ${start / 1000} s`);
  let scale = '';
  for (const [index, start] of cells.entries()) {
    if (start >= 0 && start % 1000 === 0) scale = scale.padEnd(index) + label(start);
  }
  return [...lines, `        ${scale}`].join('\n');
}
