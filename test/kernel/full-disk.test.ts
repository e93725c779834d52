// Owns what a full disk does to this node's files: they are read all the same, and a copy of the store keeps nobody from working.
// Must not test damaged files; unit tests do.
import assert from 'node:assert/strict';
import {
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { openEmbedded } from '../../store/embedded.ts';
import { openReplica, type Replica } from '../../store/replica.ts';
import type { Store } from '../../store/store.ts';
import { flakyRemote, type FlakyRemote } from '../support/store-replica-remote.ts';
import { eventually } from '../support/until.ts';

const set = (key: string, value: unknown) => ({ op: 'set', key, value }) as const;
const offline = { offline: true };

describe('a disk that is full', () => {
  let disk: string;
  let remote: FlakyRemote;
  let opened: Store[];
  let told: string[];

  beforeEach(async () => {
    disk = mkdtempSync(join(tmpdir(), 'causeway-disk-'));
    await execa('mount', ['-t', 'tmpfs', '-o', 'size=4m', 'causeway-test', disk]);
    remote = flakyRemote();
    opened = [];
    told = [];
  });
  afterEach(async () => {
    for (const store of opened) await store.close().catch(() => undefined);
    await remote.store.close();
    await execa('umount', [disk]);
    rmSync(disk, { recursive: true });
  });

  function fill(): void {
    const file = openSync(join(disk, 'others'), 'w');
    try {
      for (;;) writeSync(file, Buffer.alloc(4096));
    } catch (error) {
      assert.equal((error as NodeJS.ErrnoException).code, 'ENOSPC');
    } finally {
      closeSync(file);
    }
  }
  const makeRoom = (): void => rmSync(join(disk, 'others'));

  async function replica(): Promise<Replica> {
    const store = await openReplica({
      remote: remote.connect(),
      file: join(disk, 'replica.db'),
      minPauseMs: 2,
      maxPauseMs: 10,
      onDisk: (reason) => told.push(reason),
    });
    opened.push(store);
    return store;
  }
  async function connected(): Promise<Replica> {
    const store = await replica();
    await eventually(() => store.state.connected);
    return store;
  }
  function embedded(): Store {
    const store = openEmbedded(join(disk, 'store.db'));
    opened.push(store);
    return store;
  }

  /** Puts the file as it is now in the place of what its end would have left: as after SIGKILL. */
  async function end(store: Store, name: string, how: 'closed' | 'killed'): Promise<void> {
    const parts = ['', '-wal'];
    const kept = join(disk, 'kept');
    mkdirSync(kept);
    if (how === 'killed')
      for (const part of parts) copyFileSync(join(disk, name + part), join(kept, name + part));
    await store.close();
    if (how === 'killed')
      for (const part of parts) copyFileSync(join(kept, name + part), join(disk, name + part));
    rmSync(kept, { recursive: true });
  }

  for (const how of ['closed', 'killed'] as const) {
    it(`a full disk: an embedded store that was ${how} gives back what it has, and says what is wrong with a write`, async () => {
      const before = embedded();
      await before.commit([set('a', 1)]);
      await end(before, 'store.db', how);
      fill();
      const store = embedded();
      assert.equal((await store.get('a'))?.value, 1);
      await assert.rejects(store.commit([set('b', 'x'.repeat(100_000))]), {
        code: 'unavailable',
        message: /store\.db cannot be used.*full.*Check that the disk has room/,
      });
      makeRoom();
      assert.ok((await store.commit([set('b', 1)])).ok);
      assert.equal((await store.list('')).entries.length, 2);
    });

    it(`a full disk: a replica that was ${how} gives back what it has, and follows the store`, async () => {
      await remote.store.commit([set('a', 1)]);
      const before = await connected();
      remote.away();
      await eventually(() => !before.state.connected);
      await before.commit([set('mine', 1)], offline);
      await end(before, 'replica.db', how);
      fill();
      const store = await replica();
      assert.equal((await store.get('a'))?.value, 1, 'before anybody answered');
      assert.equal((await store.get('mine'))?.value, 1);
      remote.back();
      await eventually(() => store.state.connected);
      assert.equal((await remote.store.get('mine'))?.value, 1);
      await remote.store.commit([set('b', 'x'.repeat(100_000))]);
      await eventually(async () => (await store.get('b')) !== undefined);
      assert.ok((await store.commit([set('c', 1)])).ok);
    });
  }

  it('a full disk without a replica file: the replica begins in memory, and says so', async () => {
    fill();
    await remote.store.commit([set('a', 1)]);
    const store = await connected();
    assert.equal((await store.get('a'))?.value, 1);
    remote.away();
    await eventually(() => !store.state.connected);
    await store.commit([set('mine', 1)], offline);
    remote.back();
    await eventually(async () => (await remote.store.get('mine')) !== undefined);
    assert.match(told.join(), /kept in memory/);
    assert.ok(!existsSync(join(disk, 'replica.db-wal')));
  });

  it('a full disk: a replica still writes to the store what was written while that was away, once', async () => {
    await remote.store.commit([set('mine', 0)]);
    const store = await connected();
    remote.away();
    await eventually(() => !store.state.connected);
    await store.commit([set('mine', 1)], offline);
    fill();
    remote.back();
    await eventually(() => store.state.connected && store.state.pending === 0);
    assert.equal((await remote.store.get('mine'))?.value, 1);
    // What is written from now on is not to be taken back by what an earlier life had waiting.
    await store.commit([set('mine', 2)], offline);
    await end(store, 'replica.db', 'closed');
    const next = await connected();
    assert.deepEqual([(await remote.store.get('mine'))?.value, next.state.pending], [2, 0]);
  });
});
