// Owns IPVS in the kernel: how Causeway's services are read, compared and written in one batch.
// Must not touch an IPVS service whose mark is not Causeway's.
import { difference } from '../delta/list.ts';
import { markBase, markMask } from '../net/names.ts';
import { CommandError, type Runner } from '../net/run.ts';
import { safe, words } from '../net/safe.ts';
import type { Sysctl } from '../net/sysctl.ts';
import type { Timeouts } from '../store/records.ts';

/** An IPVS service that is chosen by the packet's mark; all its destinations are reached by masquerade (NAT). */
export interface IpvsService {
  mark: number;
  /** As ipvsadm(8) names it, e.g. `rr`. */
  scheduler: string;
  /** The scheduler's, as ipvsadm(8) names them, e.g. `mh-port`; in order. */
  flags: readonly string[];
  /** Seconds for which a client stays with its destination; absent: not at all. */
  affinity?: number;
  /** `ADDRESS:PORT` to weight; port 0 keeps the port of the connection; weight 0 drains. */
  destinations: ReadonlyMap<string, number>;
}

/** Reads Causeway's services, and only those; none where the kernel has no IPVS. */
export async function observeIpvs(run: Runner): Promise<IpvsService[]> {
  return parseIpvs(await run('ipvsadm', ['--save', '-n']));
}

/** @param text the output of `ipvsadm --save -n` */
export function parseIpvs(text: string): IpvsService[] {
  const services = new Map<number, Omit<IpvsService, 'mark'> & { destinations: Map<string, number> }>();
  for (const line of text.split('\n')) {
    const words = line.trim().split(/\s+/);
    const option = (name: string): string | undefined =>
      words.includes(name) ? words[words.indexOf(name) + 1] : undefined;
    if (!words.includes('-f')) continue;
    const mark = Number(option('-f'));
    // >>> 0: bit operations are signed in JavaScript.
    if ((mark & markMask) >>> 0 !== markBase) continue;
    if (words[0] === '-A') {
      const affinity = option('-p');
      services.set(mark, {
        scheduler: option('-s') ?? '',
        flags: option('-b')?.split(',').sort() ?? [],
        ...(affinity === undefined ? {} : { affinity: Number(affinity) }),
        destinations: new Map(),
      });
    }
    if (words[0] === '-a') services.get(mark)?.destinations.set(option('-r') ?? '', Number(option('-w')));
  }
  return [...services].map(([mark, rest]) => ({ mark, ...rest }));
}

/** IPVS services left by a previous engine. */
export interface LeftIpvs {
  service: IpvsService;
  /** It still has connections, which go on as long as it is there. */
  busy: boolean;
}

/** Reads what is left of Causeway's services where IPVS is not the engine; loads no module for that. */
export async function observeLeftIpvs(run: Runner, sysctl: Sysctl): Promise<LeftIpvs[]> {
  if ((await sysctl.read('ipv4/vs/conntrack')) === undefined) return [];
  const [services, connections] = await Promise.all([
    observeIpvs(run),
    run('ipvsadm', ['-L', '-n']).then(parseConnections),
  ]);
  return services.map((service) => ({ service, busy: (connections.get(service.mark) ?? 0) > 0 }));
}

/** @param text the output of `ipvsadm -L -n`. @returns connections by mark, those that ended a moment ago included */
export function parseConnections(text: string): Map<number, number> {
  const connections = new Map<number, number>();
  let mark: number | undefined;
  for (const line of text.split('\n')) {
    const words = line.trim().split(/\s+/);
    if (/^(FWM|TCP|UDP|SCTP)$/.test(words[0] ?? '')) mark = words[0] === 'FWM' ? Number(words[1]) : undefined;
    // -> ADDRESS:PORT FORWARD WEIGHT ACTIVE INACTIVE
    if (words[0] === '->' && mark !== undefined)
      connections.set(mark, (connections.get(mark) ?? 0) + (Number(words[4]) || 0) + (Number(words[5]) || 0));
  }
  return connections;
}

export interface IpvsPlan {
  /** Lines for `ipvsadm --restore` that add and change: run before packets are marked. */
  add: string[];
  /** Lines that remove: run when packets are marked no longer. */
  remove: string[];
}

/** Compares what is not the same object, by mark and destination; nothing that stays is taken away and put back. */
export function planIpvs(actual: readonly IpvsService[], desired: readonly IpvsService[]): IpvsPlan {
  const add: string[] = [];
  const remove: string[] = [];
  const { removed, added } = difference(actual, desired);
  const have = new Map(removed.map((service) => [service.mark, service]));
  for (const service of added) {
    const { mark, destinations } = service;
    const present = have.get(mark);
    have.delete(mark);
    const how = schedule(service);
    if (present === undefined || schedule(present) !== how)
      add.push(`${present === undefined ? '-A' : '-E'} -f ${mark} ${how}`);
    for (const [destination, weight] of destinations) {
      const before = present?.destinations.get(destination);
      if (before === weight) continue;
      add.push(`${before === undefined ? '-a' : '-e'} -f ${mark} -r ${destination} -m -w ${weight}`);
    }
    for (const destination of present?.destinations.keys() ?? []) {
      if (!destinations.has(destination)) remove.push(`-d -f ${mark} -r ${destination}`);
    }
  }
  for (const mark of have.keys()) remove.push(`-D -f ${mark}`);
  return { add, remove };
}

/** The words that say how a service balances. */
function schedule({ scheduler, flags, affinity }: IpvsService): string {
  return [
    `-s ${scheduler}`,
    ...(flags.length > 0 ? [`-b ${flags.join(',')}`] : []),
    ...(affinity === undefined ? [] : [`-p ${affinity}`]),
  ].join(' ');
}

/**
 * Runs lines of `ipvsadm --restore` in one process, all of them even when one fails; no process for no lines.
 * @throws {CommandError}
 */
export async function runIpvsBatch(run: Runner, lines: readonly string[]): Promise<void> {
  if (lines.length === 0) return;
  for (const line of lines) safe('ipvsadm', line, words);
  // Its exit code is that of the last line (docs/measured-ipvs.md).
  await run('ipvsadm', ['--restore'], { input: lines.join('\n') + '\n', silent: true });
}

/** Seconds for which TCP may be idle: as long as conntrack keeps it. IPVS by itself ends it after 15 min. */
const idleSeconds = 432_000;

/**
 * Lets silent connections be for as long as is wanted, and idle ones for as long as conntrack does, instead of ending them
 * in the middle without a word. What is longer already stays.
 */
export async function keepIdle(run: Runner, { tcp = 0, fin = 0, udp = 0 }: Timeouts = {}): Promise<void> {
  const found = /: (\d+) (\d+) (\d+)/.exec(await run('ipvsadm', ['-L', '--timeout']))?.slice(1) ?? [];
  const desired = [Math.max(tcp, idleSeconds), fin, udp];
  // 0 leaves a time as it is.
  const raised = desired.map((seconds, at) => (seconds > Number(found[at]) ? seconds : 0));
  if (raised.some((seconds) => seconds > 0)) await run('ipvsadm', ['--set', ...raised.map(String)]);
}

/**
 * Whether the kernel has IPVS. Asking makes the kernel load its module by itself where it can.
 * @returns undefined when it has, else why it has not, in words
 */
export async function whyNoIpvs(run: Runner): Promise<string | undefined> {
  try {
    await run('ipvsadm', ['--save', '-n']);
    return undefined;
  } catch (error) {
    if (error instanceof CommandError) return error.stderr.trim().split('\n')[0] ?? error.message;
    throw error;
  }
}
