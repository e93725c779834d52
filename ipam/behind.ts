// Owns work that a call begins and its answer does not wait for: that it is done in turn, and who is told what became of it.
// Must not be given what a call has to be refused for: that is found before the answer.
import type { KeyedMutex } from './keyed-mutex.ts';

export class Behind {
  readonly #inTurn: KeyedMutex['runExclusive'];
  readonly #onFailure: (key: string, error: unknown) => void;
  /** The last piece of work of each key. */
  readonly #underway = new Map<string, Promise<void>>();
  /** Why what was answered already was not done. */
  readonly #failed = new Map<string, unknown>();

  constructor(inTurn: KeyedMutex['runExclusive'], onFailure: (key: string, error: unknown) => void) {
    this.#inTurn = inTurn;
    this.#onFailure = onFailure;
  }

  /**
   * Runs `body` once all is over that came before with the same key.
   * @param body may give the answer before it is done
   * @throws what `body` throws before it has answered
   */
  run<T>(key: string, body: (answer: (value: T) => void) => Promise<T>): Promise<T> {
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    let answered = false;
    const answer = (value: T): void => {
      answered = true;
      resolve(value);
    };
    this.begin(key, () =>
      body(answer).then(resolve, (error: unknown) => {
        if (answered) throw error;
        reject(error);
      }),
    );
    return promise;
  }

  /** As {@link run}, with the answer given already. */
  begin(key: string, body: () => Promise<unknown>): void {
    const work = this.#inTurn(key, () => {
      this.#failed.delete(key);
      return body();
    }).then(
      () => undefined,
      (error: unknown) => {
        this.#failed.set(key, error);
        this.#onFailure(key, error);
      },
    );
    this.#underway.set(key, work);
    void work.then(() => {
      if (this.#underway.get(key) === work) this.#underway.delete(key);
    });
  }

  /** Resolves once nothing of the key is under way. @throws what has failed of it after its answer, once */
  async settled(key: string): Promise<void> {
    await this.#underway.get(key);
    const error = this.#failed.get(key);
    if (!this.#failed.delete(key)) return;
    throw error;
  }

  /** Waits for all that was begun before. @returns whether there was any */
  async idle(): Promise<boolean> {
    const all = [...this.#underway.values()];
    await Promise.all(all);
    return all.length > 0;
  }
}
