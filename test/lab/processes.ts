// Owns finding, recognising and ending the processes of a lab, from what the kernel says about them.
// Must not end a process that is not in one of the lab's namespaces or control groups.
import { readdir, readFile, readlink } from 'node:fs/promises';
import { until } from '../support/until.ts';

/** A process, told from a later one with the same number by when it started (clock ticks since boot). */
export interface ProcessId {
  pid: number;
  started: string;
}

/** @returns undefined when there is no such process (any more), or it is a zombie. */
export async function identify(pid: number): Promise<ProcessId | undefined> {
  try {
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
    // The second field, the name, may hold blanks and brackets: count from its end. proc(5): 3 is the state, 22 the start.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' ? undefined : { pid, started: fields[22 - 3]! };
  } catch {
    return undefined;
  }
}

/** Whether that very process still runs. */
export async function isAlive(process: ProcessId): Promise<boolean> {
  return (await identify(process.pid))?.started === process.started;
}

/** @returns the numbers of all processes in one of the network namespaces, given by inode number. */
export async function processesIn(netns: ReadonlySet<number>): Promise<number[]> {
  const found: number[] = [];
  for (const entry of await readdir('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    const link = await readlink(`/proc/${entry}/ns/net`).catch(() => '');
    const inode = Number(/^net:\[(\d+)\]$/.exec(link)?.[1]);
    if (netns.has(inode)) found.push(Number(entry));
  }
  return found;
}

/** The name of a process, as in `ps -o comm`; empty when it is gone. */
export async function nameOf(pid: number): Promise<string> {
  return (await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '')).trim();
}

/** The number a process has in its own pid namespace; undefined when it is gone. */
export async function innerPid(pid: number): Promise<number | undefined> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
  const inner = /^NSpid:.*\s(\d+)$/m.exec(status)?.[1];
  return inner === undefined ? undefined : Number(inner);
}

export function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

/** How long killed processes may take to be gone: the kernel has much to take down with them. */
const endTimeoutMs = 60_000;

/** Kills what `find` gives until it gives nothing. @throws Error `what` did not come about within a minute. */
export async function endAll(what: string, find: () => Promise<number[]>): Promise<void> {
  await until(
    what,
    async () => {
      const pids = new Set(await find());
      for (const pid of pids) signal(pid, 'SIGKILL');
      return pids.size === 0;
    },
    { timeoutMs: endTimeoutMs },
  );
}
