// Owns looking at the host from time to time for what Causeway cannot work with, and telling it: once in the log, as long as it
// lasts in the admin API.
// Must not decide what that is; net/host-problems.ts does.
import { setTimeout as sleep } from 'node:timers/promises';
import { observeDefaultDevices } from '../net/host.ts';
import { hostProblems, observeHostFacts, sameProblems, type HostProblem } from '../net/host-problems.ts';
import type { Runner } from '../net/run.ts';
import type { Sysctl } from '../net/sysctl.ts';
import type { Datapath } from './datapath.ts';
import type { Log } from './log.ts';

export interface HostLookOptions {
  run: Runner;
  sysctl: Sysctl;
  datapath: Datapath;
  log: Log;
}

const lookEvery = 30_000;

export class HostLook {
  readonly #options: HostLookOptions;
  #problems: readonly HostProblem[] = [];

  constructor(options: HostLookOptions) {
    this.#options = options;
  }

  get problems(): readonly HostProblem[] {
    return this.#problems;
  }

  async run(signal: AbortSignal): Promise<void> {
    const { log } = this.#options;
    while (!signal.aborted) {
      await this.look().catch((error: unknown) => log.debug({ error }, 'the host could not be looked at'));
      await sleep(lookEvery, undefined, { signal }).catch(() => undefined);
    }
  }

  async look(): Promise<void> {
    const { run, sysctl, datapath, log } = this.#options;
    const { device } = await datapath.readUnderlay();
    const { sourceDevices } = datapath;
    const main = sourceDevices.length === 0 ? [] : await observeDefaultDevices(run);
    const others = sourceDevices.filter((name) => !main.includes(name));
    const facts = await observeHostFacts(run, sysctl, device, others);
    const problems = hostProblems(facts, datapath.engine === 'ipvs');
    if (sameProblems(problems, this.#problems)) return;
    for (const { what, remedy } of problems)
      log.error({ remedy }, `this host keeps packets from Causeway: ${what}`);
    if (problems.length === 0) log.info({}, 'this host keeps no packets from Causeway any more');
    this.#problems = problems;
  }
}
