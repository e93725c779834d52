// Owns how lists of Consul become entries, without a Consul.
// Must not repeat what the contract shows.
import assert from 'node:assert/strict';
import { EntryCache, type Item } from '../../../store/consul-entries.ts';

const item = (Key: string, ModifyIndex: number, text: string | null): Item => ({
  Key,
  ModifyIndex,
  Value: text === null ? null : Buffer.from(text),
});

describe('entries of Consul', () => {
  it('Consul entries are parsed again only where something changed', () => {
    const cache = new EntryCache();
    const first = cache.list('c/', 'c/p/', [item('c/p/a', 1, '{"n":1}'), item('c/p/b', 2, '{"n":2}')]);
    const second = cache.list('c/', 'c/p/', [item('c/p/a', 1, '{"n":1}'), item('c/p/b', 3, '{"n":3}')]);
    assert.deepEqual(second, [
      { key: 'p/a', value: { n: 1 }, version: 1 },
      { key: 'p/b', value: { n: 3 }, version: 3 },
    ]);
    assert.equal(second[0], first[0]);
    assert.deepEqual(first[1], { key: 'p/b', value: { n: 2 }, version: 2 });
  });

  it('Consul was set up anew and counts from the start: its entries are parsed again', () => {
    const cache = new EntryCache();
    cache.list('', 'p/', [item('p/a', 7, '1')]);
    assert.deepEqual(cache.list('', 'p/', [item('p/a', 7, '2')]), [{ key: 'p/a', value: 2, version: 7 }]);
  });

  it('deleted entries, and lists that are not asked for again, are forgotten', () => {
    const cache = new EntryCache();
    const list = (name: string): unknown => cache.list('', name, [item(`${name}a`, 1, '{}')])[0];
    const first = list('p/');
    assert.equal(list('p/'), first);
    cache.list('', 'p/', []);
    assert.notEqual(list('p/'), first);
    const kept = list('q/');
    for (let n = 0; n < 1000; n++) list(`${n}/`);
    assert.notEqual(list('q/'), kept);
  });

  it('an entry that is not JSON is text, and one without a value is the empty text', () => {
    const values = new EntryCache()
      .list('', '', [item('a', 1, null), item('b', 2, 'plain'), item('c', 3, '"ä"')])
      .map(({ value }) => value);
    assert.deepEqual(values, ['', 'plain', 'ä']);
  });
});
