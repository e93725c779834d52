// Owns the choice of the engine, and the words that say why.
// Must not render or run rules.
import type { Runner } from '../net/run.ts';
import { ipvsEngine } from './ipvs.ts';
import { whyNoIpvs } from './ipvsadm.ts';
import type { Engine } from './model.ts';
import { nftEngine } from './nft.ts';

export interface Selection {
  engine: Engine;
  /** For log and status. */
  why: string;
}

/** The engine that was asked for cannot work on this kernel. */
export class EngineUnavailable extends Error {
  override readonly name = 'EngineUnavailable';
}

/**
 * @param setting CAUSEWAY_LB
 * @throws {EngineUnavailable} when IPVS is demanded and the kernel has none
 */
export async function selectEngine(run: Runner, setting: 'auto' | 'ipvs' | 'nft'): Promise<Selection> {
  if (setting === 'nft') return { engine: nftEngine, why: 'CAUSEWAY_LB=nft' };
  const trouble = await whyNoIpvs(run);
  if (setting === 'ipvs') {
    if (trouble === undefined) return { engine: ipvsEngine, why: 'CAUSEWAY_LB=ipvs' };
    throw new EngineUnavailable(
      `CAUSEWAY_LB=ipvs, but this kernel has no IPVS (${trouble}): load the module ip_vs on the host, or set CAUSEWAY_LB=auto`,
    );
  }
  return trouble === undefined
    ? { engine: ipvsEngine, why: 'the kernel has IPVS' }
    : { engine: nftEngine, why: `the kernel has no IPVS (${trouble})` };
}
