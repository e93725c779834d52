// Owns one thing: mutual exclusion between processes of this repository that fill the same directory.
// Must not outlive its holder: the lock is the kernel's flock, so a killed holder releases it.
import { execa } from 'execa';

/** Somebody else holds the lock. */
export class LockedError extends Error {
  readonly code = 'LOCKED';
}

/**
 * Runs `work` while holding an exclusive lock on `file` (created when missing).
 *
 * Node has no flock(2), so util-linux's `flock` holds it around a `cat` on our pipe: `cat` echoes a line once the
 * lock is ours, and ends, releasing it, when the pipe closes for whatever reason.
 *
 * @throws {LockedError} when the lock is not free within `timeoutMs`; the signal's reason when it fires.
 */
export async function withLock<T>(
  file: string,
  { timeoutMs, signal }: { timeoutMs: number; signal?: AbortSignal | undefined },
  work: () => Promise<T>,
): Promise<T> {
  const wait = String(Math.ceil(timeoutMs / 1000));
  const child = execa('flock', ['--wait', wait, file, 'cat'], {
    stdin: 'pipe',
    buffer: false,
    reject: false,
    ...(signal ? { cancelSignal: signal } : {}),
  });
  child.stdin.write('locked\n');
  const locked = await new Promise<boolean>((done) => {
    child.stdout.once('data', () => done(true));
    child.stdout.once('close', () => done(false));
  });
  if (!locked) {
    signal?.throwIfAborted();
    throw new LockedError(`Another process has held ${file} for ${wait} s. See: fuser -v ${file}`);
  }
  try {
    return await work();
  } finally {
    child.stdin.end();
    await child;
  }
}
