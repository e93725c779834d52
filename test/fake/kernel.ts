// Owns a stateful stand-in for a node's kernel behind the plugin's commands: what one changes, the next one sees.
// Must reject every command it does not know, and must not answer what no real tool was seen to answer.
import { ConntrackError, type Conntrack, type Flow, type Flows } from '../../net/conntrack.ts';
import { CommandError, type Runner, type RunOptions, type Tool } from '../../net/run.ts';
import type { Sysctl } from '../../net/sysctl.ts';
import { FakeHost, IpRefusal } from './host.ts';
import { FakeIpvs, type Outcome } from './ipvs.ts';
import { FakeNft, NftRefusal } from './nft.ts';

/** A command that changed something, or tried to. */
export interface Change {
  command: string;
  /** Its standard input. */
  input: string;
}

export class FakeKernel {
  readonly host = new FakeHost();
  readonly nft = new FakeNft();
  /** Undefined: a kernel without IPVS. */
  readonly ipvs: FakeIpvs | undefined;
  /** What Docker sets on its hosts. */
  forwardPolicy: 'DROP' | 'ACCEPT' = 'DROP';
  /** Rules of the chain FORWARD of `iptables-nft`, in iptables-save's words. */
  forward: string[] = ['-A FORWARD -j DOCKER-USER'];
  /** Of UDP. */
  readonly flows: Flow[] = [];
  /** Called before flows are forgotten. */
  onForget: () => Promise<void> = () => Promise.resolve();
  inputPolicy: 'DROP' | 'ACCEPT' = 'ACCEPT';
  input: string[] = [];
  readonly settings = new Map<string, string>([['ipv4/ip_forward', '0']]);
  readonly changes: Change[] = [];
  /** Makes commands fail: returns what the tool would write to standard error, undefined to let it run. */
  refuse: (command: string, input: string) => string | undefined = () => undefined;

  constructor({ ipvs = true }: { ipvs?: boolean } = {}) {
    this.ipvs = ipvs ? new FakeIpvs() : undefined;
  }

  readonly conntrack: Conntrack = {
    observe: () => Promise.resolve([...this.flows]),
    forget: async (flows) => {
      const { endless, all, shutOut } = flows;
      if (endless.length + all.length + shutOut.length === 0) return;
      await this.onForget();
      const input = wordsOf(flows);
      this.changes.push({ command: 'forget flows', input });
      const refusal = this.refuse('forget flows', input);
      if (refusal !== undefined) throw new ConntrackError(refusal);
    },
  };

  readonly run: Runner = (tool, args, options = {}) => this.execute(tool, args, options);

  readonly sysctl: Sysctl = {
    read: (path) => {
      const link = linkOf(path);
      const unset = path.endsWith('/proxy_delay') ? '80' : '0';
      const missing = link === undefined || !this.host.links.has(link) ? undefined : unset;
      return Promise.resolve(this.settings.get(path) ?? missing);
    },
    write: (path, value) => {
      const link = linkOf(path);
      if (link !== undefined && !this.host.links.has(link))
        return Promise.reject(Object.assign(new Error(`ENOENT: ${path}`), { code: 'ENOENT' }));
      this.settings.set(path, value);
      return Promise.resolve();
    },
  };

  /** Everything in the kernel that Causeway could have put there, as text to compare. */
  dump(): string {
    const { chains, sets, timeouts } = this.nft.table ?? {};
    return [
      ...[...this.host.links].map(([name, { up }]) => `link ${name} ${up ? 'up' : 'down'}`),
      ...this.host.routes.map((route) => `route ${JSON.stringify(route)}`),
      ...this.host.rules.map(({ text }) => `rule ${text}`).sort(),
      ...[...this.host.neighbours].map((entry) => `neigh ${entry.join(' ')}`),
      ...[...this.host.forwarding].map((entry) => `fdb ${entry.join(' ')}`),
      ...[...(chains ?? [])].map(([name, { rules }]) => [`chain ${name}`, ...rules].join('\n  ')),
      ...[...(timeouts ?? [])].map(([name, text]) => `timeout ${name} ${text}`),
      ...[...(sets ?? [])].map(([name, { elements }]) => `set ${name} ${JSON.stringify([...elements])}`),
      this.ipvs?.save() ?? '',
      ...this.forward,
      ...this.input,
    ].join('\n');
  }

  // Async, so that what is thrown becomes a rejection.
  // eslint-disable-next-line @typescript-eslint/require-await
  protected async execute(
    tool: Tool,
    args: string[],
    { input = '', silent = false }: RunOptions,
  ): Promise<string> {
    const command = [tool, ...args].join(' ');
    if (!isLook(command)) this.changes.push({ command, input });
    const refusal = this.refuse(command, input);
    const { stdout, stderr, exitCode } =
      refusal === undefined
        ? this.#execute(command, args, input)
        : { stdout: '', stderr: refusal, exitCode: 1 };
    if (exitCode !== 0 || (silent && stderr !== '')) throw new CommandError(command, exitCode, stderr);
    return stdout;
  }

  #execute(command: string, args: string[], input: string): Outcome {
    switch (command) {
      case 'ip -4 -j address show':
        return done(this.host.listAddresses());
      case 'ip -4 -N -j route show table main':
        return done(this.host.listRoutes(({ table }) => table === 'main'));
      case 'ip -4 -j route show table all proto 197':
        return done(this.host.listRoutes(({ protocol }) => protocol === '197'));
      case 'ip -j address show':
        return done(this.host.listLinks());
      case 'ip -d -j link show type vxlan':
        return done(this.host.listVxlans());
      case 'ip -4 -j rule show':
        return done(this.host.listRules());
      case 'ip -4 -j neigh show nud permanent':
        return done(this.host.listNeighbours());
      case 'bridge -j fdb show dev cw-fabric':
        return this.#attempt(() => this.host.listForwarding('cw-fabric'));
      case 'bridge -force -batch -':
        return this.#batch(input, true, (line) => this.host.bridgeStep(line));
      case 'ip -batch -':
        return this.#batch(input, false);
      case 'ip -4 -force -batch -':
        return this.#batch(input, true);
      case 'nft -j list table inet causeway':
        return this.#nft(() => this.nft.list());
      case 'nft -f -':
        return this.#nft(() => {
          this.nft.load(input);
          return '';
        });
      case 'nft --check -f -':
        return this.#nft(() => {
          this.nft.check(input);
          return '';
        });
      case 'ipvsadm --save -n':
        return this.ipvs === undefined ? noIpvs : done(this.ipvs.save());
      case 'ipvsadm -L -n':
        return this.ipvs === undefined ? noIpvs : done(this.ipvs.list());
      case 'ipvsadm -L --timeout':
        return this.ipvs === undefined
          ? noIpvs
          : done(`Timeout (tcp tcpfin udp): ${this.ipvs.timeouts.join(' ')}\n`);
      case 'ipvsadm --restore':
        return this.ipvs === undefined ? noIpvs : this.ipvs.restore(input);
      case 'iptables-nft --wait 5 -S':
        return done(
          [`-P INPUT ${this.inputPolicy}`, `-P FORWARD ${this.forwardPolicy}`, '-P OUTPUT ACCEPT']
            .concat(this.input, this.forward, '')
            .join('\n'),
        );
      case 'iptables-legacy --wait 5 -S':
        return done('-P INPUT ACCEPT\n-P FORWARD ACCEPT\n-P OUTPUT ACCEPT\n');
      default:
        return this.#oneOff(command, args);
    }
  }

  #oneOff(command: string, args: string[]): Outcome {
    const [, , verb = '', chain = '', ...rule] = args;
    const saved = `-A ${chain} ${rule.join(' ')}`;
    if (/^ip link (set|del) \S+( up)?$/.test(command)) return this.#batch(args.join(' '), false);
    if (/^ipvsadm --set \d+ \d+ \d+$/.test(command) && this.ipvs !== undefined) {
      this.ipvs.set(args.slice(1).map(Number));
      return done('');
    }
    if (/^iptables-nft --wait 5 -[ADI] (FORWARD|INPUT) /.test(command)) {
      const list = chain === 'INPUT' ? this.input : this.forward;
      if (verb === '-A') list.push(saved);
      else if (verb === '-I') list.splice(Number(rule[0]) - 1, 0, `-A ${chain} ${rule.slice(1).join(' ')}`);
      else if (list.includes(saved)) list.splice(list.indexOf(saved), 1);
      else return failed('iptables: Bad rule (does a matching rule exist in that chain?).\n');
      return done('');
    }
    throw new Error(`the fake kernel does not know the command: ${command}`);
  }

  /** @param force goes on behind a line that failed, as `ip -force` does */
  #batch(text: string, force: boolean, step = (line: string) => this.host.step(line)): Outcome {
    let stderr = '';
    for (const [index, line] of text.trimEnd().split('\n').entries()) {
      try {
        step(line);
      } catch (error) {
        if (!(error instanceof IpRefusal)) throw error;
        stderr += `${error.message}\nCommand failed -:${index + 1}\n`;
        if (!force) break;
      }
    }
    return stderr === '' ? done('') : failed(stderr);
  }

  #attempt(act: () => string): Outcome {
    try {
      return done(act());
    } catch (error) {
      if (error instanceof IpRefusal) return failed(`${error.message}\n`);
      throw error;
    }
  }

  #nft(act: () => string): Outcome {
    try {
      return done(act());
    } catch (error) {
      if (error instanceof NftRefusal) return failed(`Error: ${error.message}\n`);
      throw error;
    }
  }
}

/** Whose setting it is. */
function linkOf(path: string): string | undefined {
  return /^ipv4\/(?:conf|neigh)\/([^/]+)\//.exec(path)?.[1];
}

const noIpvs: Outcome = {
  stdout: '',
  stderr:
    "Can't initialize ipvs: Protocol not available\nAre you sure that IP Virtual Server is built in the kernel or as module?\n",
  exitCode: 2,
};

function done(stdout: string): Outcome {
  return { stdout, stderr: '', exitCode: 0 };
}

function failed(stderr: string): Outcome {
  return { stdout: '', stderr, exitCode: 1 };
}

function isLook(command: string): boolean {
  return / show\b|--save|--timeout|-S$|nft -j list/.test(command);
}

/** One line for each thing that is looked for. */
function wordsOf({ endless, all, shutOut }: Flows): string {
  const words = (of: object): string =>
    Object.entries(of)
      .map(([name, value]) => `${name} ${Array.isArray(value) ? value.join(',') : value}`)
      .join(' ');
  return [
    ...endless.map((flows) => `endless ${words(flows)}\n`),
    ...all.map((address) => `all to ${address}\n`),
    ...shutOut.map((one) => `shut out ${words(one)}\n`),
  ].join('');
}
