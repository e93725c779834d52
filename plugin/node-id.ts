// Owns this node's id in records: chosen once, kept with the plugin's data.
// Must not change while records name it.
import { randomUUID } from 'node:crypto';
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

/** @param directory of the plugin's data, which survives restart and upgrade */
export async function readNodeId(directory: string): Promise<string> {
  const path = join(directory, 'node-id');
  try {
    return (await readFile(path, 'utf8')).trim();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
  const id = randomUUID();
  await mkdir(directory, { recursive: true, mode: 0o700 });
  // Written aside and renamed: a kill in between must not leave an empty id.
  await writeFile(`${path}.new`, `${id}\n`, { flush: true });
  await rename(`${path}.new`, path);
  return id;
}
