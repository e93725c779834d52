// Owns running the store contract for the embedded store, in memory and on disk.
// Must not test what only the embedded store does: test/unit/store/embedded.test.ts.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openEmbedded } from '../../store/embedded.ts';
import { describeStore } from './store.ts';

describeStore('embedded, in memory', () => Promise.resolve(openEmbedded(':memory:')));

describe('on disk', () => {
  const directory = mkdtempSync(join(tmpdir(), 'store-'));
  let files = 0;
  after(() => rmSync(directory, { recursive: true }));
  describeStore('embedded, on disk', () => Promise.resolve(openEmbedded(join(directory, `${files++}.db`))));
});
