// Owns the two requests of Consul's KV that the store is made of: reading keys, and one transaction.
// Must not decide what to do about a failure.
import type Consul from 'consul';
import * as z from 'zod';
import type { ConsulClient, RequestSettings } from './consul-client.ts';
import type { Item } from './consul-entries.ts';
import { StoreError } from './errors.ts';
import type { CommitResult, EncodedOp } from './store.ts';

/** As the consul package has it: one key, or with `recurse` all that begin with it. `index` makes it blocking. */
export interface KeysQuery {
  key: string;
  recurse?: true;
  consistent?: true;
  index?: string;
  /** As Consul writes durations: `55s`. */
  wait?: string;
}

/** `index` is never 0, with which a query would not block. Items are in the order of their keys' bytes. */
export interface KeysRead {
  index: number;
  items: Item[];
}

/** @throws StoreError as {@link ConsulClient.send}; `unavailable` for what Consul would not answer */
export async function readKeys(
  client: ConsulClient,
  query: KeysQuery,
  settings: RequestSettings,
): Promise<KeysRead> {
  const answer = await client.send(
    (consul, common) => {
      // `buffer` spares the package making text of every value; values that did not change are never made text.
      const options = { ...query, ...common, buffer: true };
      return consul.kv.get(options);
    },
    { ...settings, repeatable: true },
  );
  // "Not found" by anything but Consul must not be taken for an empty store.
  const index = Number(answer.headers['x-consul-index'] ?? NaN);
  if (!Number.isInteger(index) || (answer.status !== 200 && answer.status !== 404))
    throw client.unexpected(answer);
  const { body } = answer as { body: Item[] | Item | undefined };
  const items = body === undefined ? [] : Array.isArray(body) ? body : [body];
  if (items.length === 0 && answer.status !== 404) throw client.unexpected(answer);
  return { index: Math.max(1, index), items };
}

type Operations = Parameters<Consul['transaction']['create']>[0] & unknown[];

/** Of both outcomes, Consul gives one half. A check that holds has a result, too. */
const TransactionAnswer = z.object({
  Results: z.array(z.object({ KV: z.object({ Key: z.string(), ModifyIndex: z.number() }) })).nullable(),
  Errors: z.array(z.object({ OpIndex: z.number(), What: z.string() })).nullable(),
});

/**
 * @param prefix what every key is given
 * @returns as {@link CommitResult}, with the index 0 if nothing is set
 * @throws StoreError as {@link ConsulClient.send}
 */
export async function transact(
  client: ConsulClient,
  prefix: string,
  ops: readonly EncodedOp[],
  settings: RequestSettings,
): Promise<CommitResult> {
  const answer = await client.send((consul, common) => {
    const operations = ops.map((op) => operation(prefix, op)) as unknown as Operations;
    // `consistent` matters to a commit of checks only, which Consul takes for a read.
    const options = { operations, consistent: true, ...common };
    return consul.transaction.create(operations, options);
  }, settings);
  const parsed = TransactionAnswer.safeParse(answer.body);
  if (!parsed.success || (answer.status !== 200 && answer.status !== 409)) throw client.unexpected(answer);
  const { Results, Errors } = parsed.data;
  if (Errors && Errors.length > 0) return { ok: false, conflicts: conflicts(client, ops, Errors) };
  const set = new Set(ops.filter(({ op }) => op === 'set').map(({ key }) => prefix + key));
  const versions = (Results ?? []).filter(({ KV }) => set.has(KV.Key)).map(({ KV }) => KV.ModifyIndex);
  return { ok: true, index: Math.max(0, ...versions) };
}

/** In Consul's own form. The types of the consul package know another, which Consul does not. */
function operation(prefix: string, op: EncodedOp): { KV: Record<string, unknown> } {
  const Key = prefix + op.key;
  switch (op.op) {
    case 'check':
      if (op.version === 0) return { KV: { Verb: 'check-not-exists', Key } };
      return { KV: { Verb: 'check-index', Key, Index: op.version } };
    case 'delete':
      // delete-cas, too, succeeds when there is no such key.
      if (op.version === undefined) return { KV: { Verb: 'delete', Key } };
      return { KV: { Verb: 'delete-cas', Key, Index: op.version } };
    case 'set': {
      const Value = Buffer.from(op.json).toString('base64');
      if (op.version === undefined) return { KV: { Verb: 'set', Key, Value } };
      return { KV: { Verb: 'cas', Key, Value, Index: op.version } };
    }
  }
}

/** Consul says in words only why an operation failed; that one with a version failed by it is all there is to know. */
function conflicts(
  client: ConsulClient,
  ops: readonly EncodedOp[],
  errors: { OpIndex: number; What: string }[],
): string[] {
  const failed = errors.map(({ OpIndex, What }) => ({ op: ops[OpIndex], What }));
  const denied = failed.find(({ What }) => What.includes('Permission denied'));
  if (denied) throw client.forbidden(denied.What);
  const other = failed.find(({ op }) => op?.version === undefined);
  if (other)
    throw new StoreError(
      'invalid',
      `Consul does not take a commit: ${other.What}.`,
      other.op && { key: other.op.key },
    );
  return [...new Set(failed.flatMap(({ op }) => op?.key ?? []))];
}
