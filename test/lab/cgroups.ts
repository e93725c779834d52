// Owns the lab's control groups: one subtree per node in every mounted hierarchy (cgroup v1, v2, or both).
// Must not touch groups outside /causeway-lab-*, nor those of labs of another checkout.
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, realpath, rmdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { slowness } from '../slowness.ts';
import { until } from '../support/until.ts';

const mountPoint = '/sys/fs/cgroup';

/** The group all labs of this checkout live in, as a path within each hierarchy: those of another may have the same names. */
const top = `/causeway-lab-${createHash('sha256')
  .update(import.meta.dirname)
  .digest('hex')
  .slice(0, 6)}`;

/** A lab's group, or one of its nodes', as a path within each hierarchy. */
export const groupOf = (...names: string[]) => join(top, ...names);

/** The roots of all hierarchies: one for cgroup v2, one per controller for v1. */
async function hierarchies(): Promise<string[]> {
  if (existsSync(join(mountPoint, 'cgroup.procs'))) return [mountPoint];
  const found = new Set<string>();
  for (const name of await readdir(mountPoint)) {
    const path = await realpath(join(mountPoint, name));
    if (existsSync(join(path, 'cgroup.procs'))) found.add(path);
  }
  return [...found];
}

/**
 * Creates a group in every hierarchy.
 * @returns the cgroup.procs files: a process that writes 0 to each of them has moved into the group.
 */
export async function createGroup(group: string): Promise<string[]> {
  const files: string[] = [];
  for (const hierarchy of await hierarchies()) {
    await createIn(hierarchy, join(hierarchy, group));
    files.push(join(hierarchy, group, 'cgroup.procs'));
  }
  return files;
}

async function createIn(hierarchy: string, path: string): Promise<void> {
  if (path === hierarchy || existsSync(path)) return;
  const parent = dirname(path);
  await createIn(hierarchy, parent);
  await mkdir(path, { recursive: true });
  // In cgroup v2 a group has the controllers its parent hands down; not every controller can be.
  const controllers = await readFile(join(parent, 'cgroup.controllers'), 'utf8').catch(() => '');
  for (const controller of controllers.match(/\w+/g) ?? []) {
    await writeFile(join(parent, 'cgroup.subtree_control'), `+${controller}`).catch(() => {});
  }
  // cpuset of cgroup v1 takes no process until it is told its CPUs and memory nodes.
  for (const file of ['cpuset.cpus', 'cpuset.mems']) {
    if (hierarchy === mountPoint || !existsSync(join(path, file))) continue;
    await writeFile(join(path, file), await readFile(join(parent, file)));
  }
}

/** @returns every process in the group and the groups below it. */
export async function processesOf(group: string): Promise<number[]> {
  const pids = new Set<number>();
  for (const hierarchy of await hierarchies()) {
    for (const path of await subtree(join(hierarchy, group))) {
      const procs = await readFile(join(path, 'cgroup.procs'), 'utf8').catch(() => '');
      for (const line of procs.split('\n')) if (line !== '') pids.add(Number(line));
    }
  }
  // A process outside our own pid namespace shows as 0.
  pids.delete(0);
  return [...pids];
}

/** Removes the group with all below it, which must hold no process; and the common group when it was the last. */
export async function removeGroup(group: string): Promise<void> {
  for (const hierarchy of await hierarchies()) {
    for (const path of (await subtree(join(hierarchy, group))).reverse())
      await until(`group ${path} is empty`, () => removed(path), { timeoutMs: 30_000 * slowness });
    // Fails while another lab is up.
    await rmdir(join(hierarchy, top)).catch(() => {});
  }
}

/** @returns whether it could be; a process that has ended keeps its group busy until the kernel has cleared it away */
async function removed(path: string): Promise<boolean> {
  try {
    await rmdir(path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EBUSY') return false;
    throw error;
  }
}

/** The directory and all below it, parents first; empty when it does not exist. */
async function subtree(path: string): Promise<string[]> {
  if (!existsSync(path)) return [];
  const entries = await readdir(path, { withFileTypes: true });
  const below: string[] = [];
  for (const entry of entries)
    if (entry.isDirectory()) below.push(...(await subtree(join(path, entry.name))));
  return [path, ...below];
}
