// Owns what every store must do: one suite, run for each implementation by a factory.
// Must not know an implementation; what only one of them can do is tested beside it.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import * as z from 'zod';
import { StoreError } from '../../store/errors.ts';
import {
  maxCommitBytes,
  maxOps,
  type CommitResult,
  type Lock,
  type Op,
  type SharedStore,
  type Snapshot,
  type Store,
} from '../../store/store.ts';
import { Table } from '../../store/table.ts';
import { watch } from '../../store/watch.ts';

/** Makes an empty store. The suite closes it. */
export type StoreFactory = () => Promise<Store>;

/** @param settleMs longer than it takes the store to wake a waiting reader */
export function describeStore(name: string, make: StoreFactory, settleMs = 30): void {
  describe(`store contract: ${name}`, () => {
    let store: Store;
    const abort = new AbortController();
    beforeEach(async () => {
      store = await make();
    });
    afterEach(() => store.close());
    after(() => abort.abort());

    const set = async (key: string, value: unknown): Promise<number> => {
      const result = await store.commit([{ op: 'set', key, value }]);
      assert.ok(result.ok);
      return result.index;
    };
    const version = async (key: string): Promise<number> => (await store.get(key))?.version ?? 0;
    const keys = async (prefix: string): Promise<string[]> =>
      (await store.list(prefix)).entries.map((entry) => entry.key);

    describe('get, set, delete', () => {
      it('get returns any JSON value that was set, and undefined for a key that is not there', async () => {
        for (const value of [null, 0, false, '', [], {}, { deep: [{ ä: '☃ 🜁', n: 1.5 }] }]) {
          await set('k', value);
          assert.deepEqual((await store.get('k'))?.value, value);
        }
        assert.equal(await store.get('other'), undefined);
      });

      it('a value that is changed after get or set changes nothing in the store', async () => {
        const value = { list: [1] };
        await set('k', value);
        value.list.push(2);
        assert.deepEqual((await store.get('k'))?.value, { list: [1] });
      });

      it('delete succeeds, twice too, whatever version is named', async () => {
        await set('k', 1);
        assert.ok((await store.commit([{ op: 'delete', key: 'k' }])).ok);
        assert.ok((await store.commit([{ op: 'delete', key: 'k' }])).ok);
        assert.ok((await store.commit([{ op: 'delete', key: 'k', version: 7 }])).ok);
        assert.equal(await store.get('k'), undefined);
      });

      it('every change of any key has a greater version; setting the same value changes none', async () => {
        await set('a', { x: 1 });
        const first = await version('a');
        await set('b', 1);
        assert.ok((await version('b')) > first);
        await set('a', { x: 1 });
        assert.equal(await version('a'), first);
        await set('a', { x: 2 });
        assert.ok((await version('a')) > (await version('b')));
      });

      it('a version is never used twice, even for a key that was deleted in between', async () => {
        await set('k', 1);
        const first = await version('k');
        await store.commit([{ op: 'delete', key: 'k' }]);
        await set('k', 1);
        assert.ok((await version('k')) > first);
      });
    });

    describe('compare-and-set', () => {
      it('set and delete with a version change only a key at that version', async () => {
        await set('k', 1);
        const current = await version('k');
        const stale: Op[][] = [
          [{ op: 'set', key: 'k', value: 2, version: current - 1 }],
          [{ op: 'set', key: 'k', value: 2, version: current + 1 }],
          [{ op: 'set', key: 'k', value: 2, version: 0 }],
          [{ op: 'delete', key: 'k', version: current + 1 }],
          [{ op: 'check', key: 'k', version: 0 }],
        ];
        for (const ops of stale) assert.deepEqual(await store.commit(ops), { ok: false, conflicts: ['k'] });
        assert.deepEqual((await store.get('k'))?.value, 1);
        assert.ok((await store.commit([{ op: 'check', key: 'k', version: current }])).ok);
        assert.ok((await store.commit([{ op: 'set', key: 'k', value: 2, version: current }])).ok);
        assert.ok((await store.commit([{ op: 'delete', key: 'k', version: await version('k') }])).ok);
        assert.equal(await store.get('k'), undefined);
      });

      it('version 0 means that the key must not exist, any other that it must', async () => {
        assert.ok((await store.commit([{ op: 'check', key: 'k', version: 0 }])).ok);
        assert.ok((await store.commit([{ op: 'set', key: 'k', value: 1, version: 0 }])).ok);
        assert.deepEqual(await store.commit([{ op: 'set', key: 'absent', value: 1, version: 5 }]), {
          ok: false,
          conflicts: ['absent'],
        });
      });

      it('many compare-and-set at one key: exactly one succeeds', async () => {
        const results = await Promise.all(
          Array.from({ length: 20 }, (_, n) => store.commit([{ op: 'set', key: 'k', value: n, version: 0 }])),
        );
        assert.equal(results.filter((result) => result.ok).length, 1);
      });
    });

    describe('commit', () => {
      it('a commit applies all of its operations at one version, or none and names every conflict', async () => {
        for (const key of ['a', 'b', 'c']) await set(key, 1);
        const result = await store.commit([
          { op: 'set', key: 'new', value: 1 },
          { op: 'set', key: 'a', value: 2, version: 0 },
          { op: 'check', key: 'b', version: 0 },
          { op: 'delete', key: 'c' },
        ]);
        assert.ok(!result.ok);
        // Which conflicts are named beyond the first is the implementation's: it may stop looking there.
        assert.ok(result.conflicts.length > 0 && result.conflicts.every((key) => ['a', 'b'].includes(key)));
        assert.deepEqual(await keys(''), ['a', 'b', 'c']);

        const index = await version('b');
        const done = await store.commit([
          { op: 'check', key: 'b', version: index },
          { op: 'set', key: 'a', value: 2 },
          { op: 'set', key: 'd', value: 3, version: 0 },
          { op: 'delete', key: 'c' },
        ]);
        assert.ok(done.ok);
        assert.equal(await version('a'), await version('d'));
        assert.equal(await version('c'), 0);
        assert.equal(done.index, await version('a'));
      });

      it('a commit that changes nothing leaves the index as it was', async () => {
        await set('a', 1);
        const { index } = await store.list('');
        assert.ok((await store.commit([])).ok);
        await store.commit([{ op: 'check', key: 'a', version: await version('a') }]);
        await store.commit([{ op: 'delete', key: 'absent' }]);
        await store.commit([{ op: 'set', key: 'a', value: 1 }]);
        assert.equal((await store.list('')).index, index);
      });

      it(`a commit of ${maxOps} operations of ${maxCommitBytes} bytes is accepted`, async () => {
        const size = Math.floor(maxCommitBytes / maxOps);
        const ops = Array.from({ length: maxOps }, (_, n): Op => {
          const key = `k/${n}`;
          return { op: 'set', key, value: 'x'.repeat(size - key.length - 2), version: 0 };
        });
        assert.ok((await store.commit(ops)).ok);
        assert.equal((await keys('k/')).length, maxOps);
      });

      const invalid: [string, Op[]][] = [
        [
          'too many operations',
          Array.from({ length: maxOps + 1 }, (_, n): Op => ({ op: 'delete', key: `k${n}` })),
        ],
        [
          'a key twice',
          [
            { op: 'check', key: 'k', version: 0 },
            { op: 'set', key: 'k', value: 1 },
          ],
        ],
        ['an empty key', [{ op: 'delete', key: '' }]],
        ['a key that begins with a slash', [{ op: 'delete', key: '/k' }]],
        ['a value that is not JSON', [{ op: 'set', key: 'k', value: undefined }]],
        [
          'values that are too large together',
          ['a', 'b'].map((key): Op => ({ op: 'set', key, value: 'x'.repeat(maxCommitBytes / 2) })),
        ],
      ];
      for (const [what, ops] of invalid)
        it(`a commit is refused: ${what}`, async () => {
          await assert.rejects(store.commit(ops), { name: 'StoreError', code: 'invalid' });
          assert.deepEqual(await keys(''), []);
        });
    });

    describe('list', () => {
      it('list returns the keys of the prefix in order, with an index not below any version', async () => {
        for (const key of ['b/2', 'a', 'b/10', 'b', 'b/1', 'b0', 'b/ä', 'c']) await set(key, key);
        assert.deepEqual(await keys('b/'), ['b/1', 'b/10', 'b/2', 'b/ä']);
        assert.deepEqual(await keys('b'), ['b', 'b/1', 'b/10', 'b/2', 'b/ä', 'b0']);
        assert.equal((await keys('')).length, 8);
        assert.deepEqual(await keys('none/'), []);
        const { index, entries } = await store.list('b/');
        assert.ok(entries.every((entry) => entry.version <= index && entry.value === entry.key));
      });

      const changes: [string, (store: Store) => Promise<unknown>][] = [
        ['a set', (store) => store.commit([{ op: 'set', key: 'p/a', value: 2 }])],
        ['a new key', (store) => store.commit([{ op: 'set', key: 'p/new', value: 2 }])],
        ['a delete', (store) => store.commit([{ op: 'delete', key: 'p/a' }])],
      ];
      for (const [what, change] of changes) {
        it(`list with after waits, and returns at ${what}`, async () => {
          await set('p/a', 1);
          const waiter = wait(store, 'p/', await settledIndex(store, 'p/', settleMs));
          await set('q/a', 1);
          await sleep(settleMs);
          assert.equal(waiter.result, undefined, 'a change elsewhere must not look like one here');
          await change(store);
          const snapshot = await waiter.done;
          assert.deepEqual(snapshot.entries, (await store.list('p/')).entries);
          assert.ok(snapshot.index > waiter.after);
        });

        it(`list with after returns at once if ${what} came before the call`, async () => {
          await set('p/a', 1);
          const index = await settledIndex(store, 'p/', settleMs);
          await change(store);
          const snapshot = await store.list('p/', { after: index });
          assert.deepEqual(snapshot.entries, (await store.list('p/')).entries);
          assert.ok(snapshot.index > index);
        });
      }

      it('list with after rejects when the signal aborts, before or during the wait', async () => {
        const controller = new AbortController();
        const after = await settledIndex(store, 'p/', settleMs);
        const waiting = store.list('p/', { after, signal: controller.signal });
        await sleep(settleMs);
        const reason = new Error('enough');
        controller.abort(reason);
        await assert.rejects(waiting, reason);
        await assert.rejects(store.list('p/', { after, signal: controller.signal }), reason);
        await assert.rejects(store.get('k', { signal: controller.signal }), reason);
        await assert.rejects(
          store.commit([{ op: 'set', key: 'k', value: 1 }], { signal: controller.signal }),
          reason,
        );
        assert.equal(await store.get('k'), undefined);
      });
    });

    describe('close', () => {
      it('close ends waiting reads, refuses later ones, and may be repeated', async () => {
        const index = await settledIndex(store, 'p/', settleMs);
        const waiting = assert.rejects(store.list('p/', { after: index }), { code: 'closed' });
        await store.close();
        await waiting;
        await store.close();
        await assert.rejects(store.get('k'), { code: 'closed' });
      });
    });

    describe('watch', () => {
      it('watch yields what is there, then every change, and ends when the signal aborts', async () => {
        await set('p/a', 1);
        const controller = new AbortController();
        const seen: unknown[] = [];
        for await (const { entries } of watch(store, 'p/', { signal: controller.signal })) {
          const values = entries.map((entry) => entry.value);
          if (JSON.stringify(values) !== JSON.stringify(seen.at(-1))) seen.push(values);
          if (seen.length === 1) await set('p/b', 2);
          else if (seen.length === 2) await store.commit([{ op: 'delete', key: 'p/a' }]);
          else controller.abort();
        }
        assert.deepEqual(seen, [[1], [1, 2], [2]]);
      });

      it('watch coalesces what happens while its reader is busy', async () => {
        const controller = new AbortController();
        let snapshots = 0;
        for await (const { entries } of watch(store, 'p/', { signal: controller.signal })) {
          if (snapshots++ === 0) for (let n = 0; n < 50; n++) await set(`p/${n}`, n);
          else if (entries.length === 50) controller.abort();
        }
        assert.ok(snapshots <= 4, `${snapshots} snapshots for one burst`);
      });
    });

    describe('Table', () => {
      const schema = z.object({ v: z.literal(1), n: z.number() });
      const make = (): Table<z.infer<typeof schema>> => new Table(store, 'things/', schema);

      it('a table puts, gets, lists and deletes records by id', async () => {
        const table = make();
        await table.put('x/a', { v: 1, n: 1 });
        await table.put('x/b', { v: 1, n: 2 });
        await table.put('y', { v: 1, n: 3 });
        assert.deepEqual((await table.get('x/b'))?.value, { v: 1, n: 2 });
        assert.deepEqual(
          (await table.list('x/')).rows.map((row) => row.id),
          ['x/a', 'x/b'],
        );
        assert.deepEqual(await table.ids(), ['x/a', 'x/b', 'y']);
        await table.delete('y');
        assert.equal(await table.get('y'), undefined);
      });

      it('a table reports an unreadable record by its key, keeps it, and never treats it as absent', async () => {
        const table = make();
        await table.put('good', { v: 1, n: 1 });
        await set('things/bad', { v: 2 });
        const { rows, corrupt } = await table.list();
        assert.deepEqual(
          rows.map((row) => row.id),
          ['good'],
        );
        assert.deepEqual(
          corrupt.map(({ id, error }) => [id, error.code, error.key]),
          [['bad', 'corrupt', 'things/bad']],
        );
        const error = { name: 'StoreError', code: 'corrupt', message: /things\/bad/ };
        await assert.rejects(table.get('bad'), error);
        await assert.rejects(
          table.update('bad', () => ({ v: 1, n: 0 })),
          error,
        );
        assert.deepEqual((await store.get('things/bad'))?.value, { v: 2 });
      });

      it('table.update under contention loses no update', async () => {
        const table = make();
        const add = (): Promise<unknown> =>
          table.update('sum', (current) => ({ v: 1, n: (current?.n ?? 0) + 1 }));
        await Promise.all(Array.from({ length: 8 }, add));
        assert.equal((await table.get('sum'))?.value.n, 8);
      });

      it('table.update: undefined deletes, and the same object changes nothing', async () => {
        const table = make();
        await table.put('a', { v: 1, n: 1 });
        const reading: Store = { ...bound(store), commit: () => assert.fail('nothing is to be written') };
        await new Table(reading, 'things/', schema).update('a', (current) => current);
        await new Table(reading, 'things/', schema).update('absent', () => undefined);
        assert.equal(await table.update('a', () => undefined), undefined);
        assert.equal(await table.get('a'), undefined);
      });

      it('table.update gives up with a conflict that names the key', async () => {
        const table = make();
        let n = 0;
        // Another writer that is always faster.
        const racing: Store = {
          ...bound(store),
          commit: async (ops, options) => {
            await set('things/a', { v: 1, n: n++ });
            return store.commit(ops, options);
          },
        };
        const loser = new Table(racing, 'things/', schema);
        await assert.rejects(
          loser.update('a', () => ({ v: 1, n: -1 })),
          (error) => error instanceof StoreError && error.code === 'conflict' && error.key === 'things/a',
        );
        assert.ok((await table.get('a'))!.value.n >= 0);
      });
    });
  });
}

function bound(store: Store): Store {
  return {
    get: (key, options) => store.get(key, options),
    list: (prefix, options) => store.list(prefix, options),
    commit: (ops, options) => store.commit(ops, options),
    close: () => store.close(),
  };
}

/** An index at which a blocking list really blocks: early returns are allowed, but not for ever. */
async function settledIndex(store: Store, prefix: string, settleMs: number): Promise<number> {
  let { index } = await store.list(prefix);
  for (let tries = 0; tries < 5; tries++) {
    const early = await Promise.race([
      store.list(prefix, { after: index, signal: AbortSignal.timeout(settleMs) }).catch(() => undefined),
      sleep(settleMs * 2),
    ]);
    if (!early) return index;
    index = early.index;
  }
  throw new Error('a blocking list of an unchanged prefix keeps returning at once');
}

interface Waiting {
  after: number;
  result: Snapshot | undefined;
  done: Promise<Snapshot>;
}

function wait(store: Store, prefix: string, after: number): Waiting {
  const waiting: Waiting = { after, result: undefined, done: store.list(prefix, { after }) };
  waiting.done.then(
    (result) => (waiting.result = result),
    () => undefined,
  );
  return waiting;
}

/** What a store must do that several nodes use: all of {@link describeStore}, and locks. */
export function describeSharedStore(name: string, make: () => Promise<SharedStore>, settleMs = 30): void {
  describeStore(name, make, settleMs);
  describe(`shared store contract: ${name}`, () => {
    let store: SharedStore;
    beforeEach(async () => {
      store = await make();
    });
    afterEach(() => store.close());

    describe('lock', () => {
      const held = (lock: Lock): boolean => !lock.lost.aborted;
      const gone = async (signal: AbortSignal): Promise<unknown> => {
        if (!signal.aborted) await once(signal, 'abort');
        return signal.reason;
      };
      /** A commit that counts only while the lock is held. */
      const fenced = ({ key, version }: Lock): Promise<CommitResult> =>
        store.commit([
          { op: 'check', key, version },
          { op: 'set', key: 'work', value: Math.random() },
        ]);

      it('a lock on a free key is granted at once, with its value and a version that fences', async () => {
        assert.ok((await store.commit([{ op: 'set', key: 'k', value: 'left by somebody' }])).ok);
        const lock = await store.lock('k', { by: 'a' });
        assert.deepEqual(await store.get('k'), { key: 'k', value: { by: 'a' }, version: lock.version });
        assert.ok((await fenced(lock)).ok);
        assert.ok(held(lock));
        await lock.release();
      });

      it('releasing a lock deletes its key, does not count as loss, and may be repeated', async () => {
        const lock = await store.lock('k', 1);
        await lock.release();
        await lock.release();
        assert.equal(await store.get('k'), undefined);
        assert.ok(held(lock));
        assert.deepEqual(await fenced(lock), { ok: false, conflicts: ['k'] });
      });

      it('others wait for a lock until it is released, and have it one after the other', async () => {
        const first = await store.lock('k', 1);
        let holders = 1;
        const rest = [2, 3].map(async (value) => {
          const lock = await store.lock('k', value);
          assert.equal(++holders, 1, 'one holder at most');
          assert.equal((await store.get('k'))?.value, value);
          await sleep(settleMs);
          assert.ok(held(lock));
          holders--;
          await lock.release();
        });
        await sleep(settleMs);
        assert.ok(held(first) && holders === 1);
        holders--;
        await first.release();
        await Promise.all(rest);
      });

      it('locks of different keys are independent', async () => {
        const [a, b] = await Promise.all([store.lock('k/a', 1), store.lock('k/b', 1)]);
        await a.release();
        await sleep(settleMs);
        assert.ok(held(b) && (await fenced(b)).ok);
        await b.release();
      });

      it('lock with takeOver deposes the holder, who is told, and whose fence fails', async () => {
        const first = await store.lock('k', 'same');
        const second = await store.lock('k', 'same', { takeOver: true });
        const reason = await gone(first.lost);
        assert.ok(
          reason instanceof StoreError && reason.code === 'lost' && reason.key === 'k',
          String(reason),
        );
        assert.deepEqual(await fenced(first), { ok: false, conflicts: ['k'] });
        await first.release();
        assert.ok((await fenced(second)).ok, "the deposed one's release is not the new one's");
        assert.ok(held(second));
        await second.release();
      });

      it('lock with takeOver takes a free key, too', async () => {
        const lock = await store.lock('k', 1, { takeOver: true });
        assert.ok((await fenced(lock)).ok);
        await lock.release();
      });

      for (const [what, change] of [
        ['deletes', { op: 'delete', key: 'k' }],
        ['writes', { op: 'set', key: 'k', value: 'mine' }],
      ] satisfies [string, Op][])
        it(`a lock is lost when somebody ${what} its key`, async () => {
          const lock = await store.lock('k', 1);
          assert.ok((await store.commit([change])).ok);
          await gone(lock.lost);
          const next = await store.lock('k', 2);
          assert.ok((await fenced(next)).ok);
          await next.release();
        });

      it('waiting for a lock ends when the signal aborts, and leaves nothing behind', async () => {
        const first = await store.lock('k', 1);
        const controller = new AbortController();
        const reason = new Error('enough');
        const waiting = assert.rejects(store.lock('k', 2, { signal: controller.signal }), reason);
        await sleep(settleMs);
        controller.abort(reason);
        await waiting;
        await assert.rejects(store.lock('other', 2, { signal: controller.signal }), reason);
        await first.release();
        await sleep(settleMs);
        assert.deepEqual((await store.list('')).entries, []);
      });

      it('a lock that was granted outlives the signal', async () => {
        const controller = new AbortController();
        const lock = await store.lock('k', 1, { signal: controller.signal });
        controller.abort();
        await sleep(settleMs);
        assert.ok(held(lock) && (await fenced(lock)).ok);
        await lock.release();
      });

      it('close: locks that are held are lost, and those who wait for one are told', async () => {
        const lock = await store.lock('k', 1);
        const waiting = assert.rejects(store.lock('k', 2), { code: 'closed' });
        await sleep(settleMs);
        await store.close();
        await waiting;
        await gone(lock.lost);
        await assert.rejects(store.lock('k', 2), { code: 'closed' });
      });

      it('lock refuses what cannot be a key or a value', async () => {
        await assert.rejects(store.lock('', 1), { code: 'invalid' });
        await assert.rejects(store.lock('k', undefined), { code: 'invalid' });
      });
    });
  });
}
