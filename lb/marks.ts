// Owns which mark names which virtual server.
// Must not keep anything: what is in the kernel is the memory.
import { markBase, markCount } from '../net/names.ts';
import type { ObservedTable } from '../net/table.ts';

/**
 * Gives every virtual server a mark of its own; one that has a mark keeps it, so that its IPVS connections live on.
 * @param ids of virtual servers
 * @param kept marks in use now, by id
 * @throws {RangeError} when there are more virtual servers than marks (16,777,215)
 */
export function assignMarks(ids: readonly string[], kept: ReadonlyMap<string, number>): Map<string, number> {
  const marks = new Map<string, number>();
  for (const id of ids) {
    const mark = kept.get(id);
    if (mark !== undefined) marks.set(id, mark);
  }
  // A mark in use is not given to another server even when its owner leaves now: until the old IPVS service is gone,
  // connections of the one would be taken for the other's.
  const taken = new Set(kept.values());
  let next = markBase;
  for (const id of ids) {
    if (marks.has(id)) continue;
    do next += 1;
    while (taken.has(next));
    if (next > markBase + markCount)
      throw new RangeError(`no mark left for ${id}: more than ${markCount} virtual servers`);
    marks.set(id, next);
  }
  return marks;
}

/** The marks in the kernel's table, by id of the virtual server. */
export function observedMarks(table: ObservedTable | undefined): Map<string, number> {
  const vips = [...(table?.elements.get('vip_marks') ?? [])].map(
    ([address, mark]) => [`vip-${address}`, Number(mark)] as const,
  );
  const ports = [...(table?.elements.get('port_marks') ?? [])].map(
    ([key, mark]) => [`port-${key.replace(' . ', '-')}`, Number(mark)] as const,
  );
  return new Map([...vips, ...ports]);
}
