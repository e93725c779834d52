// Owns whether the Docker Engine can be used, and tells when that changes: once when it cannot, once when it can again.
// Must not ask the engine, nor decide what to do without it.
import { engineFault } from './api-version.ts';
import { DockerError, type SpokenTo } from './docker.ts';

/** The part of pino that is used here. */
export interface Log {
  info(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

export interface EngineState {
  /** The engine's own, such as `28.5.2`, and the API version that is spoken; absent while it does not answer. */
  version?: string;
  api?: string;
  /** Why it cannot be used, or must not be, and what to do about it. */
  error?: string;
}

/**
 * A daemon that starts does not answer before its plugins do, and managers that elect a leader refuse for moments: neither
 * is told before it has lasted for so many milliseconds.
 */
const patience = 10_000;

export class EngineHealth {
  readonly #log: Log;
  readonly #spokenTo: () => SpokenTo | undefined;
  readonly #now: () => number;
  /** What fails since when, on the clock of `now`. */
  #failure: { reason: string; since: number; lasting: boolean } | undefined;
  #told: string | undefined;
  #toldFault: string | undefined;

  /** @param now a monotonic clock in milliseconds */
  constructor(log: Log, spokenTo: () => SpokenTo | undefined, now = () => performance.now()) {
    this.#log = log;
    this.#spokenTo = spokenTo;
    this.#now = now;
  }

  get state(): EngineState {
    const { version, api } = this.#spokenTo() ?? {};
    const error = this.#trouble ?? (version === undefined ? undefined : engineFault(version));
    return {
      ...(version !== undefined && { version }),
      ...(api !== undefined && { api }),
      ...(error !== undefined && { error }),
    };
  }

  /** It answered everything that was asked. */
  answered(): void {
    this.#failure = undefined;
    if (this.#told !== undefined) this.#log.info({}, 'Docker API usable again');
    this.#told = undefined;
    const { version } = this.#spokenTo() ?? {};
    const fault = version === undefined ? undefined : engineFault(version);
    if (fault !== undefined && fault !== this.#toldFault)
      this.#log.error({ reason: fault }, 'unsupported Docker Engine');
    this.#toldFault = fault;
  }

  /** @param error what was thrown in place of an answer */
  failed(error: unknown): void {
    const { reason, passing } = explain(error);
    const since = this.#failure?.since ?? this.#now();
    this.#failure = { reason, since, lasting: !passing };
    const trouble = this.#trouble;
    if (trouble === undefined || this.#told !== undefined) return;
    this.#told = trouble;
    this.#log.error({ reason: trouble }, 'Docker API unusable: nothing new is published or named');
  }

  get #trouble(): string | undefined {
    if (this.#failure === undefined) return undefined;
    const { reason, since, lasting } = this.#failure;
    return lasting || this.#now() - since >= patience ? reason : undefined;
  }
}

/** @returns what is the matter, and whether it may pass by itself in a moment */
function explain(error: unknown): { reason: string; passing: boolean } {
  const message = error instanceof Error ? error.message : String(error);
  if (!(error instanceof DockerError))
    return {
      reason: `Docker’s answer cannot be read, so this version of Docker is not known to work: ${message}`,
      passing: false,
    };
  if (error.status === undefined)
    return { reason: `Docker does not answer: ${message}; see if dockerd runs`, passing: true };
  return { reason: `Docker refuses with ${error.status}: ${message}`, passing: error.status >= 500 };
}
