// Owns the wiring of a node: which part is given which, in which order they start, and what is done at the end.
// Must not be bound to a process, a kernel or a Docker: it is given them (main.ts has the real ones). Importing it does nothing.
import type { RequestListener } from 'node:http';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Ipam } from '../ipam/ipam.ts';
import type { InUse } from '../ipam/pools.ts';
import { selectEngine } from '../lb/select.ts';
import { timeoutShortcomings, whyNoTimeouts } from '../lb/timeouts.ts';
import type { Conntrack } from '../net/conntrack.ts';
import { observeInUse } from '../net/host.ts';
import { observeLinks } from '../net/links.ts';
import type { Loss } from '../net/watch.ts';
import { canLeadNames } from '../net/name-sockets.ts';
import { canReopen } from '../net/reopen.ts';
import type { SandboxTables } from '../net/nft-tables.ts';
import type { Runner } from '../net/run.ts';
import type { Sysctl } from '../net/sysctl.ts';
import packageJson from '../package.json' with { type: 'json' };
import { gated, gatedLock } from '../store/gate.ts';
import { openKeepsake } from '../store/keepsake.ts';
import { openRecords, type PolicyRecord } from '../store/records.ts';
import type { Docker } from '../swarm/docker.ts';
import { EngineHealth } from '../swarm/engine-health.ts';
import { runPublisher, type Observation } from '../swarm/publisher.ts';
import { adminAddress, createAdminServer } from './admin.ts';
import { isApart, whyNotAlone } from './apart.ts';
import { Collector } from './collector.ts';
import type { Config } from './config.ts';
import { tellContainerHealth } from './container-health.ts';
import { Containers } from './containers.ts';
import { Datapath } from './datapath.ts';
import { HealthChecks } from './health-checks.ts';
import { tryHostPort } from './host-ports.ts';
import { IpamDriver } from './ipam-driver.ts';
import { close, listen } from './listen.ts';
import { HostLook } from './host-look.ts';
import { Leadership } from './leadership.ts';
import type { Log } from './log.ts';
import { Liveness } from './liveness.ts';
import { Membership } from './membership.ts';
import { NameServer } from './name-server.ts';
import { nameContainers } from './naming.ts';
import { NetworkDriver } from './network-driver.ts';
import { LatestOnly } from './latest-only.ts';
import { readNodeId } from './node-id.ts';
import { openStore } from './open-store.ts';
import { clusterInUse, hostRules, reservedPorts } from './own-ports.ts';
import { Reconciler } from './reconciler.ts';
import { Ownership } from './ownership.ts';
import { openPorts } from './port-access.ts';
import { removeNameRedirects, NameRedirects } from './name-redirects.ts';
import { Sandboxes } from './sandboxes.ts';
import { poolsOf, subnetsOf } from './taken.ts';
import { createPluginServer, pluginMethods } from './server.ts';

/** How long Docker must not know of an address before it is freed: longer than any of its own hand-overs. */
const collectGrace = 60_000;

/**
 * From one look for what Docker forgot to the next, in milliseconds: Docker's events bring looks at it ten times a second,
 * and each of these starts a process.
 */
const collectRest = 1_000;

/** How long a plugin that was installed anew waits to be told what the one before left, in milliseconds. */
const takeoverPatience = 10_000;

/** How long a Consul that was emptied waits for Docker to say which Swarm this node is in, in milliseconds. */
const refillPatience = 60_000;

/** For grace times: a clock that somebody sets lets none of them end. */
const steady = (): number => performance.now();

/** What a node is wired to. */
export interface NodeWorld {
  log: Log;
  /** Commands in the host's network namespace. */
  run: Runner;
  /** Of the host's network namespace. */
  conntrack: Conntrack;
  sysctl: Sysctl;
  /** nft in the sandboxes. */
  tables: SandboxTables;
  docker: Docker;
  /** See {@link ReconcilerOptions.removals}. */
  removals: (() => ReadonlySet<Loss>) | undefined;
}

/** A node that answers Docker's calls and the admin API. */
export interface CausewayNode {
  /** Does all else until the signal aborts, then puts everything away. The kernel stays as it is. */
  run: () => Promise<void>;
}

/**
 * @param signal ends it
 * @throws Error with cause and remedy, for who enables the plugin: a setting is wrong, the store cannot be opened, or something
 *   else listens at its address
 */
export async function createNode(
  config: Config,
  { log, run, conntrack, sysctl, tables, docker, removals }: NodeWorld,
  signal: AbortSignal,
): Promise<CausewayNode> {
  const node = await readNodeId(config.CAUSEWAY_DATA);
  const { store: open, replica } = await openStore(config, log, () => mayRefill());
  const store = gated(
    open,
    () => ownership.foreign,
    (key) => key === `nodes/${node}`,
  );
  const keepsake = openKeepsake(join(config.CAUSEWAY_DATA, 'unreadable.json'), (error) =>
    log.warn({ error }, 'last readable records cannot be saved: they are lost with the next restart'),
  );
  const records = openRecords(store, keepsake);
  const ownership: Ownership = new Ownership({
    records,
    node,
    shared: replica && config.CAUSEWAY_CONSUL_PREFIX,
    log,
    onChange: () => {
      membership.hint();
      void reconciler.pass().catch(() => undefined);
    },
  });
  const mayRefill = async (): Promise<boolean> => {
    await Promise.race([ownership.judged, sleep(refillPatience, undefined, { ref: false })]);
    return ownership.foreign === undefined;
  };
  const { engine, why } = await selectEngine(run, config.CAUSEWAY_LB);
  // What is wrong with the settings was told by now, to who enables the plugin. Docker gives it ten seconds to listen, and
  // disables one that takes longer: what is asked waits for the rest, which on a busy machine may take longer than that.
  const methods = Promise.withResolvers<RequestListener>();
  const server = await listen(methods.promise, { path: config.CAUSEWAY_SOCKET });
  const noTimeouts = await whyNoTimeouts(run);
  const noNames = whyNoNames(config, tables);
  const reopens = canReopen(tables);
  if (!reopens)
    log.warn(
      {},
      'this kernel has no tproxy expression for nft (CONFIG_NFT_TPROXY): a client whose connections come by several nodes may ' +
        'have to try again when its port was used a minute ago',
    );
  const engineHealth = new EngineHealth(log, () => docker.engine);
  const reserved = reservedPorts(config);
  const fabric = { port: config.CAUSEWAY_FABRIC_PORT, vni: config.CAUSEWAY_FABRIC_VNI };
  if (noNames !== undefined) log[noNames.asked ? 'info' : 'warn']({}, noNames.reason);
  const names =
    noNames === undefined
      ? new NameServer({
          records,
          node,
          port: config.CAUSEWAY_DNS_PORT,
          unreachable: () => unreachable(),
          onChange: () => redirects?.hint(),
          log,
        })
      : undefined;
  const redirects: NameRedirects | undefined =
    names && new NameRedirects({ names, tables, log, hostRun: config.CAUSEWAY_HOST_RUN });
  const datapath: Datapath = new Datapath({
    run,
    conntrack,
    sysctl,
    engine,
    fabric,
    nodeAddress: () => membership.address,
    timeouts: noTimeouts === undefined,
    host: hostRules(config),
  });
  const membership = new Membership({
    store,
    records,
    docker,
    node,
    name: hostname(),
    address: config.CAUSEWAY_NODE_ADDR,
    fabric,
    ownership,
    readUnderlay: () => datapath.readUnderlay(),
    readLinks: async () => new Set((await observeLinks(run)).map(({ name }) => name)),
    log,
  });
  // A store of this node alone knows no others, so nobody is watched.
  const liveness =
    replica &&
    new Liveness({
      records,
      node,
      port: config.CAUSEWAY_PEER_PORT,
      log,
      pendingWrites: replica.pendingWrites,
      onPendingWrites: (from, payload) => {
        try {
          replica.applyPeerWrites(from, payload);
        } catch (error) {
          log.error({ error, node: from }, 'invalid pending writes from peer');
        }
      },
      onChange: () => {
        names?.refresh();
        void reconciler.pass().catch(() => undefined);
      },
    });
  const unreachable = (): ReadonlySet<string> => liveness?.unreachable ?? new Set();
  // A plugin that was installed anew finds a kernel full of what the one before made, and records that name that one.
  const ready = async (): Promise<void> => {
    const known = await records.nodes.get(node).catch(() => undefined);
    if (replica === undefined || known !== undefined) return;
    const takenOver = Promise.all([ownership.judged, membership.settled]).then(() => true);
    const late = sleep(takeoverPatience, false, { signal }).catch(() => true);
    if (!(await Promise.race([takenOver, late])))
      log.warn(
        {},
        'Docker or the store has not said which node this is: what a previous installation left in the kernel is replaced',
      );
  };
  const reconciler: Reconciler = new Reconciler({
    records,
    datapath,
    node,
    log,
    unreachable,
    reserved,
    ready: ready(),
    foreign: () => ownership.foreign !== undefined,
    removals,
  });
  // Docker must not be asked inside of its calls: what the last look saw has to do.
  let observed: Observation | undefined;
  /** What is wrong with this node as one of several. */
  let warning: string | undefined;
  const ofCluster = async (): Promise<InUse[]> => {
    const { rows } = await records.nodes.list();
    return clusterInUse(
      config,
      rows.map(({ value }) => value),
    );
  };
  const ipam = new Ipam(store, {
    defaultPool: config.CAUSEWAY_DEFAULT_POOL,
    defaultSize: config.CAUSEWAY_DEFAULT_POOL_SIZE,
    nodeId: node,
    inUse: async () => (await Promise.all([observeInUse(run), ofCluster()])).flat(),
    taken: async () => observed && [...subnetsOf(observed.networks), ...(await ofCluster())],
    avoided: () => Promise.resolve(poolsOf(observed?.addressPools ?? [])),
    serviceAt: async (network, address) =>
      (await records.services.list()).rows.find(({ value }) => value.vips[network] === address)?.value.name,
    onFailure: (lease, error) =>
      log.warn({ lease, error }, 'lease write failed after the answer, left to garbage collection'),
    now: steady,
  });
  await Promise.all([membership.recall(), ownership.recall()]).catch((error: unknown) =>
    log.debug({ error }, 'own node record not read yet'),
  );
  const driver = new NetworkDriver({
    records,
    ipam,
    reconciler,
    datapath,
    run,
    sysctl,
    node,
    apart: () => replica === undefined && observed !== undefined && isApart(observed),
    tryPort: tryHostPort,
    log,
  });
  // Docker starts a plugin before its own API answers: everything that may wait for that comes after this.
  methods.resolve(createPluginServer(pluginMethods(driver, new IpamDriver(ipam, log)), log));
  const hostLook = new HostLook({ run, sysctl, datapath, log });
  const source = {
    version: packageJson.version,
    node,
    engine: { name: engine.name, why },
    unsupported: (policy: PolicyRecord | undefined) => [
      ...engine.unsupported(policy),
      ...timeoutShortcomings(policy, engine.name, noTimeouts),
    ],
    unsupportedByHostPorts: (policy: PolicyRecord | undefined) =>
      timeoutShortcomings(policy, 'nft', noTimeouts),
    report: () => reconciler.report,
    servers: () => reconciler.servers,
    host: () => hostLook.problems,
    unreachable,
    usage: (pool: string) => ipam.usage(pool),
    foreign: () => ownership.foreign,
    warnings: () => [...(warning === undefined ? [] : [warning]), ...membership.warnings],
    store: () => replica?.state ?? ('embedded' as const),
    docker: () => engineHealth.state,
    compare: () => replica?.compare() ?? Promise.resolve({ missing: [], extra: [], different: [] }),
    peers: () => liveness?.state ?? new Map(),
    names: () => noNames?.reason ?? redirects?.state ?? { led: 0, left: [] },
  };
  const admin = await listen(
    createAdminServer(source, records),
    adminAddress(config.CAUSEWAY_ADMIN, config.CAUSEWAY_HOST_RUN),
  );
  log.info({ version: source.version, node, engine: engine.name, why }, 'Causeway is up');

  const compare = async (observation: Observation): Promise<void> => {
    if (replica) return;
    const before = warning;
    warning = await whyNotAlone(observation, records);
    if (warning !== undefined && warning !== before) log.error({}, warning);
  };
  const leadership =
    replica && new Leadership({ lock: gatedLock(replica, () => ownership.foreign), node, log });
  const collector = new Collector({
    store,
    records,
    ipam,
    run,
    node,
    log,
    now: steady,
    grace: collectGrace,
  });
  const afterLook = new LatestOnly<{ observation: Observation; elected: boolean }>(
    async ({ observation, elected }) => {
      try {
        await collector.collect(observation, elected);
        await compare(observation);
      } catch (error) {
        log.debug({ error }, 'garbage collection failed, retrying');
      }
    },
    { restMs: collectRest, signal: signal },
  );
  const sandboxes = new Sandboxes({
    ...{ records, run, tables, log, node, reopens },
    hostRun: config.CAUSEWAY_HOST_RUN,
  });
  const answerNames = async (): Promise<void> => {
    if (names === undefined || redirects === undefined) {
      await removeNameRedirects({ records, node, tables, hostRun: config.CAUSEWAY_HOST_RUN }).catch(
        (error: unknown) => log.debug({ error }, 'cannot remove what an earlier run left in sandboxes'),
      );
      return;
    }
    await names.start(signal);
    await Promise.all([names.run(signal), redirects.run(signal)]);
  };
  const followers = [
    openPorts({ records, log }),
    tellContainerHealth({ records }),
    nameContainers({ store, records, node }),
    sandboxes.follow,
  ];
  const settleHere = async (): Promise<void> => {
    await collector.unjoin().catch((error: unknown) => log.debug({ error }, 'own endpoints not known yet'));
    await reconciler.pass().catch(() => undefined);
  };
  const life = async (): Promise<void> => {
    await Promise.all([
      reconciler.run(signal),
      membership.run(signal),
      hostLook.run(signal),
      new HealthChecks({ records, node, log }).run(signal),
      answerNames(),
      new Containers({ docker, records, node, log, followers }).run(signal),
      sandboxes.run(signal),
      // Start heartbeats last: peers send traffic to this node as soon as they see one.
      settleHere().then(() => liveness?.run(signal)),
      runPublisher(
        {
          docker,
          health: engineHealth,
          store,
          records,
          log,
          reserved,
          belongs: (seen) => ownership.judge(seen),
          // A store of this node alone has no other writer.
          now: Date.now,
          elect: (swarm, signal) =>
            leadership ? leadership.elect(swarm?.leader ?? false, signal) : Promise.resolve(swarm && []),
          observed: (observation, elected) => {
            observed = observation;
            afterLook.submit({ observation, elected });
          },
        },
        signal,
      ),
    ]);

    // Stopping leaves the kernel as it is: running tasks go on without us, and the next start takes over from there.
    docker.close();
    await Promise.all([close(server), close(admin), afterLook.idle()]);
    // What was answered is written before the store is closed.
    await ipam.idle();
    await store.close();
    log.info({}, 'Causeway stopped; networks stay as they are');
  };
  return { run: life };
}

/** @returns why Docker's resolver is left to itself, and whether that was asked for */
function whyNoNames(config: Config, tables: SandboxTables): { asked: boolean; reason: string } | undefined {
  if (config.CAUSEWAY_DNS === 'off')
    return { asked: true, reason: 'names are answered by Docker’s resolver alone: CAUSEWAY_DNS=off' };
  if (canLeadNames(tables)) return undefined;
  return {
    asked: false,
    reason:
      'names are answered by Docker’s resolver alone: this kernel has no tproxy expression for nft (CONFIG_NFT_TPROXY)',
  };
}
