// Owns how ways are compared: in interleaved rounds, by the ratio of their medians, with how sure that is. Pure but
// for the measuring it is handed.
// Must not know what is measured.

/** One of several ways to do the same. */
export interface Way {
  name: string;
  /** One round of it. @returns its figure, in the unit all ways of a comparison share; more is better */
  measure: () => Promise<number>;
}

/** The figures of each way, by its name, in the order they were taken. */
export type Samples = Map<string, number[]>;

/**
 * Measures all ways in turn, round after round, so that whatever else the machine does meets all of them alike. Every
 * other round goes backwards: no way always follows the same one, and a drift within the rounds cancels out.
 *
 * @param onRound called before each round, from 1
 */
export async function interleave(
  ways: readonly Way[],
  rounds: number,
  onRound: (round: number) => void,
): Promise<Samples> {
  const samples: Samples = new Map(ways.map(({ name }) => [name, []]));
  for (let round = 1; round <= rounds; round += 1) {
    onRound(round);
    for (const { name, measure } of round % 2 === 1 ? ways : ways.toReversed()) {
      samples.get(name)!.push(await measure());
    }
  }
  return samples;
}

/** @throws {RangeError} of nothing there is no median */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const [low, high] = [sorted[(sorted.length - 1) >> 1], sorted[sorted.length >> 1]];
  if (low === undefined || high === undefined) throw new RangeError('There is no median of nothing.');
  return (low + high) / 2;
}

/** How one way compares with another. */
export interface Ratio {
  /** Median of the one over median of the other. */
  value: number;
  /** Where 90 % of the ratios lie when rounds are drawn again at random: how much of it is chance. */
  low: number;
  high: number;
}

const draws = 2_000;

/** Bootstrap: rounds are drawn in pairs, because the two figures of a round met the same machine. */
export function ratio(over: readonly number[], under: readonly number[]): Ratio {
  const random = generator();
  const values: number[] = [];
  for (let draw = 0; draw < draws; draw += 1) {
    const rounds = over.map(() => Math.floor(random() * over.length));
    values.push(median(rounds.map((at) => over[at]!)) / median(rounds.map((at) => under[at]!)));
  }
  values.sort((a, b) => a - b);
  return {
    value: median(over) / median(under),
    low: values[Math.floor(draws * 0.05)]!,
    high: values[Math.floor(draws * 0.95)]!,
  };
}

/** Numbers from 0 to 1, the same at every call: the same samples are to give the same text. Mulberry32. */
function generator(): () => number {
  let state = 1;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
