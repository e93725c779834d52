// Owns the wiring and the life of the plugin's process.
// Must not decide anything else.
import { hostname } from 'node:os';
import { join } from 'node:path';
import { Ipam } from '../ipam/ipam.ts';
import { selectEngine } from '../lb/select.ts';
import { timeoutShortcomings, whyNoTimeouts } from '../lb/timeouts.ts';
import { observeInUse } from '../net/host.ts';
import { canRedirect } from '../net/redirect.ts';
import { createRunner } from '../net/run.ts';
import { fileSysctl } from '../net/sysctl.ts';
import packageJson from '../package.json' with { type: 'json' };
import { openRecords, type PolicyRecord } from '../store/records.ts';
import { connectDocker } from '../swarm/docker.ts';
import { describeNetworks, runPublisher, type Observation } from '../swarm/publisher.ts';
import { adminAddress, createAdminServer } from './admin.ts';
import { Collector } from './collector.ts';
import { parseConfig, type Config } from './config.ts';
import { Containers, type Sight } from './containers.ts';
import { Datapath } from './datapath.ts';
import { HealthChecks } from './health-checks.ts';
import { tryHostPort } from './host-ports.ts';
import { IpamDriver } from './ipam-driver.ts';
import { close, listen } from './listen.ts';
import { Leadership } from './leadership.ts';
import { createLog, type Log } from './log.ts';
import { Liveness } from './liveness.ts';
import { Membership } from './membership.ts';
import { NameServer, type NameServerOptions } from './name-server.ts';
import { nameContainers } from './naming.ts';
import { NetworkDriver } from './network-driver.ts';
import { Newest } from './newest.ts';
import { readNodeId } from './node-id.ts';
import { openStore } from './open-store.ts';
import { Reconciler } from './reconciler.ts';
import { openPorts } from './port-access.ts';
import { Questions } from './questions.ts';
import { createPluginServer, pluginMethods } from './server.ts';

/** How long Docker must not know of an address before it is freed: longer than any of its own hand-overs. */
const collectGrace = 60_000;

/**
 * From one look for what Docker forgot to the next, in milliseconds: Docker's events bring looks at it ten times a second,
 * and each of these starts a process.
 */
const collectRest = 1_000;

const stop = new AbortController();

async function main(): Promise<void> {
  // In ps and top a plugin is not one more `node`.
  process.title = 'causeway';
  const config = parseConfig(process.env);
  const log = createLog(config.CAUSEWAY_LOG);
  const node = await readNodeId(config.CAUSEWAY_DATA);
  const { store, replica } = await openStore(config, log);
  const records = openRecords(store);
  const run = createRunner({
    onCommand: (command, milliseconds, input) =>
      log.debug({ command, input, milliseconds: Math.round(milliseconds) }, 'ran a command'),
  });
  const sysctl = fileSysctl(config.CAUSEWAY_HOST_SYSCTL);
  const [{ engine, why }, noTimeouts, redirects] = await Promise.all([
    selectEngine(run, config.CAUSEWAY_LB),
    whyNoTimeouts(run),
    canRedirect(run),
  ]);
  const docker = connectDocker(join(config.CAUSEWAY_HOST_RUN, 'docker.sock'));
  const fabric = { port: config.CAUSEWAY_FABRIC_PORT, vni: config.CAUSEWAY_FABRIC_VNI };
  // Also when names are off: until a sandbox is led no more, its questions have to find their way back.
  const namePort = redirects ? config.CAUSEWAY_DNS_PORT : undefined;
  const names = openNames({ config, records, port: namePort, node, hidden: () => hidden(), log });
  const datapath: Datapath = new Datapath({
    run,
    sysctl,
    engine,
    fabric,
    nodeAddress: () => membership.address,
    timeouts: noTimeouts === undefined,
    ...(namePort !== undefined && { namePort }),
  });
  const membership = new Membership({
    store,
    records,
    docker,
    node,
    name: hostname(),
    address: config.CAUSEWAY_NODE_ADDR,
    fabric,
    readUnderlay: () => datapath.readUnderlay(),
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
      offers: replica.offer,
      onOffer: (from, payload) => {
        try {
          replica.absorb(from, payload);
        } catch (error) {
          log.error({ error, node: from }, 'what another node offers cannot be used');
        }
      },
      onChange: () => {
        names?.refresh();
        void reconciler.pass().catch(() => undefined);
      },
    });
  const hidden = (): ReadonlySet<string> => liveness?.hidden ?? new Set();
  const reconciler: Reconciler = new Reconciler({ records, datapath, node, log, hidden });
  const ipam = new Ipam(store, {
    defaultPool: config.CAUSEWAY_DEFAULT_POOL,
    defaultSize: config.CAUSEWAY_DEFAULT_POOL_SIZE,
    nodeId: node,
    inUse: () => observeInUse(run),
    now: Date.now,
  });
  await membership.recall().catch((error: unknown) => log.debug({ error }, 'this node is not known yet'));
  const driver = new NetworkDriver({
    records,
    ipam,
    reconciler,
    datapath,
    run,
    sysctl,
    node,
    tryPort: tryHostPort,
    log,
  });
  const methods = pluginMethods(driver, new IpamDriver(ipam));

  // Docker gives a plugin ten seconds to listen, and starts it before its own API answers: everything that may wait
  // comes after this.
  const server = await listen(createPluginServer(methods, log), { path: config.CAUSEWAY_SOCKET });
  const facts = {
    version: packageJson.version,
    node,
    engine: { name: engine.name, why },
    shortcomings: (policy: PolicyRecord | undefined) => [
      ...engine.shortcomings(policy),
      ...timeoutShortcomings(policy, engine.name, noTimeouts),
    ],
    portShortcomings: (policy: PolicyRecord | undefined) => timeoutShortcomings(policy, 'nft', noTimeouts),
    report: () => reconciler.report,
    hidden,
    store: () => replica?.state ?? ('embedded' as const),
    compare: () => replica?.compare() ?? Promise.resolve({ missing: [], extra: [], different: [] }),
    peers: () => liveness?.state ?? new Map(),
  };
  const admin = await listen(
    createAdminServer(facts, records),
    adminAddress(config.CAUSEWAY_ADMIN, config.CAUSEWAY_HOST_RUN),
  );
  log.info({ version: facts.version, node, engine: engine.name, why }, 'Causeway is up');

  const leadership = new Leadership({ store, node, log });
  const collector = new Collector({
    store,
    records,
    ipam,
    run,
    node,
    log,
    now: Date.now,
    grace: collectGrace,
  });
  const afterLook = new Newest<{ observation: Observation; elected: boolean }>(
    async ({ observation, elected }) => {
      try {
        if (elected) await describeNetworks(records, observation.networks);
        await collector.collect(observation, elected);
      } catch (error) {
        log.debug({ error }, 'what Docker forgot could not be looked for: the next look does');
      }
    },
    { restMs: collectRest, signal: stop.signal },
  );
  const serveContainers = async (): Promise<void> => {
    const port = names && (await startNames(names, config.CAUSEWAY_DNS_PORT, log));
    const questions = new Questions({
      records,
      run,
      log,
      hostRun: config.CAUSEWAY_HOST_RUN,
      sysctls: config.CAUSEWAY_HOST_SYSCTL,
      ...(port !== undefined && { port }),
    });
    const followers = [
      openPorts({ records, log }),
      nameContainers({ store, records, node }),
      ({ joined }: Sight) => questions.lead(joined),
    ];
    await Promise.all([
      port !== undefined && names?.run(stop.signal),
      new Containers({ docker, records, node, log, followers }).run(stop.signal),
    ]);
  };
  const settleHere = async (): Promise<void> => {
    await collector.unjoin().catch((error: unknown) => log.debug({ error }, 'what is here is not known yet'));
    await reconciler.pass().catch(() => undefined);
  };
  await Promise.all([
    reconciler.run(stop.signal),
    membership.run(stop.signal),
    new HealthChecks({ records, node, log }).run(stop.signal),
    serveContainers(),
    // To be heard means to be sent traffic: not before it is clear what is still here.
    settleHere().then(() => liveness?.run(stop.signal)),
    runPublisher(
      {
        docker,
        store,
        records,
        log,
        // A store of this node alone has no other writer.
        now: Date.now,
        elect: (swarm, signal) =>
          replica ? leadership.elect(swarm?.leader ?? false, signal) : Promise.resolve(swarm && []),
        observed: (observation, elected) => afterLook.give({ observation, elected }),
      },
      stop.signal,
    ),
  ]);

  // Stopping leaves the kernel as it is: running tasks go on without us, and the next start takes over from there.
  docker.close();
  await Promise.all([close(server), close(admin), afterLook.idle()]);
  await store.close();
  log.info({}, 'Causeway has stopped; networks go on as they are');
}

interface NamesOptions extends Pick<NameServerOptions, 'records' | 'node' | 'hidden' | 'log'> {
  config: Config;
  port: number | undefined;
}

/** @returns undefined where Docker's resolver is left to itself; the log says why, unless it was asked for */
function openNames({ config, port, log, ...rest }: NamesOptions): NameServer | undefined {
  if (config.CAUSEWAY_DNS === 'off') return undefined;
  if (port !== undefined) return new NameServer({ ...rest, port, log });
  log.warn({}, 'this kernel has no socket expression for nft: names are answered by Docker’s resolver alone');
  return undefined;
}

/** @returns the port at which it listens, if it does */
async function startNames(names: NameServer, port: number, log: Log): Promise<number | undefined> {
  try {
    await names.start(stop.signal);
    return port;
  } catch (error) {
    log.error(
      { error },
      `port ${port} cannot be had for the name server: free it, or set another with docker plugin set PLUGIN ` +
        'CAUSEWAY_DNS_PORT=…; names are answered by Docker’s resolver alone',
    );
    return undefined;
  }
}

for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => stop.abort());

main().catch((error: unknown) => {
  // Docker copies standard error into its own log, and says of a plugin that ends only that it could not be reached.
  process.stderr.write(
    `causeway: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`,
  );
  process.exitCode = 1;
  process.exit();
});
