// Owns bringing a node's kernel to what is wanted, in an order in which no packet meets half of it.
// Must not decide what is wanted.
import { difference, remember } from '../delta/list.ts';
import type { FabricSettings } from '../net/fabric.ts';
import { ensureFabric, fabricOverhead, removeFabric } from '../net/fabric.ts';
import { observeLinks } from '../net/links.ts';
import { fabricLink } from '../net/names.ts';
import { observeUnderlay, type Underlay } from '../net/host.ts';
import {
  expectedNeighbours,
  noNeighbours,
  observeNeighbours,
  planNeighbours,
  runBridgeBatch,
  type ObservedNeighbours,
} from '../net/neighbours.ts';
import { ensurePassage } from '../net/passage.ts';
import { redirectElements, redirectLayout } from '../net/redirect.ts';
import { netElements, netLayout } from '../net/rules.ts';
import { observeRoutes, planRoutes, runIpBatch, type Route } from '../net/routes.ts';
import { CommandError, type Runner } from '../net/run.ts';
import type { Sysctl } from '../net/sysctl.ts';
import {
  observeTable,
  planTable,
  type NftLayout,
  type NftPart,
  type NftTable,
  type ObservedTable,
} from '../net/table.ts';
import { renderHostPorts } from '../lb/host-ports.ts';
import {
  keepIdle,
  observeIpvs,
  observeLeftIpvs,
  planIpvs,
  runIpvsBatch,
  type IpvsService,
} from '../lb/ipvsadm.ts';
import { observedMarks } from '../lb/marks.ts';
import type { Engine, EngineState } from '../lb/model.ts';
import { Retirements } from '../lb/retired.ts';
import { longest, renderTimeouts, timeoutLayout } from '../lb/timeouts.ts';
import { forgetFlows } from '../net/conntrack.ts';
import { RequestError } from './errors.ts';
import { isNothing, type Wanted } from './wanted.ts';

export interface DatapathOptions {
  run: Runner;
  sysctl: Sysctl;
  engine: Engine;
  fabric: FabricSettings;
  /** By which address this node speaks to others; '' to choose by the default route. Asked again at each look. */
  nodeAddress: () => string;
  /** Port of the name server, when sandboxes are led to it. */
  namePort?: number;
  /** Whether the kernel lets rules say how long connections are remembered; else services that say so are like others. */
  timeouts?: boolean;
}

/** What the kernel holds, as it was last read or written. */
interface Actual {
  neighbours: ObservedNeighbours;
  routes: readonly Route[];
  table: ObservedTable | NftTable | undefined;
  marks: ReadonlyMap<string, number>;
  ipvs: readonly IpvsService[];
}

/** Brings the kernel to a wanted state, again and again; one call at a time. */
export class Datapath {
  readonly #options: DatapathOptions;
  /** Undefined: unknown, to be read. */
  #actual: Actual | undefined;
  /** Names of all links of the host's namespace; undefined: to be read. */
  #links: ReadonlySet<string> | undefined;
  #underlay: Underlay | undefined;
  #prepared = false;
  /** Where IPVS is not the engine: it was, and its services may be there. */
  #mayHaveIpvs = true;
  /** Remembered until the next pass begins: what a pass that is under way writes down would undo it. */
  #distrusted = false;
  readonly #retirements = new Retirements();
  /** What the last pass has left to be done after it. */
  #tidying: Promise<void> = Promise.resolve();
  /** It failed, and is still to be done. */
  #untidy = false;
  /** Addresses whose connections were ended already. */
  #ended: readonly string[] = [];
  readonly #expectedNeighbours = remember(expectedNeighbours);
  /** Of all sets but those of the engine. */
  readonly #elements = remember(
    (
      networks: Wanted['networks'],
      endpoints: Wanted['endpoints'],
      neighbours: Wanted['neighbours'],
      port: number,
      address: string,
      hostPorts: ReturnType<typeof renderHostPorts>,
      movable: Wanted['movable'],
    ) => {
      const { namePort } = this.#options;
      return new Map([
        ...netElements(networks, endpoints, { port, address, neighbours, movable }),
        ...hostPorts.elements,
        ...(namePort === undefined ? [] : redirectElements(namePort)),
      ]);
    },
  );
  readonly #timeouts = remember(renderTimeouts);
  readonly #hostPorts = remember(renderHostPorts);
  readonly #parts = remember(
    (engine: readonly NftPart[], timed: readonly NftPart[], hostPorts: readonly NftPart[]) =>
      engine.concat(timed, hostPorts),
  );
  readonly #longest = remember(longest);
  /** What IPVS was told last. */
  #idle: ReturnType<typeof longest> | undefined;
  readonly #layout: NftLayout;

  constructor(options: DatapathOptions) {
    this.#options = options;
    const { engine, namePort } = options;
    this.#layout = joinLayouts(
      netLayout,
      engine.layout,
      timeoutLayout,
      ...(namePort === undefined ? [] : [redirectLayout]),
    );
  }

  get engine(): Engine['name'] {
    return this.#options.engine.name;
  }

  /** Forgets what it knows of the kernel, so that the next {@link apply} reads it and puts back what others changed. */
  distrust(): void {
    this.#distrusted = true;
    this.#links = undefined;
  }

  /**
   * The links there are, by name.
   * @param expected names that should be among them; when one is not, the kernel is asked again
   */
  async links(expected: readonly string[]): Promise<ReadonlySet<string>> {
    const known = this.#links;
    if (known !== undefined && expected.every((name) => known.has(name))) return known;
    const links = await observeLinks(this.#options.run);
    if (!links.some(({ name, up }) => name === fabricLink && up)) this.#prepared = false;
    const names = new Set(links.map(({ name }) => name));
    this.#links = names;
    return names;
  }

  /**
   * When it returns, new connections go the ways that are wanted, and no others; what none of them needs may be there a
   * little longer, see {@link tidied}.
   * @throws {RequestError} when the host cannot hold it, with the remedy
   * @throws {CommandError} when the kernel refuses
   */
  async apply(wanted: Wanted): Promise<void> {
    // It could take away what this pass adds, or finds.
    await this.tidied().catch(() => undefined);
    if (this.#distrusted) {
      this.#actual = undefined;
      this.#distrusted = false;
    }
    const trusted = this.#actual !== undefined;
    try {
      await this.#bring(wanted);
    } catch (error) {
      if (!trusted) throw error;
      // Others may have taken out of the kernel what this pass builds on, since it was looked at: nobody's request fails
      // for that.
      this.#actual = undefined;
      await this.#bring(wanted);
    }
  }

  async #bring(wanted: Wanted): Promise<void> {
    try {
      if (isNothing(wanted)) await this.#clear();
      else await this.#program(wanted);
    } catch (error) {
      this.distrust();
      this.#prepared = false;
      throw explained(error);
    }
  }

  /**
   * Resolves when nothing is left to be done after the last {@link apply}. What failed of it is done again by the next
   * one, which waits for it.
   * @throws {CommandError} when the kernel refused
   */
  tidied(): Promise<void> {
    return this.#tidying;
  }

  /** Bytes of MTU that are left for sandboxes behind the fabric. @throws {RequestError} as {@link readUnderlay} */
  async sandboxMtu(): Promise<number> {
    return (this.#underlay ?? (await this.readUnderlay())).mtu - fabricOverhead;
  }

  /**
   * Reads by which address and device this node speaks to others.
   * @throws {RequestError} when there is none
   */
  async readUnderlay(): Promise<Underlay> {
    const { run } = this.#options;
    const nodeAddress = this.#options.nodeAddress();
    const underlay = await observeUnderlay(run, nodeAddress);
    if (underlay === undefined) {
      throw new RequestError(
        'no-node-address',
        nodeAddress === ''
          ? 'this node has no IPv4 address but loopback: give it one, or name it with docker plugin set PLUGIN CAUSEWAY_NODE_ADDR=…'
          : `CAUSEWAY_NODE_ADDR=${nodeAddress} is no address of this node: see ip address show`,
      );
    }
    const { address } = this.#underlay ?? underlay;
    this.#underlay = underlay;
    // The fabric speaks from this address.
    if (address !== underlay.address) this.#prepared = false;
    return underlay;
  }

  async #program(wanted: Wanted): Promise<void> {
    const { run, engine } = this.#options;
    await this.links([fabricLink]);
    // After #clear() the kernel is known, but the host was left to itself: forwarding may be off.
    const open = this.#prepared && this.#actual !== undefined;
    if (!this.#prepared) await this.#prepare();
    if (!open) await this.#openForwarding();
    await this.#keepIdle(wanted);
    const actual = (this.#actual ??= await this.#observe());
    const state = engine.render(wanted.servers, actual.marks);
    const table = this.#assemble(wanted, state);
    const expected = this.#expectedNeighbours(wanted.neighbours);
    const neighbours = planNeighbours(actual.neighbours, expected);
    const routes = planRoutes(actual.routes, wanted.routes);
    const ipvs = planIpvs(actual.ipvs, state.services);
    const rules = planTable(actual.table, table);

    await runBridgeBatch(run, neighbours.add.bridge);
    await runIpBatch(run, [...neighbours.add.ip, ...routes.add]);
    await runIpvsBatch(run, ipvs.add);
    if (rules !== '') await this.#load(rules);
    await runIpvsBatch(run, ipvs.remove);
    this.#actual = {
      neighbours: expected,
      routes: wanted.routes,
      table,
      marks: state.marks,
      ipvs: state.services,
    };
    const again = this.#untidy;
    this.#tidying = this.#tidy(wanted, {
      ip: [...routes.remove, ...neighbours.remove.ip],
      bridge: neighbours.remove.bridge,
    }).then(
      () => {
        this.#untidy = false;
      },
      (error: unknown) => {
        this.#untidy = true;
        this.distrust();
        throw explained(error);
      },
    );
    this.#tidying.catch(() => undefined);
    if (again) await this.#tidying;
  }

  /** Takes away what no new connection needs: only the next pass waits for it. */
  async #tidy({ servers, ended }: Wanted, remove: { ip: string[]; bridge: string[] }): Promise<void> {
    const { run } = this.#options;
    const retired = this.#retirements.next(servers);
    const { added } = difference(this.#ended, ended);
    try {
      // What was begun and not answered is balanced again, before the way there is gone: a client that tries again would
      // be told at once that there is none.
      await forgetFlows(run, { endless: retired, all: added });
      this.#retirements.done(retired);
      this.#ended = ended;
    } finally {
      await runIpBatch(run, remove.ip);
      await runBridgeBatch(run, remove.bridge);
    }
  }

  #assemble(
    { networks, endpoints, neighbours, publishers, movable, timed }: Wanted,
    { content }: EngineState,
  ): NftTable {
    const { port } = this.#options.fabric;
    const { parts, timeouts } = this.#timeouts(this.#options.timeouts === true ? timed : []);
    const hostPorts = this.#hostPorts(publishers);
    const { address = '' } = this.#underlay ?? {};
    return {
      layout: this.#layout,
      content: {
        ...content,
        parts: this.#parts(content.parts, parts, hostPorts.parts),
        timeouts,
        elements: this.#elements(networks, endpoints, neighbours, port, address, hostPorts, movable),
      },
    };
  }

  async #observe(): Promise<Actual> {
    const { run, engine } = this.#options;
    const [neighbours, routes, table, ipvs] = await Promise.all([
      observeNeighbours(run),
      observeRoutes(run),
      observeTable(run),
      engine.name === 'ipvs' ? observeIpvs(run) : this.#observeLeftIpvs(),
    ]);
    return { neighbours, routes, table, marks: observedMarks(table), ipvs };
  }

  /** Services that IPVS has to no purpose any more: since another engine took over, and their last connection ended. */
  async #observeLeftIpvs({ busyToo = false } = {}): Promise<IpvsService[]> {
    if (!this.#mayHaveIpvs) return [];
    const { run, sysctl } = this.#options;
    const left = await observeLeftIpvs(run, sysctl);
    this.#mayHaveIpvs = left.length > 0;
    return left.filter(({ busy }) => busyToo || !busy).map(({ service }) => service);
  }

  /** What does not change with endpoints and services: at first, and when the fabric is missing. */
  async #prepare(): Promise<void> {
    const { run, sysctl, engine, fabric } = this.#options;
    if (engine.name === 'ipvs') {
      // Lets nft see the connections of IPVS: the source rules of net/rules.ts depend on it.
      await sysctl.write('ipv4/vs/conntrack', '1');
      // A connection whose real server was removed is ended, not swallowed.
      await sysctl.write('ipv4/vs/expire_nodest_conn', '1');
      // A client that stays with its task does not when the task drains.
      await sysctl.write('ipv4/vs/expire_quiescent_template', '1');
      // A connection may change the node that it comes in by, and is not at its beginning then.
      await sysctl.write('ipv4/vs/sloppy_tcp', '1');
      this.#idle = undefined;
    }
    await ensureFabric(run, sysctl, fabric, await this.readUnderlay());
    // A device that was made anew has taken the entries and routes of the old one along.
    this.#actual = undefined;
    this.#prepared = true;
  }

  /** IPVS has one set of times for all services. */
  async #keepIdle({ timed }: Wanted): Promise<void> {
    if (this.engine !== 'ipvs') return;
    const idle = this.#longest(timed);
    if (idle === this.#idle) return;
    await keepIdle(this.#options.run, idle);
    this.#idle = idle;
  }

  /** What others may switch off at any time. */
  async #openForwarding(): Promise<void> {
    const { run, sysctl } = this.#options;
    if ((await sysctl.read('ipv4/ip_forward')) !== '1') await sysctl.write('ipv4/ip_forward', '1');
    await ensurePassage(run, true);
  }

  async #load(rules: string): Promise<void> {
    try {
      await this.#options.run('nft', ['-f', '-'], { input: rules });
    } catch (error) {
      if (!(error instanceof CommandError && /not supported|No such file or directory/i.test(error.stderr)))
        throw error;
      throw new RequestError(
        'kernel-feature',
        `this node's kernel refused Causeway's nftables rules (${error.stderr.trim().split('\n')[0] ?? ''}): it needs nf_tables ` +
          'with the inet family, nat, fib, ct, reject and numgen, as kernels of Debian, Ubuntu, RHEL and Alpine have them',
        { cause: error },
      );
    }
  }

  async #clear(): Promise<void> {
    const { run, engine } = this.#options;
    // Reading anew may find what an earlier life of the plugin, killed in the middle, has left.
    const unsure = this.#actual === undefined || this.#prepared;
    const actual = (this.#actual ??= await this.#observe());
    const rules = planTable(actual.table, undefined);
    if (rules !== '') await run('nft', ['-f', '-'], { input: rules });
    const ipvs = engine.name === 'ipvs' ? actual.ipvs : await this.#observeLeftIpvs({ busyToo: true });
    await runIpvsBatch(run, planIpvs(ipvs, []).remove);
    const neighbours = planNeighbours(actual.neighbours, noNeighbours);
    await runIpBatch(run, [...planRoutes(actual.routes, []).remove, ...neighbours.remove.ip]);
    await runBridgeBatch(run, neighbours.remove.bridge);
    if (unsure) {
      await removeFabric(run);
      await ensurePassage(run, false);
    }
    this.#prepared = false;
    this.#actual = { neighbours: noNeighbours, routes: [], table: undefined, marks: new Map(), ipvs: [] };
  }
}

function explained(error: unknown): unknown {
  if (!(error instanceof CommandError && error.stderr.includes('Operation not permitted'))) return error;
  return new RequestError(
    'not-permitted',
    `the kernel did not let Causeway run ${error.command}: it needs CAP_NET_ADMIN in the host's network namespace, ` +
      'so install or create the plugin with the privileges it asks for',
    { cause: error },
  );
}

function joinLayouts(...layouts: readonly NftLayout[]): NftLayout {
  return {
    sets: Object.assign({}, ...layouts.map(({ sets }) => sets)) as NftLayout['sets'],
    chains: Object.assign({}, ...layouts.map(({ chains }) => chains)) as NftLayout['chains'],
  };
}
