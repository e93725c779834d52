// Owns bringing a node's kernel to what is desired, in an order in which no packet meets half of it.
// Must not decide what is desired.
import { BlockList } from 'node:net';
import { difference, memoLast } from '../delta/list.ts';
import type { FabricSettings } from '../net/fabric.ts';
import { ensureFabric, fabricDeviceSettings, fabricOverhead, removeFabric } from '../net/fabric.ts';
import { gatewayLines, observeLinks, vethSettings, type Link, type VethGateway } from '../net/links.ts';
import { fabricLink, vethName } from '../net/names.ts';
import { observeAddresses, observeUnderlay, type Underlay } from '../net/host.ts';
import {
  expectedNeighbours,
  noNeighbours,
  observeNeighbours,
  observePermanent,
  planNeighbours,
  runBridgeBatch,
  type ObservedNeighbours,
} from '../net/neighbours.ts';
import { netElements, netLayout, type RuledHost } from '../net/rules.ts';
import { observeRoutes, planRoutes, runIpBatch, tryIpBatch, type Route } from '../net/routes.ts';
import { CommandError, type Runner } from '../net/run.ts';
import { UnsafeInput, type RefusedLine } from '../net/safe.ts';
import type { SourceRoute } from '../net/source-routing.ts';
import { keepSettings, type Setting, type Sysctl } from '../net/sysctl.ts';
import type { Loss } from '../net/watch.ts';
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
import { virtualServerId, type Engine, type EngineState, type VirtualServer } from '../lb/model.ts';
import { newlyShutOut } from '../lb/shut-out.ts';
import { StaleFlows, type Stale } from '../lb/stale-flows.ts';
import { longest, renderTimeouts, timeoutLayout } from '../lb/timeouts.ts';
import type { Conntrack, Flow, FlowsTo } from '../net/conntrack.ts';
import { RequestError } from './errors.ts';
import { HostForwarding } from './host-forwarding.ts';
import { KernelView } from './kernel-view.ts';
import { Refusals, type Refusal } from './refusals.ts';
import { isEmpty, type DesiredState } from './desired-state.ts';

export interface DatapathOptions {
  run: Runner;
  conntrack: Conntrack;
  sysctl: Sysctl;
  engine: Engine;
  fabric: FabricSettings;
  /** By which address this node speaks to others; '' to choose by the default route. Asked again at each look. */
  nodeAddress: () => string;
  /** What is closed to sandboxes, and what open; absent: the ports of the node are. */
  host?: Omit<RuledHost, 'uplinks' | 'sourceRoutes'>;
  /** Whether the kernel lets rules say how long connections are remembered; else services that say so are like others. */
  timeouts?: boolean;
}

/** What the balancing by IPVS builds on. */
const ipvsSettings: readonly Setting[] = [
  // Lets nft see the connections of IPVS: the source rules of net/rules.ts depend on it.
  ['ipv4/vs/conntrack', '1'],
  // A connection whose real server was removed is ended, not swallowed.
  ['ipv4/vs/expire_nodest_conn', '1'],
  // A client that stays with its task does not when the task drains.
  ['ipv4/vs/expire_quiescent_template', '1'],
  // A connection may change the node that it comes in by, and is not at its beginning then.
  ['ipv4/vs/sloppy_tcp', '1'],
];

const closed: Omit<RuledHost, 'uplinks' | 'sourceRoutes'> = {
  control: [],
  stores: [],
  openPorts: [],
  access: false,
};

/** What the kernel holds, as it was last read or written. */
interface Actual {
  neighbours: ObservedNeighbours;
  routes: readonly Route[];
  table: ObservedTable | NftTable | undefined;
  marks: ReadonlyMap<string, number>;
  ipvs: readonly IpvsService[];
}

/** What a pass leaves to be taken away after it: arguments of ip and bridge. */
interface Cleanup {
  desired: DesiredState;
  ip: string[];
  bridge: string[];
}

/** Brings the kernel to a desired state, again and again; one call at a time. */
export class Datapath {
  readonly #options: DatapathOptions;
  readonly #kernel = new KernelView(() => this.#observe());
  /** What runs commands that change what {@link #observe} reads. */
  readonly #write: Runner = async (...command) => {
    this.#kernel.touch();
    try {
      return await this.#options.run(...command);
    } finally {
      this.#kernel.touch();
    }
  };
  /** All links of the host's namespace, by name; undefined: to be read. */
  #links: ReadonlyMap<string, Link> | undefined;
  /** Which endpoints' links are their gateways; undefined: to be seen from {@link #links}. */
  #gateways: readonly VethGateway[] | undefined;
  #underlay: Underlay | undefined;
  readonly #host: HostForwarding;
  #prepared = false;
  /** Where IPVS is not the engine: it was, and its services may be there. */
  #mayHaveIpvs = true;
  readonly #staleFlows = new StaleFlows();
  /** What passes have left to be done after them, in their order. */
  #cleaning: Promise<void> = Promise.resolve();
  /** What of it has not begun, and how much is not done. */
  #waitingCleanup: Cleanup | undefined;
  #cleanups = 0;
  /** It failed, and is still to be done. */
  #cleanupFailed = false;
  /** Counted when they begin and when they end. */
  readonly #removals: Record<Loss, number> = { routes: 0, nft: 0 };
  readonly #refusals = new Refusals();
  /** Of routes and rules, since the kernel was read. */
  #refusedLines: readonly RefusedLine[] = [];
  /** Addresses whose connections were ended already. */
  #flushed: readonly string[] = [];
  /** What was balanced when connections were ended last. */
  #served: readonly VirtualServer[] | undefined;
  readonly #expectedNeighbours = memoLast(expectedNeighbours);
  /** Of all sets but those of the engine. */
  readonly #elements = memoLast(
    (
      networks: DesiredState['networks'],
      endpoints: DesiredState['endpoints'],
      neighbours: DesiredState['neighbours'],
      port: number,
      address: string,
      hostPorts: ReturnType<typeof renderHostPorts>,
      anyIngress: DesiredState['anyIngress'],
      uplinks: readonly string[],
      sourceRoutes: readonly SourceRoute[],
    ) => {
      const { host = closed } = this.#options;
      const fabric = { port, address, neighbours, anyIngress };
      return new Map([
        ...netElements(networks, endpoints, fabric, { ...host, uplinks, sourceRoutes }),
        ...hostPorts.elements,
      ]);
    },
  );
  readonly #timeouts = memoLast(renderTimeouts);
  readonly #hostPorts = memoLast(renderHostPorts);
  readonly #parts = memoLast(
    (engine: readonly NftPart[], timeouts: readonly NftPart[], hostPorts: readonly NftPart[]) =>
      engine.concat(timeouts, hostPorts),
  );
  readonly #longest = memoLast(longest);
  /** What IPVS was told last. */
  #idle: ReturnType<typeof longest> | undefined;
  readonly #layout: NftLayout;

  constructor(options: DatapathOptions) {
    this.#options = options;
    this.#host = new HostForwarding({
      run: options.run,
      sysctl: options.sysctl,
      balancesInput: options.engine.name === 'ipvs',
    });
    this.#layout = joinLayouts(netLayout, options.engine.layout, timeoutLayout);
  }

  get engine(): Engine['name'] {
    return this.#options.engine.name;
  }

  /** Devices whose addresses answer by tables of their own. */
  get sourceDevices(): readonly string[] {
    return [...new Set(this.#host.sourceRoutes.map(({ device }) => device))];
  }

  /** What is left out of what is desired since the last {@link apply}, because the kernel refuses it. */
  get refusals(): readonly Refusal[] {
    return [
      ...this.#refusals.list,
      ...this.#refusedLines.map(({ line, why }) => ({ what: `"${line}"`, why })),
    ];
  }

  /** Forgets what it knows of the kernel, so that the next {@link apply} reads it and puts back what others changed. */
  invalidate(): void {
    this.#kernel.invalidate();
    this.#links = undefined;
  }

  /**
   * Reads the kernel while passes go on, and opens it again for what others have closed. The next {@link apply} puts back
   * what others changed, unless something was written meanwhile: see {@link readAt}.
   */
  async look(): Promise<void> {
    if (this.#prepared) await this.#openForwarding();
    await this.cleanedUp().catch(() => undefined);
    await this.#kernel.look();
    this.#links = undefined;
  }

  /** Since when what is known of the kernel was compared with it, in milliseconds of `performance.now()`. */
  get readAt(): number {
    return this.#kernel.readAt;
  }

  /**
   * The links there are, by name.
   * @param expected names that should be among them; when one is not, the kernel is asked again
   */
  async links(expected: readonly string[]): Promise<ReadonlyMap<string, Link>> {
    const known = this.#links;
    if (known !== undefined && expected.every((name) => known.has(name))) return known;
    const list = await observeLinks(this.#options.run);
    if (!list.some(({ name, up }) => name === fabricLink && up)) this.#prepared = false;
    const links = new Map(list.map((link) => [link.name, link]));
    this.#links = links;
    this.#gateways = undefined;
    return links;
  }

  /**
   * When it returns, new connections go the ways that are desired, and no others; what none of them needs may be there a
   * little longer, see {@link cleanedUp}.
   * @throws {RequestError} when the host cannot hold it, with the remedy
   * @throws {CommandError} when the kernel refuses
   */
  async apply(desired: DesiredState): Promise<void> {
    this.#kernel.begin(this.#cleanups === 0);
    const trusted = this.#kernel.known !== undefined;
    try {
      await this.#tryApply(desired);
    } catch (error) {
      if (!trusted) throw error;
      // Others may have taken out of the kernel what this pass builds on, since it was looked at: nobody's request fails
      // for that.
      this.#kernel.forget();
      await this.#tryApply(desired);
    }
  }

  async #tryApply(desired: DesiredState): Promise<void> {
    try {
      if (isEmpty(desired)) await this.#clear();
      else await this.#program(desired);
    } catch (error) {
      this.invalidate();
      this.#prepared = false;
      throw explained(error);
    }
  }

  /** Numbers that change with what is taken away from here; odd while that is under way. */
  get removals(): Readonly<Record<Loss, number>> {
    return { ...this.#removals };
  }

  async #remove(what: Loss, act: () => Promise<void>): Promise<void> {
    this.#removals[what] += 1;
    try {
      await act();
    } finally {
      this.#removals[what] += 1;
    }
  }

  /**
   * Resolves when nothing is left to be done after the last {@link apply}. What failed of it is done again by the next
   * one, which waits for it.
   * @throws {CommandError} when the kernel refused
   */
  cleanedUp(): Promise<void> {
    return this.#cleaning;
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

  async #program(desired: DesiredState): Promise<void> {
    const { engine } = this.#options;
    await this.links([fabricLink]);
    // After #clear() the kernel is known, but the host was left to itself: forwarding may be off.
    const open = this.#prepared && this.#kernel.known !== undefined;
    if (!this.#prepared) await this.#prepare();
    if (!open) await this.#openForwarding();
    await this.#keepIdle(desired);
    // What the kernel refuses of what was read a while ago may be others' doing: it is read anew before anybody is blamed.
    const actual = await this.#known();
    const fresh = this.#kernel.isFresh;
    if (fresh) await this.#keepSettings(desired);
    const taken = this.#refusals.without(desired);
    const state = engine.render(taken.servers, actual.marks);
    const table = this.#assemble(taken, state);
    const expected = this.#expectedNeighbours(taken.neighbours, this.#host.sourceRoutes, taken.networks);
    const neighbours = planNeighbours(actual.neighbours, expected);
    const routes = planRoutes(actual.routes, taken.routes);
    const ipvs = planIpvs(actual.ipvs, state.services);

    const lines = [...neighbours.add.ip, ...routes.add, ...(await this.#planGateways(desired.gateways))];
    // It could take away what this pass adds.
    if (lines.length + neighbours.add.bridge.length > 0) await this.cleanedUp().catch(() => undefined);
    await runBridgeBatch(this.#write, neighbours.add.bridge);
    if (fresh) this.#refusedLines = await tryIpBatch(this.#write, lines);
    else await runIpBatch(this.#write, lines);
    this.#gateways = desired.gateways;
    try {
      await this.#addIpvs(ipvs.add, taken, state, fresh);
      for (const rules of planTable(actual.table, table)) await this.#remove('nft', () => this.#load(rules));
    } catch (error) {
      const isPartial =
        error instanceof RefusedPart || (fresh && (await this.#findRefused(error, taken, actual)));
      if (!isPartial) throw error;
      // What was done so far is read.
      this.#kernel.forget();
      await this.#program(desired);
      return;
    }
    await runIpvsBatch(this.#write, ipvs.remove);
    this.#kernel.write({
      neighbours: expected,
      routes: taken.routes,
      table,
      marks: state.marks,
      ipvs: state.services,
    });
    const again = this.#cleanupFailed;
    this.#deferCleanup(desired, [...routes.remove, ...neighbours.remove.ip], neighbours.remove.bridge);
    if (again) await this.#cleaning;
  }

  /** What the kernel holds; read where that is not known. */
  async #known(): Promise<Actual> {
    // What is to be taken away would be found.
    if (this.#kernel.known === undefined) await this.cleanedUp().catch(() => undefined);
    return this.#kernel.get();
  }

  /** Nobody who is waiting to be balanced waits for it: on a busy node it takes a second, of the two that a task has left. */
  #deferCleanup(desired: DesiredState, ip: readonly string[], bridge: readonly string[]): void {
    const waiting = this.#waitingCleanup;
    if (waiting !== undefined) {
      waiting.desired = desired;
      waiting.ip.push(...ip);
      waiting.bridge.push(...bridge);
      return;
    }
    const leftover: Cleanup = { desired, ip: [...ip], bridge: [...bridge] };
    this.#waitingCleanup = leftover;
    this.#cleanups += 1;
    this.#cleaning = this.#cleaning
      .catch(() => undefined)
      .then(async () => {
        this.#waitingCleanup = undefined;
        try {
          await this.#cleanUp(leftover);
          this.#cleanupFailed = false;
        } catch (error) {
          this.#cleanupFailed = true;
          this.invalidate();
          throw explained(error);
        } finally {
          this.#cleanups -= 1;
        }
      });
    this.#cleaning.catch(() => undefined);
  }

  async #planGateways(desired: readonly VethGateway[]): Promise<string[]> {
    const present = this.#gateways;
    if (present !== undefined) return difference(present, desired).added.flatMap(gatewayLines);
    const known = new Set(
      (await observePermanent(this.#options.run)).map(
        ({ dst, dev, lladdr }) => `${dev} ${dst} ${lladdr ?? ''}`,
      ),
    );
    const isThere = ({ device, gateway, address, mac }: VethGateway): boolean =>
      this.#links?.get(device)?.addresses.includes(gateway) === true &&
      known.has(`${device} ${address} ${mac}`);
    return desired.filter((gateway) => !isThere(gateway)).flatMap(gatewayLines);
  }

  /** @throws {RefusedPart} when services that are refused were found, and taken note of */
  async #addIpvs(
    lines: readonly string[],
    { servers }: DesiredState,
    { marks, services }: EngineState,
    fresh: boolean,
  ): Promise<void> {
    const { run } = this.#options;
    try {
      await runIpvsBatch(this.#write, lines);
    } catch (error) {
      if (!fresh || !isRefusal(error)) throw error;
      // All lines were tried: what is still missing was refused.
      const missing = planIpvs(await observeIpvs(run), services).add;
      const refused = new Set(missing.map((line) => Number(/-f (\d+)/.exec(line)?.[1])));
      const those = servers.filter((server) => refused.has(marks.get(virtualServerId(server)) ?? 0));
      if (those.length === services.length) throw error;
      if (those.length === 0) return;
      this.#refusals.addServers(those, reasonOf(error));
      throw new RefusedPart();
    }
  }

  /** @returns whether some parts alone are to blame, which are left out from now on */
  async #findRefused(error: unknown, desired: DesiredState, actual: Actual): Promise<boolean> {
    const { run, engine } = this.#options;
    const cause = error instanceof RequestError ? error.cause : error;
    if (!isRefusal(cause)) return false;
    return this.#refusals.find(desired, async (part) => {
      try {
        const table = this.#assemble(part, engine.render(part.servers, actual.marks));
        const rules = planTable(actual.table, table).join('');
        if (rules !== '') await run('nft', ['--check', '-f', '-'], { input: rules });
        return undefined;
      } catch (error) {
        if (isRefusal(error)) return reasonOf(error);
        throw error;
      }
    });
  }

  /** Takes away what no new connection needs: of later passes only one that adds routes waits for it. */
  async #cleanUp({ desired, ip, bridge }: Cleanup): Promise<void> {
    const { servers, hostPorts, flushed } = desired;
    const found = this.#staleFlows.isNew ? await this.#flows(desired) : [];
    const retired = this.#staleFlows.update(servers, hostPorts, found);
    const { added } = difference(this.#flushed, flushed);
    try {
      // What was begun and not answered is balanced again, before the way there is gone: a client that tries again would
      // be told at once that there is none.
      const shutOut =
        newlyShutOut(this.#served, servers, []).length === 0
          ? []
          : newlyShutOut(this.#served, servers, ['127.0.0.0/8', ...(await this.#here(desired.networks))]);
      await this.#options.conntrack.forget({
        endless: await this.#endless(retired, desired),
        all: added,
        shutOut,
      });
      this.#served = servers;
      this.#staleFlows.flushed(retired);
      this.#flushed = flushed;
    } finally {
      if (ip.length > 0) await this.#remove('routes', () => runIpBatch(this.#write, ip));
      await runBridgeBatch(this.#write, bridge);
    }
  }

  /** The addresses of the node itself. */
  async #here(networks: DesiredState['networks']): Promise<string[]> {
    return [...(await observeAddresses(this.#options.run)), ...networks.map(({ gateway }) => gateway)];
  }

  /** Flows of UDP to an endpoint, or to the node itself. */
  async #flows({ networks }: DesiredState): Promise<Flow[]> {
    const [flows, here] = await Promise.all([this.#options.conntrack.observe(), this.#here(networks)]);
    const [ours, own] = [new BlockList(), new Set(here)];
    for (const { subnet } of networks) {
      const [address = '', length = '32'] = subnet.split('/');
      ours.addSubnet(address, Number(length));
    }
    return flows.filter(({ address, to }) => (address === to ? own.has(to) : ours.check(to)));
  }

  async #endless({ addresses, ways, opened }: Stale, { networks }: DesiredState): Promise<FlowsTo[]> {
    const led = [...addresses.map((to) => ({ to })), ...ways];
    if (opened.length === 0) return led;
    const here = await this.#here(networks);
    const past = opened.flatMap(({ address, ...ports }) =>
      (address === undefined ? here : [address]).map((one): FlowsTo => ({ ...ports, address: one })),
    );
    return [...led, ...past];
  }

  #assemble(
    { networks, endpoints, neighbours, hostPorts, anyIngress, flowTimeouts }: DesiredState,
    { content }: EngineState,
  ): NftTable {
    const { port } = this.#options.fabric;
    const { parts, timeouts } = this.#timeouts(this.#options.timeouts === true ? flowTimeouts : []);
    const published = this.#hostPorts(hostPorts);
    const { address = '' } = this.#underlay ?? {};
    return {
      layout: this.#layout,
      content: {
        ...content,
        parts: this.#parts(content.parts, parts, published.parts),
        timeouts,
        elements: this.#elements(
          networks,
          endpoints,
          neighbours,
          port,
          address,
          published,
          anyIngress,
          this.#host.uplinks,
          this.#host.sourceRoutes,
        ),
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
      for (const [path, value] of ipvsSettings) await sysctl.write(path, value);
      this.#idle = undefined;
    }
    await ensureFabric(run, sysctl, fabric, await this.readUnderlay());
    // A device that was made anew has taken the entries and routes of the old one along.
    this.#kernel.touch();
    this.#kernel.forget();
    this.#prepared = true;
  }

  /** IPVS has one set of times for all services. */
  async #keepIdle({ flowTimeouts }: DesiredState): Promise<void> {
    if (this.engine !== 'ipvs') return;
    const idle = this.#longest(flowTimeouts);
    if (idle === this.#idle) return;
    await keepIdle(this.#options.run, idle);
    this.#idle = idle;
  }

  async #keepSettings({ endpoints }: DesiredState): Promise<void> {
    const { sysctl } = this.#options;
    const settings = endpoints.flatMap(({ id }) => vethSettings(vethName(id)));
    const balancer = this.engine === 'ipvs' ? ipvsSettings : [];
    await keepSettings(sysctl, [...fabricDeviceSettings, ...balancer, ...settings]);
  }

  #openForwarding(): Promise<void> {
    return this.#host.open(
      () => this.#underlay?.device ?? '',
      () => this.#prepared,
    );
  }

  async #load(rules: string): Promise<void> {
    try {
      await this.#write('nft', ['-f', '-'], { input: rules });
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
    const unsure = this.#kernel.known === undefined || this.#prepared;
    this.#prepared = false;
    await this.cleanedUp().catch(() => undefined);
    const actual = await this.#known();
    for (const rules of planTable(actual.table, undefined))
      await this.#remove('nft', () => this.#load(rules));
    const ipvs = engine.name === 'ipvs' ? actual.ipvs : await this.#observeLeftIpvs({ busyToo: true });
    await runIpvsBatch(this.#write, planIpvs(ipvs, []).remove);
    const neighbours = planNeighbours(actual.neighbours, noNeighbours);
    const routes = [...planRoutes(actual.routes, []).remove, ...neighbours.remove.ip];
    await this.#remove('routes', () => runIpBatch(this.#write, routes));
    await runBridgeBatch(this.#write, neighbours.remove.bridge);
    if (unsure) {
      await removeFabric(run);
      await this.#host.close();
    }
    this.#gateways = [];
    this.#kernel.write({
      ...{ neighbours: noNeighbours, routes: [], table: undefined },
      ...{ marks: new Map<string, number>(), ipvs: [] },
    });
  }
}

/** A part was refused and is left out from now on: all others go on. */
class RefusedPart extends Error {}

/** The tool ran, and the kernel or it did not want what it was given. */
function isRefusal(error: unknown): error is CommandError | UnsafeInput {
  if (error instanceof UnsafeInput) return true;
  return (
    error instanceof CommandError &&
    error.exitCode !== undefined &&
    !error.stderr.includes('Operation not permitted')
  );
}

function reasonOf(error: CommandError | UnsafeInput): string {
  return error instanceof CommandError ? (error.stderr.trim().split('\n')[0] ?? '') : error.message;
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
