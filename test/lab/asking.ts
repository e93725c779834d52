// Owns asking a published port: a few times in a row, or on schedule until told to stop.
// Must not judge what comes back.
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Host } from './node.ts';

const echo = join(import.meta.dirname, 'image/echo.ts');
const program = join(import.meta.dirname, 'asking-program.ts');
const flowsProgram = join(import.meta.dirname, 'flows-program.ts');

/** One request; times in milliseconds of Unix time, all by one clock. */
export interface Outcome {
  /** When it was begun. */
  at: number;
  /** How long it took to end. */
  ms: number;
  /** How long it took to have a connection; absent when it never had one. */
  connected?: number;
  /** Who answered, or began to. */
  task?: string;
  error?: string;
}

/** How long one of a few may take, in milliseconds. */
const askTimeoutMs = 2_000;

/** Asks so many times, one after the other, each by a connection of its own. */
export async function askFor(
  from: Pick<Host, 'exec'>,
  url: string,
  count: number,
): Promise<{ tasks: Set<string>; failed: number }> {
  const words = ['http', url, '--count', String(count), '--timeout', String(askTimeoutMs)];
  const { stdout } = await from.exec([process.execPath, echo, ...words], {
    reject: false,
    timeout: 60_000 + count * askTimeoutMs,
  });
  const answers = stdout
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as { task?: string });
  const tasks = new Set(answers.flatMap(({ task }) => task ?? []));
  return { tasks, failed: count - answers.filter(({ task }) => task !== undefined).length };
}

/** A load that goes on. */
export interface Load {
  /** Ends it, after what is under way. @returns the outcome of every request */
  stop: () => Promise<Outcome[]>;
}

export interface Pace {
  /** From the beginning of one request to that of the next, in milliseconds. */
  intervalMs: number;
  timeoutMs: number;
}

/** Asks on schedule from now on, whatever becomes of the requests before. Resolves with the first outcome. */
export async function startLoad(from: Pick<Host, 'start'>, url: string, pace: Pace): Promise<Load> {
  const words = [url, String(pace.intervalMs), String(pace.timeoutMs)];
  const { stop } = await startProgram(from, [program, ...words], `The load on ${url}`);
  return { stop: async () => (await stop()).map((line) => JSON.parse(line) as Outcome) };
}

/** What became of a flow of UDP from one port. */
export interface Flow {
  /** The client's own. */
  port: number;
  answers: number;
  /** The longest time from one answer to the next, in milliseconds, and when it began, of Unix time. */
  silentMs: number;
  silentAt: number;
  /** Another task answered after it than before. */
  moved: boolean;
  /** How many answered. */
  tasks: number;
}

export interface FlowsOptions {
  to: { host: string; port: number };
  /** One flow from each of these ports of the client. */
  localPorts: readonly number[];
  intervalMs: number;
}

/** Sends datagrams from ports that stay the same. Resolves when each was answered once. */
export async function startFlows(
  from: Pick<Host, 'start'>,
  { to, localPorts, intervalMs }: FlowsOptions,
): Promise<{ stop: () => Promise<Flow[]> }> {
  const words = [to.host, ...[to.port, intervalMs, ...localPorts].map(String)];
  const { stop } = await startProgram(from, [flowsProgram, ...words], `The flows to ${to.host}`);
  // The first line says that each was answered.
  return { stop: async () => (await stop()).slice(1).map((line) => JSON.parse(line) as Flow) };
}

/** Starts a program of ours, that goes on until SIGTERM. Resolves with its first line. */
async function startProgram(
  from: Pick<Host, 'start'>,
  words: readonly string[],
  what: string,
): Promise<{
  /** Ends it, and resolves with all its lines. */
  stop: () => Promise<string[]>;
}> {
  const running = from.start([process.execPath, ...words]);
  const printed: string[] = [];
  const lines = createInterface({ input: running.stdout });
  const first = Promise.withResolvers<undefined>();
  lines.on('line', (line) => {
    printed.push(line);
    first.resolve(undefined);
  });
  const closed = new Promise((done) => lines.once('close', done));
  void running.then(() => first.reject(new Error(`${what} ended before the first answer.`)));
  await first.promise;
  return {
    stop: async () => {
      running.kill('SIGTERM');
      await Promise.all([running, closed]);
      return printed;
    },
  };
}
