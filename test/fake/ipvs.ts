// Owns a model of IPVS behind ipvsadm 1.31, with the refusals and the odd exit code that docs/measured-ipvs.md tells of.
// Must reject every line it does not know.

interface FakeService {
  /** With its flags, and how long a client stays. */
  scheduler: string;
  destinations: Map<string, string>;
}

export interface Outcome {
  stdout: string;
  stderr: string;
  exitCode: number;
}

const line =
  /^-(?<verb>[AEDaed]) -f (?<mark>\d+)(?: -s (?<scheduler>\w+(?: -b [\w,-]+)?(?: -p \d+)?))?(?: -r (?<server>\S+))?(?: -m -w (?<weight>\d+))?$/;

export class FakeIpvs {
  readonly services = new Map<number, FakeService>();
  /** By mark, of each destination. */
  readonly connections = new Map<number, number>();
  /** Seconds for tcp, tcpfin and udp. */
  timeouts = [900, 120, 300];

  /** `ipvsadm --set`: 0 leaves one as it is. */
  set(seconds: readonly number[]): void {
    this.timeouts = this.timeouts.map((before, at) => seconds[at] || before);
  }

  /** `ipvsadm --save -n` */
  save(): string {
    return [...this.services]
      .flatMap(([mark, { scheduler, destinations }]) => [
        `-A -f ${mark} -s ${scheduler}\n`,
        ...[...destinations].map(([server, weight]) => `-a -f ${mark} -r ${server} -m -w ${weight}\n`),
      ])
      .join('');
  }

  /** `ipvsadm -L -n` */
  list(): string {
    return [...this.services]
      .flatMap(([mark, { scheduler, destinations }]) => [
        `FWM  ${mark} ${scheduler}\n`,
        ...[...destinations].map(
          ([server, weight]) => `  -> ${server} Masq ${weight} ${this.connections.get(mark) ?? 0} 0\n`,
        ),
      ])
      .join('');
  }

  /** `ipvsadm --restore`: every line; the exit code is that of the last. */
  restore(text: string): Outcome {
    const lines = text.split('\n').filter((each) => each !== '');
    const troubles = lines.map((each) => this.#step(each));
    const stderr = troubles.filter((trouble) => trouble !== undefined).map((trouble) => `${trouble}\n`);
    return { stdout: '', stderr: stderr.join(''), exitCode: troubles.at(-1) === undefined ? 0 : 255 };
  }

  #step(command: string): string | undefined {
    const groups = line.exec(command)?.groups;
    if (groups === undefined) throw new Error(`the fake ipvsadm does not know: ${command}`);
    const { verb = '', scheduler = '', server = '', weight = '' } = groups;
    const mark = Number(groups['mark']);
    const service = this.services.get(mark);
    if (verb === 'A') {
      if (service !== undefined) return 'Service already exists';
      this.services.set(mark, { scheduler, destinations: new Map() });
      return undefined;
    }
    if (service === undefined) return verb === 'a' ? 'Service not defined' : 'No such service';
    switch (verb) {
      case 'E':
        service.scheduler = scheduler;
        return undefined;
      case 'D':
        this.services.delete(mark);
        return undefined;
      case 'd':
        return service.destinations.delete(server) ? undefined : 'No such destination';
      default:
        if (service.destinations.has(server) === (verb === 'a'))
          return verb === 'a' ? 'Destination already exists' : 'No such destination';
        service.destinations.set(server, weight);
        return undefined;
    }
  }
}
