// Owns the count of tests of one mocha run and the names of those that failed, for test/run.ts; prints what mocha's spec
// reporter prints.
// Must not judge.
import { writeFileSync } from 'node:fs';
import Mocha from 'mocha';

/** What `CAUSEWAY_TEST_COUNT` names a file for. */
export interface Count {
  passed: number;
  failed: number;
  skipped: number;
  /** Titles of what failed, each with the beginning of its error. */
  failures: string[];
}

export default class CountingReporter extends Mocha.reporters.Spec {
  constructor(runner: Mocha.Runner, options?: Mocha.MochaOptions) {
    super(runner, options);
    const failures: string[] = [];
    runner.on('fail', (test: Mocha.Test, error: Error) => {
      failures.push(`${test.fullTitle()}: ${error.message.replace(/\s+/g, ' ').slice(0, 300)}`);
    });
    runner.once('end', () => {
      const file = process.env['CAUSEWAY_TEST_COUNT'];
      const { passes: passed, failures: failed, pending: skipped } = this.stats;
      if (file !== undefined)
        writeFileSync(file, JSON.stringify({ passed, failed, skipped, failures } satisfies Count));
    });
  }
}
