// Owns the tests of the nft tables that sandboxes are given without a process of nft: the real one tells what the kernel has.
// Must not send packets: names.test.ts and cluster.test.ts show what the tables do.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { canLeadNames, leadNames, unleadNames } from '../../net/name-sockets.ts';
import { NamespaceError } from '../../net/namespace.ts';
import { sandboxTables, TableError, type Table } from '../../net/nft-tables.ts';
import { canReopen, letReopen } from '../../net/reopen.ts';
import { createRunner, type Runner } from '../../net/run.ts';
import { pluginDir } from '../../rootfs/build.ts';
import { slowness } from '../slowness.ts';
import { Namespace } from './world.ts';

/** As somebody would write them for nft. */
const texts = {
  names: (port: number): string => {
    const asked = 'ct direction original ct original ip daddr 127.0.0.11 ct original proto-dst 53';
    const ask = (protocol: string): string =>
      `iifname "lo" meta l4proto ${protocol} ${asked} ip saddr != 127.0.0.12 tproxy to 127.0.0.12:${port}`;
    return `table ip causeway {
      chain ask {
        type filter hook prerouting priority mangle; policy accept;
        ${ask('tcp')}
        ${ask('udp')}
      }
      chain answer {
        type filter hook output priority raw; policy accept;
        ip saddr 127.0.0.12 udp sport ${port} ip saddr set 127.0.0.11 udp sport set 53 notrack
      }
    }\n`;
  },
  reopen: (...addresses: string[]): string => `table ip causeway-reopen {
    chain reopen {
      type filter hook prerouting priority dstnat + 10; policy accept;
      ${addresses.map((one) => `ip daddr ${one} tcp flags & (fin | syn | rst | ack) == syn tproxy to ip daddr`).join('\n')}
    }
  }\n`,
};

describe('the tables of sandboxes, written without nft', function () {
  this.timeout(60_000 * slowness);
  let sandbox: Namespace;
  /** Holds what nft makes of a text. */
  let other: Namespace;

  beforeEach(async () => {
    const make = (): Promise<Namespace> => Namespace.make(`cw-test-${randomBytes(4).toString('hex')}`);
    [sandbox, other] = [await make(), await make()];
  });
  afterEach(async () => {
    for (const each of [sandbox, other]) await each.remove();
  });

  const nft = ({ path }: Namespace, ...[args, options]: [string[], { input: string }?]): ReturnType<Runner> =>
    createRunner({ root: join(pluginDir, 'rootfs'), prefix: ['nsenter', `--net=${path}`] })(
      'nft',
      args,
      options,
    );
  /** In nft's words, and each expression with its bytes; without the numbers that the kernel gives. */
  const state = async (namespace: Namespace): Promise<string> =>
    (await nft(namespace, ['--debug=netlink', 'list', 'ruleset'])).replaceAll(
      /^(ip \S+ \S+)( \d+)+ *$/gm,
      '$1',
    );

  async function isAs(...wanted: string[]): Promise<void> {
    await nft(other, ['-f', '-'], { input: ['flush ruleset\n', ...wanted].join('') });
    const [ours, theirs] = [await state(sandbox), await state(other)];
    assert.equal(ours, theirs);
    if (wanted.length > 0) assert.match(ours, /\[ tproxy ip addr reg 1/);
    else assert.equal(ours.trim(), '');
  }

  it('sandbox tables are what nft would make of their text, come anew in place of the former, and go', async () => {
    leadNames(sandboxTables, sandbox.path, 40_053);
    await isAs(texts.names(40_053));
    letReopen(sandboxTables, sandbox.path, ['10.77.0.5']);
    await isAs(texts.names(40_053), texts.reopen('10.77.0.5'));
    leadNames(sandboxTables, sandbox.path, 255);
    letReopen(sandboxTables, sandbox.path, ['10.77.0.5', '192.0.2.255', '255.0.0.1']);
    // In the order in which they were made.
    await isAs(texts.names(255), texts.reopen('10.77.0.5', '192.0.2.255', '255.0.0.1'));
    unleadNames(sandboxTables, sandbox.path);
    await isAs(texts.reopen('10.77.0.5', '192.0.2.255', '255.0.0.1'));
    letReopen(sandboxTables, sandbox.path, []);
    await isAs();
  });

  it('sandbox tables are written over what nft wrote, as an earlier version did', async () => {
    await nft(sandbox, ['-f', '-'], { input: texts.names(1) + texts.reopen('10.77.0.9') });
    leadNames(sandboxTables, sandbox.path, 40_053);
    letReopen(sandboxTables, sandbox.path, ['10.77.0.5']);
    await isAs(texts.names(40_053), texts.reopen('10.77.0.5'));
  });

  it('sandbox tables leave what others have there, and go from where there are none', async () => {
    const others = 'table ip others { chain causeway { type nat hook output priority -100; }; }\n';
    await nft(sandbox, ['-f', '-'], { input: others });
    const before = await state(sandbox);
    for (let time = 0; time < 2; time += 1) {
      unleadNames(sandboxTables, sandbox.path);
      letReopen(sandboxTables, sandbox.path, []);
    }
    assert.equal(await state(sandbox), before);
    leadNames(sandboxTables, sandbox.path, 40_053);
    unleadNames(sandboxTables, sandbox.path);
    assert.equal(await state(sandbox), before);
  });

  it('sandbox tables are tried beforehand, and a trial leaves nothing', async () => {
    const before = await createRunner({ root: join(pluginDir, 'rootfs') })('nft', ['list', 'tables']);
    assert.equal(canLeadNames(sandboxTables), true);
    assert.equal(canReopen(sandboxTables), true);
    // Longer than a name may be.
    assert.equal(sandboxTables.takes({ ...impossible, name: 'x'.repeat(300) }), false);
    assert.equal(await createRunner({ root: join(pluginDir, 'rootfs') })('nft', ['list', 'tables']), before);
  });

  /** `tproxy` is nothing for what leaves: the kernel refuses the second chain, when it has taken the first. */
  const impossible: Table = {
    name: 'causeway',
    chains: [
      { name: 'first', hook: 'output', priority: 0, rules: [['notrack']] },
      { name: 'second', hook: 'output', priority: 0, rules: [[{ tproxy: 'ip daddr' }]] },
    ],
  };

  it('sandbox tables stay as they are when the kernel refuses others, which is told', async () => {
    for (let time = 0; time < 2; time += 1) {
      assert.throws(
        () => {
          sandboxTables.put(sandbox.path, impossible);
        },
        (error) =>
          error instanceof TableError && /refuses the nft table ip causeway in .*CONFIG_/.test(error.message),
      );
      await isAs(...(time === 0 ? [] : [texts.names(40_053)]));
      leadNames(sandboxTables, sandbox.path, 40_053);
    }
    assert.throws(() => {
      leadNames(sandboxTables, `${sandbox.path}-gone`, 40_053);
    }, NamespaceError);
  });

  it('writing sandbox tables leaves no descriptor open, or the sandbox would not go with its container', () => {
    leadNames(sandboxTables, sandbox.path, 40_053);
    const open = (): number => readdirSync('/proc/self/fd').length;
    const before = open();
    for (let time = 0; time < 20; time += 1) {
      leadNames(sandboxTables, sandbox.path, 40_053);
      letReopen(sandboxTables, sandbox.path, time % 2 === 0 ? ['10.77.0.5'] : []);
      assert.throws(() => {
        sandboxTables.put(sandbox.path, impossible);
      });
      unleadNames(sandboxTables, sandbox.path);
      canReopen(sandboxTables);
    }
    assert.equal(open(), before);
  });
});
