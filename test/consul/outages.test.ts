// Owns what the store does while Consul is killed, frozen, leaderless, or not what it seems.
// Must not assert how fast: it waits for what has to come, and the suite's timeout is the limit.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { connect, createServer as createTcpServer, type AddressInfo, type Server } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { execa } from 'execa';
import { openConsul } from '../../store/consul.ts';
import { StoreError } from '../../store/errors.ts';
import type { CommitResult, Lock, SharedStore } from '../../store/store.ts';
import { watch } from '../../store/watch.ts';
import { startConsul, startConsuls, type Consul } from '../lab/consul.ts';
import { until } from '../support/until.ts';

const timeoutMs = 60_000;
/** No port of this address is open, so connections are refused at once. */
const nobody = { host: '127.0.0.1', port: 1 };

/** All values a watch has shown, as they came. */
function follow(
  store: SharedStore,
  prefix: string,
): { seen: unknown[][]; errors: StoreError[]; stop: () => Promise<void> } {
  const controller = new AbortController();
  const seen: unknown[][] = [];
  const errors: StoreError[] = [];
  const { signal } = controller;
  const done = (async () => {
    const options = { signal, onError: (error: StoreError) => void errors.push(error), maxPauseMs: 1_000 };
    for await (const { entries } of watch(store, prefix, options))
      seen.push(entries.map(({ value }) => value));
  })();
  return { seen, errors, stop: () => (controller.abort(), done) };
}

const put = (store: SharedStore, key: string, value: unknown): Promise<CommitResult> =>
  store.commit([{ op: 'set', key, value }]);

/** Commits until it works, as whoever must get it done does. */
const insist = (store: SharedStore, key: string, value: unknown): Promise<true> =>
  until<true>(
    `a commit of ${key} works`,
    async () => {
      try {
        const { ok } = await put(store, key, value);
        return ok || undefined;
      } catch (error) {
        assert.ok(error instanceof StoreError && error.code === 'unavailable', String(error));
        return undefined;
      }
    },
    { timeoutMs },
  );

const lost = async ({ lost }: Lock): Promise<StoreError> => {
  if (!lost.aborted) await once(lost, 'abort');
  return lost.reason as StoreError;
};

describe('Consul fails', function () {
  this.timeout(180_000);

  describe('one server', () => {
    let consul: Consul;
    let store: SharedStore;
    before(async () => {
      consul = await startConsul();
    });
    after(() => consul[Symbol.asyncDispose]());
    let stores = 0;
    const open = (): SharedStore => openConsul({ addresses: [consul.at], prefix: `outage-${stores++}/` });
    beforeEach(() => {
      store = open();
    });
    afterEach(() => store.close());

    it('Consul is killed and started again: a watch goes on, commits are refused meanwhile with cause and remedy', async () => {
      await put(store, 'p/a', 1);
      const watching = follow(store, 'p/');
      await until('the watch has begun', () => Promise.resolve(watching.seen.length > 0), { timeoutMs });
      await consul.kill();
      await assert.rejects(put(store, 'p/a', 2), (error) => {
        assert.ok(error instanceof StoreError && error.code === 'unavailable');
        assert.match(error.message, new RegExp(`${consul.address}:8500 .*ECONNREFUSED.*Check`));
        return true;
      });
      await assert.rejects(store.get('p/a'), { code: 'unavailable' });
      await until('the watch says so', () => Promise.resolve(watching.errors.length > 0), { timeoutMs });
      assert.ok(
        watching.seen.every(([first]) => first === 1),
        'silence is not emptiness',
      );
      await consul.start();
      assert.equal((await store.get('p/a'))?.value, 1, 'what was acknowledged was on the disk');
      await put(store, 'p/a', 3);
      await until('the watch shows the change', () => Promise.resolve(watching.seen.at(-1)?.[0] === 3), {
        timeoutMs,
      });
      await watching.stop();
    });

    it('Consul is frozen: a commit ends as unavailable, and a read at once when its signal aborts', async () => {
      await put(store, 'a', 1);
      await consul.freeze();
      try {
        const controller = new AbortController();
        const reason = new Error('enough');
        const reading = assert.rejects(store.get('a', { signal: controller.signal }), reason);
        const committing = assert.rejects(put(store, 'a', 2), {
          code: 'unavailable',
          message: /no answer in time.*not known/,
        });
        await sleep(50);
        controller.abort(reason);
        await reading;
        await committing;
      } finally {
        consul.thaw();
      }
      assert.ok([1, 2].includes((await store.get('a'))?.value as number));
    });

    it('close ends what waits for a frozen server, and does not wait for it', async () => {
      const lock = await store.lock('k', 1);
      await consul.freeze();
      try {
        const reading = assert.rejects(store.get('a'), { code: 'closed' });
        await store.close();
        await reading;
        assert.equal((await lost(lock)).code, 'lost');
      } finally {
        consul.thaw();
      }
    });

    it('a lock outlives a short outage, and those who wait for it get it afterwards', async () => {
      const lock = await store.lock('k', 1);
      const other = openConsul({ addresses: [consul.at], prefix: `outage-${stores - 1}/` });
      const errors: unknown[] = [];
      const waiting = other.lock('k', 2, { onError: (error) => void errors.push(error) });
      await sleep(200);
      await consul.kill();
      await until('the one who waits sees the outage', () => Promise.resolve(errors.length > 0), {
        timeoutMs,
      });
      await consul.start();
      assert.ok(!lock.lost.aborted, 'a lock is not lost with the store being away for a moment');
      await lock.release();
      const next = await waiting;
      assert.equal((await other.get('k'))?.value, 2);
      await next.release();
      await other.close();
    });

    it('a lock is lost when Consul is away for longer than its session may live', async () => {
      const lock = await store.lock('k', 1);
      await consul.kill();
      const reason = await lost(lock);
      assert.match(reason.message, /could not be asked for 10 s/);
      await assert.rejects(lock.release(), { code: 'unavailable' });
      await consul.start();
      const other = open();
      const next = await other.lock('k', 2);
      await next.release();
      await other.close();
    });

    it('a lock whose session is ended is lost, and given to the next one', async () => {
      const lock = await store.lock('k', 1);
      // Consul keeps others: of earlier locks that could not be told to end, until their time is over.
      const session = (await sessions(consul)).find(({ Name }) => Name === `outage-${stores - 1}/k`);
      assert.deepEqual([session?.NodeChecks, session?.LockDelay, session?.Behavior], [[], 0, 'delete']);
      const other = openConsul({ addresses: [consul.at], prefix: `outage-${stores - 1}/` });
      const waiting = other.lock('k', 2);
      await destroySession(consul, session!.ID);
      await lost(lock);
      await (await waiting).release();
      await other.close();
    });

    it('a lock whose holder is killed is given to the next one', async () => {
      const prefix = `outage-${stores - 1}/`;
      const program = [join(import.meta.dirname, 'holder.ts'), consul.address, prefix, 'k'];
      const holder = execa(process.execPath, program, { reject: false, buffer: false, stdout: 'pipe' });
      await once(holder.stdout, 'data');
      const waiting = store.lock('k', 2);
      holder.kill('SIGKILL');
      await holder;
      assert.equal((await store.get('k'))?.value, 'held', 'nobody knows yet that it is gone');
      await (await waiting).release();
    });
  });

  describe('one address of several', () => {
    let consul: Consul;
    before(async () => {
      consul = await startConsul();
    });
    after(() => consul[Symbol.asyncDispose]());

    it('an address refuses: the next one is asked, for commits too, and kept', async () => {
      const store = openConsul({ addresses: [nobody, consul.at] });
      assert.ok((await put(store, 'a', 1)).ok);
      assert.equal((await store.get('a'))?.value, 1);
      await store.close();
    });

    it('an address is silent: the next one is asked, for commits too', async () => {
      await using silent = await listenSilently();
      const store = openConsul({ addresses: [{ host: '127.0.0.1', port: silent.port }, consul.at] });
      assert.ok((await put(store, 'a', 1)).ok);
      await store.close();
    });

    it('an address breaks off: a read is asked again elsewhere, a commit is not', async () => {
      const breaking = createTcpServer((socket) => socket.once('data', () => socket.destroy()));
      const port = await listen(breaking);
      const addresses = [{ host: '127.0.0.1', port }, consul.at] as const;
      for (const [what, works] of [
        [(store: SharedStore) => store.get('a'), true],
        [(store: SharedStore) => put(store, 'a', 1), false],
      ] as const) {
        const store = openConsul({ addresses });
        if (works) await what(store);
        else await assert.rejects(what(store), { code: 'unavailable', message: /not known/ });
        await store.close();
      }
      breaking.close();
    });

    it('no address works: the error names all of them', async () => {
      const store = openConsul({ addresses: [nobody, { host: '::1', port: 1 }] });
      await assert.rejects(store.get('a'), { code: 'unavailable', message: /127\.0\.0\.1:1 .*\[::1\]:1/ });
      await store.close();
    });
  });

  describe('something else answers', () => {
    for (const [what, status, headers, body] of [
      ['nothing is there', 404, {}, ''],
      ['a page', 200, { 'Content-Type': 'text/html' }, '<p>Welcome</p>'],
      [
        'JSON that breaks off',
        200,
        { 'Content-Type': 'application/json', 'X-Consul-Index': '7', 'Content-Length': '99' },
        '[{',
      ],
    ] as const)
      it(`${what}: unavailable, not empty`, async () => {
        const server = createServer((_, response) => {
          response.writeHead(status, headers);
          response.write(body || ' ');
          if (!('Content-Length' in headers)) response.end();
          else setTimeout(() => response.destroy(), 10);
        });
        const store = openConsul({ addresses: [{ host: '127.0.0.1', port: await listen(server) }] });
        // Found out, not waited for.
        await assert.rejects(store.list(''), { code: 'unavailable', message: /(not a Consul|broke off)/ });
        await assert.rejects(store.get('a'), { code: 'unavailable' });
        await assert.rejects(put(store, 'a', 1), { code: 'unavailable' });
        await store.close();
        server.close();
      });
  });

  describe('a cluster of three', () => {
    let consuls: Consul[];
    before(async () => {
      consuls = await startConsuls(3);
    });
    after(async () => {
      for (const consul of consuls) await consul[Symbol.asyncDispose]();
    });

    it('the Consul cluster loses its leader: commits go on, a watch misses nothing, a lock stays', async () => {
      const leader = await consuls[0]!.leader();
      const at = consuls.findIndex(({ address }) => address === leader);
      const others = consuls.filter((_, n) => n !== at);
      // One store talks to the leader, and has to move; the other talks to a follower, which has to find the new one.
      const addresses = [consuls[at]!, ...others].map((consul) => consul.at) as [
        Consul['at'],
        ...Consul['at'][],
      ];
      const moving = openConsul({ addresses });
      const staying = openConsul({ addresses: [others[0]!.at] });
      const lock = await staying.lock('k', 1);
      const watching = [moving, staying].map((store) => follow(store, 'p/'));
      await put(moving, 'p/n', 0);
      await consuls[at]!.kill();
      for (let n = 1; n <= 20; n++) await insist(n % 2 === 0 ? moving : staying, 'p/n', n);
      for (const { seen } of watching)
        await until('the watch shows the last change', () => Promise.resolve(seen.at(-1)?.[0] === 20), {
          timeoutMs,
        });
      assert.ok(!lock.lost.aborted);
      const { key, version } = lock;
      assert.ok((await moving.commit([{ op: 'check', key, version }])).ok);
      await lock.release();
      await consuls[at]!.start();
      for (const each of watching) await each.stop();
      await moving.close();
      await staying.close();
    });
  });
});

async function listen(server: Server): Promise<number> {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return (server.address() as AddressInfo).port;
}

/** A port that does not take connections, as a machine that is not there: its queue is full and nobody looks. */
async function listenSilently(): Promise<AsyncDisposable & { port: number }> {
  const program = `require('net').createServer().listen({ host: '127.0.0.1', port: 0, backlog: 1 }, function () {
    console.log(this.address().port);
  })`;
  const child = execa(process.execPath, ['--eval', program], {
    reject: false,
    buffer: false,
    stdout: 'pipe',
  });
  const [line] = (await once(child.stdout, 'data')) as [Buffer];
  child.kill('SIGSTOP');
  const port = Number(line.toString());
  const queue = Array.from({ length: 4 }, () => connect(port, '127.0.0.1').on('error', () => undefined));
  // The first two of them are in the queue now, and the rest wait for good.
  await Promise.all(queue.slice(0, 2).map((socket) => once(socket, 'connect')));
  return {
    port,
    async [Symbol.asyncDispose]() {
      for (const socket of queue) socket.destroy();
      child.kill('SIGKILL');
      await child;
    },
  };
}

interface SessionInfo {
  Name: string;
  ID: string;
  NodeChecks: string[];
  LockDelay: number;
  Behavior: string;
}

async function sessions({ address }: Consul): Promise<SessionInfo[]> {
  return (await (await fetch(`http://${address}:8500/v1/session/list`)).json()) as SessionInfo[];
}

async function destroySession({ address }: Consul, id: string): Promise<void> {
  await fetch(`http://${address}:8500/v1/session/destroy/${id}`, { method: 'PUT' });
}
