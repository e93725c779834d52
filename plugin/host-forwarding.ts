// Owns what the host has to do for packets of others: to forward them, to let them pass, and to send replies by where they came in.
// Must not touch Causeway's own table, links and routes: plugin/datapath.ts does.
import { isDeepStrictEqual } from 'node:util';
import { observeUplinks } from '../net/host.ts';
import { ensureAccepted } from '../net/accept-rules.ts';
import type { Runner } from '../net/run.ts';
import { observeSourceRoutes, type SourceRoute } from '../net/source-routing.ts';
import type { Sysctl } from '../net/sysctl.ts';

export interface HostForwardingOptions {
  run: Runner;
  sysctl: Sysctl;
  /** Whether packets to a published port are balanced behind the chain INPUT. */
  balancesInput: boolean;
}

/** Opens the host again and again for what others have closed; one call at a time. */
export class HostForwarding {
  readonly #options: HostForwardingOptions;
  #uplinks: readonly string[] = [];
  #sourceRoutes: readonly SourceRoute[] = [];
  #working: Promise<void> = Promise.resolve();

  constructor(options: HostForwardingOptions) {
    this.#options = options;
  }

  /** Devices that lead on from this host; the same list for as long as they are the same. */
  get uplinks(): readonly string[] {
    return this.#uplinks;
  }

  /** Of the host's own source routing, what replies of published ports have to follow; as {@link uplinks}. */
  get sourceRoutes(): readonly SourceRoute[] {
    return this.#sourceRoutes;
  }

  /**
   * What others may switch off at any time.
   * @param device of the underlay
   * @param isWanted asked when its turn has come: everything may have been taken away meanwhile
   */
  open(device: () => string, isWanted: () => boolean): Promise<void> {
    const { run, sysctl, balancesInput } = this.#options;
    return this.#inTurn(async () => {
      if (!isWanted()) return;
      if ((await sysctl.read('ipv4/ip_forward')) !== '1') await sysctl.write('ipv4/ip_forward', '1');
      await ensureAccepted(run, balancesInput ? ['FORWARD', 'INPUT'] : ['FORWARD']);
      const uplinks = await observeUplinks(run, device());
      if (!isDeepStrictEqual(uplinks, this.#uplinks)) this.#uplinks = uplinks;
      const routes = await observeSourceRoutes(run);
      if (!isDeepStrictEqual(routes, this.#sourceRoutes)) this.#sourceRoutes = routes;
    });
  }

  /** Takes away what is the host's alone to decide without Causeway; that it forwards stays. */
  close(): Promise<void> {
    return this.#inTurn(() => ensureAccepted(this.#options.run, []));
  }

  #inTurn(act: () => Promise<void>): Promise<void> {
    const done = this.#working.then(act);
    this.#working = done.catch(() => undefined);
    return done;
  }
}
