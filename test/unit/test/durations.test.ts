// Owns the tests of the table of where the time of `npm test` went.
// Must not run a stage.
import assert from 'node:assert/strict';
import { whereTheTimeWent } from '../../durations.ts';

describe('where the time went', () => {
  it('the summary lists stages, files and tests, the slowest first', () => {
    const stages = new Map([
      ['unit', 61],
      ['docker', 700.04],
    ]);
    const of = (file: string, title: string, milliseconds: number) => ({ file, title, milliseconds });
    const times = [
      of('a.test.ts', 'one', 1000),
      of('b.test.ts', 'two', 1500),
      of('a.test.ts', 'three', 2000),
    ];
    assert.equal(
      whereTheTimeWent(stages, times),
      [
        '   700.0 s  docker',
        '    61.0 s  unit',
        '',
        '     3.0 s  a.test.ts',
        '     1.5 s  b.test.ts',
        '',
        '     2.0 s  three (a.test.ts)',
        '     1.5 s  two (b.test.ts)',
        '     1.0 s  one (a.test.ts)',
      ].join('\n'),
    );
  });
});
