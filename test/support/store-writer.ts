// Owns the process that test/unit/store/embedded.test.ts kills: writes to a store and tells what was acknowledged.
// Must not exit by itself, nor say a number before its commit returned.
import { writeSync } from 'node:fs';
import { openEmbedded } from '../../store/embedded.ts';

const [file = '', first = '1'] = process.argv.slice(2);
const store = openEmbedded(file);
for (let n = Number(first); ; n++) {
  await store.commit([
    { op: 'set', key: `n/${n}`, value: n, version: 0 },
    { op: 'set', key: 'last', value: n },
  ]);
  writeSync(1, `${n}\n`);
}
