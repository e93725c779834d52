// Owns the count of tests of one mocha run, the names of those that failed, and how long each took, for test/run.ts; prints
// what mocha's spec reporter prints.
// Must not judge.
import { writeFileSync } from 'node:fs';
import { relative } from 'node:path';
import Mocha from 'mocha';

/** What `CAUSEWAY_TEST_COUNT` names a file for. */
export interface Count {
  passed: number;
  failed: number;
  skipped: number;
  /** Titles of what failed, each with the beginning of its error. */
  failures: string[];
  /** Titles of what passed. */
  passes: string[];
  times: Time[];
}

/** How long a test or a hook took. */
export interface Time {
  /** From the root of the repository. */
  file: string;
  title: string;
  milliseconds: number;
}

/** What takes less is nobody's worry. */
const worthTelling = 50;

export default class CountingReporter extends Mocha.reporters.Spec {
  constructor(runner: Mocha.Runner, options?: Mocha.MochaOptions) {
    super(runner, options);
    const failures: string[] = [];
    const passes: string[] = [];
    const times: Time[] = [];
    const took = (title: string, { duration = 0, file }: Mocha.Runnable): void => {
      if (duration < worthTelling || file === undefined) return;
      times.push({ file: relative(process.cwd(), file), title, milliseconds: duration });
    };
    runner.on('pass', (test: Mocha.Test) => passes.push(test.fullTitle()));
    runner.on('fail', (test: Mocha.Test, error: Error) => {
      failures.push(`${test.fullTitle()}: ${error.message.replace(/\s+/g, ' ').slice(0, 300)}`);
    });
    runner.on('test end', (test: Mocha.Test) => took(test.title, test));
    runner.on('hook end', (hook: Mocha.Hook) => took(hook.title, hook));
    runner.once('end', () => {
      const file = process.env['CAUSEWAY_TEST_COUNT'];
      const { passes: passed, failures: failed, pending: skipped } = this.stats;
      const count: Count = { passed, failed, skipped, failures, passes, times };
      if (file !== undefined) writeFileSync(file, JSON.stringify(count));
    });
  }
}
