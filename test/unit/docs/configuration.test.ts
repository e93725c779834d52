// Owns docs/configuration.md: its table is config.json's, as text that may not drift.
// Must not test what the settings do.
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

const root = join(import.meta.dirname, '..', '..', '..');
const page = join(root, 'docs/configuration.md');
const [begin, end] = ['<!-- settings of config.json: begin -->', '<!-- settings of config.json: end -->'];

interface Setting {
  name: string;
  description: string;
  value: string;
  settable?: string[];
}

/** The page with the table that config.json gives. @param text as it is */
async function renderPage(text: string): Promise<string> {
  const { env } = JSON.parse(await readFile(join(root, 'config.json'), 'utf8')) as { env: Setting[] };
  const rows = env
    .filter(({ settable }) => settable !== undefined)
    .map(
      ({ name, value, description }) =>
        `| \`${name}\` | ${value === '' ? '' : `\`${value}\``} | ${description.replaceAll('|', '\\|')} |`,
    );
  const table = ['| name | default | what it is |', '| --- | --- | --- |', ...rows].join('\n');
  const [from, to] = [text.indexOf(begin) + begin.length, text.indexOf(end)];
  assert.ok(from >= begin.length && to > from, `${page} has no place for the table`);
  return `${text.slice(0, from)}\n\n${table}\n\n${text.slice(to)}`;
}

describe('docs/configuration.md', () => {
  it('docs/configuration.md has the settings of config.json (UPDATE_DOCS=1 npm run check writes it anew)', async () => {
    const before = await readFile(page, 'utf8');
    const after = await renderPage(before);
    if (process.env['UPDATE_DOCS'] === '1') await writeFile(page, after);
    else assert.equal(before, after);
  });
});
