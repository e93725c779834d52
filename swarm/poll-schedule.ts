// Owns when Swarm is looked at next, and how much of it: all, or a glance at the services that are about to change.
// Must not look by itself, nor know what a look finds.
import type { UnderWay } from './services.ts';

export type Look = 'whole' | 'glance';

/**
 * Pauses between whole looks after a hint, in milliseconds. Tasks have no events of their own: an endpoint joins some 0.2
 * to 1.5 s before Swarm's manager knows that its task runs, so one hint is worth a row of looks. The last pause repeats.
 * Where looks take long the row has fewer of them, and is over as soon.
 */
const pauses = [...Array.from({ length: 20 }, () => 100), 150, 250, 500, 1000, 2000, 5000];
const longestPause = Math.max(...pauses);
/** When each pause of the row begins at the earliest, in milliseconds since the hint. */
const begins = pauses.map((_, at) => pauses.slice(0, at).reduce((sum, pause) => sum + pause, 0));

/** After a whole look it rests for as long as that took, up to this many milliseconds. */
const maxRest = 5_000;

/** Short looks have one part in so many of the time, as long as nobody has to wait for more than this many milliseconds. */
const shortShare = 4;
const shortRest = 300;

/**
 * A manager that leads nothing finds out only whether it does now: its row begins at this pause, in milliseconds, and so
 * much lies between two looks whatever the hints.
 */
const bystanderPause = 500;
const bystanderStep = pauses.indexOf(bystanderPause);

/**
 * From glance to glance in an update, in milliseconds: a task that shall end has left every balancer well before the two
 * seconds are over that Docker leaves it alone.
 */
const watchfulPause = 200;

/** While tasks only begin, glances have one part in so many of the time: one may begin again and again for ever. */
const startShare = 10;

export interface Looked {
  underWay: UnderWay;
  /** How long it may be at most until the next look, in milliseconds. */
  dueIn: number;
  /** Nothing of what Swarm does is this node's to tell. */
  bystander?: boolean;
}

export class PollSchedule {
  readonly #now: () => number;
  /** The last hint, and the place in the row of pauses since. */
  #hinted: number;
  #step = 0;
  /** When a whole look may be, and when it is due; and when a glance is. */
  #rested = 0;
  #whole = 0;
  #glance = Infinity;
  /** Whether a look that fails is repeated soon. */
  #urgent = false;

  /** @param now a monotonic clock in milliseconds */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
    this.#hinted = now();
  }

  /** Something has happened, it is not known what. */
  hint(): void {
    this.#hinted = this.#now();
    this.#step = 0;
    this.#whole = Math.min(this.#whole, this.#rested);
  }

  /** @returns what is next, and in how many milliseconds, unless there is a hint before */
  next(): { look: Look; wait: number } {
    const look = this.#glance < this.#whole ? 'glance' : 'whole';
    return { look, wait: Math.max(0, Math.min(this.#glance, this.#whole) - this.#now()) };
  }

  /** @param took in milliseconds; the look has just ended */
  looked(look: Look, took: number, { underWay, dueIn, bystander = false }: Looked): void {
    const now = this.#now();
    this.#urgent = underWay.updating.length > 0 || Number.isFinite(dueIn);
    if (look === 'whole') {
      const since = now - this.#hinted;
      const step = Math.max(
        this.#step,
        bystander ? bystanderStep : 0,
        begins.findLastIndex((begin) => begin <= since),
      );
      const pause = pauses[Math.min(step, pauses.length - 1)] ?? longestPause;
      this.#step = step + 1;
      // Whatever the hints: of a large Swarm the lists are many megabytes, and Docker has other work than to make them.
      this.#rested = now + Math.max(bystander ? bystanderPause : 0, restAfter(took));
      this.#whole = Math.max(this.#rested, now + Math.min(pause, dueIn));
    } else {
      this.#whole = Math.min(this.#whole, Math.max(this.#rested, now + dueIn));
    }
    this.#glance = now + untilGlance(underWay, look === 'glance' ? took : 0);
  }

  /** A whole look has just failed. */
  failed(): void {
    this.#step = pauses.length;
    this.#whole = this.#rested = this.#now() + (this.#urgent ? watchfulPause : longestPause);
    this.#glance = Infinity;
  }
}

function restAfter(took: number): number {
  return Math.min(Math.max(took, Math.min((shortShare - 1) * took, shortRest)), maxRest);
}

/** @param took the last one, in milliseconds */
function untilGlance({ updating, starting }: UnderWay, took: number): number {
  if (updating.length > 0) return watchfulPause;
  return starting.length > 0 ? Math.max(watchfulPause, (startShare - 1) * took) : Infinity;
}
