// Owns how often peers are asked and how long silence may last: every duration of this room. Pure.
// Must not know sockets.

/** How often a peer is asked where there are few, in ms. */
export const beatMs = 100;

/** Datagrams that a node's own questions and its answers to others may come to, per second. */
export const budgetPerSecond = 400;

/** Silence after which a peer is suspect, where it is asked every {@link beatMs}. */
const quietMs = 300;

/** How long a suspect has to answer any of the connections below before it counts as dead. */
export const trialMs = 300;

/** A suspect is tried by TCP this many times, this far apart, so that no single lost packet is a verdict. */
export const trialConnects = 3;
export const trialSpacingMs = 100;

/** Who is lost is asked again after the first of these, then ever more slowly up to the second. */
export const unreachablePauseMs = 200;
export const unreachablePauseMaxMs = 1_000;

/** How long a peer that returns stays unreachable while its pending writes cannot be fetched. */
export const pendingTimeoutMs = 2_000;

/** The longest interval a peer may ask for. */
export const maxIntervalMs = 10_000;

/** Between two looks at the clock. */
export const tickMs = 20;

/** A look that comes later than this means that this process was not running; less is the noise of a busy machine. */
export const sleptMs = 50;

/**
 * The interval at which each of so many peers is asked: 100 ms up to 40 of them, from there on in proportion, so that
 * their number times their rate stays within the budget. 100 peers: 250 ms; 1,000: 2.5 s.
 * @returns milliseconds
 */
export function intervalFor(peers: number): number {
  return Math.min(Math.max(beatMs, Math.ceil((peers * 1_000) / budgetPerSecond)), maxIntervalMs);
}

/**
 * The interval two nodes use with each other: that of the busier one, as in BFD (RFC 5880 §6.8.2). A node watched by a
 * thousand that watch few each would otherwise have to answer all of them at their pace.
 */
export function agreedInterval(own: number, theirs: number): number {
  return Math.min(Math.max(own, theirs), maxIntervalMs);
}

/**
 * Silence after which a peer that is asked at this interval is suspect. Suspicion is cheap, so one lost datagram may
 * raise it where the interval is long; it takes the trial to be dead.
 */
export function quietFor(interval: number): number {
  return Math.max(quietMs, 2 * interval);
}
