// Owns the tests of what sandboxes are given, and of when they are entered.
// Must not need a kernel: test/kernel/sandboxes.test.ts has one.
import assert from 'node:assert/strict';
import { CommandError, type Runner } from '../../../net/run.ts';
import { canReopen } from '../../../net/reopen.ts';
import { planSandboxes, readFacts, Sandboxes } from '../../../plugin/sandboxes.ts';
import { openEmbedded } from '../../../store/embedded.ts';
import { endpointKey, openRecords, type EndpointRecord, type NetworkRecord } from '../../../store/records.ts';
import type { ContainerDetails } from '../../../swarm/docker.ts';
import { captureLog } from '../../fake/log.ts';
import { FakeSandboxTables } from '../../fake/sandbox-tables.ts';

function network(id: string, internal = false): NetworkRecord {
  const third = id.charCodeAt(0);
  return {
    ...{ v: 1, id, subnet: `10.64.${third}.0/24`, gateway: `10.64.${third}.1`, internal, allocated: true },
  };
}

function endpoint(net: string, last: number, sandbox: string): EndpointRecord {
  const address = `10.64.${net.charCodeAt(0)}.${last}`;
  return {
    ...{ v: 1, id: `${net}${last}`, network: net, node: 'here', address, mac: '02:42:0a:40:00:02' },
    sandbox: `/var/run/docker/netns/${sandbox}`,
  };
}

const at = (name: string): string => `/var/run/docker/netns/${name}`;

describe('planSandboxes', () => {
  const networks = new Map([network('a'), network('b'), network('i', true)].map((one) => [one.id, one]));
  const plan = (
    joined: EndpointRecord[],
    published: string[] = [],
    shared: string[] = [],
  ): [string[], readonly string[]] => {
    const { ways, reopened } = planSandboxes(joined, networks, new Set(published), {
      shared: new Set(shared.map(at)),
    }).get(at('s')) ?? { ways: [], reopened: [] };
    return [ways.map(({ address, gateway }) => `${address} ${gateway}`), reopened];
  };
  const [one, two] = ['10.64.97.2 10.64.97.1', '10.64.98.3 10.64.98.1'];

  it('a sandbox with one link is left alone', () => {
    assert.deepEqual(plan([endpoint('a', 2, 's'), endpoint('b', 3, 'other')]), [[], []]);
  });

  it('a sandbox on several networks has a route by each', () => {
    assert.deepEqual(plan([endpoint('a', 2, 's'), endpoint('b', 3, 's')]), [[one, two], []]);
  });

  it('a sandbox with a link of another driver has a route by ours', () => {
    assert.deepEqual(plan([endpoint('a', 2, 's')], [], ['s']), [[one], []]);
  });

  it('a sandbox on an internal network has the route that Docker does not give', () => {
    assert.deepEqual(plan([endpoint('i', 2, 's')]), [['10.64.105.2 10.64.105.1'], []]);
  });

  it('a sandbox on internal networks alone is closed, until Docker tells of another driver’s', () => {
    const closed = (joined: EndpointRecord[], facts?: { shared: Set<string> }): boolean | undefined =>
      planSandboxes(joined, networks, new Set(), facts).get(at('s'))?.closed;
    const [none, other] = [{ shared: new Set<string>() }, { shared: new Set([at('s')]) }];
    const inner = endpoint('i', 2, 's');
    assert.equal(closed([inner], none), true);
    assert.equal(closed([inner], other), false);
    assert.equal(closed([inner, endpoint('a', 2, 's')], none), false);
    assert.equal(closed([endpoint('a', 2, 's')], none), undefined);
    // After a start of the plugin it stays as it is.
    assert.equal(closed([inner]), undefined);
  });

  it('connections may be reopened where ports are published, by a service or the container itself', () => {
    assert.deepEqual(plan([endpoint('a', 2, 's')], ['a 10.64.97.2']), [[], ['10.64.97.2']]);
    assert.deepEqual(plan([{ ...endpoint('a', 2, 's'), ports: [] }]), [[], ['10.64.97.2']]);
    assert.deepEqual(plan([endpoint('a', 2, 's')], ['a 10.64.97.3']), [[], []]);
  });
});

function container(
  networks: Record<string, string>,
  host?: ContainerDetails['HostConfig'],
): ContainerDetails {
  return {
    ...{ Id: 'id', Name: '/name', Config: { Hostname: 'h', Labels: {} }, State: { Running: true } },
    ...(host && { HostConfig: host }),
    NetworkSettings: {
      Networks: Object.fromEntries(
        Object.entries(networks).map(([name, EndpointID]) => [name, { NetworkID: name, EndpointID }]),
      ),
    },
  };
}

describe('readFacts', () => {
  const joined = [endpoint('a', 2, 's'), endpoint('b', 3, 's')];
  const names = (set: ReadonlySet<string>): string[] => [...set];

  it('readFacts: sandboxes with a link of another driver, Swarm’s ingress not counted', () => {
    const shared = (networks: Record<string, string>): string[] =>
      names(readFacts(joined, [container(networks)]).shared);
    assert.deepEqual(shared({ a: 'a2', b: 'b3' }), []);
    assert.deepEqual(shared({ a: 'a2', ingress: 'x' }), []);
    assert.deepEqual(shared({ a: 'a2', bridge: 'x' }), [at('s')]);
    assert.deepEqual(shared({ bridge: 'x' }), []);
  });

  it('readFacts: containers that may change what is in their sandbox', () => {
    const meddling = (host: ContainerDetails['HostConfig']): string[] =>
      names(readFacts(joined, [container({ a: 'a2' }, host)]).meddling);
    assert.deepEqual(meddling(undefined), []);
    assert.deepEqual(meddling({ CapAdd: ['SYS_TIME'] }), []);
    assert.deepEqual(meddling({ CapAdd: null, Privileged: true }), [at('s')]);
    for (const name of ['NET_ADMIN', 'CAP_NET_ADMIN', 'ALL'])
      assert.deepEqual(meddling({ CapAdd: [name] }), [at('s')], name);
  });
});

describe('Sandboxes', () => {
  /** Until they are entered for the first time, in milliseconds, and no longer. */
  const firstTry = 61;
  let now = 0;
  const calls: { tool: string; input: string; sandbox: string | undefined }[] = [];
  let refuse: (tool: string) => string | undefined = () => undefined;
  let isThere = true;
  const run: Runner = (tool, _args, { input = '', sandbox } = {}) => {
    calls.push({ tool, input, sandbox });
    const stderr = refuse(tool);
    return stderr === undefined ? Promise.resolve('') : Promise.reject(new CommandError(tool, 1, stderr));
  };
  let tables = new FakeSandboxTables();

  async function open() {
    const store = openEmbedded(':memory:');
    const records = openRecords(store);
    for (const one of [network('a'), network('b'), network('i', true)])
      await records.networks.put(one.id, one);
    const { log, lines } = captureLog();
    const sandboxes = new Sandboxes({
      ...{ records, run, tables, log, node: 'here', hostRun: '/host/run', reopens: true, now: () => now },
      isThere: () => isThere,
    });
    const put = (one: EndpointRecord) => records.endpoints.put(endpointKey(one), one);
    /** Looks whenever it wants to, for so long. */
    const pass = async (milliseconds: number): Promise<void> => {
      for (const end = now + milliseconds; now < end;)
        now = Math.min(end, now + Math.max(1, await sandboxes.look()));
    };
    return { store, records, sandboxes, lines, put, pass };
  }

  beforeEach(() => {
    now = 0;
    calls.splice(0);
    tables = new FakeSandboxTables();
    refuse = () => undefined;
    isThere = true;
  });

  it('a sandbox is entered once, and again when something else is desired', async () => {
    const { store, records, put, pass } = await open();
    await put({ ...endpoint('a', 2, 's'), ports: [] });
    await put(endpoint('b', 9, 'plain'));
    await pass(100_000);
    const sandbox = '/host/run/docker/netns/s';
    assert.deepEqual([calls, tables.changes], [[], [{ sandbox, put: 'causeway-reopen' }]]);
    const reopened = (): string[] => {
      const rules = tables.of(sandbox).get('causeway-reopen')?.chains[0]?.rules ?? [];
      return rules.map((rule) => /"ip daddr","is":"(.+?)"/.exec(JSON.stringify(rule))?.[1] ?? '');
    };
    assert.deepEqual(reopened(), ['10.64.97.2']);
    await put(endpoint('b', 3, 's'));
    await pass(100_000);
    assert.deepEqual(
      calls.map((call) => [call.tool, call.sandbox]),
      [['ip', sandbox]],
    );
    assert.deepEqual(reopened(), ['10.64.97.2', '10.64.98.3']);
    assert.match(
      calls[0]?.input ?? '',
      /^route replace default via 10\.64\.97\.1 table 171991298 proto 197$/m,
    );
    assert.match(calls[0]?.input ?? '', /^rule add from 10\.64\.98\.3 lookup 171991555 priority 19700 /m);
    await records.endpoints.delete(endpointKey(endpoint('b', 3, 's')));
    await pass(100_000);
    assert.match(calls[1]?.input ?? '', /^rule del from 10\.64\.98\.3 lookup 171991555 priority 19700$/m);
    assert.deepEqual([calls.length, tables.changes.length, reopened()], [2, 3, ['10.64.97.2']]);
    await store.close();
  });

  it('a sandbox that Docker has not finished is tried ever more slowly, and logged once', async () => {
    const { store, put, pass, lines } = await open();
    await put(endpoint('a', 2, 's'));
    await put(endpoint('b', 3, 's'));
    refuse = () => 'Error: Nexthop has invalid gateway.\nCommand failed -:1\n';
    await pass(1_000);
    assert.ok(calls.length >= 5, String(calls.length));
    await pass(300_000);
    assert.ok(calls.length < 40, String(calls.length));
    const warnings = (): number => lines.filter(({ level }) => level === 'warn').length;
    assert.equal(warnings(), 1);
    const before = calls.length;
    // What is there already is no failure.
    refuse = () => 'RTNETLINK answers: File exists\nCommand failed -:2\n';
    await pass(60_000);
    assert.ok(calls.length > before);
    const done = calls.length;
    await pass(300_000);
    assert.equal(calls.length, done);
    await store.close();
  });

  it('a sandbox keeps nothing of a failed try when something else is desired', async () => {
    const { store, records, put, pass } = await open();
    await put(endpoint('a', 2, 's'));
    await put(endpoint('b', 3, 's'));
    refuse = () => 'Error: Nexthop has invalid gateway.\nCommand failed -:4\n';
    await pass(firstTry);
    assert.equal(calls.length, 1);
    refuse = () => undefined;
    await records.endpoints.delete(endpointKey(endpoint('b', 3, 's')));
    await pass(100_000);
    assert.equal(calls.length, 2);
    for (const last of [2, 3])
      assert.match(calls[1]?.input ?? '', new RegExp(`^rule del from 10\\.64\\.9.\\.${last} lookup`, 'm'));
    await store.close();
  });

  it('a sandbox that is left, or desired otherwise, is put back as it was', async () => {
    const { store, sandboxes, records, put, pass } = await open();
    const inner = { ...endpoint('i', 2, 's'), ports: [] };
    await put(inner);
    await sandboxes.follow({ joined: [inner], untold: new Set<string>(), containers: [] });
    await pass(10_000);
    assert.match(calls[0]?.input ?? '', /^rule add unreachable /m);
    const sandbox = '/host/run/docker/netns/s';
    const forget = (): void => {
      calls.splice(0);
      tables.changes.splice(0);
    };
    const emptied = [{ sandbox, remove: 'causeway-reopen' }];
    forget();
    // `docker network disconnect`, and `connect` to another one soon after.
    await records.endpoints.delete(endpointKey(inner));
    await pass(1_000);
    await put(endpoint('a', 2, 's'));
    await pass(1_000);
    assert.deepEqual([calls.length, tables.changes], [1, emptied]);
    assert.match(calls[0]?.input ?? '', /^rule del priority 19\d+\nrule del priority 19\d+\nrule del from /);
    await records.endpoints.delete(endpointKey(endpoint('a', 2, 's')));
    await put(inner);
    await pass(10_000);
    forget();
    // And to none of ours; a try that fails is not the last one.
    await records.endpoints.delete(endpointKey(inner));
    refuse = () => 'nsenter: cannot fork: Resource temporarily unavailable';
    await pass(5_060);
    assert.deepEqual([calls.length, tables.changes], [1, []]);
    calls.splice(0);
    refuse = () => undefined;
    tables.refuses = true;
    await pass(1_000);
    assert.ok(tables.changes.length > 2 && tables.of(sandbox).size === 1);
    tables.refuses = false;
    await pass(100_000);
    assert.equal(tables.of(sandbox).size, 0);
    await store.close();
  });

  it('a sandbox whose link is another one with the same address has its route put back', async () => {
    const { store, records, put, pass } = await open();
    const [one, two] = [endpoint('a', 2, 's'), endpoint('b', 3, 's')];
    for (const each of [one, two]) await put(each);
    await pass(10_000);
    const again = (at: number): EndpointRecord => ({ ...two, id: `b3-${at}` });
    let before = two;
    // `docker network disconnect`, and `connect --ip` with the same: seen in between, and not.
    for (const [at, pause] of [1_000, 0].entries()) {
      calls.splice(0);
      await records.endpoints.delete(endpointKey(before));
      if (pause > 0) await pass(pause);
      await put(again(at));
      await pass(10_000);
      assert.match(calls.at(-1)?.input ?? '', /^route replace default via 10\.64\.98\.1 /m);
      before = again(at);
    }
    // And of one that was left wholly meanwhile.
    for (const each of [one, before]) await records.endpoints.delete(endpointKey(each));
    await pass(1_000);
    calls.splice(0);
    for (const each of [one, before]) await put(each);
    await pass(10_000);
    assert.match(calls[0]?.input ?? '', /^route replace default via 10\.64\.98\.1 /m);
    await store.close();
  });

  it('a sandbox whose container has ended is not entered', async () => {
    const { store, records, put, pass } = await open();
    await put({ ...endpoint('a', 2, 's'), ports: [] });
    await pass(10_000);
    calls.splice(0);
    isThere = false;
    await records.endpoints.delete(endpointKey(endpoint('a', 2, 's')));
    await pass(100_000);
    assert.deepEqual([calls, tables.changes.length], [[], 1]);
    await store.close();
  });

  it('a sandbox whose container may have removed its routes has them put back from time to time', async () => {
    const { store, sandboxes, put, pass } = await open();
    const joined = [{ ...endpoint('a', 2, 's'), ports: [] }, endpoint('b', 3, 's')];
    for (const one of joined) await put(one);
    const facts = {
      joined,
      untold: new Set<string>(),
      containers: [container({ a: 'a2', b: 'b3' }, { CapAdd: ['NET_ADMIN'] })],
    };
    await sandboxes.follow(facts);
    await pass(95_000);
    assert.deepEqual([calls.length, tables.changes.length], [4, 4]);
    await store.close();
  });

  it('a sandbox is left without what the kernel does not know', () => {
    assert.equal(canReopen(tables), true);
    tables.refuses = true;
    assert.equal(canReopen(tables), false);
  });
});
