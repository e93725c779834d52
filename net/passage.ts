// Owns the two rules that let routed packets of Causeway pass where Docker sets the policy of FORWARD to DROP.
// Must not touch any other rule of iptables.
import { readFile } from 'node:fs/promises';
import { iptablesComment, linkPrefix } from './names.ts';
import { CommandError, type Runner, type Tool } from './run.ts';

// At the end of FORWARD, not in DOCKER-USER: there an accept would come before rules the user puts behind it. At the
// end it decides only what no rule of Docker or of the user has decided, that is instead of the policy. What may pass
// between endpoints and the world is decided in our own nft table.
const rules = ['-i', '-o'].map((side) => [
  side,
  `${linkPrefix}+`,
  '-m',
  'comment',
  '--comment',
  iptablesComment,
  '-j',
  'ACCEPT',
]);

/**
 * Docker uses the one `iptables` leads to on its host, which the plugin cannot see: so both are looked at, the legacy
 * one only where it has a table already, because looking would make one.
 */
async function backends(): Promise<Tool[]> {
  const tables = await readFile('/proc/net/ip_tables_names', 'utf8').catch(() => '');
  return tables.split('\n').includes('filter') ? ['iptables-nft', 'iptables-legacy'] : ['iptables-nft'];
}

// iptables-save's words for our rules.
const saved = rules.map(
  ([side, name]) => `-A FORWARD ${side} ${name} -m comment --comment ${iptablesComment} -j ACCEPT`,
);

/**
 * Puts the rules where a backend drops what is forwarded, and takes them from where it does not (any more).
 * @param wanted false: takes them away everywhere
 */
export async function ensurePassage(run: Runner, wanted: boolean): Promise<void> {
  for (const backend of await backends()) {
    const lines = await readForward(run, backend);
    if (lines === undefined) continue;
    const needed = wanted && lines.includes('-P FORWARD DROP');
    for (const [index, rule] of rules.entries()) {
      const present = lines.filter((line) => line === saved[index]).length;
      if (needed && present === 0) await run(backend, ['--wait', '5', '-A', 'FORWARD', ...rule]);
      for (let surplus = needed ? 1 : 0; surplus < present; surplus += 1) {
        await run(backend, ['--wait', '5', '-D', 'FORWARD', ...rule]);
      }
    }
  }
}

/** @returns the lines of the chain; undefined where the kernel or the host has no such backend */
async function readForward(run: Runner, backend: Tool): Promise<string[] | undefined> {
  try {
    return (await run(backend, ['--wait', '5', '-S', 'FORWARD'])).split('\n');
  } catch (error) {
    if (error instanceof CommandError) return undefined;
    throw error;
  }
}
