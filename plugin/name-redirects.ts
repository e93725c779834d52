// Owns which sandboxes ask this node's name server: it is opened in each, and their questions are led to it.
// Must not answer them.
import { setImmediate } from 'node:timers/promises';
import { leadNames, unleadNames } from '../net/name-sockets.ts';
import { canEnter } from '../net/namespace.ts';
import { TableError, type SandboxTables } from '../net/nft-tables.ts';
import type { Records } from '../store/records.ts';
import { Wakeup } from '../swarm/wakeup.ts';
import type { Log } from './log.ts';
import type { NameServer } from './name-server.ts';

export interface NameRedirectsOptions {
  names: Pick<NameServer, 'sandboxes' | 'open' | 'shut'>;
  tables: Pick<SandboxTables, 'put' | 'remove'>;
  log: Log;
  /** Where the host's /run is. */
  hostRun: string;
  /** A monotonic clock in milliseconds. */
  now?: () => number;
}

/**
 * Docker tells of a sandbox before it has made it: it is tried again after the first of these, in milliseconds, then ever more
 * slowly up to the second. What is in vain for so long is told.
 */
const firstPause = 20;
const longestPause = 30_000;
const growth = 1.2;
const patience = 20_000;

/** A sandbox that was left is mostly gone so many milliseconds later, and took the rules along. */
const leaveAfter = 5_000;

interface Attempt {
  since: number;
  next: number;
  tries: number;
  /** Why it is left to Docker's resolver, once that was told. */
  reason?: string;
}

export class NameRedirects {
  readonly #options: NameRedirectsOptions;
  readonly #hints = new Wakeup();
  readonly #led = new Set<string>();
  /** Those that are not led yet. */
  readonly #attempts = new Map<string, Attempt>();
  /** Those whose rules are still to be taken away, and when. */
  readonly #leaving = new Map<string, number>();
  readonly #now: () => number;

  constructor(options: NameRedirectsOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  /** How many sandboxes are led, and which are left to Docker's resolver, after trouble. */
  get state(): { led: number; left: { sandbox: string; reason: string }[] } {
    const left = [...this.#attempts].flatMap(([sandbox, { reason }]) =>
      reason === undefined ? [] : { sandbox, reason },
    );
    return { led: this.#led.size, left };
  }

  /** To be called when there may be other sandboxes. */
  hint(): void {
    this.#hints.notify();
  }

  /** Runs until the signal aborts; throws nothing. */
  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) await this.#hints.wait(await this.look(), signal);
  }

  /** @returns after how many milliseconds there is something to do again */
  async look(): Promise<number> {
    const wanted = this.#options.names.sandboxes;
    const now = this.#now();
    for (const sandbox of this.#attempts.keys()) if (!wanted.has(sandbox)) this.#attempts.delete(sandbox);
    for (const sandbox of this.#led) {
      // Docker may have taken a sandbox down without a word, as when it was killed: its endpoints are known to be gone when their
      // links are.
      const isThere = canEnter(sandboxPath(this.#options.hostRun, sandbox));
      if (wanted.has(sandbox) && isThere) continue;
      this.#led.delete(sandbox);
      // At once: an open socket keeps a namespace alive, and with it the links.
      await this.#options.names.shut(sandbox);
      if (isThere) this.#leaving.set(sandbox, now + leaveAfter);
    }
    for (const sandbox of wanted) {
      this.#leaving.delete(sandbox);
      if (!this.#led.has(sandbox) && !this.#attempts.has(sandbox))
        this.#attempts.set(sandbox, { since: now, next: now, tries: 0 });
    }
    const due = [...this.#attempts].filter(([, { next }]) => next <= now);
    for (const one of due) {
      await this.#lead(...one);
      // What else there is to do has its turn between two of them.
      await setImmediate();
    }
    for (const [sandbox, when] of this.#leaving) if (when <= now) this.#leave(sandbox);
    const times = [...[...this.#attempts.values()].map(({ next }) => next), ...this.#leaving.values()];
    return Math.max(0, Math.min(longestPause, ...times.map((time) => time - this.#now())));
  }

  async #lead(sandbox: string, attempt: Attempt): Promise<void> {
    const { names, tables, hostRun } = this.#options;
    const path = sandboxPath(hostRun, sandbox);
    try {
      leadNames(tables, path, names.open(sandbox, path));
      this.#attempts.delete(sandbox);
      this.#led.add(sandbox);
    } catch (error) {
      await names.shut(sandbox);
      this.#postpone(sandbox, attempt, error);
    }
  }

  #postpone(sandbox: string, attempt: Attempt, error: unknown): void {
    const now = this.#now();
    attempt.next = now + Math.min(firstPause * growth ** attempt.tries, longestPause);
    attempt.tries += 1;
    if (now - attempt.since < patience || attempt.reason !== undefined) return;
    attempt.reason = (error as Error).message;
    this.#options.log.warn(
      { error, sandbox },
      error instanceof TableError
        ? 'a container’s questions for names are left to Docker’s resolver: its sandbox does not take the rules that lead them here'
        : 'a container’s questions for names are left to Docker’s resolver: its sandbox cannot be entered (the host’s /run has ' +
            'to be a shared mount)',
    );
  }

  #leave(sandbox: string): void {
    this.#leaving.delete(sandbox);
    clean(this.#options.tables, sandboxPath(this.#options.hostRun, sandbox));
  }
}

/** Takes away what an earlier life of this process, with other settings, has left in the sandboxes of this node. */
export async function removeNameRedirects({
  records,
  node,
  tables,
  hostRun,
}: Pick<NameRedirectsOptions, 'tables' | 'hostRun'> & { records: Records; node: string }): Promise<void> {
  const { rows } = await records.endpoints.list();
  const sandboxes = rows.flatMap(({ value }) =>
    value.node === node && value.sandbox !== undefined ? [value.sandbox] : [],
  );
  for (const sandbox of new Set(sandboxes)) {
    clean(tables, sandboxPath(hostRun, sandbox));
    await setImmediate();
  }
}

function clean(tables: NameRedirectsOptions['tables'], path: string): void {
  try {
    unleadNames(tables, path);
  } catch {
    // It went with the sandbox.
  }
}

/** @param sandbox as Docker calls it: /run/docker/netns/ID or /var/run/docker/netns/ID */
export function sandboxPath(hostRun: string, sandbox: string): string {
  return sandbox.replace(/^(\/var)?\/run\//, `${hostRun}/`);
}
