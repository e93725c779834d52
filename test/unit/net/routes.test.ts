// Owns the tests of routes: reading what `ip -j` prints, and the difference between two lists of them.
// Must not need a kernel.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { formatRoute, observeRoutes, planRoutes, runIpBatch, type Route } from '../../../net/routes.ts';
import { CommandError, type Runner } from '../../../net/run.ts';
import { planDesiredState } from '../../../plugin/desired-state.ts';
import { FakeKernel } from '../../fake/kernel.ts';
import { example, node } from '../../scenario/example.ts';

const recorded = (file: string): Promise<string> =>
  readFile(join(import.meta.dirname, '..', '..', 'recorded', file), 'utf8');

const gateway: Route = { type: 'local', destination: '10.64.0.1' };
const subnet: Route = { type: 'unreachable', destination: '10.64.0.0/20' };
const vip: Route = { type: 'local', destination: '10.64.0.2', source: '10.64.0.1' };
const task: Route = { type: 'unicast', destination: '10.64.0.3', device: 'cw-e1', source: '10.64.0.1' };

describe('observeRoutes', () => {
  it('routes: each of the example is read back as it was desired', async () => {
    const text = await recorded('ip-route-own.json');
    const routes = await observeRoutes(() => Promise.resolve(text));
    const desired = planDesiredState(example, node).routes;
    assert.deepEqual(routes.map(formatRoute).sort(), desired.map(formatRoute).sort());
  });

  it('routes: no output of iproute2 means no routes', async () => {
    assert.deepEqual(await observeRoutes(() => Promise.resolve('')), []);
    assert.deepEqual(await observeRoutes(() => Promise.resolve('[]\n')), []);
  });

  it('routes: only Causeway’s are asked for', async () => {
    const kernel = new FakeKernel();
    assert.deepEqual(await observeRoutes(kernel.run), []);
    assert.equal(kernel.host.routes.length, 2, 'the host has routes of its own');
  });
});

describe('planRoutes', () => {
  it('routes: no difference, no command', () => {
    assert.deepEqual(planRoutes([gateway, subnet, vip, task], [gateway, subnet, vip, task]), {
      add: [],
      remove: [],
    });
  });

  it('routes: added in the desired order, because a source address must be local first', () => {
    assert.deepEqual(planRoutes([], [gateway, subnet, task, vip]).add, [
      'route replace local 10.64.0.1 dev lo table local proto 197',
      'route replace unreachable 10.64.0.0/20 metric 4294967295 proto 197',
      'route replace 10.64.0.3 dev cw-e1 scope link src 10.64.0.1 proto 197',
      'route replace local 10.64.0.2 dev lo table local src 10.64.0.1 proto 197',
    ]);
  });

  it('routes: a changed route is replaced, and not removed in between', () => {
    const moved: Route = { ...task, device: 'cw-e2' };
    assert.deepEqual(planRoutes([task], [moved]), {
      add: ['route replace 10.64.0.3 dev cw-e2 scope link src 10.64.0.1 proto 197'],
      remove: [],
    });
  });

  it('routes: one that is not desired is removed, named in full', () => {
    assert.deepEqual(planRoutes([gateway, vip], [gateway]), {
      add: [],
      remove: ['route del local 10.64.0.2 dev lo table local src 10.64.0.1 proto 197'],
    });
  });

  it('routes: an address in table local is another than the same one in table main', () => {
    const local: Route = { type: 'local', destination: '10.64.0.3' };
    const plan = planRoutes([task], [local]);
    assert.equal(plan.add.length, 1);
    assert.deepEqual(plan.remove, ['route del 10.64.0.3 dev cw-e1 scope link src 10.64.0.1 proto 197']);
  });
});

describe('runIpBatch', () => {
  const failing =
    (stderr: string): Runner =>
    () =>
      Promise.reject(new CommandError('ip -4 -force -batch -', 1, stderr));

  it('ip batch: no lines, no process', async () => {
    await runIpBatch(() => Promise.reject(new Error('started')), []);
  });

  it('ip batch: removing what is gone already succeeds', async () => {
    for (const gone of [
      'Cannot find device "cw-e1"\nCommand failed -:1\n',
      'RTNETLINK answers: No such process\nCommand failed -:3\n',
      'RTNETLINK answers: No such device\nCommand failed -:1\n',
    ])
      await runIpBatch(failing(gone), ['route del 10.64.0.3']);
  });

  it('ip batch: any other failure is an error, even among what is gone', async () => {
    const mixed =
      'Cannot find device "cw-e1"\nCommand failed -:1\nError: Invalid prefsrc address.\nCommand failed -:2\n';
    await assert.rejects(runIpBatch(failing(mixed), ['route replace 10.64.0.3']), /Invalid prefsrc/);
  });

  it('ip batch: lines after one that fails are run', async () => {
    const kernel = new FakeKernel();
    await runIpBatch(kernel.run, [
      'route replace 10.64.0.3 dev cw-gone scope link proto 197',
      ...planRoutes([], [gateway]).add,
    ]);
    assert.deepEqual(await observeRoutes(kernel.run), [gateway]);
  });
});
