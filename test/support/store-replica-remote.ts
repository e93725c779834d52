// Owns a remote store whose answers fail on demand, over an embedded one that works, for the tests of the replica.
// Must not answer itself: what comes back is the embedded store's, sooner or later or not at all.
import { openEmbedded } from '../../store/embedded.ts';
import { StoreError } from '../../store/errors.ts';
import { withLocks } from '../fake/locks.ts';
import type { CommitOptions, CommitResult, Op, SharedStore, Snapshot } from '../../store/store.ts';

export interface FlakyRemote {
  /** As one replica sees it. Closing it ends its calls, not the store. */
  connect(): SharedStore;
  /** The store itself, as everybody else sees it. */
  store: SharedStore;
  /** Nothing is answered any longer, not even what waits; until {@link back}. */
  away(): void;
  back(): void;
  /** So many commits are applied, but never acknowledged. */
  loseAcknowledgements(commits: number): void;
  /** So many commits are not applied. */
  refuse(commits: number): void;
  /**
   * What is done from now on is answered only when the returned function is called. `send` holds the next commit back
   * before it is done, even if nobody waits for it any longer.
   */
  hold(what: 'list' | 'commit' | 'send'): () => void;
  /** Every commit that was sent, acknowledged or not. */
  sent: (readonly Op[])[];
  /** Lists of everything without waiting: looks afresh. */
  looks: number;
  /** Lists of everything that were answered after a change. */
  watched: number;
}

export function flakyRemote(store: SharedStore = withLocks(openEmbedded(':memory:'))): FlakyRemote {
  let outage: AbortController | undefined;
  let absence = new AbortController();
  let toLose = 0;
  let toRefuse = 0;
  const held: Partial<Record<'list' | 'commit' | 'send', Promise<unknown> | undefined>> = {};
  const unavailable = new StoreError('unavailable', 'The store is switched off.');

  /** An answer, unless the store goes away first. */
  const answer = async <R>(
    signals: (AbortSignal | undefined)[],
    ask: (signal: AbortSignal) => Promise<R>,
  ): Promise<R> => {
    if (outage) throw unavailable;
    const signal = AbortSignal.any([absence.signal, ...signals.filter((each) => each !== undefined)]);
    const result = await ask(signal);
    signal.throwIfAborted();
    return result;
  };

  const remote: FlakyRemote = {
    store,
    sent: [],
    looks: 0,
    watched: 0,
    away() {
      outage = absence;
      absence.abort(unavailable);
    },
    back() {
      outage = undefined;
      absence = new AbortController();
    },
    loseAcknowledgements: (commits) => (toLose = commits),
    refuse: (commits) => (toRefuse = commits),
    hold(what) {
      const { promise, resolve } = Promise.withResolvers<undefined>();
      held[what] = promise;
      return () => {
        if (held[what] === promise) held[what] = undefined;
        resolve(undefined);
      };
    },
    connect() {
      const closing = new AbortController();
      return {
        get: (key, options = {}) =>
          answer([closing.signal, options.signal], (signal) => store.get(key, { signal })),
        list: (prefix, { after, signal: own } = {}) =>
          answer([closing.signal, own], async (signal): Promise<Snapshot> => {
            if (after === undefined) remote.looks++;
            const snapshot = await store.list(prefix, { after, signal });
            await held.list;
            if (after !== undefined) remote.watched++;
            return snapshot;
          }),
        commit: (ops: readonly Op[], options: CommitOptions = {}): Promise<CommitResult> =>
          answer([closing.signal, options.signal], async (signal) => {
            remote.sent.push(ops);
            if (toRefuse > 0) {
              toRefuse--;
              throw unavailable;
            }
            if (held.send) {
              const late = held.send.then(() => store.commit(ops));
              held.send = undefined;
              return unless(signal, late);
            }
            const result = await store.commit(ops, { signal });
            await held.commit;
            if (toLose === 0) return result;
            toLose--;
            throw unavailable;
          }),
        lock: (key, value, options) => store.lock(key, value, options),
        // eslint-disable-next-line @typescript-eslint/require-await
        close: async () => closing.abort(new StoreError('closed', 'closed')),
      };
    },
  };
  return remote;
}

/** The promise's result, unless the signal aborts before. */
async function unless<R>(signal: AbortSignal, promise: Promise<R>): Promise<R> {
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true });
  return Promise.race([promise, aborted]);
}
