// Owns the tests of what counts as a duplicate or a leak among addresses.
// Must not ask Docker or Consul.
import assert from 'node:assert/strict';
import { audit, type Use } from '../../../bench/soak-audit.ts';

const task: Use = { address: '10.1.0.2', holder: 'global', by: 'task t1' };
const container: Use = { address: '10.1.0.2', holder: 'node/a', by: 'task t1' };
const vip: Use = { address: '10.1.0.3', holder: 'global', by: 'VIP of web' };
const leases = [
  { address: '10.1.0.2', holders: ['global', 'node/a'] },
  { address: '10.1.0.3', holders: ['global'] },
];
const clean = { duplicates: [], leaked: [], unleased: [] };

describe('the audit of addresses', () => {
  it('the audit counts a task and its container as one', () => {
    assert.deepEqual(audit([task, container, vip], leases), clean);
  });

  it('the audit finds an address that two have, on different nodes or as task and VIP', () => {
    const other = { ...container, holder: 'node/b', by: 'task t2' };
    const { duplicates } = audit([container, other, vip, { ...task, address: '10.1.0.3' }], leases);
    assert.deepEqual(duplicates, ['10.1.0.2: task t1, task t2', '10.1.0.3: VIP of web, task t1']);
  });

  it('the audit finds a lease that one of its holders does not use', () => {
    assert.deepEqual(audit([task, vip], leases), { ...clean, leaked: ['10.1.0.2: node/a'] });
  });

  it('the audit finds an address in use without a lease of its user', () => {
    const { unleased } = audit([task, container, { ...vip, address: '10.1.0.4' }], leases);
    assert.deepEqual(unleased, ['10.1.0.4: VIP of web (global)']);
  });
});
