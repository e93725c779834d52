// Owns the test that files which the documentation names are there.
// Must not judge what is said of them.
import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { basename, dirname, join, relative } from 'node:path';

const root = join(import.meta.dirname, '..', '..', '..');

/** A path or a name of a file of ours, in a page or a comment; not of a command that a user's own machine has. */
const named = /(?<![\w./-])(?:[\w-]+\/)*[\w-]+(?:\.[\w-]+)*\.(?:ts|md|sh)\b/g;

/** Of images that stacks use, and as an example. */
const foreign = new Set(['docker-entrypoint.sh', 'FILE.ts']);

async function filesBelow(directory: string): Promise<string[]> {
  const files: string[] = [];
  for (const entry of await readdir(directory, { withFileTypes: true })) {
    const path = join(directory, entry.name);
    if (!entry.isDirectory()) files.push(relative(root, path));
    else if (!['.git', 'build', 'node_modules'].includes(entry.name)) files.push(...(await filesBelow(path)));
  }
  return files;
}

it('each file that a page or a comment names is in the repository', async () => {
  const files = await filesBelow(root);
  const missing: string[] = [];
  for (const file of files.filter(
    (name) => /\.(md|ts|sh|yml)$/.test(name) && !name.startsWith('test/unit/'),
  )) {
    const text = await readFile(join(root, file), 'utf8').catch(() => '');
    for (const [path] of text.matchAll(named)) {
      const isThere = files.some(
        (other) => other === path || other === join(dirname(file), path) || other.endsWith(`/${path}`),
      );
      if (!isThere && !foreign.has(basename(path))) missing.push(`${file} names ${path}`);
    }
  }
  assert.deepEqual(missing, []);
});
