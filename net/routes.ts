// Owns Causeway's IPv4 routes: how they are read, compared and written in one batch.
// Must not decide which routes there should be.
import { difference } from '../delta/list.ts';
import { fabricLink, returnTableBase, routeProtocol } from './names.ts';
import { CommandError, type Runner } from './run.ts';
import { safe, sortOut, words, type RefusedLine } from './safe.ts';

/**
 * One route. `local` routes live in table local on lo, `return` routes in a table of their own, the others in table
 * main. `via` is the address of another node in the underlay, reached through the fabric.
 */
export type Route =
  | { type: 'unicast'; destination: string; device: string; source: string }
  | { type: 'remote'; destination: string; via: string; source: string }
  | { type: 'return'; via: string; number: number }
  | { type: 'local'; destination: string; source?: string }
  | { type: 'unreachable'; destination: string };

// Below every other route that could serve the subnet, so that it answers only where no endpoint's route does.
const unreachableMetric = 4294967295;

/** The route as arguments of `ip route`, which is also its identity: two routes are equal when these are. */
export function formatRoute(route: Route): string {
  const tag = `proto ${routeProtocol}`;
  switch (route.type) {
    case 'unicast':
      return `${route.destination} dev ${route.device} scope link src ${route.source} ${tag}`;
    case 'remote':
      // onlink: the other node is not in any subnet of the fabric, which has none.
      return `${route.destination} via ${route.via} dev ${fabricLink} onlink src ${route.source} ${tag}`;
    case 'return':
      return `default via ${route.via} dev ${fabricLink} onlink table ${returnTableBase + route.number} ${tag}`;
    case 'local':
      return `local ${route.destination} dev lo table local ${route.source === undefined ? '' : `src ${route.source} `}${tag}`;
    case 'unreachable':
      return `unreachable ${route.destination} metric ${unreachableMetric} ${tag}`;
  }
}

/** The destination in the table it belongs to: at most one of our routes may have it. */
function slot(route: Route): string {
  if (route.type === 'return') return `return ${route.number}`;
  return `${route.type === 'local' ? 'local' : 'main'} ${route.destination}`;
}

/** What `ip -j route` prints of a route, as far as it matters here. */
interface IpRoute {
  type?: string;
  dst: string;
  dev?: string;
  gateway?: string;
  prefsrc?: string;
  table?: string;
}

/** Reads Causeway's routes, and only those, from the kernel. */
export async function observeRoutes(run: Runner): Promise<Route[]> {
  // iproute2 6.1 prints nothing at all, not [], for an empty answer.
  const text = await run('ip', ['-4', '-j', 'route', 'show', 'table', 'all', 'proto', String(routeProtocol)]);
  const routes = (text.trim() === '' ? [] : JSON.parse(text)) as IpRoute[];
  return routes.flatMap(({ type = 'unicast', dst, dev = '', gateway, prefsrc, table }): Route[] => {
    if (type === 'local')
      return [{ type, destination: dst, ...(prefsrc === undefined ? {} : { source: prefsrc }) }];
    if (type === 'unreachable') return [{ type, destination: dst }];
    if (gateway !== undefined && table !== undefined)
      return [{ type: 'return', via: gateway, number: Number(table) - returnTableBase }];
    if (gateway !== undefined)
      return [{ type: 'remote', destination: dst, via: gateway, source: prefsrc ?? '' }];
    return [{ type: 'unicast', destination: dst, device: dev, source: prefsrc ?? '' }];
  });
}

export interface RoutePlan {
  /** Lines for `ip -batch` that add or change routes: run before the rules that need them. */
  add: string[];
  /** Lines that remove routes: run after the rules that needed them are gone. */
  remove: string[];
}

/**
 * Compares what is not the same object; a route whose slot stays but whose attributes change is replaced, never missing.
 * Of several in one slot, the last one counts: the kernel has room for one.
 */
export function planRoutes(actual: readonly Route[], desired: readonly Route[]): RoutePlan {
  const { removed, added } = difference(actual, desired);
  const counts = countsOf(actual);
  const before = lastIn(actual, removed, added, counts);
  for (const route of removed) count(counts, route, -1);
  for (const route of added) count(counts, route, 1);
  const after = lastIn(desired, added, removed, counts);
  hold(desired, counts);
  const text = (route: Route | undefined): string | undefined => route && formatRoute(route);
  return {
    add: [...after]
      .filter(([slot, route]) => text(before.get(slot)) !== formatRoute(route))
      .map(([, route]) => `route replace ${formatRoute(route)}`),
    remove: [...before]
      .filter(([slot]) => !after.has(slot))
      .map(([, route]) => `route del ${formatRoute(route)}`),
  };
}

/** How many routes of a list have a slot. */
type Counts = Map<string, number>;

/** The desired list becomes `actual` on the next call, so its counts are cached. */
let held: { list: readonly Route[]; counts: Counts } | undefined;

function hold(list: readonly Route[], counts: Counts): void {
  held = { list, counts };
}

function countsOf(list: readonly Route[]): Counts {
  if (held?.list === list) {
    const { counts } = held;
    // They are changed now, and no longer those of this list.
    held = undefined;
    return counts;
  }
  const counts: Counts = new Map();
  for (const route of list) count(counts, route, 1);
  return counts;
}

function count(counts: Counts, route: Route, by: number): void {
  const key = slot(route);
  const now = (counts.get(key) ?? 0) + by;
  if (now === 0) counts.delete(key);
  else counts.set(key, now);
}

/**
 * The last route of the list in each slot that a changed route has.
 * @param own changed routes that are in the list, in its order
 * @param others changed routes that are not
 */
function lastIn(
  list: readonly Route[],
  own: readonly Route[],
  others: readonly Route[],
  counts: Counts,
): Map<string, Route> {
  const found = new Map(own.map((route) => [slot(route), route]));
  const ownCounts: Counts = new Map();
  for (const route of own) count(ownCounts, route, 1);
  // Where routes that stay are in the slot too, which is rare, the order in the list tells.
  const shared = new Set(
    [...own, ...others].map(slot).filter((key) => (counts.get(key) ?? 0) > (ownCounts.get(key) ?? 0)),
  );
  if (shared.size > 0) for (const route of list) if (shared.has(slot(route))) found.set(slot(route), route);
  return found;
}

// What a batch says when its object left in the meantime: a route goes with its link, a link with its sandbox.
const gone = /^Command failed|No such process|Cannot find device|No such device/;

/**
 * Runs lines of `ip -batch` in one process, all of them even when one fails; no process for no lines.
 * @returns those that failed, but for those of a link or route that is not there any more
 * @throws {CommandError} when it cannot be told which, or the kernel lets none of them be
 */
export async function tryIpBatch(run: Runner, lines: readonly string[]): Promise<RefusedLine[]> {
  const { sound, refused } = sortOut('ip', lines);
  if (sound.length === 0) return refused;
  try {
    await run('ip', ['-4', '-force', '-batch', '-'], { input: sound.join('\n') + '\n' });
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    let why = '';
    for (const text of error.stderr.split('\n').filter((text) => text !== '')) {
      const line = sound[Number(/^Command failed -:(\d+)/.exec(text)?.[1]) - 1];
      if (text.includes('Operation not permitted')) throw error;
      if (line !== undefined && why !== '') refused.push({ line, why });
      // The reason comes before the line's number.
      if (line !== undefined || gone.test(text)) why = '';
      else why = text;
    }
    if (why !== '') throw error;
  }
  return refused;
}

/**
 * As {@link tryIpBatch}, where none may fail.
 * @throws {CommandError} for every failure but that a link or route is not there any more
 */
export async function runIpBatch(run: Runner, lines: readonly string[]): Promise<void> {
  if (lines.length === 0) return;
  for (const line of lines) safe('ip', line, words);
  try {
    await run('ip', ['-4', '-force', '-batch', '-'], { input: lines.join('\n') + '\n' });
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    const serious = error.stderr.split('\n').filter((line) => line !== '' && !gone.test(line));
    if (serious.length > 0) throw error;
  }
}
