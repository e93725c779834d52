// Owns that a replica has somewhere to be kept, whatever the disk is like: it is only a copy.
// Must not give up anything that could still be read in its place.
import { renameSync, rmSync } from 'node:fs';
import { StoreError } from './errors.ts';
import { ReplicaFile, type Content } from './replica-file.ts';

/** What is wrong with the disk, in words for the operator. */
export type Tell = (reason: string) => void;

/**
 * Opens the file and reads it. A damaged one is moved aside, and where none can be made the replica is kept in memory.
 * @throws StoreError `locked`
 */
export function openAndLoad(path: string, tell: Tell): { file: ReplicaFile; content: Content } {
  try {
    return load(path);
  } catch (error) {
    if (!isOf(error, 'corrupt')) return inMemory(error, tell);
  }
  const aside = `${path}.damaged-${new Date().toISOString().replaceAll(':', '')}`;
  try {
    moveAside(path, aside);
    const opened = load(path);
    tell(
      `the copy of the shared store in ${path} was damaged, and is now ${aside}: it is filled again from the store. Only what ` +
        'was written while that was away, and had not reached it, is lost. Look at the disk',
    );
    return opened;
  } catch (error) {
    return inMemory(error, tell);
  }
}

/** Begins anew: what the file has must not be read again, and taking it away needs no room. */
export function openAnew(path: string, tell: Tell): ReplicaFile {
  for (const part of parts) rmSync(path + part, { force: true });
  return openAndLoad(path, tell).file;
}

function load(path: string): { file: ReplicaFile; content: Content } {
  const file = new ReplicaFile(path);
  try {
    return { file, content: file.load() };
  } catch (cause) {
    file.close();
    if (cause instanceof StoreError) throw cause;
    throw new StoreError('corrupt', `The store ${path} has rows that cannot be read.`, { cause });
  }
}

function inMemory(error: unknown, tell: Tell): { file: ReplicaFile; content: Content } {
  if (!isOf(error, 'unavailable') && !isOf(error, 'corrupt')) throw error;
  tell(
    `${error.message} The copy of the shared store is kept in memory until the plugin is started again: if the node is ` +
      'restarted while the store is away, it begins with nothing',
  );
  return load(':memory:');
}

/** SQLite's file, and what it has beside it. */
const parts = ['', '-wal', '-shm'] as const;

function moveAside(path: string, aside: string): void {
  for (const part of parts) {
    try {
      renameSync(path + part, aside + part);
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === 'ENOENT') continue;
      throw new StoreError(
        'unavailable',
        `The damaged file ${path} cannot be moved away: ${String(cause)}.`,
        {
          cause,
        },
      );
    }
  }
}

function isOf(error: unknown, code: StoreError['code']): error is StoreError {
  return error instanceof StoreError && error.code === code;
}
