// Owns what watch does when the store fails it, with a scripted store.
// Must not repeat what the contract shows of watch on a store that works.
import assert from 'node:assert/strict';
import { StoreError } from '../../../store/errors.ts';
import type { ListOptions, Snapshot, Store } from '../../../store/store.ts';
import { watch } from '../../../store/watch.ts';

const unavailable = new StoreError('unavailable', 'no quorum');
const snapshot = (index: number): Snapshot => ({ index, entries: [] });

describe('watch', () => {
  it('watch outlives an unavailable store, silently, with growing pauses', async () => {
    const { store } = scripted([snapshot(1), unavailable, unavailable, unavailable, snapshot(2)]);
    const pauses: number[] = [];
    const indices: number[] = [];
    const controller = new AbortController();
    const options = { signal: controller.signal, onError: (_: unknown, ms: number) => void pauses.push(ms) };
    for await (const { index } of watch(store, 'p/', { ...options, minPauseMs: 4, maxPauseMs: 8 })) {
      indices.push(index);
      if (index === 2) controller.abort();
    }
    assert.deepEqual(indices, [1, 2]);
    assert.equal(pauses.length, 3);
    const [first = 0, second = 0, third = 0] = pauses;
    assert.ok(
      first >= 2 && first <= 4 && second >= 4 && second <= 8 && third >= 4 && third <= 8,
      pauses.join(),
    );
  });

  it('watch starts over when the index runs backwards', async () => {
    const { store, asked } = scripted([snapshot(50), snapshot(3), snapshot(3)]);
    const controller = new AbortController();
    const indices: number[] = [];
    for await (const { index } of watch(store, 'p/', { signal: controller.signal })) {
      indices.push(index);
      if (indices.length === 2) controller.abort();
    }
    assert.deepEqual(asked, [undefined, 50, undefined]);
    assert.deepEqual(indices, [50, 3]);
  });

  it('watch passes on other errors', async () => {
    const { store } = scripted([snapshot(1), new StoreError('closed', 'closed')]);
    const reading = async (): Promise<void> => {
      for await (const each of watch(store, 'p/', { signal: new AbortController().signal }))
        assert.equal(each.index, 1);
    };
    await assert.rejects(reading(), { code: 'closed' });
  });

  it('watch ends during a pause, too', async () => {
    const { store } = scripted([unavailable]);
    const controller = new AbortController();
    const onError = (): void => void setTimeout(() => controller.abort(), 1);
    const options = { signal: controller.signal, onError, minPauseMs: 60_000, maxPauseMs: 60_000 };
    for await (const each of watch(store, 'p/', options)) assert.fail(`yielded ${each.index}`);
  });
});

/** A store whose lists answer as told, in order; only list is there. */
function scripted(answers: (Snapshot | StoreError)[]): { store: Store; asked: (number | undefined)[] } {
  const asked: (number | undefined)[] = [];
  const list = (_: string, options: ListOptions = {}): Promise<Snapshot> => {
    asked.push(options.after);
    const answer = answers.shift();
    assert.ok(answer, 'asked more often than scripted');
    return answer instanceof StoreError ? Promise.reject(answer) : Promise.resolve(answer);
  };
  const missing = (): never => assert.fail('not scripted');
  return { store: { list, get: missing, commit: missing, close: missing }, asked };
}
