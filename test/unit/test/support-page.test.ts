// Owns the test that docs/support.md has a line for each claim and a column for each engine that was run, and that its tests
// are there.
// Must not run a Docker Engine: `npm run support` writes what a run has shown.
import assert from 'node:assert/strict';
import { readFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { engineNames } from '../../lab/engines.ts';
import { claims, renderTable, shows, withTable } from '../../support-page.ts';

const root = join(import.meta.dirname, '../../..');

describe('docs/support.md', () => {
  it('docs/support.md has a line for each claim, and columns of engines', async () => {
    const page = await readFile(join(root, 'docs/support.md'), 'utf8');
    const [head = '', , ...lines] = page.split('\n').filter((line) => line.startsWith('|'));
    const cells = (line: string): string[] =>
      line
        .split('|')
        .slice(1, -1)
        .map((cell) => cell.trim());
    assert.deepEqual(
      lines.slice(0, claims.length).map((line) => cells(line)[0]),
      claims.map(({ what }) => what),
    );
    const columns = cells(head).slice(1);
    const names = columns.map((cell) =>
      engineNames.find((name) => new RegExp(`^Docker ${name}\\.\\d+(\\.\\d+)?$`).test(cell)),
    );
    assert.deepEqual(
      names,
      engineNames.filter((name) => names.includes(name)),
    );
  });

  it('each claim of docs/support.md names a test that exists', async () => {
    const directory = join(root, 'test/docker');
    const files = (await readdir(directory)).filter((name) => name.endsWith('.test.ts'));
    const text = (await Promise.all(files.map((name) => readFile(join(directory, name), 'utf8')))).join('\n');
    for (const { test, suite } of claims) {
      // Some titles have a word of a table of cases in them.
      const [start = ''] = test.split(/ (?=Docker was|refuses|has no|makes no|takes its own)/);
      assert.ok(text.includes(start), test);
      assert.ok(text.includes(`${suite} $`), suite);
    }
  });

  it('a claim is `yes` for an engine with which its test passed, and for no other', () => {
    const [claim] = claims;
    assert.ok(claim !== undefined);
    const title = `${claim.suite} 28, engine nft ${claim.test} from every task #main`;
    assert.deepEqual(
      engineNames.map((engine) => shows(claim, engine, [title])),
      [false, false, true],
    );
    assert.match(
      renderTable([
        { versions: { '20.10': '20.10.24' }, passes: [] },
        { versions: { '26': '26.1.5', '28': '28.5.2' }, passes: [title] },
      ]),
      /^\| published port.* \| – \| – \| yes \|$/m,
    );
  });

  it('docs/support.md has a column for each engine that was run, and needs no other', () => {
    const [head = ''] = renderTable([{ versions: { '28': '28.5.2' }, passes: [] }]).split('\n');
    assert.equal(head, '|  | Docker 28.5.2 |');
  });

  it('docs/support.md without its table is an error', () => {
    assert.throws(() => withTable('# Which Docker', []), /has lost the two comments/);
  });
});
