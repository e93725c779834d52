// Owns running the built plugin in a network namespace without Docker: its real root file system, mounts and entrypoint.
// Must not play Docker's part in the protocol (test/fake/ does).
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { execa } from 'execa';
import { pluginDir } from '../../rootfs/build.ts';
import { PluginClient } from '../fake/plugin-client.ts';

const script = join(import.meta.dirname, 'run-plugin.sh');

/** How long the plugin may take to listen before the test gives up; under emulation Node alone takes seconds. */
const startTimeout = 180_000;

export interface PluginProcessOptions {
  /** Path of the network namespace it runs in. */
  netns: string;
  env?: Record<string, string>;
  /** Capabilities it shall lack, as setpriv(1) names them. */
  without?: string[];
}

/** The kernel tools that are in the plugin's root file system, and perhaps nowhere else on this machine. */
export type KernelTool = 'nft' | 'ipvsadm' | 'iptables-nft' | 'conntrack';

/** Runs one of them in a network namespace. @returns its standard output */
export async function runTool(netns: string, name: KernelTool, args: string[]): Promise<string> {
  const inside = ['chroot', join(pluginDir, 'rootfs'), `/usr/sbin/${name}`, ...args];
  return (await execa('nsenter', [`--net=${netns}`, ...inside])).stdout;
}

export class PluginProcess {
  /** Holds `run/`, the host's /run as the plugin sees it, `data/` and `plugins/`. */
  readonly directory: string;
  readonly client: PluginClient;
  readonly #options: PluginProcessOptions;
  #process: ChildProcess | undefined;
  /** Everything it wrote, for the message of a failed test. */
  output = '';

  private constructor(directory: string, options: PluginProcessOptions) {
    this.directory = directory;
    this.#options = { ...options };
    this.client = new PluginClient(join(directory, 'plugins', 'causeway.sock'));
  }

  /** @throws with what the plugin wrote, when it does not come up */
  static async start(options: PluginProcessOptions): Promise<PluginProcess> {
    const directory = await mkdtemp(join(tmpdir(), 'causeway-plugin-'));
    for (const name of ['run', 'data', 'plugins', 'root']) await mkdir(join(directory, name));
    const plugin = new PluginProcess(directory, options);
    try {
      await plugin.start();
      return plugin;
    } catch (error) {
      await plugin.stop();
      throw error;
    }
  }

  get pid(): number {
    const pid = this.#process?.pid;
    if (pid === undefined) throw new Error('the plugin is not running');
    return pid;
  }

  get adminSocket(): string {
    return join(this.directory, 'run', 'causeway', 'admin.sock');
  }

  /**
   * Starts it (again) on the same data and resolves once it answers.
   * @param changed settings that are others from now on
   */
  async start(changed: Record<string, string> = {}): Promise<void> {
    this.#options.env = { ...this.#options.env, ...changed };
    const { entrypoint, env } = JSON.parse(await readFile(join(pluginDir, 'config.json'), 'utf8')) as {
      entrypoint: string[];
      env: { name: string; value: string }[];
    };
    const defaults = Object.fromEntries(env.map(({ name, value }) => [name, value]));
    const process = spawn(
      'nsenter',
      [
        `--net=${this.#options.netns}`,
        ...(this.#options.without ?? []).flatMap((name) => [
          'setpriv',
          `--bounding-set=-${name}`,
          `--inh-caps=-${name}`,
        ]),
        ...[
          'unshare',
          '--mount',
          '--propagation',
          'slave',
          script,
          join(pluginDir, 'rootfs'),
          this.directory,
        ],
        ...entrypoint,
      ],
      {
        env: {
          PATH: '/usr/sbin:/usr/bin:/sbin:/bin',
          ...defaults,
          CAUSEWAY_LOG: 'debug',
          ...this.#options.env,
        },
        stdio: ['ignore', 'pipe', 'pipe'],
      },
    );
    this.#process = process;
    for (const stream of [process.stdout, process.stderr]) {
      stream.on('data', (chunk: Buffer) => (this.output = (this.output + chunk.toString()).slice(-200_000)));
    }
    const deadline = Date.now() + startTimeout;
    while (Date.now() < deadline && process.exitCode === null) {
      if (existsSync(join(this.directory, 'plugins', 'causeway.sock')) && (await this.#answers())) return;
      await sleep(20);
    }
    throw new Error(`the plugin did not start:\n${this.output}`);
  }

  async #answers(): Promise<boolean> {
    return this.client.post('Plugin.Activate').then(
      ({ status }) => status === 200,
      () => false,
    );
  }

  /** Runs one of the plugin's own kernel tools in its namespaces. @returns its standard output */
  tool(name: KernelTool, args: string[]): Promise<string> {
    return runTool(this.#options.netns, name, args);
  }

  /** @param signal SIGKILL is how a plugin crashes */
  async kill(signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    const process = this.#process;
    this.#process = undefined;
    if (process === undefined || process.exitCode !== null || process.signalCode !== null) return;
    process.kill(signal);
    await once(process, 'exit');
  }

  async stop(): Promise<void> {
    await this.kill('SIGTERM');
    await this.client.close();
    await rm(this.directory, { recursive: true, force: true });
  }
}
