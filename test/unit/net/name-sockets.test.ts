// Owns the tests of how sandboxes get, and lose, the rules that lead questions for names.
// Must not need a kernel: names.test.ts shows that they work.
import assert from 'node:assert/strict';
import { canLeadNames, leadNames, unleadNames } from '../../../net/name-sockets.ts';
import type { Table } from '../../../net/nft-tables.ts';
import { canEnter, inNamespace, NamespaceError } from '../../../net/namespace.ts';
import { FakeSandboxTables } from '../../fake/sandbox-tables.ts';

describe('the rules that lead questions for names', () => {
  const sandbox = '/host/run/docker/netns/a';
  let tables: FakeSandboxTables;
  beforeEach(() => (tables = new FakeSandboxTables()));

  it('name redirection: the rules come in one table of the sandbox, in place of those before', () => {
    leadNames(tables, sandbox, 40_053);
    leadNames(tables, sandbox, 40_054);
    assert.deepEqual(tables.changes, [
      { sandbox, put: 'causeway' },
      { sandbox, put: 'causeway' },
    ]);
    const table = JSON.stringify(tables.of(sandbox).get('causeway'));
    assert.match(table, /"tproxy":\{"address":"127.0.0.12","port":40054\}/);
    assert.doesNotMatch(table, /40053/);
  });

  it('name redirection: the rules go, and nothing of anybody else’s', () => {
    leadNames(tables, sandbox, 40_053);
    unleadNames(tables, sandbox);
    assert.deepEqual(tables.changes.slice(1), [{ sandbox, remove: 'causeway' }]);
  });

  it('name redirection: a trial shows whether the kernel can, and leaves nothing', () => {
    const tried: string[] = [];
    const takes = (answer: boolean) => ({
      takes: ({ name }: Table): boolean => {
        tried.push(name);
        return answer;
      },
    });
    assert.equal(canLeadNames(takes(true)), true);
    assert.equal(canLeadNames(takes(false)), false);
    assert.deepEqual(tried, ['causeway-trial', 'causeway-trial']);
  });
});

describe('a network namespace', () => {
  it('a network namespace that is missing, or is none: the error says so', () => {
    for (const path of ['/nowhere/netns/a', '/etc/hostname']) {
      assert.throws(() => inNamespace(path, () => assert.fail()), NamespaceError);
      assert.equal(canEnter(path), false);
    }
  });
});
