// Owns getting lines to whoever reads this process's standard error, without ever waiting for it.
// Must not know what is in a line.
import { constants, openSync, writeSync } from 'node:fs';

/** What waits for a reader that does not read. */
const maxWaitingBytes = 1024 * 1024;
/** From one try to the next, in milliseconds. */
const retryMs = 50;
/** How long the end of the process waits for the reader. */
const lastMs = 1_000;

export interface LogStreamOptions {
  /** Without waiting for the reader: writing fails with EAGAIN while nothing more fits. */
  fd: number;
  /** The line that tells how many were left out. */
  leftOut: (lines: number) => string;
}

/**
 * Docker reads a plugin's log by a pipe of 64 KiB. While Docker hangs nobody does, and whoever writes to a full pipe waits: that
 * must not be the thread that answers questions for names and heartbeats.
 */
export class LogStream {
  readonly #options: LogStreamOptions;
  #waiting: Buffer[] = [];
  #bytes = 0;
  #leftOut = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: LogStreamOptions) {
    this.#options = options;
  }

  write(line: string): void {
    const bytes = Buffer.from(line);
    if (this.#bytes + bytes.length > maxWaitingBytes) {
      this.#leftOut += 1;
      return;
    }
    this.#push(bytes);
    if (this.#timer === undefined) this.#flush();
  }

  /** Writes what waits, as long as somebody reads; to be called when the process ends. */
  end(): void {
    const until = performance.now() + lastMs;
    const nap = new Int32Array(new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT));
    this.#flush();
    while (this.#bytes > 0 && performance.now() < until) {
      Atomics.wait(nap, 0, 0, 5);
      this.#flush();
    }
    clearTimeout(this.#timer);
  }

  #push(bytes: Buffer): void {
    this.#waiting.push(bytes);
    this.#bytes += bytes.length;
  }

  #flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    while (this.#bytes > 0) {
      const next = this.#waiting[0] ?? Buffer.alloc(0);
      let written: number;
      try {
        written = writeSync(this.#options.fd, next);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'EAGAIN') {
          // It keeps no process alive: its end writes what is left.
          this.#timer = setTimeout(() => this.#flush(), retryMs).unref();
          return;
        }
        // Nobody will ever read it.
        written = next.length;
      }
      this.#bytes -= written;
      if (written === next.length) this.#waiting.shift();
      else this.#waiting[0] = next.subarray(written);
      if (this.#bytes === 0 && this.#leftOut > 0) {
        this.#push(Buffer.from(this.#options.leftOut(this.#leftOut)));
        this.#leftOut = 0;
      }
    }
  }
}

/**
 * @returns standard error, opened anew where it is a pipe or a file, so that only this process's writing does not wait: the
 *   flag is shared by all who have the same descriptor. Itself where that cannot be, as with a socket.
 */
export function openStandardError(): number {
  try {
    return openSync('/proc/self/fd/2', constants.O_WRONLY | constants.O_APPEND | constants.O_NONBLOCK);
  } catch {
    return 2;
  }
}
