// Owns the tests of two nodes that watch each other over a real link, which is cut and mended.
// Must not assert how fast: bench/ measures.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { execa } from 'execa';
import { runTool } from '../lab/plugin-process.ts';
import { slowness } from '../slowness.ts';
import type { Line, Settings } from './watcher-program.ts';
import { Namespace } from './world.ts';
import { until } from '../support/until.ts';

/** How long to wait for what a node says. */
const patience = { timeoutMs: 40_000 * slowness, everyMs: 20 };

const port = 4791;
const a = { id: 'node-a', address: '203.0.113.1' };
const b = { id: 'node-b', address: '203.0.113.2' };

/** One node: a namespace, and in it a process that watches the other node. */
class Watcher {
  readonly namespace: Namespace;
  readonly settings: Settings;
  /** What it said since it was started or {@link forget} was called. */
  verdicts: string[] = [];
  warnings: string[] = [];
  /** The verdict that held with each offer it was told. */
  offers: { offered: unknown; verdict: string | undefined }[] = [];
  #program: ReturnType<typeof run> | undefined;

  constructor(namespace: Namespace, self: Settings['self'], peer: Settings['peer']) {
    this.namespace = namespace;
    this.settings = { self, peer, port, secret: 'the secret of the cluster', offer: '' };
  }

  start(): void {
    this.forget();
    const program = run(this.namespace, this.settings);
    createInterface({ input: program.stdout }).on('line', (text) => {
      const line = JSON.parse(text) as Line;
      if ('verdict' in line) this.verdicts.push(line.verdict);
      else if ('offered' in line) this.offers.push({ ...line, verdict: this.verdicts.at(-1) });
      else if (line.level === 'warn') this.warnings.push(line.message);
    });
    this.#program = program;
  }

  /** Forgets all verdicts but the one that holds. */
  forget(): void {
    this.verdicts = this.verdicts.slice(-1);
    this.warnings = [];
    this.offers = [];
  }

  signal(signal: NodeJS.Signals): void {
    this.#program?.kill(signal);
  }

  /** As a crash or an upgrade ends it. */
  async kill(): Promise<void> {
    this.signal('SIGKILL');
    await this.#program;
    this.#program = undefined;
    this.verdicts = [];
  }

  async says(verdict: string): Promise<void> {
    const instead = (): string[] => this.verdicts;
    await until(`${this.settings.self.id} says ${verdict}`, () => this.verdicts.at(-1) === verdict, {
      ...patience,
      instead,
    });
  }
}

function run(namespace: Namespace, settings: Settings) {
  const program = join(import.meta.dirname, 'watcher-program.ts');
  return execa('nsenter', [`--net=${namespace.path}`, process.execPath, program, JSON.stringify(settings)], {
    stdout: 'pipe',
    stderr: 'inherit',
    buffer: false,
    reject: false,
  });
}

describe('two nodes that watch each other', function () {
  this.timeout(60_000 * slowness);
  const made: Namespace[] = [];
  let wire: Namespace;
  let one: Watcher;
  let two: Watcher;
  const watchers: Watcher[] = [];

  before(async () => {
    const prefix = `cwp${randomBytes(3).toString('hex')}`;
    const make = async (name: string): Promise<Namespace> => {
      const namespace = await Namespace.make(prefix + name);
      made.push(namespace);
      return namespace;
    };
    wire = await make('w');
    await wire.ip('link', 'add', 'wire', 'type', 'bridge');
    await wire.ip('link', 'set', 'wire', 'up');
    // Through a switch: the link of a node stays up when the other's is pulled, so nothing but silence tells.
    const plug = async (name: string, address: string): Promise<Namespace> => {
      const node = await make(name);
      await wire.ip('link', 'add', `to-${name}`, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', node.name);
      await wire.ip('link', 'set', `to-${name}`, 'master', 'wire', 'up');
      await node.ip('address', 'add', `${address}/24`, 'dev', 'eth0');
      await node.ip('link', 'set', 'eth0', 'up');
      return node;
    };
    one = new Watcher(await plug('a', a.address), a, b);
    two = new Watcher(await plug('b', b.address), b, a);
    watchers.push(one, two);
  });
  after(async () => {
    for (const watcher of watchers) await watcher.kill();
    for (const namespace of made) await namespace.remove();
  });

  const cut = () => wire.ip('link', 'set', 'to-b', 'down');
  const mend = () => wire.ip('link', 'set', 'to-b', 'up');

  beforeEach(async () => {
    one.start();
    two.start();
    await one.says('alive');
    await two.says('alive');
    one.forget();
    two.forget();
  });
  afterEach(async () => {
    await one.kill();
    await two.kill();
    await mend();
  });

  it('the link between two nodes is cut: each is dead to the other, and alive when it is mended', async () => {
    await cut();
    await one.says('unreachable');
    await two.says('unreachable');
    await mend();
    await one.says('alive');
    await two.says('alive');
    assert.deepEqual(one.verdicts, ['alive', 'unreachable', 'alive']);
  });

  it('a node’s plugin is killed: both stay alive, because its kernel refuses', async () => {
    await two.kill();
    await sleep(3_000);
    assert.deepEqual(one.verdicts, ['alive']);
    await cut();
    await one.says('unreachable');
  });

  it('a node’s plugin is stopped: both stay alive, and it concludes nothing from its sleep', async () => {
    two.signal('SIGSTOP');
    await sleep(2_000);
    two.signal('SIGCONT');
    await sleep(1_500);
    assert.deepEqual(one.verdicts, ['alive'], 'the kernel of the stopped one takes connections');
    assert.deepEqual(two.verdicts, ['alive'], 'the one that was stopped says nothing of the other');
  });

  it('a node that lost its power is back with its process, not with its kernel', async () => {
    await cut();
    await two.kill();
    await one.says('unreachable');
    await mend();
    // Until its kernel refuses connections.
    const probe = () =>
      one.namespace.run('sh', '-c', `exec 2>&1; timeout 1 bash -c '</dev/tcp/${b.address}/${port}' || true`);
    while (!(await probe()).includes('refused')) await sleep(50);
    await sleep(1_500);
    assert.deepEqual(one.verdicts, ['alive', 'unreachable']);
    two.start();
    await one.says('alive');
  });

  it('a node that comes back with pending writes is back when they are known, not before', async () => {
    await cut();
    await two.kill();
    await one.says('unreachable');
    two.settings.offer = 'my sandboxes are gone';
    try {
      two.start();
      await mend();
      await one.says('alive');
      assert.deepEqual(one.offers, [{ offered: 'my sandboxes are gone', verdict: 'unreachable' }]);
    } finally {
      two.settings.offer = '';
    }
  });

  it('a node that gave a sign of life and fell silent again comes back with its pending writes no less', async () => {
    await cut();
    two.signal('SIGSTOP');
    await one.says('unreachable');
    // Its kernel takes connections. It is tried once a second.
    await mend();
    await sleep(1_200);
    await cut();
    await two.kill();
    await sleep(3_000);
    assert.deepEqual(one.verdicts, ['alive', 'unreachable']);
    two.settings.offer = 'my sandboxes are gone';
    try {
      two.start();
      await mend();
      await one.says('alive');
      assert.deepEqual(one.offers, [{ offered: 'my sandboxes are gone', verdict: 'unreachable' }]);
    } finally {
      two.settings.offer = '';
    }
  });

  it('a firewall between two nodes: they are unknown, which is not dead, and the log names the port', async () => {
    await one.kill();
    const nft = (words: string): Promise<string> => runTool(two.namespace.path, 'nft', [words]);
    await nft('add table inet wall');
    await nft('add chain inet wall in { type filter hook input priority 0; }');
    await nft(`add rule inet wall in tcp dport ${port} drop`);
    await nft(`add rule inet wall in udp dport ${port} drop`);
    try {
      one.start();
      await until('a warning', () => one.warnings.length > 0, patience);
      assert.deepEqual(one.verdicts, ['unknown']);
      assert.match(one.warnings.join(), /open UDP and TCP port 4791 between the nodes/);
    } finally {
      await nft('delete table inet wall');
    }
    await one.says('alive');
    assert.equal(one.warnings.length, 1, 'and says it once');
  });
});
