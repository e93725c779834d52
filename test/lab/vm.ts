// Owns the virtual machine as tests and benches see it: a stock Debian kernel with IPVS, under software emulation.
// Must not install anything, nor leave a process or a file behind, however it ends.
import { constants } from 'node:os';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { StringDecoder } from 'node:string_decoder';
import { labsDir } from './lab.ts';
import { prepareParts } from './vm/parts.ts';
import type { Reply, Request } from './vm/protocol.ts';
import { Machine, type Disk } from './vm/qemu.ts';

/** Boot takes about 8 s on an idle machine. */
const bootTimeoutMs = 180_000;
/** A command that takes longer hangs; a caller who knows better passes its own. */
const commandTimeoutMs = 120_000;
/** Within this a killed command must be gone, or the machine counts as hung. */
const killGraceMs = 15_000;

const repository = join(import.meta.dirname, '../..');

export interface VmOptions {
  /** Tells machines apart in error messages. */
  name: string;
  /** Default 4096. The host gives what is used, not what is allowed. */
  memoryMiB?: number;
  disks?: Disk[];
  progress?: (line: string) => void;
  /** Receives the console: kernel messages, and what process 1 writes. */
  onConsole?: (text: string) => void;
  /** Ends the machine, at whatever it is. */
  signal?: AbortSignal;
}

export interface RunOptions {
  /** Default: the repository, which has the same path as outside. */
  cwd?: string;
  /** Added to a plain environment: PATH with the project's Node and npm programs first, HOME, TMPDIR on a tmpfs. */
  env?: Record<string, string>;
  /** Text for its standard input; without, it reads nothing. */
  input?: string;
  /** After this many milliseconds it is ended and {@link Vm.run} rejects. Default: two minutes. */
  timeoutMs?: number;
  /** Called with its output as it comes. */
  onStdout?: (text: string) => void;
  onStderr?: (text: string) => void;
  /** Ends the command, and {@link Vm.run} rejects with its reason. */
  signal?: AbortSignal | undefined;
}

/** How a command ended. A failing one is no error of the machine. */
export interface VmResult {
  /** As a shell tells it: 128 and more for a signal. */
  exitCode: number;
  stdout: string;
  stderr: string;
}

/** The machine, not what ran in it, failed. The message ends with the last lines of its console. */
export class VmError extends Error {
  override readonly name = 'VmError';
  readonly code = 'VM';
}

/** A command that was started and has not ended. */
interface Pending {
  take(reply: Reply): void;
  fail(error: Error): void;
}

export class Vm implements AsyncDisposable {
  readonly name: string;
  readonly #machine: Machine;
  readonly #pending = new Map<number, Pending>();
  #nextId = 1;
  /** Why it is over; commands are refused with it. */
  #over: Error | undefined;

  private constructor(name: string, machine: Machine) {
    this.name = name;
    this.#machine = machine;
  }

  /**
   * Brings a machine up, at first use with the download of its parts. It sees the host's files at their own paths,
   * but writes only to its memory; it has no network but what is made in it; kernel modules load by themselves.
   *
   * @throws {DebianError} the parts cannot be had.
   * @throws {VmError} it does not come up within three minutes.
   */
  static async boot(o: VmOptions): Promise<Vm> {
    const { name, memoryMiB = 4096, disks = [], progress = () => {}, onConsole = () => {}, signal } = o;
    const parts = await prepareParts({ progress, signal });
    signal?.throwIfAborted();
    progress(`booting ${parts.modules.split('/').at(-1)} (emulated)`);
    const started = performance.now();
    const vm = new Vm(name, new Machine(parts, { memoryMiB, disks, onConsole }));
    try {
      await vm.#answers(signal);
      // The host's labs are not up in here.
      await vm.#prepare(['mkdir', '-p', labsDir]);
      await vm.#prepare(['mount', '-t', 'tmpfs', 'labs', labsDir]);
      for (const [index, { at }] of disks.entries()) {
        await vm.#prepare(['mkdir', '-p', at]);
        await vm.#prepare(['mount', '-t', 'ext4', `/dev/vd${'abcdefgh'[index]}`, at]);
      }
    } catch (error) {
      await vm.shutdown();
      throw error;
    }
    signal?.addEventListener('abort', () => void vm.shutdown(), { once: true });
    progress(`booted in ${((performance.now() - started) / 1000).toFixed(1)} s`);
    return vm;
  }

  /** Resolves when the agent has said its first word. From then on its replies go to the commands they belong to. */
  async #answers(signal: AbortSignal | undefined): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<undefined>();
    const replies = createInterface({ input: this.#machine.port });
    // It passes on the port's errors, which mean that QEMU ended: `ended` tells.
    replies.on('error', () => {});
    replies.on('line', (line) => {
      const reply = JSON.parse(line) as Reply;
      if ('ready' in reply) resolve(undefined);
      else this.#pending.get(reply.id)?.take(reply);
    });
    void this.#machine.ended.then(() => {
      this.#fail(new VmError(this.#describe('ended')));
      reject(this.#over!);
    });
    const timer = setTimeout(() => {
      reject(new VmError(this.#describe(`did not come up within ${bootTimeoutMs / 1000} s`)));
    }, bootTimeoutMs);
    const abort = () => reject(signal!.reason as Error);
    signal?.addEventListener('abort', abort);
    try {
      await promise;
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener('abort', abort);
    }
  }

  async #prepare(argv: [string, ...string[]]): Promise<void> {
    const { exitCode, stderr } = await this.run(argv);
    if (exitCode !== 0) throw new VmError(this.#describe(`failed at ${argv.join(' ')}: ${stderr}`));
  }

  /**
   * Runs a command in the machine. Resolves when it has ended and its output is closed: a process it leaves behind
   * must not hold on to its output. Several commands may run at once; there is one processor.
   *
   * @throws {VmError} it could not be started, took too long, or the machine ended.
   */
  async run(argv: [string, ...string[]], o: RunOptions = {}): Promise<VmResult> {
    const { cwd = repository, env = {}, input = '', timeoutMs = commandTimeoutMs, signal } = o;
    signal?.throwIfAborted();
    if (this.#over) throw this.#over;
    const id = this.#nextId++;
    const { promise, resolve, reject } = Promise.withResolvers<VmResult>();
    const stdout = collector(o.onStdout);
    const stderr = collector(o.onStderr);
    const take = (reply: Reply) => {
      if ('stdout' in reply) stdout.add(reply.stdout);
      else if ('stderr' in reply) stderr.add(reply.stderr);
      else if ('failed' in reply) reject(new VmError(`${argv[0]} did not start: ${reply.failed}`));
      else if ('exit' in reply)
        resolve({ exitCode: shellCode(reply.exit), stdout: stdout.end(), stderr: stderr.end() });
    };
    this.#pending.set(id, { take, fail: reject });

    // Set once the command is to be ended early; it then counts as failed, whatever its exit code.
    let why: Error | undefined;
    let grace: NodeJS.Timeout | undefined;
    const end = (reason: Error) => {
      why ??= reason;
      this.#send({ id, kill: 'SIGKILL' });
      grace ??= setTimeout(() => void this.#hung(`did not end ${argv[0]}`), killGraceMs);
    };
    const timer = setTimeout(() => {
      end(new VmError(this.#describe(`was busy with ${argv.join(' ')} for ${timeoutMs / 1000} s`)));
    }, timeoutMs);
    const abort = () => end(signal!.reason as Error);
    signal?.addEventListener('abort', abort);
    this.#send({ id, start: { argv, cwd, env: { ...plainEnvironment(), ...env }, input } });
    try {
      const result = await promise;
      if (why) throw why;
      return result;
    } finally {
      this.#pending.delete(id);
      clearTimeout(timer);
      clearTimeout(grace);
      signal?.removeEventListener('abort', abort);
    }
  }

  /** Ends the machine and everything in it at once. Commands that still run are rejected. May be called again. */
  async shutdown(): Promise<void> {
    this.#fail(new VmError(`Virtual machine ${this.name} was shut down.`));
    await this.#machine.kill();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.shutdown();
  }

  #send(request: Request): void {
    this.#machine.port.write(`${JSON.stringify(request)}\n`);
  }

  async #hung(what: string): Promise<void> {
    this.#fail(new VmError(this.#describe(`hangs: ${what}`)));
    await this.#machine.kill();
  }

  /** Fails all that runs. The first reason counts: later ones follow from it. */
  #fail(reason: Error): void {
    this.#over ??= reason;
    for (const pending of this.#pending.values()) pending.fail(this.#over);
  }

  #describe(what: string): string {
    return `Virtual machine ${this.name} ${what}. The end of its console:\n${this.#machine.consoleTail()}`;
  }
}

/** Puts chunks of text together; one may end within a character. */
function collector(onText: ((text: string) => void) | undefined) {
  const decoder = new StringDecoder();
  let all = '';
  const take = (text: string) => {
    all += text;
    if (text !== '') onText?.(text);
  };
  return {
    add: (base64: string) => take(decoder.write(Buffer.from(base64, 'base64'))),
    end: () => {
      take(decoder.end());
      return all;
    },
  };
}

function shellCode({ code, signal }: { code: number | null; signal: NodeJS.Signals | null }): number {
  return signal === null ? code! : 128 + constants.signals[signal];
}

function plainEnvironment(): Record<string, string> {
  return {
    PATH: [
      dirname(process.execPath),
      join(repository, 'node_modules/.bin'),
      '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    ].join(':'),
    HOME: '/root',
    LANG: 'C.UTF-8',
    TMPDIR: '/vm-tmp',
  };
}
