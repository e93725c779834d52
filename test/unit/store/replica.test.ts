// Owns what a replica does while its remote is away, when it comes back, and what nodes tell each other meanwhile.
// Must not repeat the contract: test/contract/store.ts.
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { setTimeout as sleep } from 'node:timers/promises';
import { batches } from '../../../store/batches.ts';
import { openEmbedded } from '../../../store/embedded.ts';
import { openReplica, type Replica, type ReplicaOptions } from '../../../store/replica.ts';
import type { Op, Store } from '../../../store/store.ts';
import { watch } from '../../../store/watch.ts';
import { withLocks } from '../../fake/locks.ts';
import { flakyRemote, type FlakyRemote } from '../../support/store-replica-remote.ts';
import { eventually } from '../../support/until.ts';

const set = (key: string, value: unknown, version?: number): Op => ({
  op: 'set',
  key,
  value,
  ...(version === undefined ? {} : { version }),
});
const offline = { offline: true };
const agree = { missing: [], extra: [], different: [] };

describe('replica', () => {
  let directory: string;
  let file: string;
  let remote: FlakyRemote;
  let opened: Replica[];
  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'replica-'));
    file = join(directory, 'replica.db');
    remote = flakyRemote();
    opened = [];
  });
  afterEach(async () => {
    for (const replica of opened) await replica.close();
    await remote.store.close();
    rmSync(directory, { recursive: true });
  });

  const open = async (options: Partial<ReplicaOptions> = {}): Promise<Replica> => {
    const replica = await openReplica({
      remote: remote.connect(),
      file,
      minPauseMs: 2,
      maxPauseMs: 10,
      ...options,
    });
    opened.push(replica);
    return replica;
  };
  /** A replica that has seen what the remote has. */
  const openConnected = async (options: Partial<ReplicaOptions> = {}): Promise<Replica> => {
    const replica = await open(options);
    await eventually(() => replica.state.connected);
    return replica;
  };
  const goAway = async (replica: Replica): Promise<void> => {
    remote.away();
    await eventually(() => !replica.state.connected);
  };
  const comeBack = async (replica: Replica): Promise<void> => {
    remote.back();
    await eventually(() => replica.state.connected);
  };
  const value = async (store: Store, key: string): Promise<unknown> => (await store.get(key))?.value;
  /** As `value`, once the watch has brought it. */
  const untilValue = (replica: Replica, key: string, expected: unknown): Promise<void> =>
    eventually(async () => (await value(replica, key)) === expected);

  describe('reading', () => {
    it('changes that follow each other are taken together, and more of them the more there is to read', async () => {
      const entries = Array.from({ length: 500 }, (_, at) => set(`entry-${at}`, at));
      for (const commit of batches(entries)) await remote.store.commit(commit);
      const replica = await openConnected();
      await untilValue(replica, 'entry-499', 499);
      for (let change = 1; change <= 50; change += 1) {
        await remote.store.commit([set('a', change)]);
        await sleep(5);
      }
      await untilValue(replica, 'a', 50);
      assert.ok(remote.watched <= 25, `${remote.watched} times`);
    });

    it('the store was never reached: the error says what to do; ready once it was', async () => {
      await remote.store.commit([set('a', 1)]);
      remote.away();
      const replica = await open();
      const unavailable = { name: 'StoreError', code: 'unavailable', message: /Check that it runs/ };
      await assert.rejects(replica.get('a'), unavailable);
      await assert.rejects(replica.list(''), unavailable);
      await assert.rejects(replica.commit([set('a', 1)], offline), { code: 'unavailable' });
      remote.back();
      await replica.ready;
      assert.equal(await value(replica, 'a'), 1);
    });

    it('ready rejects if the replica is closed before', async () => {
      remote.away();
      const replica = await open();
      await replica.close();
      await assert.rejects(replica.ready, { code: 'closed' });
    });

    it('a restart without the store: reads are answered from the disk at once', async () => {
      await remote.store.commit([set('a', { x: 1 }), set('b', 2)]);
      let replica = await openConnected();
      await replica.commit([set('c', 3)]);
      const before = (await replica.list('')).entries;
      await replica.close();
      remote.away();
      replica = await open();
      await replica.ready;
      assert.deepEqual((await replica.list('')).entries, before);
      assert.equal(replica.state.connected, false);
    });

    it('a restart: what was deleted meanwhile is forgotten', async () => {
      await remote.store.commit([set('a', 1), set('b', 2)]);
      await (await openConnected()).close();
      await remote.store.commit([{ op: 'delete', key: 'a' }]);
      const replica = await openConnected();
      assert.deepEqual(
        (await replica.list('')).entries.map(({ key }) => key),
        ['b'],
      );
    });

    it('get returns the same frozen object until the key changes', async () => {
      await remote.store.commit([set('a', { deep: [1] }), set('b', 1)]);
      const replica = await openConnected();
      const first = await replica.get('a');
      await remote.store.commit([set('b', 2)]);
      await untilValue(replica, 'b', 2);
      assert.equal(await replica.get('a'), first);
      assert.throws(() => (first!.value as { deep: number[] }).deep.push(2), TypeError);
    });

    it('reads never ask the store, however much there is', async () => {
      for (let n = 0; n < 10_000; n += 50)
        await remote.store.commit(
          Array.from({ length: 50 }, (_, i) => set(`endpoints/n${n % 7}/${n + i}`, { n: n + i })),
        );
      const replica = await openConnected();
      const { looks } = remote;
      for (let n = 0; n < 1000; n++) await replica.list('endpoints/n3/');
      assert.equal((await replica.list('endpoints/')).entries.length, 10_000);
      assert.equal(remote.looks, looks);
      assert.deepEqual(await replica.compare(), agree);
      await replica.close();
      remote.away();
      const again = await open();
      assert.equal((await again.list('endpoints/')).entries.length, 10_000);
    });

    it('a read that wants what is there now asks the store', async () => {
      const replica = await openConnected();
      const release = remote.hold('list');
      await remote.store.commit([set('a', 1)]);
      await turns();
      const fresh = replica.get('a', { fresh: true });
      assert.equal(await value(replica, 'a'), undefined);
      release();
      assert.deepEqual((await fresh)?.value, 1);
      assert.equal((await replica.list('', { fresh: true })).entries.length, 1);
      await goAway(replica);
      await assert.rejects(replica.get('a', { fresh: true }), { code: 'unavailable' });
      await assert.rejects(replica.list('', { fresh: true }), { code: 'unavailable' });
    });

    it('a store that was rebuilt is recognised, also where its versions coincide', async () => {
      await remote.store.commit([set('a', 'old')]);
      await remote.store.commit([set('b', 'old')]);
      await (await openConnected()).close();
      const other = flakyRemote(withLocks(openEmbedded(':memory:')));
      await other.store.commit([set('a', 'new')]);
      const replica = await open({ remote: other.connect() });
      await untilValue(replica, 'a', 'new');
      assert.equal(await replica.get('b'), undefined);
      await replica.close();
      await other.store.close();
    });
  });

  describe('a file that cannot be read', () => {
    const damages: Record<string, () => void> = {
      'is no database': () =>
        writeFileSync(file, 'something else, and longer than a header of SQLite is: '.repeat(9)),
      'has a torn page': () => {
        const bytes = readFileSync(file);
        bytes.fill(0xff, 4096, 8192);
        writeFileSync(file, bytes);
      },
      'was written by a newer version': () => alter('PRAGMA user_version = 99'),
      'has a row that is no JSON': () => alter(`INSERT INTO journal VALUES ('k', 1, '1', 9, 1, '[')`),
    };
    function alter(sql: string): void {
      const db = new DatabaseSync(file);
      db.exec(sql);
      db.close();
    }

    for (const [what, damage] of Object.entries(damages))
      it(`a replica file that ${what} is moved aside, reported, and filled again`, async () => {
        await remote.store.commit([set('a', 1)]);
        await (await openConnected()).close();
        damage();
        const damaged = readFileSync(file);
        const told: string[] = [];
        const replica = await openConnected({ onDisk: (reason) => told.push(reason) });
        assert.equal(await value(replica, 'a'), 1);
        const aside = readdirSync(directory).find((name) => /^replica\.db\.damaged-[\dT.-]+Z$/.test(name));
        assert.deepEqual(readFileSync(join(directory, aside ?? '')), damaged);
        assert.equal(told.length, 1);
        assert.match(told[0] ?? '', /was damaged, and is now .*\.damaged-.*filled again/);
      });

    it('a replica file is not another process’s', async () => {
      await openConnected();
      await assert.rejects(open(), { code: 'locked' });
    });
  });

  describe('a store that has lost everything', () => {
    const options = { sentinelKey: 'cluster/id', ephemeral: ['leader'] };

    it('a store that lost everything is filled with what is known, but not with who held locks', async () => {
      await remote.store.commit([set('cluster/id', 'x'), set('a', 1), set('leader', 'me')]);
      await (await openConnected(options)).close();
      const other = flakyRemote(withLocks(openEmbedded(':memory:')));
      await other.store.commit([set('foreign', 1)]);
      const replica = await open({ remote: other.connect(), ...options });
      await untilValue(replica, 'foreign', 1);
      const keys = (await other.store.list('')).entries.map(({ key }) => key);
      assert.deepEqual(keys, ['a', 'cluster/id', 'foreign']);
      await untilAgreement(replica);
      await replica.close();
      await other.store.close();
    });

    it('an empty store that is another cluster’s to fill is believed', async () => {
      await remote.store.commit([set('cluster/id', 'x'), set('a', 1)]);
      await (await openConnected(options)).close();
      const other = flakyRemote(withLocks(openEmbedded(':memory:')));
      const mayRefill = Promise.withResolvers<boolean>();
      const replica = await open({
        remote: other.connect(),
        ...options,
        mayRefill: () => mayRefill.promise,
      });
      await turns();
      assert.equal(await value(replica, 'a'), 1, 'as long as that is not known, what was known counts');
      mayRefill.resolve(false);
      await untilValue(replica, 'a', undefined);
      assert.deepEqual((await other.store.list('')).entries, []);
      await replica.close();
      await other.store.close();
    });

    it('a store that lost everything keeps what another node filled in first', async () => {
      await remote.store.commit([set('cluster/id', 'x'), set('a', 'old'), set('b', 1)]);
      await (await openConnected(options)).close();
      const other = flakyRemote(withLocks(openEmbedded(':memory:')));
      await other.store.commit([set('a', 'theirs')]);
      const replica = await open({ remote: other.connect(), ...options });
      await untilValue(replica, 'a', 'theirs');
      assert.equal((await other.store.get('b'))?.value, 1);
      await replica.close();
      await other.store.close();
    });
  });

  describe('writing', () => {
    it('a write shows at once in spite of snapshots that were on their way', async () => {
      await remote.store.commit([set('mine', 1), set('gone', 1)]);
      const replica = await openConnected();
      // The watch has a snapshot on its way that is older than the commits below.
      const release = remote.hold('list');
      await remote.store.commit([set('other', 1)]);
      await turns();
      await replica.commit([set('mine', 2), set('new', 2)]);
      await replica.commit([{ op: 'delete', key: 'gone' }]);
      const seen = async (): Promise<unknown[]> =>
        (await replica.list('')).entries.map((entry) => [entry.key, entry.value]);
      const mine = [
        ['mine', 2],
        ['new', 2],
      ];
      assert.deepEqual(await seen(), mine);
      const releaseNext = remote.hold('list');
      release();
      await untilValue(replica, 'other', 1);
      assert.deepEqual(await seen(), [...mine, ['other', 1]]);
      releaseNext();
      await untilAgreement(replica);
      assert.deepEqual(await seen(), [...mine, ['other', 1]]);
    });

    it('after a conflict the winning value is known, and all that was written with it', async () => {
      await remote.store.commit([set('guard', 1)]);
      const replica = await openConnected();
      const stale = (await replica.get('guard'))!.version;
      const release = remote.hold('list');
      await remote.store.commit([set('guard', 2), set('pool', 'taken')]);
      const losing = replica.commit([set('guard', 3, stale)]);
      await turns();
      release();
      assert.deepEqual(await losing, { ok: false, conflicts: ['guard'] });
      assert.deepEqual([await value(replica, 'guard'), await value(replica, 'pool')], [2, 'taken']);
    });

    it('without the store, a write that may not wait is rejected', async () => {
      const replica = await openConnected({ graceMs: 20 });
      await goAway(replica);
      await assert.rejects(replica.commit([set('a', 1)]), { code: 'unavailable' });
      await replica.commit([set('b', 1)], offline);
      await assert.rejects(replica.commit([set('a', 1)]), { code: 'unavailable', message: /1 keys .* wait/ });
      assert.equal(await replica.get('a'), undefined);
    });

    it('a write that may not wait follows one that was done here, when the store is soon back', async () => {
      const replica = await openConnected();
      await goAway(replica);
      await replica.commit([set('b', 1)], offline);
      const following = replica.commit([set('a', 1)]);
      await comeBack(replica);
      assert.ok((await following).ok);
      assert.deepEqual([await value(replica, 'a'), await value(replica, 'b')], [1, 1]);
    });

    it('a failed write marks the store as away, until it answers again', async () => {
      const states: boolean[] = [];
      const replica = await openConnected({ onState: ({ connected }) => states.push(connected) });
      // Nothing changes, so the watch by itself would go on waiting.
      remote.refuse(1);
      await assert.rejects(replica.commit([set('a', 1)]), { code: 'unavailable' });
      await eventually(() => replica.state.connected);
      assert.deepEqual(states, [true, false, true]);
      remote.loseAcknowledgements(1);
      await assert.rejects(replica.commit([set('a', 1)]), { code: 'unavailable' });
      await untilValue(replica, 'a', 1);
    });
  });

  describe('without the store', () => {
    it('without the store, a write that may wait is checked against what is known, and replayed', async () => {
      await remote.store.commit([set('changed', 1), set('deleted', 1)]);
      const replica = await openConnected();
      await goAway(replica);
      const waiting = replica.list('', { after: (await replica.list('')).index });
      const result = await replica.commit(
        [set('new', 1, 0), set('changed', 2), { op: 'delete', key: 'deleted' }],
        offline,
      );
      assert.ok(result.ok);
      await waiting;
      const { index, entries } = await replica.list('');
      assert.deepEqual(
        entries.map((entry) => [entry.key, entry.value]),
        [
          ['changed', 2],
          ['new', 1],
        ],
      );
      assert.ok(entries.every(({ version }) => version >= 2 ** 52 && version <= index));
      assert.equal(replica.state.pending, 3);
      const stale: Op[] = [set('new', 2, 0)];
      assert.deepEqual(await replica.commit(stale, offline), { ok: false, conflicts: ['new'] });
      const second = await replica.commit([set('new', 2, result.index)], offline);
      assert.ok(second.ok && second.index > result.index);

      await comeBack(replica);
      assert.equal(replica.state.pending, 0);
      assert.deepEqual(await replica.compare(), agree);
      assert.deepEqual((await remote.store.list('')).entries, (await replica.list('')).entries);
      // The final value of each key only.
      assert.equal(remote.sent.flat().filter(({ key }) => key === 'new').length, 1);
    });

    it('pending writes survive a restart', async () => {
      await remote.store.commit([set('a', 1)]);
      let replica = await openConnected();
      await goAway(replica);
      await replica.commit([set('a', 2)], offline);
      const version = (await replica.get('a'))!.version;
      await replica.close();
      replica = await open();
      assert.equal(await value(replica, 'a'), 2);
      await replica.commit([set('a', 3), set('b', 1)], offline);
      assert.ok((await replica.get('a'))!.version > version);
      await replica.close();
      replica = await open();
      assert.equal(replica.state.pending, 2);
      await comeBack(replica);
      assert.deepEqual([await value(remote.store, 'a'), await value(remote.store, 'b')], [3, 1]);
      await replica.close();
      const db = new DatabaseSync(file, { readOnly: true });
      assert.equal(db.prepare('SELECT count(*) AS n FROM journal').get()!['n'], 0);
      db.close();
    });

    it('without the store, writing the value that is there changes nothing', async () => {
      await remote.store.commit([set('a', { x: 1 })]);
      const replica = await openConnected();
      await goAway(replica);
      const { index } = await replica.list('');
      assert.ok((await replica.commit([set('a', { x: 1 }), { op: 'delete', key: 'b' }], offline)).ok);
      assert.equal((await replica.list('')).index, index);
      assert.equal(replica.pendingWrites.revision(), '');
    });

    it('pending writes that do not fit into one commit are replayed', async () => {
      const replica = await openConnected();
      await goAway(replica);
      for (let n = 0; n < 150; n++) await replica.commit([set(`k/${n}`, n)], offline);
      await comeBack(replica);
      assert.equal((await remote.store.list('k/')).entries.length, 150);
    });

    it('a replay: the owner of a key wins, but nobody takes what another one has created', async () => {
      const conflicts: unknown[] = [];
      await remote.store.commit([set('owned', 1)]);
      const replica = await openConnected({ onConflict: (...all) => conflicts.push(all) });
      await goAway(replica);
      await replica.commit([set('owned', 'ours'), set('created', 'ours'), set('same', 'both')], offline);
      await remote.store.commit([set('owned', 'theirs'), set('created', 'theirs'), set('same', 'both')]);
      await comeBack(replica);
      assert.equal(await value(replica, 'owned'), 'ours');
      assert.equal(await value(replica, 'created'), 'theirs');
      assert.deepEqual(conflicts, [['created', 'ours', 'theirs']]);
      assert.deepEqual(await replica.compare(), agree);
    });

    it('a write that was applied without an acknowledgement is replayed once', async () => {
      const conflicts: unknown[] = [];
      const replica = await openConnected({ onConflict: (...all) => conflicts.push(all) });
      // The commit that finds the store away has happened; then it is written again, and the replay is unacknowledged, too.
      remote.loseAcknowledgements(2);
      await replica.commit([set('a', 1, 0)], offline);
      remote.away();
      await replica.commit([set('a', 2)], offline);
      assert.equal(await value(remote.store, 'a'), 1);
      await comeBack(replica);
      assert.equal(await value(remote.store, 'a'), 2);
      assert.deepEqual(conflicts, []);
      assert.equal(replica.state.pending, 0);
      assert.deepEqual(
        remote.sent.flat().map((op) => op.op === 'set' && op.value),
        [1, 2],
      );
    });

    it('a silent store is not waited for, and does not apply later what it was sent before', async () => {
      await remote.store.commit([set('a', 0)]);
      const replica = await openConnected({ offlineAfterMs: 5 });
      const release = remote.hold('send');
      await replica.commit([set('a', 1)], offline);
      remote.away();
      await replica.commit([set('a', 2)], offline);
      await comeBack(replica);
      assert.equal(await value(remote.store, 'a'), 2);
      release();
      await turns();
      assert.equal(await value(remote.store, 'a'), 2);
    });

    it('a write over any version is applied as told, also if the key has just changed', async () => {
      await remote.store.commit([set('a', 1)]);
      const replica = await openConnected();
      await remote.store.commit([set('a', 2)]);
      assert.ok((await replica.commit([set('a', 3)], offline)).ok);
      assert.deepEqual([await value(replica, 'a'), await value(remote.store, 'a')], [3, 3]);
    });

    it('writes during the replay are taken, too', async () => {
      const replica = await openConnected();
      await goAway(replica);
      await replica.commit([set('a', 1), set('b', 1)], offline);
      const release = remote.hold('commit');
      remote.back();
      await eventually(() => remote.sent.length === 1);
      await replica.commit([set('a', 2), { op: 'delete', key: 'b' }], offline);
      release();
      await eventually(() => replica.state.connected);
      assert.deepEqual([await value(remote.store, 'a'), await value(remote.store, 'b')], [2, undefined]);
      assert.deepEqual(await replica.compare(), agree);
    });

    it('somebody writes during the replay: the store is read again', async () => {
      const errors: unknown[] = [];
      await remote.store.commit([set('owned', 1)]);
      const replica = await openConnected({ onError: (error) => errors.push(error) });
      await goAway(replica);
      await replica.commit([set('owned', 'ours')], offline);
      const release = remote.hold('list');
      const { looks } = remote;
      remote.back();
      await eventually(() => remote.looks > looks);
      await turns();
      await remote.store.commit([set('owned', 'theirs')]);
      errors.length = 0;
      release();
      await eventually(() => replica.state.connected);
      assert.equal(await value(remote.store, 'owned'), 'ours');
      assert.deepEqual(errors, []);
    });

    it('a replay never shows another value in between', async () => {
      await remote.store.commit([set('a', 'old'), set('b', 'old')]);
      const replica = await openConnected();
      await goAway(replica);
      await replica.commit([set('a', 'new'), set('c', 'new'), { op: 'delete', key: 'b' }], offline);
      const states = record(replica);
      await comeBack(replica);
      await remote.store.commit([set('last', 1)]);
      await untilValue(replica, 'last', 1);
      assert.deepEqual(await states.distinct(), [
        { a: 'new', c: 'new' },
        { a: 'new', c: 'new', last: 1 },
      ]);
    });
  });

  describe('the pending writes of other nodes', () => {
    let here: Replica;
    let there: Replica;
    /** What the other node reaches the same store by. */
    let theirLink: FlakyRemote;
    beforeEach(async () => {
      await remote.store.commit([set('theirs', 1), set('deleted', 1), set('mine', 1)]);
      here = await openConnected();
      theirLink = flakyRemote(remote.store);
      there = await openConnected({ remote: theirLink.connect(), file: join(directory, 'there.db') });
      theirLink.away();
      await goAway(here);
      await eventually(() => !there.state.connected);
      await there.commit([set('theirs', 2), set('new', 2), { op: 'delete', key: 'deleted' }], offline);
    });
    /** As it comes over the network. */
    const offered = (replica: Replica): unknown => JSON.parse(JSON.stringify(replica.pendingWrites.read()));
    const seen = async (): Promise<unknown[]> => [
      await value(here, 'theirs'),
      await value(here, 'new'),
      await value(here, 'deleted'),
    ];

    it('pending writes of other nodes are read as if stored, and replaced by the next ones', async () => {
      const first = there.pendingWrites.revision();
      assert.notEqual(first, '');
      const waiting = here.list('', { after: (await here.list('')).index });
      here.applyPeerWrites('there', offered(there));
      await waiting;
      assert.deepEqual(await seen(), [2, 2, undefined]);
      const same = await here.get('theirs');
      await there.commit([set('new', 3)], offline);
      assert.notEqual(there.pendingWrites.revision(), first);
      here.applyPeerWrites('there', offered(there));
      assert.deepEqual(await seen(), [2, 3, undefined]);
      assert.equal(await here.get('theirs'), same);
      // Not ours to replay, nor to offer.
      assert.deepEqual([here.pendingWrites.revision(), here.state.pending], ['', 0]);
    });

    it('another node’s pending write survives a restart without the store', async () => {
      here.applyPeerWrites('there', offered(there));
      await here.close();
      here = await open();
      assert.deepEqual(await seen(), [2, 2, undefined]);
    });

    it('another node’s pending write stays until the store has it, without flapping', async () => {
      here.applyPeerWrites('there', offered(there));
      const states = record(here);
      // There, the store is back; here, it is later.
      theirLink.back();
      await eventually(() => there.pendingWrites.revision() === '');
      here.applyPeerWrites('there', undefined);
      await comeBack(here);
      await untilAgreement(here);
      assert.deepEqual(await states.distinct(), [{ mine: 1, new: 2, theirs: 2 }]);
    });

    it('another node’s pending write is withdrawn after a while even if the store never has it', async () => {
      await here.close();
      here = await open({ withdrawDelayMs: 5 });
      here.applyPeerWrites('there', offered(there));
      here.applyPeerWrites('there', undefined);
      await eventually(async () => JSON.stringify(await seen()) === '[1,null,1]');
    });

    it('other nodes’ pending writes yield to what came later, also when told again', async () => {
      here.applyPeerWrites('there', offered(there));
      const old = offered(there);
      theirLink.back();
      await eventually(() => there.state.connected);
      await comeBack(here);
      await there.commit([set('theirs', 'later')]);
      await untilValue(here, 'theirs', 'later');
      await there.commit([{ op: 'delete', key: 'new' }]);
      await untilValue(here, 'new', undefined);
      here.applyPeerWrites('there', old);
      assert.deepEqual(await seen(), ['later', undefined, undefined]);
    });

    it('another node’s pending write yields to a deletion that this node has not seen', async () => {
      here.applyPeerWrites('there', offered(there));
      theirLink.back();
      await eventually(() => there.state.connected);
      await there.commit([{ op: 'delete', key: 'theirs' }]);
      await comeBack(here);
      assert.deepEqual(await seen(), [undefined, 2, undefined]);
    });

    it('another node’s pending write can be overwritten by who has read it, once the store is back', async () => {
      here.applyPeerWrites('there', offered(there));
      await there.close();
      await comeBack(here);
      const { version } = (await here.get('theirs'))!;
      assert.ok((await here.commit([set('theirs', 'taken over', version)])).ok);
      assert.equal(await value(here, 'theirs'), 'taken over');
      assert.equal(await value(remote.store, 'theirs'), 'taken over');
    });

    it('another node’s pending write wins over ours if it is later: the owner has changed', async () => {
      await here.commit([set('service', 'old leader')], offline);
      await turns();
      await there.commit([set('service', 'new leader')], offline);
      here.applyPeerWrites('there', offered(there));
      assert.equal(await value(here, 'service'), 'new leader');
      await comeBack(here);
      theirLink.back();
      await untilValue(here, 'service', 'new leader');
      await eventually(() => there.state.connected);
      assert.equal(await value(remote.store, 'service'), 'new leader');
    });

    it('another node’s pending write that cannot be read is refused, with the node’s name', () => {
      for (const payload of [null, {}, { v: 2, entries: [] }, { v: 1, entries: [{ key: '' }] }])
        assert.throws(() => here.applyPeerWrites('n7', payload), { code: 'corrupt', message: /node n7/ });
    });
  });

  it('compare shows where replica and store differ', async () => {
    await remote.store.commit([set('same', 1), set('missing', 1), set('different', { x: 1 })]);
    const replica = await openConnected();
    await goAway(replica);
    await replica.commit([set('extra', 1), set('different', 2), { op: 'delete', key: 'missing' }], offline);
    await assert.rejects(replica.compare(), { code: 'unavailable' });
    // The replay, which begins as soon as the store is back, must not be done before the comparison.
    remote.loseAcknowledgements(Infinity);
    const afterwards = { missing: ['missing'], extra: ['extra'], different: ['different'] };
    const replaying = remote.hold('list');
    remote.back();
    const comparing = replica.compare();
    replaying();
    assert.deepEqual(await comparing, afterwards);
    remote.loseAcknowledgements(0);
    await eventually(() => replica.state.connected);
    assert.deepEqual(await replica.compare(), agree);
  });

  it('a replica file has one process', async () => {
    await open();
    await assert.rejects(open(), { code: 'locked' });
  });
});

/** Notes what is under '' whenever it may have changed, until it is asked. */
function record(replica: Replica): { distinct(): Promise<unknown[]> } {
  const controller = new AbortController();
  const states = new Map<string, unknown>();
  const recording = (async () => {
    for await (const { entries } of watch(replica, '', { signal: controller.signal })) {
      const state = Object.fromEntries(entries.map(({ key, value }) => [key, value]));
      states.set(JSON.stringify(state), state);
    }
  })();
  return {
    async distinct() {
      controller.abort();
      await recording;
      return [...states.values()];
    },
  };
}

/** Waits until it is so; the test's own timeout ends it. */
/** Lets what is ready to run do so. */
async function turns(ms = 10): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, ms));
}

async function untilAgreement(replica: Replica): Promise<void> {
  await eventually(async () => {
    const { missing, extra, different } = await replica.compare();
    return missing.length + extra.length + different.length === 0;
  });
}
