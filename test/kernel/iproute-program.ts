// Owns a process in a namespace of its own that runs commands twice, by itself and by iproute2 and nft, and tells what became of each.
// Must not judge it. A message in is a list of commands; one out is what each wrote and what the namespace holds after it.
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { iproute } from '../../net/iproute.ts';
import { nftElements } from '../../net/nft-elements.ts';
import { createRunner, CommandError, type Runner, type Tool } from '../../net/run.ts';
import { pluginDir } from '../../rootfs/build.ts';

export interface Command {
  /** Default: ip. */
  tool?: 'ip' | 'bridge' | 'nft';
  args: string[];
  input?: string;
  /** As if it were in one. */
  sandbox?: true;
}

export interface Outcome {
  /** Whether it was done without a process. */
  own: boolean;
  stdout: string;
  stderr: string;
  /** As iproute2 and nft tell of it. */
  state: string;
}

let own = false;
const root = join(pluginDir, 'rootfs');
const byItself = createRunner({
  root,
  inProcess: [iproute(), nftElements()].map((act) => (tool: Tool, args, input, sandbox) => {
    const outcome = act(tool, args, input, sandbox);
    own ||= outcome !== undefined;
    return outcome;
  }),
});
const byProcess = createRunner({ root });

const looks = ['link show', 'route show table all proto 197', 'address show', 'neigh show', 'rule show'];
/** Without what is different each time: indices and addresses that the kernel makes. */
async function state(): Promise<string> {
  const rules = await byProcess('nft', ['list', 'ruleset']);
  const links = execFileSync('ip', ['-4', '-d', '-batch', '-'], {
    encoding: 'utf8',
    input: looks.join('\n') + '\n',
  })
    .replaceAll(/^\d+: /gm, '')
    .replaceAll(/link\/ether ([\da-f:]+) brd/g, (whole, mac: string) =>
      mac.startsWith('02:42') ? whole : 'link/ether brd',
    );
  return links + rules;
}

async function perform(run: Runner, commands: readonly Command[]): Promise<Outcome[]> {
  const outcomes: Outcome[] = [];
  for (const { tool = 'ip', args, input, sandbox } of commands) {
    own = false;
    const { stdout, stderr } = await run(tool, args, {
      ...(input !== undefined && { input }),
      ...(sandbox && { sandbox: '/proc/self/ns/net' }),
    }).then(
      (text) => ({ stdout: text, stderr: '' }),
      (error: unknown) => {
        if (error instanceof CommandError) return { stdout: '', stderr: error.stderr };
        throw error;
      },
    );
    outcomes.push({ own, stdout, stderr, state: await state() });
  }
  return outcomes;
}

const commands = JSON.parse(process.argv[2] ?? '[]') as Command[];
const which = process.argv[3] === 'itself' ? byItself : byProcess;
process.stdout.write(JSON.stringify(await perform(which, commands)));
