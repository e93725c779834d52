// Owns what could be read last of records that cannot be read now, in a file that outlives the process.
// Must not decide what is readable: tables do.
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import type { Keepsake } from './table.ts';

/**
 * A file that is not there, or damaged, has kept nothing. While nothing has to be kept there is none.
 * @param onError told when it could not be written: a restart then knows less
 */
export function openKeepsake(file: string, onError: (error: unknown) => void): Keepsake {
  const kept = read(file);
  return {
    recall: (key) => kept.get(key),
    keep(prefix, values) {
      for (const key of kept.keys()) if (key.startsWith(prefix)) kept.delete(key);
      for (const [key, value] of values) kept.set(key, value);
      try {
        if (kept.size === 0) rmSync(file, { force: true });
        else {
          writeFileSync(`${file}.new`, JSON.stringify(Object.fromEntries(kept)), {
            mode: 0o600,
            flush: true,
          });
          renameSync(`${file}.new`, file);
        }
      } catch (error) {
        onError(error);
      }
    },
  };
}

function read(file: string): Map<string, unknown> {
  try {
    return new Map(Object.entries(JSON.parse(readFileSync(file, 'utf8')) as Record<string, unknown>));
  } catch {
    return new Map();
  }
}
