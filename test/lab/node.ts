// Owns one node of a lab: its namespaces, its Docker Engine, and how commands are run in them.
// Must not know of other nodes: lab.ts makes a cluster of them.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { appendFileSync, closeSync, existsSync, openSync, readFileSync } from 'node:fs';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { get, type IncomingMessage } from 'node:http';
import { join, relative } from 'node:path';
import { json } from 'node:stream/consumers';
import { execa } from 'execa';
import { createGroup, groupOf, processesOf, removeGroup } from './cgroups.ts';
import { withEngine, type EngineName } from './engines.ts';
import {
  endAll,
  identify,
  innerPid,
  isAlive,
  nameOf,
  processesIn,
  signal,
  type ProcessId,
} from './processes.ts';
import { until } from '../support/until.ts';
import { toolsDir, toolsEnv } from './tools.ts';
import type { Namespaces } from './underlay.ts';

/** Generous: the machine may be busy with several labs, or be an emulator. */
const startTimeoutMs = 90_000;
const stopTimeoutMs = 30_000;
/** A command that takes longer than this hangs; a caller who knows better passes its own timeout. */
const commandTimeoutMs = 120_000;

/** How a command is run. */
export interface RunOptions {
  /** Bytes for its standard input; without, it reads nothing. */
  input?: string | Uint8Array;
  /** After this many milliseconds it is ended and counts as failed. Default: two minutes. */
  timeout?: number;
  /** Whether a failure rejects (default), or is told by `failed`. */
  reject?: boolean;
  signal?: AbortSignal | undefined;
}

/** How a command ended. Output without the last newline. */
export interface Ran {
  stdout: string;
  stderr: string;
  /** Undefined when it did not start, or was ended by a signal. */
  exitCode?: number;
  failed: boolean;
  timedOut: boolean;
}

/** Whatever runs commands: a node, or the client. */
export interface Host {
  readonly address: string;
  /** Runs a command to its end. @throws ExecaError, unless told otherwise. */
  exec(command: Command, options?: RunOptions): Promise<Ran>;
  /** Starts a command that goes on until it is killed, at the latest when this process ends. It never rejects. */
  start(command: Command): Running;
  /** The same command as one that is run on the machine. */
  commandLine(command: Command): Command;
}

export type Command = readonly [string, ...string[]];
export type Running = ReturnType<typeof startCommand>;

/** How an engine is started, besides what makes it part of the lab. */
export interface DockerdSettings {
  args?: readonly string[];
  env?: Readonly<Record<string, string>>;
}

/** What a node is made of. */
export interface NodePlace {
  lab: string;
  name: string;
  address: string;
  /** The node's own directory on the machine; holds its data, logs and /run. */
  dir: string;
  spaces: Namespaces;
  /** Where names are asked that Docker does not know. Nothing need answer there. */
  nameserver: string;
  engine: EngineName;
  dockerd: DockerdSettings;
}

export class LabNode implements Host {
  readonly name: string;
  /** The node's address in the underlay, without prefix length. */
  readonly address: string;
  /** Directory on the machine: dockerd.log, run/docker.sock and the data root are in it. */
  readonly dir: string;
  /** Counts from the next start of the engine on. */
  dockerd: DockerdSettings;
  readonly #place: NodePlace;

  /** The node of that place, on or off: `boot` turns it on. */
  constructor(place: NodePlace) {
    this.name = place.name;
    this.address = place.address;
    this.dir = place.dir;
    this.dockerd = place.dockerd;
    this.#place = place;
  }

  /** Whether it has been booted, and not been powered off since, by whichever process. */
  get isOn(): boolean {
    return existsSync(this.#initFile);
  }

  /** @throws Error when it is off. */
  assertOn(): void {
    if (!this.isOn) throw new Error(`Node ${this.name} is off. Start it: npm run lab -- start ${this.name}`);
  }

  /** Tells process 1 of the node's namespaces by its number on the machine; is there while the node is on. */
  get #initFile(): string {
    return join(this.dir, 'init.json');
  }

  /** Read each time: another process may have powered the node off and on. */
  get #init(): ProcessId {
    this.assertOn();
    return JSON.parse(readFileSync(this.#initFile, 'utf8')) as ProcessId;
  }

  /** Where the machine itself reaches this engine. */
  get dockerHost(): string {
    return `unix://${join(this.dir, 'run/docker.sock')}`;
  }

  /**
   * Turns the node on: process 1 in fresh mount, pid and uts namespaces, an empty /run, and its daemons other than
   * Docker's. The network namespace exists already.
   */
  async boot(stop?: AbortSignal): Promise<void> {
    const { dir, name, spaces } = this.#place;
    for (const left of ['run', 'aside', 'ready']) await rm(join(dir, left), { recursive: true, force: true });
    await mkdir(join(dir, 'run'), { recursive: true });
    await mkdir(join(dir, 'aside'));
    await writeFile(join(dir, 'resolv.conf'), `nameserver ${this.#place.nameserver}\n`);
    const tini = join(toolsDir, 'usr/bin/tini-static');
    const log = join(dir, 'init.log');
    const unshare = detach(
      [
        // The group that is a process's own when it unshares becomes the root of its cgroup namespace.
        ...(await joinGroup(this.#group())),
        ...['nsenter', `--net=${spaces.path(name)}`],
        ...['unshare', '--cgroup', '--mount', '--uts', '--pid', '--fork', '--mount-proc'],
        ...['sh', join(import.meta.dirname, 'node.sh'), name, dir, this.#group(), tini],
      ],
      log,
    );
    await until(`process 1 of node ${name} is ready, see ${log}`, () => existsAsync(join(dir, 'ready')), {
      timeoutMs: startTimeoutMs,
      everyMs: 20,
      signal: stop,
    });

    // It only waits for its child, and holds a place in the node's root control group.
    if (unshare !== undefined) signal(unshare, 'SIGKILL');

    const init = await this.#findInit();
    if (init === undefined) throw new Error(`Node ${name} lost its process 1, see ${log}`);
    await writeFile(this.#initFile, JSON.stringify(init));
    for (const [daemon, command] of Object.entries(await this.#readDaemons())) {
      await this.#launch(daemon, command);
    }
  }

  async #findInit(): Promise<ProcessId | undefined> {
    for (const pid of await this.#processes()) {
      const init = (await innerPid(pid)) === 1 ? await identify(pid) : undefined;
      if (init) return init;
    }
    return undefined;
  }

  /**
   * Ends everything in the node at once and by force, as a power cut does. Its disk stays as it is. The wire is to be
   * gone by then, or the kernel would say goodbye to everybody on the node's behalf.
   */
  async powerOff(): Promise<void> {
    // The end of process 1 takes all in the pid namespace along, containers and all.
    signal(this.#init.pid, 'SIGKILL');
    await rm(this.#initFile);
    await endAll(`all processes of node ${this.name} end`, async () => [
      ...(await this.#processes()),
      ...(await processesOf(this.#group())),
    ]);
    await removeGroup(this.#group());
  }

  /** Takes over a node that another process has made. @throws Error when it is on, but no longer there. */
  static async attach(place: NodePlace): Promise<LabNode> {
    const node = new LabNode(place);
    if (node.isOn && !(await isAlive(node.#init))) {
      throw new Error(`Node ${place.name} is not running any more.`);
    }
    return node;
  }

  /** In the node's namespaces, where `docker`, `ip`, `nft`, `iptables` and `conntrack` are the lab's. */
  exec(command: Command, options?: RunOptions): Promise<Ran> {
    return runCommand(this.commandLine(command), options);
  }

  start(command: Command): Running {
    return startCommand(this.commandLine(command));
  }

  /** Runs the docker command against this node's engine. */
  docker(args: readonly string[], options?: RunOptions): Promise<Ran> {
    return this.exec(['docker', ...args], options);
  }

  /** Starts dockerd and waits until it answers. @throws Error with the end of its log when it does not. */
  async startDocker(stop?: AbortSignal): Promise<void> {
    const log = join(this.dir, 'dockerd.log');
    const { args = [], env = {} } = this.dockerd;
    const started = detach(
      [
        ...(await joinGroup(this.#group('dockerd'))),
        ...[...this.#enter(), 'env', ...Object.entries(env).map(([name, value]) => `${name}=${value}`)],
        'dockerd',
        ...['--data-root', join(this.dir, 'docker'), '--host', 'unix:///run/docker.sock'],
        ...['--storage-driver', 'overlay2', '--shutdown-timeout', '5'],
        ...args,
      ],
      log,
    );
    try {
      const answers = async (): Promise<boolean> => {
        if (await this.#answers()) return true;
        // What started it ends with it.
        if (!existsSync(`/proc/${started}`)) throw new Error('it ended');
        return false;
      };
      await until(`Docker answers on node ${this.name}`, answers, {
        timeoutMs: startTimeoutMs,
        signal: stop,
      });
    } catch (error) {
      stop?.throwIfAborted();
      const lines = (await readFile(log, 'utf8')).trimEnd().split('\n');
      // What a crash says comes before the stacks of its threads.
      const crash = lines.findLastIndex((line) => /^(panic|fatal error|SIG[A-Z]+):/.test(line));
      const said = crash < 0 ? lines.slice(-12) : lines.slice(crash, crash + 12);
      throw new Error(`dockerd did not start. The end of ${log}:\n${said.join('\n')}`, {
        cause: error,
      });
    }
  }

  async #answers(): Promise<boolean> {
    const ping = await this.docker(['version', '--format', '{{.Server.Version}}'], {
      reject: false,
      timeout: 5_000,
    });
    return !ping.failed;
  }

  /** Stops dockerd as a service manager would, or with SIGKILL as a crash would. Containers end with the former only. */
  async stopDocker(o: { kill?: boolean; signal?: AbortSignal } = {}): Promise<void> {
    const daemons = await this.#daemons();
    for (const pid of daemons) signal(pid, o.kill === true ? 'SIGKILL' : 'SIGTERM');
    await until(`dockerd of node ${this.name} ends`, async () => (await this.#daemons()).length === 0, {
      timeoutMs: stopTimeoutMs,
      signal: o.signal,
    });
    // A killed daemon leaves its socket, which would be taken for an answer.
    await rm(join(this.dir, 'run/docker.sock'), { force: true });
  }

  /** Stops and starts dockerd; `kill` for a crash instead of a stop. */
  async restartDocker(o: { kill?: boolean; signal?: AbortSignal } = {}): Promise<void> {
    await this.stopDocker(o);
    await this.startDocker(o.signal);
  }

  /**
   * Starts a program that goes on until it is stopped, in the node's own namespaces; and again each time the node
   * boots. Its output is in NAME.log in {@link dir}.
   */
  async startDaemon(name: string, command: Command): Promise<void> {
    const daemons = { ...(await this.#readDaemons()), [name]: command };
    await writeFile(this.#daemonsFile, JSON.stringify(daemons, null, 2));
    await this.#launch(name, command);
  }

  /** Ends such a program, by SIGKILL when it is to crash. It stays away until it is started or the node boots. */
  async stopDaemon(name: string, o: { kill?: boolean } = {}): Promise<void> {
    const group = this.#group(name);
    for (const pid of await processesOf(group)) signal(pid, o.kill === true ? 'SIGKILL' : 'SIGTERM');
    await until(`${name} of node ${this.name} ends`, async () => (await processesOf(group)).length === 0, {
      timeoutMs: stopTimeoutMs,
    });
  }

  /** Whether a program that {@link startDaemon} has started runs. */
  async hasDaemon(name: string): Promise<boolean> {
    return (await processesOf(this.#group(name))).length > 0;
  }

  get #daemonsFile(): string {
    return join(this.dir, 'daemons.json');
  }

  async #readDaemons(): Promise<Record<string, Command>> {
    const text = await readFile(this.#daemonsFile, 'utf8').catch(() => '{}');
    return JSON.parse(text) as Record<string, Command>;
  }

  async #launch(name: string, command: Command): Promise<void> {
    detach(
      [...(await joinGroup(this.#group(name))), ...this.#enter(), ...command],
      join(this.dir, `${name}.log`),
    );
  }

  /** Asks the plugin's admin API for JSON. @throws Error no plugin, or it does not answer within 5 s. */
  async admin(path: string): Promise<unknown> {
    // A relative path: the name of a socket may be 107 bytes long at most.
    const socketPath = relative(process.cwd(), join(this.dir, 'run/causeway/admin.sock'));
    const request = get({ socketPath, path, signal: AbortSignal.timeout(5_000) });
    const [response] = (await once(request, 'response')) as [IncomingMessage];
    return json(response);
  }

  /**
   * @returns the numbers, on the machine, of the node's own processes of that name (as in `ps -o comm`). Those of
   *   its containers are not among them, unless a container is in the host's network.
   */
  async pidsOf(name: string): Promise<number[]> {
    const pids = await this.#processes();
    const names = await Promise.all(pids.map(nameOf));
    return pids.filter((_, index) => names[index] === name);
  }

  /** The node's control group, or one of those in it. */
  #group(...names: string[]): string {
    return groupOf(this.#place.lab, this.name, ...names);
  }

  /** All processes in the node's network namespace. */
  async #processes(): Promise<number[]> {
    return processesIn(new Set([await this.#place.spaces.inode(this.name)]));
  }

  #daemons(): Promise<number[]> {
    return this.pidsOf('dockerd');
  }

  #enter(): Command {
    return [
      'nsenter',
      '--target',
      String(this.#init.pid),
      '--cgroup',
      '--mount',
      '--uts',
      '--net',
      '--pid',
      '--',
      ...withEngine(this.#place.engine),
    ];
  }

  commandLine(command: Command): Command {
    // nsenter has to fork to get into the pid namespace; without pdeathsig its child would outlive a timeout.
    return [...this.#enter(), 'setpriv', '--pdeathsig', 'TERM', '--', ...command];
  }
}

/** {@link Host.exec} for a command line that already leads into the namespaces. */
export async function runCommand([file, ...args]: Command, o: RunOptions = {}): Promise<Ran> {
  return execa(file, args, {
    ...(o.input === undefined ? { stdin: 'ignore' } : { input: o.input }),
    ...(o.signal === undefined ? {} : { cancelSignal: o.signal }),
    timeout: o.timeout ?? commandTimeoutMs,
    reject: o.reject ?? true,
    env: toolsEnv(),
  });
}

/** {@link Host.start} for a command line that already leads into the namespaces. */
export function startCommand([file, ...args]: Command) {
  return execa(file, args, { stdin: 'ignore', reject: false, buffer: false, env: toolsEnv() });
}

/** The beginning of a command line that moves what follows into a control group. */
async function joinGroup(group: string): Promise<Command> {
  return ['sh', join(import.meta.dirname, 'join.sh'), ...(await createGroup(group)), '--'];
}

/**
 * Starts a program that outlives this process; `Lab.down` ends it. Output goes to `log`. Not by execa, which keeps
 * a program's output, and with it the program, tied to this process.
 * @returns the program's number.
 */
function detach([file, ...args]: Command, log: string): number | undefined {
  const fd = openSync(log, 'a');
  const child = spawn(file, args, {
    detached: true,
    stdio: ['ignore', fd, fd],
    env: { ...process.env, ...toolsEnv() },
  });
  child.once('error', (error) => appendFileSync(log, `${error.message}\n`));
  child.unref();
  closeSync(fd);
  return child.pid;
}

const existsAsync = (path: string) => Promise.resolve(existsSync(path));
