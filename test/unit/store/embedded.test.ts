// Owns what only the embedded store promises: durability, one process at a time, clear words about a bad file.
// Must not repeat the contract: test/contract/store.ts.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { DatabaseSync } from 'node:sqlite';
import { openEmbedded } from '../../../store/embedded.ts';

describe('embedded store', () => {
  let directory: string;
  let file: string;
  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'store-'));
    file = join(directory, 'state', 'store.db');
  });
  afterEach(() => rmSync(directory, { recursive: true }));

  it('the embedded store makes its directory for itself alone', async () => {
    await openEmbedded(file).close();
    assert.equal(statSync(join(directory, 'state')).mode & 0o777, 0o700);
  });

  it('entries and versions survive a restart, and versions go on counting', async () => {
    let store = openEmbedded(file);
    await store.commit([{ op: 'set', key: 'a', value: { x: 1 } }]);
    await store.commit([{ op: 'set', key: 'b', value: 1 }]);
    await store.commit([{ op: 'delete', key: 'b' }]);
    const before = await store.list('');
    await store.close();
    store = openEmbedded(file);
    assert.deepEqual(await store.list(''), before);
    await store.commit([{ op: 'set', key: 'b', value: 1 }]);
    assert.ok((await store.get('b'))!.version > before.index);
    await store.close();
  });

  it('kill -9 loses no acknowledged commit, and leaves none in part', async function () {
    this.timeout(60_000);
    let acknowledged = 0;
    for (let round = 0; round < 8; round++) {
      acknowledged = await writeUntilKilled(file, acknowledged + 1, 20 + Math.random() * 150);
      const store = openEmbedded(file);
      const { entries } = await store.list('n/');
      const last = (await store.get('last'))?.value;
      await store.close();
      assert.ok(entries.length >= acknowledged, `${entries.length} entries, ${acknowledged} acknowledged`);
      // The one that was being written may be there, but then both of its keys are.
      assert.equal(last, entries.length);
      acknowledged = entries.length;
    }
  });

  it('a file that another process has is refused, and accepted when that one is killed', async () => {
    const writer = spawn(process.execPath, [writerPath, file], { stdio: ['ignore', 'pipe', 'inherit'] });
    await once(writer.stdout, 'data');
    assert.throws(() => openEmbedded(file), {
      name: 'StoreError',
      code: 'locked',
      message: /in use by another process/,
    });
    writer.kill('SIGKILL');
    await once(writer, 'close');
    await openEmbedded(file).close();
  });

  it('a file that this process has open already is refused', async () => {
    const store = openEmbedded(file);
    assert.throws(() => openEmbedded(file), { code: 'locked' });
    await store.close();
    await openEmbedded(file).close();
  });

  it('others can read the file while it is open', async () => {
    const store = openEmbedded(file);
    await store.commit([{ op: 'set', key: 'a', value: [1] }]);
    const reader = new DatabaseSync(file, { readOnly: true });
    assert.deepEqual(
      { ...reader.prepare('SELECT * FROM entries').get() },
      { key: 'a', value: '[1]', version: 1 },
    );
    reader.close();
    await store.close();
  });

  it('a file that is no database: the error has a remedy, and the file is not touched', () => {
    const foreign = join(directory, 'foreign.db');
    writeFileSync(foreign, 'not a database, but long enough to have a header '.repeat(40));
    const before = readFileSync(foreign);
    assert.throws(() => openEmbedded(foreign), isCorrupt(foreign));
    assert.deepEqual(readFileSync(foreign), before);
  });

  it('damage inside the file is found when it is opened', async () => {
    const store = openEmbedded(file);
    for (let n = 0; n < 50; n++)
      await store.commit(
        Array.from(
          { length: 20 },
          (_, i) => ({ op: 'set', key: `k/${n}/${i}`, value: 'x'.repeat(100) }) as const,
        ),
      );
    await store.close();
    const bytes = readFileSync(file);
    bytes.fill(0xff, bytes.length / 2, bytes.length / 2 + 8192);
    writeFileSync(file, bytes);
    assert.throws(() => openEmbedded(file), isCorrupt(file));
    assert.deepEqual(readFileSync(file), bytes);
  });

  it('a file of a newer layout is refused', async () => {
    await openEmbedded(file).close();
    const db = new DatabaseSync(file);
    db.exec('PRAGMA user_version = 99');
    db.close();
    assert.throws(() => openEmbedded(file), { code: 'corrupt', message: /layout 99.*newer version/ });
  });

  it('an index of the future, which is another store’s, is not waited for', async () => {
    const store = openEmbedded(':memory:');
    assert.deepEqual(await store.list('p/', { after: 99 }), { index: 0, entries: [] });
    await store.close();
  });

  it('text that is not JSON is returned as it is, for the schema to reject', async () => {
    await openEmbedded(file).close();
    const db = new DatabaseSync(file);
    db.exec(`INSERT INTO entries VALUES ('a', '{broken', 1)`);
    db.close();
    const store = openEmbedded(file);
    assert.equal((await store.get('a'))?.value, '{broken');
    await store.close();
  });

  it('a directory that cannot be one: the error says so', () => {
    const notDirectory = join(directory, 'plain');
    writeFileSync(notDirectory, '');
    assert.throws(() => openEmbedded(join(notDirectory, 'store.db')), {
      code: 'unavailable',
      message: /plain/,
    });
    assert.ok(existsSync(notDirectory));
  });
});

const writerPath = join(import.meta.dirname, '../../support/store-writer.ts');

/** @returns the last number that was acknowledged before the process was killed after `ms` of writing */
async function writeUntilKilled(file: string, first: number, ms: number): Promise<number> {
  const writer = spawn(process.execPath, [writerPath, file, String(first)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let last = first - 1;
  for await (const line of createInterface({ input: writer.stdout })) {
    last = Number(line);
    if (last === first) setTimeout(() => writer.kill('SIGKILL'), ms);
  }
  return last;
}

function isCorrupt(file: string): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof Error);
    assert.deepEqual([error.name, 'code' in error && error.code], ['StoreError', 'corrupt']);
    assert.ok(error.message.includes(file) && error.message.includes('.recover'), error.message);
    return true;
  };
}
