// Owns running commands: the one place of the plugin that starts a process, always by absolute path and without a shell; what
// this process does by itself instead is iproute.ts's, nft-elements.ts's, nft-tables.ts's and conntrack.ts's. Must not know what the commands mean.
import { execa } from 'execa';
import type { InProcess, Outcome } from './iproute.ts';

/** The programs the plugin uses, by the path they have in Debian and so in the plugin's root file system. */
const paths = {
  ip: '/usr/sbin/ip',
  bridge: '/usr/sbin/bridge',
  nft: '/usr/sbin/nft',
  ipvsadm: '/usr/sbin/ipvsadm',
  'iptables-nft': '/usr/sbin/iptables-nft',
  'iptables-legacy': '/usr/sbin/iptables-legacy',
} as const;

const nsenter = '/usr/bin/nsenter';

export type Tool = keyof typeof paths;

/** A command that ended with a failure; the message carries what a person needs to act. */
export class CommandError extends Error {
  override readonly name = 'CommandError';
  readonly command: string;
  /** The exit code; undefined when the command could not be started or was killed. */
  readonly exitCode: number | undefined;
  readonly stderr: string;

  constructor(command: string, exitCode: number | undefined, stderr: string, options?: ErrorOptions) {
    super(`${command}: ${stderr.trim() || `exit code ${exitCode ?? 'none'}`}`, options);
    this.command = command;
    this.exitCode = exitCode;
    this.stderr = stderr;
  }
}

/** Runs one kernel tool to its end. Implemented by {@link createRunner}; tests that need no kernel pass their own. */
export type Runner = (tool: Tool, args: string[], options?: RunOptions) => Promise<string>;

export interface RunOptions {
  /** Standard input. */
  input?: string;
  /** Path of the network namespace to run in, in place of the host's. Takes CAP_SYS_ADMIN. */
  sandbox?: string;
  /** Success writes nothing to standard error: whatever is there is a failure, whatever the exit code says. */
  silent?: boolean;
}

export interface RunnerOptions {
  /** Called once per command with its outcome, for the debug log. */
  onCommand?: (command: string, milliseconds: number, input: string | undefined) => void;
  /** Asked first; what it does needs no process. Only where commands run in this process's own namespaces. */
  inProcess?: readonly InProcess[];
  /** Where the tools live when that is not `/`, as in the lab. Their libraries are looked up there too. */
  root?: string;
  /** Words put before the command, such as `nsenter --net=…` in the kernel tests. */
  prefix?: string[];
}

// A kernel command takes milliseconds. One that hangs (a lock held by someone else's iptables) must not hold the
// reconciler, and with it Docker, for ever.
const timeoutMilliseconds = 20_000;

/**
 * @returns a runner that resolves with the standard output of the command
 * @throws {CommandError} from the runner when a command fails, cannot be started, or takes longer than 20 s
 */
export function createRunner({
  onCommand,
  inProcess = [],
  root = '',
  prefix = [],
}: RunnerOptions = {}): Runner {
  // For the words of `prefix`: the tools have absolute paths.
  const path = process.env['PATH'] ?? '';
  const libraries = root === '' ? {} : libraryEnvironment(root);
  return async (tool, args, { input, sandbox, silent = false } = {}) => {
    const began = performance.now();
    const entering = sandbox === undefined ? [] : [root + nsenter, `--net=${sandbox}`, '--'];
    let own: Outcome | undefined;
    for (const act of inProcess) own ??= act(tool, args, input, sandbox);
    if (own !== undefined) {
      const command = [...entering, tool, ...args].join(' ');
      onCommand?.(command, performance.now() - began, input);
      if (own.exitCode !== 0) throw new CommandError(command, own.exitCode, own.stderr);
      return own.stdout;
    }
    const [file, ...rest] = [...prefix, ...entering, root + paths[tool], ...args] as [string, ...string[]];
    const started = performance.now();
    const result = await execa(file, rest, {
      ...(input === undefined ? { stdin: 'ignore' as const } : { input }),
      // Nothing of the plugin's settings is a tool's business, and to copy the environment is work for each of them.
      env: { LC_ALL: 'C', PATH: path, ...libraries },
      extendEnv: false,
      reject: false,
      timeout: timeoutMilliseconds,
      stripFinalNewline: false,
      maxBuffer: 256 * 1024 * 1024,
    });
    const command = [...entering, tool, ...args].join(' ');
    onCommand?.(command, performance.now() - started, input);
    if (result.failed || (silent && result.stderr !== '')) {
      const why = result.timedOut ? `no answer within ${timeoutMilliseconds / 1000} s` : result.stderr;
      throw new CommandError(command, result.exitCode, why || (result.shortMessage ?? ''), {
        cause: result.cause,
      });
    }
    return result.stdout;
  };
}

function libraryEnvironment(root: string): Record<string, string> {
  return {
    LD_LIBRARY_PATH: `${root}/usr/lib/x86_64-linux-gnu:${root}/lib/x86_64-linux-gnu`,
    XTABLES_LIBDIR: `${root}/usr/lib/x86_64-linux-gnu/xtables`,
  };
}
