// Owns real Consul servers for tests: the program from Debian 11, one server or a cluster of them.
// Must not install anything, nor leave a server behind when the test process ends.
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { unpackDebian } from '../../rootfs/debian.ts';
import { until } from '../support/until.ts';
import { startCommand, type Command, type Running } from './node.ts';

const root = join(import.meta.dirname, '../..');
/** Where the program is unpacked. */
export const consulDir = join(root, 'build/consul');

/** The program, once {@link prepareConsul} is done. */
export const consulProgram = join(consulDir, 'usr/bin/consul');

/** Generous: the machine may be busy with other things. */
const startTimeoutMs = 60_000;
const stopTimeoutMs = 20_000;

/** Where every server of {@link consulServer} answers HTTP. */
export const consulPort = 8500;

/**
 * Makes build/consul complete. Debian 12 has no package of Consul; the one of Debian 11 needs nothing but the C library.
 * @throws {DebianError} when the package cannot be had.
 */
export function prepareConsul(
  o: { progress?: (line: string) => void; signal?: AbortSignal } = {},
): Promise<void> {
  return unpackDebian({ packages: ['consul'], suite: 'bullseye', closure: false, into: consulDir, ...o });
}

export interface ConsulServer {
  /** Of the Consul node; one of its own for each server. */
  name: string;
  /** What it listens on, for clients and for the other servers; always the usual ports. */
  address: string;
  /** Kept over restarts. */
  dataDir: string;
  /** Addresses of the cluster's servers; its own may be among them. Default: none, it is alone. */
  join?: readonly string[];
  /** How many servers the cluster begins with. Default: 1. */
  expect?: number;
  /** More configuration, in HCL. */
  config?: readonly string[];
}

/** The command line of one server, to be run where its address is: on this machine or in a lab node. */
export function consulServer({
  name,
  address,
  dataDir,
  join: peers = [],
  expect = 1,
  config = [],
}: ConsulServer): Command {
  const settings = [
    // As fast as it gets: a leader that is gone is replaced after some 2 s.
    'performance { raft_multiplier = 1 }',
    'ports { dns = -1 }',
    'disable_update_check = true',
    // All test clients have one address.
    'limits { http_max_conns_per_client = 2000 }',
    ...config,
  ];
  return [
    consulProgram,
    'agent',
    ...['-server', `-bootstrap-expect=${expect}`, `-node=${name}`, `-data-dir=${dataDir}`],
    ...[`-bind=${address}`, `-advertise=${address}`, `-client=${address}`],
    ...peers.map((peer) => `-retry-join=${peer}`),
    ...['-retry-interval=1s', '-log-level=warn'],
    ...settings.flatMap((text) => ['-hcl', text]),
  ];
}

/** One server on this machine's loopback device. */
export class Consul {
  readonly #server: ConsulServer;
  readonly #temporary: string | undefined;
  #running: Running | undefined;

  constructor(server: ConsulServer, temporary: string | undefined) {
    this.#server = server;
    this.#temporary = temporary;
  }

  get address(): string {
    return this.#server.address;
  }

  /** As a setting of openConsul. */
  get at(): { host: string; port: number } {
    return { host: this.address, port: consulPort };
  }

  /** Starts it, the first time or again on the same data, and waits until it takes requests. */
  async start(): Promise<void> {
    this.spawn();
    await this.ready();
  }

  /** Starts it and waits for nothing. */
  spawn(): void {
    this.#running = startCommand(['setpriv', '--pdeathsig', 'KILL', '--', ...consulServer(this.#server)]);
  }

  async ready(): Promise<void> {
    await until(`Consul at ${this.address} has a leader`, async () => (await this.leader()) !== '', {
      timeoutMs: startTimeoutMs,
    });
    // A new leader takes requests a little later. Whatever it says is an answer, except that it cannot.
    await until(
      `Consul at ${this.address} answers`,
      async () => (await this.#ask('kv/none?consistent')) !== undefined,
      {
        timeoutMs: startTimeoutMs,
      },
    );
  }

  /** Address of the cluster's leader; empty when there is none, or this server does not answer. */
  async leader(): Promise<string> {
    const text = (await this.#ask('status/leader')) ?? '""';
    return (JSON.parse(text) as string).replace(/:\d+$/, '');
  }

  /** Ends it as a service manager would; a server stays a member of its cluster. */
  stop(): Promise<void> {
    return this.#end('SIGTERM');
  }

  /** Ends it as a crash would. */
  kill(): Promise<void> {
    return this.#end('SIGKILL');
  }

  /** SIGSTOP: it is there, and does not answer. Resolves when the last of its threads stands still. */
  async freeze(): Promise<void> {
    const pid = this.#running?.pid;
    if (pid === undefined) throw new Error(`Consul at ${this.address} is not running.`);
    this.#running?.kill('SIGSTOP');
    const stands = async (thread: string): Promise<boolean> => {
      const stat = await readFile(`/proc/${pid}/task/${thread}/stat`, 'utf8').catch(() => ') T');
      return stat.slice(stat.lastIndexOf(')') + 2).startsWith('T');
    };
    await until(
      `Consul at ${this.address} stands still`,
      async () => (await Promise.all((await readdir(`/proc/${pid}/task`)).map(stands))).every(Boolean),
      { timeoutMs: stopTimeoutMs, everyMs: 5 },
    );
  }

  thaw(): void {
    this.#running?.kill('SIGCONT');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
    if (this.#temporary !== undefined) await rm(this.#temporary, { recursive: true, force: true });
  }

  async #end(signal: NodeJS.Signals): Promise<void> {
    const running = this.#running;
    if (!running) return;
    this.#running = undefined;
    running.kill(signal);
    const late = setTimeout(() => running.kill('SIGKILL'), stopTimeoutMs);
    await running;
    clearTimeout(late);
  }

  /** @returns undefined for no answer, and for a status that says "not now" */
  async #ask(path: string): Promise<string | undefined> {
    try {
      const response = await fetch(`http://${this.address}:${consulPort}/v1/${path}`, {
        signal: AbortSignal.timeout(5_000),
      });
      const text = await response.text();
      return response.status >= 500 ? undefined : text;
    } catch {
      return undefined;
    }
  }
}

/** @param dir keeps its data there, for whoever wants to look; default: a directory that goes with it */
export async function startConsul(o: { dir?: string; config?: readonly string[] } = {}): Promise<Consul> {
  const [consul] = await startConsuls(1, o);
  return consul!;
}

/** A cluster of servers, each with its own address, all ready. */
export async function startConsuls(
  count: number,
  { dir, config }: { dir?: string; config?: readonly string[] } = {},
): Promise<Consul[]> {
  await prepareConsul();
  const net = freeNet();
  const addresses = Array.from({ length: count }, (_, n) => `${net}.${n + 1}`);
  const consuls: Consul[] = [];
  for (const [n, address] of addresses.entries()) {
    const base = dir ?? (await mkdtemp(join(tmpdir(), 'causeway-consul-')));
    const server = {
      name: `consul-${n + 1}`,
      address,
      dataDir: join(base, `consul-${n + 1}`),
      expect: count,
    };
    const more = { join: count > 1 ? addresses : [], ...(config ? { config } : {}) };
    consuls.push(new Consul({ ...server, ...more }, dir === undefined ? base : undefined));
  }
  for (const consul of consuls) consul.spawn();
  await Promise.all(consuls.map((consul) => consul.ready()));
  return consuls;
}

/** The first three bytes of addresses that nobody else uses: all of 127.0.0.0/8 is on the loopback device. */
function freeNet(): string {
  const byte = (): number => 1 + Math.floor(Math.random() * 254);
  return `127.${byte()}.${byte()}`;
}
