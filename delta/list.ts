// Owns lists that change a little: what two of them differ by, and what was made of one carried over to the next.
// Must not know what the items are: an item is the same when it is the same object.

/** Items that two lists have in common, in the same order, or a stretch of both that differs. Ends are exclusive. */
export interface Run {
  same: boolean;
  before: readonly [from: number, to: number];
  after: readonly [from: number, to: number];
}

/** How many items may have come or gone at one place and still be told from all that follows. */
const reach = 16;

/**
 * Compares two lists from their beginnings on; a nanosecond or two for an item that stayed. A list that changed at many
 * places at once may come out as one long stretch.
 */
export function runs<T>(before: readonly T[], after: readonly T[]): readonly Run[] {
  const known = lastRuns.get(after);
  if (known?.before.deref() === before) return known.runs;
  const found = compare(before, after);
  lastRuns.set(after, { before: new WeakRef(before), runs: found });
  return found;
}

/** Several look at the same two lists, one after the other. */
const lastRuns = new WeakMap<
  readonly unknown[],
  { before: WeakRef<readonly unknown[]>; runs: readonly Run[] }
>();

function compare<T>(before: readonly T[], after: readonly T[]): Run[] {
  const found: Run[] = [];
  let i = 0;
  let j = 0;
  while (i < before.length || j < after.length) {
    const [from, at] = [i, j];
    while (i < before.length && j < after.length && before[i] === after[j]) {
      i += 1;
      j += 1;
    }
    if (i > from) found.push({ same: true, before: [from, i], after: [at, j] });
    if (i === before.length && j === after.length) break;
    const [gone, come] = next(before, i, after, j) ?? rest(before, i, after, j);
    found.push({ same: false, before: [i, i + gone], after: [j, j + come] });
    i += gone;
    j += come;
  }
  return found;
}

/** @returns how many items to pass over in either list until both go on alike; undefined: farther than we look */
function next<T>(
  before: readonly T[],
  i: number,
  after: readonly T[],
  j: number,
): [gone: number, come: number] | undefined {
  const meets = (gone: number, come: number): boolean =>
    i + gone < before.length && j + come < after.length && before[i + gone] === after[j + come];
  for (let step = 1; step <= reach; step += 1) {
    if (meets(step, step)) return [step, step];
    if (meets(step, 0)) return [step, 0];
    if (meets(0, step)) return [0, step];
  }
  return undefined;
}

/** All up to what the lists have in common at their ends. */
function rest<T>(
  before: readonly T[],
  i: number,
  after: readonly T[],
  j: number,
): [gone: number, come: number] {
  let [gone, come] = [before.length - i, after.length - j];
  while (gone > 0 && come > 0 && before[i + gone - 1] === after[j + come - 1]) {
    gone -= 1;
    come -= 1;
  }
  return [gone, come];
}

export interface Difference<T> {
  removed: T[];
  added: T[];
}

/** Items of one list only, in the order in which they stand there. What only moved is no difference. */
export function difference<T>(before: readonly T[], after: readonly T[]): Difference<T> {
  if (before === after) return { removed: [], added: [] };
  const changed = runs(before, after).filter(({ same }) => !same);
  const removed = changed.flatMap((run) => before.slice(...run.before));
  const added = changed.flatMap((run) => after.slice(...run.after));
  if (removed.length === 0 || added.length === 0) return { removed, added };
  const [gone, come] = [new Set(removed), new Set(added)];
  return {
    removed: removed.filter((item) => !come.has(item)),
    added: added.filter((item) => !gone.has(item)),
  };
}

export function sameItems<T>(one: readonly T[], other: readonly T[]): boolean {
  if (one.length !== other.length) return false;
  for (let at = 0; at < one.length; at += 1) if (one[at] !== other[at]) return false;
  return true;
}

/**
 * Makes one list of another, item by item, and spares the making of what it made the last time. As long as the result
 * has the same items, it is the same list.
 */
export class MapCache<In, Out extends object, Context extends readonly unknown[] = []> {
  readonly #make: (item: In, ...context: Context) => Out | undefined;
  #context: Context | undefined;
  #list: readonly In[] = [];
  /** For each item of the list. */
  #made: readonly (Out | undefined)[] = [];
  #result: readonly Out[] = [];

  /** @param make pure; undefined for an item that shall not be in the result */
  constructor(make: (item: In, ...context: Context) => Out | undefined) {
    this.#make = make;
  }

  /** @param context what else the result depends on; when any of it is another object, everything is made anew */
  of(list: readonly In[], ...context: Context): readonly Out[] {
    const fresh = this.#context === undefined || !sameItems(context, this.#context);
    if (fresh) {
      this.#list = [];
      this.#made = [];
      this.#context = context;
    } else if (list === this.#list) return this.#result;
    const stretches: (readonly (Out | undefined)[])[] = [];
    let changed = false;
    for (const { same, before, after } of runs(this.#list, list)) {
      const old = this.#made.slice(...before);
      const made = same ? old : this.#remake(list.slice(...after), before, old);
      changed ||= !same && !sameItems(compact(old), compact(made));
      stretches.push(made);
    }
    this.#list = list;
    this.#made = new Array<Out | undefined>().concat(...stretches);
    if (changed || fresh) {
      const result = this.#made.includes(undefined) ? compact(this.#made) : (this.#made as readonly Out[]);
      if (!sameItems(result, this.#result)) this.#result = result;
    }
    return this.#result;
  }

  #remake(
    items: readonly In[],
    before: Run['before'],
    old: readonly (Out | undefined)[],
  ): (Out | undefined)[] {
    // What only moved is known.
    const known = new Map(old.map((made, at) => [this.#list[before[0] + at], made]));
    return items.map((item) => known.get(item) ?? this.#make(item, ...(this.#context as Context)));
  }
}

function compact<T>(list: readonly (T | undefined)[]): T[] {
  const found: T[] = [];
  for (const item of list) if (item !== undefined) found.push(item);
  return found;
}

/** All items of all lists. */
export function flat<T>(lists: readonly (readonly T[])[]): T[] {
  const found: T[] = [];
  for (const list of lists) for (const item of list) found.push(item);
  return found;
}

/** A function that gives the result of the last time, as long as all its arguments are the very same. */
export function memoLast<Args extends readonly unknown[], Result>(
  make: (...args: Args) => Result,
): (...args: Args) => Result {
  let last: { args: Args; result: Result } | undefined;
  return (...args) => {
    if (last === undefined || !sameItems(args, last.args)) last = { args, result: make(...args) };
    return last.result;
  };
}

/** A function of one object that is asked once for each, as long as the object is there. */
export function memoByObject<In extends object, Out>(make: (item: In) => Out): (item: In) => Out {
  const made = new WeakMap<In, { out: Out }>();
  return (item) => {
    let known = made.get(item);
    if (known === undefined) made.set(item, (known = { out: make(item) }));
    return known.out;
  };
}
