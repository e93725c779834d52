// Owns one session in Consul: created, renewed, and given up for lost before Consul can have given it to another.
// Must not know what is locked with it.
import type { ConsulClient, RequestSettings } from './consul-client.ts';

/** The shortest that Consul takes. It ends a session after one to two of these without renewal, never before. */
export const sessionTtlMs = 10_000;
const renewEveryMs = 3_000;
/** A renewal that hangs must leave time for another one. */
const renewTimeoutMs = 2_500;
const retryMs = 500;
/** To end a session is a courtesy when the store closes or is away. */
const closingTimeoutMs = 1_500;

export class ConsulSession {
  readonly id: string;
  readonly #client: ConsulClient;
  readonly #lost = new AbortController();
  readonly #stopped = new AbortController();
  #deadline: NodeJS.Timeout;
  #next: NodeJS.Timeout;

  private constructor(client: ConsulClient, id: string, askedAt: number) {
    this.#client = client;
    this.id = id;
    this.#deadline = this.#arm(askedAt);
    this.#next = this.#renewIn(renewEveryMs);
  }

  /**
   * Aborts once the session is gone, or may be; its reason says why, as the end of a sentence. Time counts from when
   * the last renewal that succeeded was asked for.
   */
  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  /** @throws StoreError as {@link ConsulClient.send} */
  static async create(
    client: ConsulClient,
    name: string,
    signal: AbortSignal | undefined,
  ): Promise<ConsulSession> {
    const askedAt = performance.now();
    const answer = await client.send(
      (consul, common) => {
        const options = {
          name,
          ttl: `${sessionTtlMs / 1000}s`,
          // Not bound to the health of the agent's node: the agent may be another machine, and its restart is no loss.
          checks: [],
          behavior: 'delete' as const,
          // The fence does what this delay is for, and a release shall hand over at once.
          lockdelay: '0s',
          ...common,
        };
        return consul.session.create(options);
      },
      { signal },
    );
    const id = (answer.body as { ID?: unknown } | undefined)?.ID;
    if (typeof id !== 'string') throw client.unexpected(answer);
    return new ConsulSession(client, id, askedAt);
  }

  /**
   * Ends anybody's session; its keys are deleted. One that is not there is none the worse.
   * @throws StoreError as {@link ConsulClient.send}
   */
  static async destroy(client: ConsulClient, id: string, settings: RequestSettings): Promise<void> {
    const answer = await client.send(
      (consul, common) => {
        const options = { id, ...common };
        return consul.session.destroy(options);
      },
      { ...settings, repeatable: true },
    );
    if (answer.status !== 200) throw client.unexpected(answer);
  }

  /** Ends it without a loss being told. `closing`: in a short time, or not at all. */
  async end({ closing = false }: { closing?: boolean }): Promise<void> {
    this.#stop();
    await ConsulSession.destroy(
      this.#client,
      this.id,
      closing ? { closing, timeoutMs: closingTimeoutMs } : {},
    );
  }

  #stop(): void {
    this.#stopped.abort();
    clearTimeout(this.#deadline);
    clearTimeout(this.#next);
  }

  #lose(why: string): void {
    if (this.#stopped.signal.aborted) return;
    this.#stop();
    this.#lost.abort(why);
  }

  #arm(askedAt: number): NodeJS.Timeout {
    const leftMs = sessionTtlMs - (performance.now() - askedAt);
    return setTimeout(() => this.#lose(`Consul could not be asked for ${sessionTtlMs / 1000} s`), leftMs);
  }

  #renewIn(ms: number): NodeJS.Timeout {
    return setTimeout(() => void this.#renew(), ms);
  }

  async #renew(): Promise<void> {
    const { signal } = this.#stopped;
    const askedAt = performance.now();
    try {
      const answer = await this.#client.send(
        (consul, common) => {
          const options = { id: this.id, ...common };
          return consul.session.renew(options);
        },
        { signal, timeoutMs: renewTimeoutMs, repeatable: true },
      );
      if (answer.status === 404) {
        this.#lose('Consul has ended its session');
        return;
      }
      if (answer.status === 200) {
        clearTimeout(this.#deadline);
        this.#deadline = this.#arm(askedAt);
      }
      this.#next = this.#renewIn(answer.status === 200 ? renewEveryMs : retryMs);
    } catch {
      // Whatever it was, the deadline stands.
      if (!signal.aborted) this.#next = this.#renewIn(retryMs);
    }
  }
}
