// Owns waiting for something to come true: by looking again and again, for as long as it may take and no longer.
// Must not know what is waited for.
import { setTimeout as sleep } from 'node:timers/promises';
import { inspect } from 'node:util';
import { slowness } from '../slowness.ts';

type Look<T> = () => Promise<T | undefined | false> | T | undefined | false;

/**
 * Waits for something outside of the process, which costs a command to look at.
 *
 * @param o `instead`: asked once time is up, for what there was in its place
 * @returns what `done` gave that is neither undefined nor false
 * @throws Error `what` did not come about within `timeoutMs`; or the signal fired.
 */
export async function until<T>(
  what: string,
  done: Look<T>,
  o: {
    timeoutMs: number;
    everyMs?: number;
    signal?: AbortSignal | undefined;
    instead?: () => unknown;
  },
): Promise<T> {
  const deadline = performance.now() + o.timeoutMs;
  for (;;) {
    const value = await done();
    if (value !== undefined && value !== false) return value;
    if (performance.now() > deadline) {
      const instead = o.instead ? `. Instead:\n${show(await o.instead())}` : '';
      throw new Error(`Waited ${o.timeoutMs / 1000} s in vain: ${what}${instead}`);
    }
    await sleep(o.everyMs ?? 100, undefined, o.signal ? { signal: o.signal } : {});
  }
}

const show = (value: unknown): string =>
  typeof value === 'string' ? value : inspect(value, { depth: 8, compact: 8, breakLength: 160 });

/**
 * Waits for something within the process.
 *
 * @throws Error `holds` did not come true within `timeoutMs`; its own text says what that was.
 */
export async function eventually(
  holds: () => Promise<boolean> | boolean,
  { timeoutMs = 8_000 * slowness }: { timeoutMs?: number } = {},
): Promise<void> {
  await until(String(holds), holds, { timeoutMs, everyMs: 2 });
}
