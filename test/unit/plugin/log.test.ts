// Owns the tests of the log as a process's standard error: a pipe that is read, is not read, or has nobody at its end.
// Must not know what is logged.
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, constants, openSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { execa } from 'execa';

const logFile = join(import.meta.dirname, '../../../plugin/log.ts');

describe('The log', function () {
  this.timeout(60_000);
  const started: ChildProcess[] = [];
  let dir: string;
  let pipe: string;
  let reader: number;

  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), 'causeway-log-'));
    pipe = join(dir, 'pipe');
    await execa('mkfifo', [pipe]);
    reader = openSync(pipe, constants.O_RDONLY | constants.O_NONBLOCK);
  });
  afterEach(async () => {
    for (const child of started.splice(0)) child.kill('SIGKILL');
    await rm(dir, { recursive: true, force: true });
  });

  /** A process that logs into the pipe, as Docker gives it to a plugin. */
  function start(body: string): ChildProcess {
    const code = `
      import { createLog } from ${JSON.stringify(logFile)};
      const log = createLog('info');
      ${body}`;
    const writer = openSync(pipe, constants.O_WRONLY);
    const child = spawn(process.execPath, ['--input-type=module', '--eval', code], {
      stdio: ['ignore', 'pipe', writer],
    });
    closeSync(writer);
    started.push(child);
    return child;
  }

  /** Reads to the end, or until there is such a line. */
  async function read(last?: RegExp): Promise<Record<string, unknown>[]> {
    const socket = new Socket({ fd: reader, readable: true, writable: false });
    let all = '';
    socket.on('data', (data) => {
      all += data.toString();
      if (last?.test(all.slice(-20_000)) === true) socket.destroy();
    });
    await once(socket, 'close');
    return all
      .slice(0, all.lastIndexOf('\n'))
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, unknown>);
  }

  const numbers = (count: number) => Array.from({ length: count }, (_, n) => n);
  const flood = `for (let n = 0; n < 5_000; n += 1) log.info({ n, long: 'x'.repeat(1_000) }, 'a line');`;

  it('the end of the process loses no line of the log, and keeps their order', async () => {
    const child = start(`for (let n = 0; n < 5_000; n += 1) log.info({ n }, 'a line'); process.exit(3);`);
    const [lines, ended] = await Promise.all([read(), once(child, 'exit')]);
    assert.deepEqual(ended, [3, null]);
    assert.deepEqual(
      lines.map(({ n }) => n),
      numbers(5_000),
    );
  });

  it('a log that nobody reads holds nothing up, and says later how many lines were left out', async () => {
    const child = start(`${flood} process.stdout.write('on'); setInterval(() => log.info('later'), 20);`);
    await once(child.stdout!, 'data');
    await sleep(200);
    // What was left out is told as soon as there is room again, which may be behind the first of the later ones.
    const lines = await read(/"lines":\d+[^]*"msg":"later"}\n$/);
    const kept = lines.filter(({ msg }) => msg === 'a line').map(({ n }) => n as number);
    assert.deepEqual(kept, numbers(kept.length), 'whole lines in their order');
    assert.ok(kept.length > 900 && kept.length < 2_000, `${kept.length} lines`);
    const told = lines.filter(({ lines: left }) => left !== undefined);
    assert.equal(told.length, 1);
    assert.equal(told[0]!['level'], 'warn');
    assert.ok((told[0]!['lines'] as number) >= 5_000 - kept.length, JSON.stringify(told));
  });

  it('a log that nobody reads lets the process end', async () => {
    const child = start(`${flood} process.exit(0);`);
    assert.deepEqual(await once(child, 'exit'), [0, null]);
    closeSync(reader);
  });

  it('a log whose reader is gone is given up', async () => {
    const child = start(`
      process.stdout.write('up');
      setTimeout(() => {
        ${flood}
        process.exit(0);
      }, 500);`);
    await once(child.stdout!, 'data');
    closeSync(reader);
    assert.deepEqual(await once(child, 'exit'), [0, null]);
  });
});
