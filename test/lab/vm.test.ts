// Owns what is promised of the virtual machine: output, exit codes, deadlines, and that nothing of it stays.
// Must not test what runs in it: test/kernel/ does.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { nameOf } from './processes.ts';
import { until } from '../support/until.ts';
import { Vm, VmError } from './vm.ts';

const emulated = 60_000;

describe('virtual machine', function () {
  this.timeout(emulated);
  let vm: Vm;

  before(async function () {
    // Parts may have to be downloaded.
    this.timeout(600_000);
    vm = await Vm.boot({ name: 'test' });
  });
  after(() => vm.shutdown());

  it('a virtual machine’s command has its output, input, environment and exit code', async () => {
    const script = 'read word; echo "$word $HERE"; echo oops >&2; exit 7';
    const chunks: string[] = [];
    const result = await vm.run(['sh', '-c', script], {
      input: 'grüße\n',
      env: { HERE: 'there' },
      onStdout: (text) => chunks.push(text),
    });
    assert.deepEqual(result, { exitCode: 7, stdout: 'grüße there\n', stderr: 'oops\n' });
    assert.equal(chunks.join(''), result.stdout);
  });

  it('a virtual machine’s command that a signal ended has the exit code that a shell gives it', async () => {
    const { exitCode } = await vm.run(['sh', '-c', 'kill -TERM $$']);
    assert.equal(exitCode, 128 + 15);
  });

  it('a virtual machine’s pipes carry megabytes unharmed', async () => {
    const { stdout } = await vm.run(['seq', '1', '300000']);
    assert.equal(stdout, Array.from({ length: 300_000 }, (_, i) => `${i + 1}\n`).join(''));
  });

  it('a virtual machine rejects a command that does not exist', async () => {
    await assert.rejects(vm.run(['no-such-command']), /no-such-command did not start: .*ENOENT/);
  });

  it('a virtual machine ends a command at its deadline, with what it started, and goes on', async () => {
    const slow = vm.run(['sh', '-c', 'sleep 1234 & wait'], { timeoutMs: 2_000 });
    const quick = vm.run(['echo', 'meanwhile']);
    assert.equal((await quick).stdout, 'meanwhile\n');
    await assert.rejects(slow, /was busy with sh -c sleep 1234 & wait for 2 s/);
    const { stdout } = await vm.run(['sh', '-c', 'cat /proc/[0-9]*/cmdline | tr "\\0" " "']);
    assert.doesNotMatch(stdout, /sleep 1234 /);
  });

  it('a virtual machine ends a command when asked', async () => {
    const stop = new AbortController();
    const slow = vm.run(['sleep', '1234'], { signal: stop.signal });
    stop.abort(new Error('enough'));
    await assert.rejects(slow, /^Error: enough$/);
  });

  it('a virtual machine runs a stock kernel whose modules load by themselves', async () => {
    const { stdout } = await vm.run(
      ['sh', '-c', 'uname -r; ip link add dummy0 type dummy; ip link show dummy0'],
      {
        env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin:/run/vm' },
      },
    );
    assert.match(stdout, /^6\.\d+\.\d+-\d+-amd64\n/);
    assert.match(stdout, /dummy/);
    const { exitCode } = await vm.run(['/sbin/modprobe', 'ip_vs_rr']);
    assert.equal(exitCode, 0);
    assert.equal((await vm.run(['cat', '/proc/net/ip_vs'])).exitCode, 0);
  });

  it('a virtual machine writes nothing to the host', async () => {
    const file = join(import.meta.dirname, 'written-by-the-machine');
    const { exitCode } = await vm.run(['touch', file, '/etc/written-by-the-machine']);
    assert.equal(exitCode, 0);
    assert(!existsSync(file) && !existsSync('/etc/written-by-the-machine'));
  });

  it('a virtual machine’s panic is reported with the end of the console', async () => {
    const crash = vm.run(['sh', '-c', 'echo c >/proc/sysrq-trigger']);
    await assert.rejects(crash, (error) => error instanceof VmError && /Kernel panic/.test(error.message));
    await assert.rejects(vm.run(['true']), VmError);
  });
});

describe('end of a virtual machine', function () {
  this.timeout(3 * emulated);

  it('a virtual machine ends with a kill of its harness', async () => {
    const command = [join(import.meta.dirname, 'vm-exec.ts'), 'sleep', '1234'];
    const harness = spawn(process.execPath, command, { stdio: ['ignore', 'ignore', 'pipe'] });
    const booted = Promise.withResolvers<undefined>();
    let said = '';
    harness.stderr.on('data', (chunk: Buffer) => {
      said += chunk.toString();
      if (said.includes('booted in')) booted.resolve(undefined);
    });
    harness.once('exit', () => booted.reject(new Error(said)));
    await booted.promise;
    const qemu = await qemuBelow(harness.pid!);
    assert(qemu !== undefined);
    harness.kill('SIGKILL');
    await until('QEMU ends', async () => (await nameOf(qemu)) !== qemuName, patience);
  });

  it('a virtual machine ends with an abort while it boots', async () => {
    const stop = new AbortController();
    const boot = Vm.boot({ name: 'aborted', signal: stop.signal });
    await until('QEMU starts', () => qemuBelow(process.pid), patience);
    stop.abort(new Error('enough'));
    await assert.rejects(boot, /^Error: enough$/);
    assert.equal(await qemuBelow(process.pid), undefined);
  });
});

/** As the kernel cuts it. */
const qemuName = 'qemu-system-x86';

/** @returns the number of the QEMU that a process has started. */
async function qemuBelow(pid: number): Promise<number | undefined> {
  for (const task of await readdir(`/proc/${pid}/task`)) {
    const children = await readFile(`/proc/${pid}/task/${task}/children`, 'utf8');
    for (const child of children.split(' ').filter(Boolean).map(Number)) {
      if ((await nameOf(child)) === qemuName) return child;
    }
  }
  return undefined;
}

const patience = { timeoutMs: 10_000 };
