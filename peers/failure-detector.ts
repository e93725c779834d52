// Owns the verdict on one peer: a state machine over what was heard of it and the time that passed. Pure.
// Must not know sockets or clocks: time comes with every event, and what is to be done goes back as actions.
import {
  beatMs,
  unreachablePauseMaxMs,
  unreachablePauseMs,
  quietFor,
  trialConnects,
  trialMs,
  trialSpacingMs,
} from './pace.ts';

/** `unknown`: no sign of life yet, which may be a firewall's doing, so it is not counted as dead. */
export type PeerStatus = 'unknown' | 'alive' | 'unreachable';

export interface PeerState {
  readonly status: PeerStatus;
  /** When the verdict became what it is. */
  readonly since: number;
  /** When the silence began that lasts now. */
  readonly quietSince: number;
  /** When it is asked next. */
  readonly askAt: number;
  readonly phase: Phase;
}

type Phase =
  | { readonly is: 'calm' }
  /** Suspected: tried by TCP, this many times so far. */
  | { readonly is: 'trial'; readonly since: number; readonly connects: number }
  /** The last trial brought no answer. Asked on, with this pause before the question after the next. */
  | { readonly is: 'unreachable'; readonly pause: number };

export type PeerEvent =
  /** Time passed. */
  | { readonly type: 'tick' }
  /** A datagram came that only the peer can have sent, and only now. */
  | { readonly type: 'heard' }
  /** A TCP connection was accepted: the peer's kernel is alive, and a program listens there. */
  | { readonly type: 'accepted' }
  /** A TCP connection was refused: the peer's kernel is alive. Whether it forwards yet is not said. */
  | { readonly type: 'refused' }
  /** This process was not running: nothing can be concluded from the silence of so many milliseconds. */
  | { readonly type: 'slept'; readonly ms: number }
  /** A connection could not even be tried, for a reason on this side. */
  | { readonly type: 'blind' };

export type Action =
  /** Send a datagram that asks for an answer. */
  | 'ask'
  /** Open a TCP connection, in addition to those that are open. */
  | 'connect'
  /** Give up all connections that are still open. */
  | 'hang up';

/** The circumstances of an event. All times are milliseconds of one monotonic clock. */
export interface Moment {
  now: number;
  /** At which the peer is asked, see pace.ts. */
  interval: number;
  /** Up to 1: what the pause to the next question is multiplied with, so that nodes do not fall into step. */
  jitter: number;
}

export interface Step {
  state: PeerState;
  actions: readonly Action[];
}

const calm: Phase = { is: 'calm' };

/** A peer that is watched from now on. The first question is spread over an interval, for those that come as many. */
export function begin({ now, interval }: Moment, spread: number): PeerState {
  return { status: 'unknown', since: now, quietSince: now, askAt: now + interval * spread, phase: calm };
}

export function step(state: PeerState, event: PeerEvent, moment: Moment): Step {
  const { now } = moment;
  switch (event.type) {
    case 'tick':
      return tick(state, moment);
    case 'heard':
      // One question less: of two that watch each other, one asks and both know.
      return alive(state, now, now + moment.interval * moment.jitter);
    case 'accepted':
      return alive(state, now, Math.min(state.askAt, now + moment.interval));
    case 'refused':
      // Keeps a node in the balancers while its plugin is being upgraded. It does not bring back one that lost its
      // power: its kernel refuses connections long before routes and containers are there again.
      return state.status === 'unreachable' ? unchanged(state) : alive(state, now, state.askAt);
    case 'slept':
      return unchanged({
        ...state,
        quietSince: Math.min(state.quietSince + event.ms, now),
        phase: afterSleep(state.phase, now, event.ms),
      });
    case 'blind':
      return unchanged({ ...state, phase: again(state.phase, now, 1) });
  }
}

const unchanged = (state: PeerState): Step => ({ state, actions: [] });

/** A trial from its beginning: what it took so far says nothing. Connections that are open may still answer. */
function again(phase: Phase, now: number, connects: number): Phase {
  return phase.is === 'trial' ? { ...phase, since: now, connects } : phase;
}

/**
 * After a short sleep the answers to what was sent before it wait to be read, so the clock of a trial is only put back:
 * on a busy machine, which sleeps often, a trial would not end otherwise. A long one may have been the machine's.
 */
function afterSleep(phase: Phase, now: number, ms: number): Phase {
  if (phase.is !== 'trial' || ms >= trialMs) return again(phase, now, 0);
  return { ...phase, since: Math.min(phase.since + ms, now) };
}

function alive(state: PeerState, now: number, askAt: number): Step {
  return {
    state: {
      status: 'alive',
      since: state.status === 'alive' ? state.since : now,
      quietSince: now,
      askAt,
      phase: calm,
    },
    actions: state.phase.is === 'calm' ? [] : ['hang up'],
  };
}

function tick(state: PeerState, moment: Moment): Step {
  const { now, interval, jitter } = moment;
  const { phase } = state;
  const due = now >= state.askAt;
  if (phase.is === 'unreachable') {
    if (!due) return unchanged(state);
    return {
      state: {
        ...state,
        askAt: now + phase.pause * jitter,
        phase: { is: 'unreachable', pause: Math.min(phase.pause * 1.5, unreachablePauseMaxMs) },
      },
      actions: ['hang up', 'ask', 'connect'],
    };
  }
  if (phase.is === 'trial' && now - phase.since >= trialMs) {
    const verdict = state.status === 'unknown' ? 'unknown' : 'unreachable';
    return {
      state: {
        ...state,
        status: verdict,
        since: verdict === state.status ? state.since : now,
        askAt: now + unreachablePauseMs * jitter,
        phase: { is: 'unreachable', pause: unreachablePauseMs },
      },
      actions: ['hang up'],
    };
  }
  const actions: Action[] = due ? ['ask'] : [];
  // During a trial there is no time for long intervals.
  const pause = phase.is === 'trial' ? Math.min(interval, beatMs) : interval;
  const next = due ? { ...state, askAt: now + pause * jitter } : state;
  if (phase.is === 'calm') {
    if (now - state.quietSince < quietFor(interval)) return { state: next, actions };
    return {
      state: { ...next, phase: { is: 'trial', since: now, connects: 1 } },
      actions: [...actions, 'connect'],
    };
  }
  if (phase.connects === trialConnects || now - phase.since < phase.connects * trialSpacingMs) {
    return { state: next, actions };
  }
  return {
    state: { ...next, phase: { ...phase, connects: phase.connects + 1 } },
    actions: [...actions, 'connect'],
  };
}
