// Owns what the sandboxes of this node's endpoints are given of Causeway's: by which link answers leave them, and that a new
// connection ends the rest of an old one. Must not lead names there (name-redirects.ts), nor know the commands (net/).
import { setImmediate } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { flat, MapCache } from '../delta/list.ts';
import { canEnter } from '../net/namespace.ts';
import type { SandboxTables } from '../net/nft-tables.ts';
import { letReopen } from '../net/reopen.ts';
import type { Runner } from '../net/run.ts';
import { leadOut, type WayOut, type WaysOut } from '../net/sandbox-routes.ts';
import type { EndpointRecord, NetworkRecord, Records, ServiceRecord } from '../store/records.ts';
import type { ContainerDetails } from '../swarm/docker.ts';
import { Wakeup } from '../swarm/wakeup.ts';
import type { ContainerHandler } from './containers.ts';
import type { Log } from './log.ts';
import { sandboxPath } from './name-redirects.ts';

export interface SandboxesOptions {
  records: Records;
  run: Runner;
  tables: Pick<SandboxTables, 'put' | 'remove'>;
  log: Log;
  node: string;
  /** Where the host's /run is. */
  hostRun: string;
  /** Whether the kernel can let connections be reopened. */
  reopens: boolean;
  /** Whether the sandbox at a path is there. */
  isThere?: (path: string) => boolean;
  /** A monotonic clock in milliseconds. */
  now?: () => number;
}

/** What one sandbox shall have. */
export interface SandboxWants extends WaysOut {
  /** With the endpoint of each: a link that was made anew has taken the route of the one before along. */
  ways: readonly (WayOut & { endpoint: string })[];
  /** Addresses that take connections from outside. */
  reopened: readonly string[];
}

/** What Docker says of sandboxes that the records do not. */
export interface SandboxFacts {
  /** Those with a link of another driver. */
  shared: ReadonlySet<string>;
  /** Those whose container may change rules there by itself, as VPN clients do. */
  meddling: ReadonlySet<string>;
}

/**
 * @param joined this node's endpoints with a sandbox
 * @param published `NETWORK ADDRESS` of the tasks of services with ports
 * @param facts absent: Docker has told nothing yet
 */
export function planSandboxes(
  joined: readonly EndpointRecord[],
  networks: ReadonlyMap<string, NetworkRecord>,
  published: ReadonlySet<string>,
  facts?: Pick<SandboxFacts, 'shared'>,
): Map<string, SandboxWants> {
  const bySandbox = Map.groupBy(joined, ({ sandbox = '' }) => sandbox);
  return new Map(
    [...bySandbox].map(([sandbox, endpoints]): [string, SandboxWants] => {
      const ends = endpoints.flatMap(({ id, network, address }) => {
        const { gateway, internal } = networks.get(network) ?? {};
        return gateway === undefined ? [] : [{ endpoint: id, address, gateway, internal: internal === true }];
      });
      const ways = ends.map(({ internal: _, ...way }) => way);
      const shared = facts?.shared.has(sandbox) === true;
      const internal = ends.length > 0 && ends.every((end) => end.internal);
      // One link is the way of all it sends.
      const several = ways.length > 1 || shared || internal;
      const open = endpoints.some(
        ({ network, address, ports }) => ports !== undefined || published.has(`${network} ${address}`),
      );
      return [
        sandbox,
        {
          ways: several ? ways : [],
          // A port that a service publishes brings Docker's own way out along. A sandbox that is new is closed until Docker has
          // told of another network; what was told to an earlier life of this process holds until it is told again.
          closed: facts && ends.some((end) => end.internal) ? internal && !shared : undefined,
          reopened: open ? ways.map(({ address }) => address) : [],
        },
      ];
    }),
  );
}

/** Of running containers, those that share or change their sandbox. */
export function readFacts(
  joined: readonly EndpointRecord[],
  containers: readonly ContainerDetails[],
): SandboxFacts {
  const sandboxOf = new Map(joined.map(({ id, sandbox = '' }) => [id, sandbox]));
  const shared = new Set<string>();
  const meddling = new Set<string>();
  for (const { NetworkSettings, HostConfig } of containers) {
    const attached = Object.entries(NetworkSettings.Networks).map(([name, { EndpointID }]) => ({
      name,
      sandbox: sandboxOf.get(EndpointID),
    }));
    const sandbox = attached.find((one) => one.sandbox !== undefined)?.sandbox;
    if (sandbox === undefined) continue;
    // Swarm's own is no way out of any sandbox.
    if (attached.some((one) => one.sandbox === undefined && one.name !== 'ingress')) shared.add(sandbox);
    const { Privileged = false, CapAdd } = HostConfig ?? {};
    if (Privileged || CapAdd?.some((name) => /^(CAP_)?(NET_ADMIN|ALL)$/i.test(name))) meddling.add(sandbox);
  }
  return { shared, meddling };
}

/**
 * Docker finishes a sandbox after it has told of it: it is tried after the first of these, in milliseconds, then ever more
 * slowly up to the second. So often in vain is told, 20 s after the first.
 */
const firstPause = 60;
const longestPause = 30_000;
const growth = 1.3;
const patience = 16;

/** How long what a container changed may stay so, in milliseconds. */
const lookAgain = 30_000;

/** Changes come in swarms. From one look to the next, in milliseconds. */
const rest = 40;

/** A sandbox that was left is mostly gone so many milliseconds later, and took along what it was given. */
const leaveAfter = 5_000;

/** How many sandboxes are entered at once. */
const atOnce = 4;

interface State {
  wants: SandboxWants;
  /** Undefined: some of it, as a try came to nothing. */
  given: SandboxWants | undefined;
  /** All it may have of these. */
  ways: readonly WayOut[];
  mayBeClosed: boolean;
  /** As was set last; undefined: not known. */
  reopened: string | undefined;
  /** No endpoint of ours is in it: its container has ended, or was disconnected and goes on. */
  isLeft: boolean;
  /** When it is entered next; Infinity: when it wants something else. */
  next: number;
  vain: number;
}

const nothing: SandboxWants = { ways: [], closed: undefined, reopened: [] };

export class Sandboxes {
  readonly #options: SandboxesOptions;
  readonly #now: () => number;
  readonly #hints = new Wakeup();
  readonly #states = new Map<string, State>();
  #facts: SandboxFacts | undefined;
  readonly #joined: MapCache<{ value: EndpointRecord }, EndpointRecord>;
  readonly #published = new MapCache(({ value: { ports, tasks } }: { value: ServiceRecord }) =>
    ports.length === 0
      ? undefined
      : tasks.flatMap(({ addresses }) => Object.entries(addresses).map((pair) => pair.join(' '))),
  );

  constructor(options: SandboxesOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
    this.#joined = new MapCache(({ value }) =>
      value.node === options.node && value.sandbox !== undefined ? value : undefined,
    );
  }

  /** What Docker tells of containers comes later than the records, which are enough for most. */
  readonly follow: ContainerHandler = ({ joined, containers }) => {
    this.#facts = readFacts(joined, containers);
    this.#hints.notify();
    return Promise.resolve(true);
  };

  /** Runs until the signal aborts; throws nothing. */
  async run(signal: AbortSignal): Promise<void> {
    const { endpoints, services } = this.#options.records;
    const following = Promise.all(
      [endpoints, services].map(async (table) => {
        for await (const _ of table.watch({ signal })) this.#hints.notify();
      }),
    );
    while (!signal.aborted) {
      const pause = await this.look().catch((error: unknown) => {
        this.#options.log.debug({ error }, 'cannot read the state of sandboxes, retrying');
        return longestPause;
      });
      await this.#hints.wait(pause, signal);
      await new Promise((resolve) => setTimeout(resolve, rest));
    }
    await following;
  }

  /**
   * Gives the sandboxes what they shall have and do not have yet.
   * @returns after how many milliseconds there is something to do again
   */
  async look(): Promise<number> {
    const wanted = await this.#plan();
    for (const [sandbox, state] of this.#states) if (!wanted.has(sandbox)) this.#leave(sandbox, state);
    const due: [string, State][] = [];
    for (const [sandbox, wants] of wanted) this.#want(sandbox, wants);
    for (const [sandbox, state] of this.#states) if (state.next <= this.#now()) due.push([sandbox, state]);
    await Promise.all(
      Array.from({ length: atOnce }, async () => {
        for (let one = due.shift(); one !== undefined; one = due.shift()) {
          await this.#give(...one);
          // Most of it is done within this process: after a restart there are all sandboxes to do, and Docker calls meanwhile.
          await setImmediate();
        }
      }),
    );
    const next = Math.min(Infinity, ...[...this.#states.values()].map((state) => state.next));
    return Math.min(Math.max(next - this.#now(), 0), longestPause);
  }

  async #plan(): Promise<Map<string, SandboxWants>> {
    const { endpoints, networks, services } = this.#options.records;
    const [joined, nets, published] = await Promise.all([
      endpoints.list().then(({ rows }) => this.#joined.of(rows)),
      networks.list(),
      services.list().then(({ rows }) => this.#published.of(rows)),
    ]);
    const known = new Map(nets.rows.map(({ id, value }) => [id, value]));
    return planSandboxes(joined, known, new Set(flat(published)), this.#facts);
  }

  #want(sandbox: string, wants: SandboxWants): void {
    const now = this.#now();
    let state = this.#states.get(sandbox);
    if (state === undefined) {
      state = {
        ...{ wants, given: nothing, ways: [], mayBeClosed: false, reopened: '' },
        ...{ isLeft: false, next: now + firstPause, vain: 0 },
      };
      this.#states.set(sandbox, state);
    } else if (state.isLeft || !isSame(state.wants, wants))
      // What led by its links went with them.
      Object.assign(state, {
        ...{ wants, isLeft: false, next: now, vain: 0 },
        ...(state.isLeft && { given: undefined, reopened: undefined }),
      });
    if (isSame(state.given, wants)) {
      const stays = isSame(wants, nothing) || this.#facts?.meddling.has(sandbox) !== true;
      if (stays) state.next = Infinity;
      else if (state.next === Infinity) state.next = now + lookAgain;
    }
  }

  /** Takes back what it was given, unless it goes by itself. */
  #leave(sandbox: string, state: State): void {
    const { hostRun, isThere = canEnter } = this.#options;
    if (!state.isLeft)
      Object.assign(state, { wants: nothing, isLeft: true, next: this.#now() + leaveAfter, vain: 0 });
    if (
      isSame(state.given, nothing) ||
      (state.next <= this.#now() && !isThere(sandboxPath(hostRun, sandbox)))
    )
      this.#states.delete(sandbox);
  }

  async #give(sandbox: string, state: State): Promise<void> {
    const { run, tables, log, reopens, hostRun } = this.#options;
    const path = sandboxPath(hostRun, sandbox);
    const { wants, given, ways } = state;
    const reopened = wants.reopened.join();
    const closed = wants.closed ?? (state.mayBeClosed ? false : undefined);
    // What a try has given that comes to nothing is taken away like the rest.
    state.given = undefined;
    state.ways = [...new Map([...ways, ...wants.ways].map((way) => [way.address, way])).values()];
    state.mayBeClosed ||= closed === true;
    try {
      await leadOut(run, path, { ways: wants.ways, closed }, ways);
      if (reopens && (isSame(given, wants) || state.reopened !== reopened)) {
        state.reopened = undefined;
        letReopen(tables, path, wants.reopened);
        state.reopened = reopened;
      }
      state.given = wants;
      state.ways = wants.ways;
      state.mayBeClosed = closed === true;
      state.vain = 0;
      state.next = this.#now() + lookAgain;
    } catch (error) {
      state.vain += 1;
      state.next = this.#now() + Math.min(firstPause * growth ** state.vain, longestPause);
      if (state.vain === patience)
        log.warn(
          { error, sandbox },
          'answers of a container on several networks may leave it by the wrong one, or its port cannot be connected to for a ' +
            'moment after a connection that is over: its sandbox cannot be entered (the host’s /run has to be a shared mount), ' +
            'or its links are not set up',
        );
    }
  }
}

function isSame(one: SandboxWants | undefined, other: SandboxWants): boolean {
  return one === other || isDeepStrictEqual(one, other);
}
