// Owns keeping a node's writes out of a store that is not its cluster's, while what is its own there can still be ended.
// Must not decide whose the store is.
import { StoreError } from './errors.ts';
import type { Op, SharedStore, Store } from './store.ts';

/**
 * The same store. While `refusal` says why, nothing new is written to it: what may be done is to delete, and to change what this
 * node has there already. See also {@link gatedLock}.
 * @param isOwn of a key that is there, whether this node alone writes it; besides those of offline commits
 */
export function gated(
  store: Store,
  refusal: () => string | undefined,
  isOwn: (key: string) => boolean,
): Store {
  const refuse = (): void => {
    const reason = refusal();
    if (reason !== undefined) throw new StoreError('forbidden', reason);
  };
  return {
    get: (key, options) => store.get(key, options),
    list: (prefix, options) => store.list(prefix, options),
    async commit(ops, options) {
      if (refusal() !== undefined) {
        const isNews = async ({ op, key }: Op): Promise<boolean> =>
          op === 'set' &&
          ((options?.offline !== true && !isOwn(key)) || (await store.get(key)) === undefined);
        for (const op of ops) if (await isNews(op)) refuse();
      }
      return store.commit(ops, options);
    },
    close: () => store.close(),
  };
}

/** The store's lock, which is not taken while `refusal` says why. */
export function gatedLock(store: SharedStore, refusal: () => string | undefined): SharedStore['lock'] {
  return async (key, value, options) => {
    const reason = refusal();
    if (reason !== undefined) throw new StoreError('forbidden', reason);
    return store.lock(key, value, options);
  };
}
