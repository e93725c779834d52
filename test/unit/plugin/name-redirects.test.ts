// Owns the tests of when a sandbox is opened to the name server, how often it is tried, and when it is left.
// Must not test what leads questions there: names.test.ts does, with real ones.
import assert from 'node:assert/strict';
import { NamespaceError } from '../../../net/namespace.ts';
import { NameRedirects } from '../../../plugin/name-redirects.ts';
import { captureLog } from '../../fake/log.ts';
import { FakeSandboxTables } from '../../fake/sandbox-tables.ts';

const one = '/var/run/docker/netns/one';
const path = '/host/run/docker/netns/one';

/** A name server of which some sandboxes cannot be entered yet. */
function world() {
  const tables = new FakeSandboxTables();
  const { log, lines } = captureLog();
  const state = {
    now: 0,
    sandboxes: new Set<string>(),
    closed: new Set<string>([one]),
    tries: [] as number[],
    events: [] as string[],
  };
  const questions = new NameRedirects({
    names: {
      get sandboxes() {
        return state.sandboxes;
      },
      open: (sandbox, at) => {
        state.tries.push(state.now);
        if (state.closed.has(sandbox)) throw new NamespaceError(`${at} is not there`);
        state.events.push(`open ${sandbox}`);
        return 40_000 + state.tries.length;
      },
      shut: (sandbox) => {
        state.events.push(`shut ${sandbox}`);
        return Promise.resolve();
      },
    },
    tables: {
      put: (sandbox, table) => {
        const [, port] = /"port":(\d+)/.exec(JSON.stringify(table)) ?? [];
        state.events.push(`put ${sandbox} ${port}`);
        tables.put(sandbox, table);
      },
      remove: tables.remove,
    },
    log,
    hostRun: '/host/run',
    now: () => state.now,
  });
  /** Asked as often as hints may come, or when it says. */
  const pass = async (milliseconds: number, step?: number): Promise<void> => {
    for (const until = state.now + milliseconds; state.now < until;) {
      const pause = await questions.look();
      state.now += Math.max(1, Math.min(step ?? pause, until - state.now));
    }
  };
  const warnings = (): string[] => lines.flatMap(({ level, msg }) => (level === 'warn' ? [msg] : []));
  return { state, tables, questions, pass, warnings };
}

describe('the sandboxes that ask the name server', () => {
  for (const step of [7, undefined])
    it(`a sandbox that Docker has not made yet is tried ever more slowly (${step ?? 'no'} hints)`, async () => {
      const { state, questions, pass, warnings } = world();
      state.sandboxes.add(one);
      await pass(1_000, step);
      const { tries } = state;
      assert.ok(tries[0] === 0 && (tries[1] ?? 0) <= 30 && tries.length > 8, String(tries));
      assert.ok(tries.length < 20, String(tries));
      await pass(18_000, step);
      assert.deepEqual(warnings(), []);
      await pass(10_000, step);
      assert.equal(warnings().length, 1);
      assert.match(warnings()[0] ?? '', /has to be a shared mount/);
      assert.deepEqual(questions.state, { led: 0, left: [{ sandbox: one, reason: `${path} is not there` }] });
      await pass(600_000, step);
      assert.ok(tries.length < 70, String(tries.length));
      assert.equal(warnings().length, 1);
      state.closed.clear();
      await pass(31_000, step);
      assert.deepEqual(questions.state, { led: 1, left: [] });
      assert.deepEqual(state.events.slice(-2), [`open ${one}`, `put ${path} ${40_000 + tries.length}`]);
    });

  it('the redirection rules are refused: the sandbox’s sockets are closed, and opened with the next try', async () => {
    const { state, tables, questions, pass } = world();
    tables.refuses = true;
    state.closed.clear();
    state.sandboxes.add(one);
    await questions.look();
    assert.deepEqual(state.events, [`open ${one}`, `put ${path} 40001`, `shut ${one}`]);
    tables.refuses = false;
    await pass(50);
    assert.deepEqual(state.events.slice(3), [`open ${one}`, `put ${path} 40002`]);
    assert.equal(questions.state.led, 1);
  });

  it('the redirection rules are refused for long: it is logged with the reason, and in the state', async () => {
    const { state, tables, questions, pass, warnings } = world();
    tables.refuses = true;
    state.closed.clear();
    state.sandboxes.add(one);
    await pass(30_000);
    assert.match(warnings().join('\n'), /^[^\n]*its sandbox does not take the rules that lead them here$/);
    assert.deepEqual(questions.state.left, [{ sandbox: one, reason: 'refused' }]);
  });

  it('a sandbox that is left: its sockets are closed at once; one that is gone is not entered', async () => {
    const { state, questions, pass } = world();
    state.closed.clear();
    state.sandboxes.add(one);
    await questions.look();
    state.sandboxes.clear();
    state.events.length = 0;
    await questions.look();
    assert.deepEqual(state.events, [`shut ${one}`]);
    await pass(60_000);
    assert.deepEqual(state.events, [`shut ${one}`]);
    assert.deepEqual(questions.state, { led: 0, left: [] });
  });

  it('a sandbox that is gone: its sockets are closed, though its endpoint is still recorded', async () => {
    const { state, questions } = world();
    state.closed.clear();
    state.sandboxes.add(one);
    await questions.look();
    assert.equal(questions.state.led, 1);
    // As after dockerd was killed: the path is not there, and an open socket would keep what it led to.
    state.closed.add(one);
    state.events.length = 0;
    await questions.look();
    assert.equal(state.events[0], `shut ${one}`);
    assert.equal(questions.state.led, 0);
  });

  it('a sandbox that cannot be entered holds up no other', async () => {
    const { state, questions } = world();
    for (let at = 0; at < 20; at += 1) state.sandboxes.add(`/run/docker/netns/${at}`);
    state.sandboxes.add(one);
    await questions.look();
    assert.equal(questions.state.led, 20);
  });
});
