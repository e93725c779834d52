// Owns a model of a host's links, IPv4 addresses, routes, rules and neighbours behind iproute2, in the output format that was recorded
// (test/recorded/). Must reject every command it does not know.

/** What the kernel answers to a command that cannot be. */
export class IpRefusal extends Error {
  override readonly name = 'IpRefusal';
}

interface FakeLink {
  up: boolean;
  mtu: number;
  /** The other end of a veth pair, while it is in this namespace. */
  peer?: string;
  vxlan?: { id: number; port: number; local: string };
  mac?: string;
  addresses: { local: string; prefixlen: number; scope: 'host' | 'global' | 'link' }[];
  /** Permanent ones, of a veth. */
  neighbours?: Map<string, string>;
}

interface FakeRoute {
  type: string;
  dst: string;
  dev?: string;
  gateway?: string;
  prefsrc?: string;
  table: string;
  protocol: string;
  metric: string;
}

export const nodeAddress = '203.0.113.1';

export class FakeHost {
  readonly links = new Map<string, FakeLink>([
    ['lo', { up: true, mtu: 65536, addresses: [{ local: '127.0.0.1', prefixlen: 8, scope: 'host' }] }],
    ['eth0', { up: true, mtu: 1500, addresses: [{ local: nodeAddress, prefixlen: 24, scope: 'global' }] }],
  ]);
  /** UDP ports that another program has bound. */
  readonly boundPorts = new Set<number>();
  #routes: FakeRoute[] = [
    { type: 'unicast', dst: 'default', gateway: '203.0.113.254', dev: 'eth0', ...kernelRoute },
    { type: 'unicast', dst: '203.0.113.0/24', dev: 'eth0', prefsrc: nodeAddress, ...kernelRoute },
  ];

  /** `address mac` and `mac address`, of the fabric device. */
  readonly neighbours = new Map<string, string>();
  readonly forwarding = new Map<string, string>();
  #rules: FakeRule[] = [];

  get rules(): readonly FakeRule[] {
    return this.#rules;
  }

  get routes(): readonly FakeRoute[] {
    return this.#routes;
  }

  /** One command of `ip`, without the options that only change its output. @throws {IpRefusal} */
  step(command: string): void {
    const words = command.split(' ');
    const [object = '', verb = '', ...rest] = words;
    switch (`${object} ${verb}`) {
      case 'link add': {
        this.#addLink(command, rest);
        return;
      }
      case 'link set': {
        this.#setLink(command, rest);
        return;
      }
      case 'link del': {
        this.removeLink(rest[0] ?? '');
        return;
      }
      case 'route replace': {
        this.#replaceRoute(parseRoute(command, rest));
        return;
      }
      case 'route del': {
        this.#deleteRoute(parseRoute(command, rest));
        return;
      }
      case 'address replace': {
        const [, local = '', prefix, dev = ''] =
          /^([\d.]+)\/(\d+) dev (\S+) scope link noprefixroute$/.exec(rest.join(' ')) ?? unknown(command);
        const { addresses } = this.#link(dev);
        const address = { local, prefixlen: Number(prefix), scope: 'link' as const };
        if (!addresses.some((other) => other.local === local)) addresses.push(address);
        return;
      }
      case 'neigh replace': {
        const [, address = '', mac = '', dev = ''] =
          /^(\S+) lladdr (\S+) dev (\S+) nud permanent$/.exec(rest.join(' ')) ?? unknown(command);
        const link = this.#link(dev);
        const list = link.vxlan === undefined ? (link.neighbours ??= new Map()) : this.neighbours;
        list.set(address, mac);
        return;
      }
      case 'neigh del': {
        this.#link(rest[2] ?? '');
        if (!this.neighbours.delete(rest[0] ?? ''))
          throw new IpRefusal('RTNETLINK answers: No such file or directory');
        return;
      }
      case 'rule add':
      case 'rule del': {
        this.#changeRule(verb, parseRule(command, rest));
        return;
      }
      default:
        unknown(command);
    }
  }

  /** One command of `bridge`. @throws {IpRefusal} */
  bridgeStep(command: string): void {
    const add = /^fdb replace (\S+) dev (\S+) dst (\S+) self permanent$/.exec(command);
    const remove = /^fdb del (\S+) dev (\S+) self$/.exec(command);
    const [, mac = '', dev = '', dst = ''] = add ?? remove ?? unknown(command);
    this.#link(dev);
    if (add !== null) this.forwarding.set(mac, dst);
    else if (!this.forwarding.delete(mac))
      throw new IpRefusal('RTNETLINK answers: No such file or directory');
  }

  listNeighbours(): string {
    const lists = [...this.links].map(([dev, { vxlan, neighbours = [] }]) => ({
      dev,
      list: vxlan === undefined ? neighbours : this.neighbours,
    }));
    return JSON.stringify(
      lists.flatMap(({ dev, list }) =>
        [...list].map(([dst, lladdr]) => ({ dst, dev, lladdr, state: ['PERMANENT'] })),
      ),
    );
  }

  listForwarding(dev: string): string {
    if (!this.links.has(dev)) throw new IpRefusal(`Cannot find device "${dev}"`);
    return JSON.stringify(
      [...this.forwarding].map(([mac, dst]) => ({ mac, dst, flags: ['self'], state: 'permanent' })),
    );
  }

  listRules(): string {
    return JSON.stringify([
      { priority: 0, src: 'all', table: 'local' },
      ...this.#rules.map(({ text: _, ...rule }) => rule),
      { priority: 32766, src: 'all', table: 'main' },
    ]);
  }

  #changeRule(verb: string, rule: FakeRule): void {
    const rest = this.#rules.filter(({ text }) => text !== rule.text);
    if (verb === 'del' && rest.length === this.#rules.length)
      throw new IpRefusal('RTNETLINK answers: No such file or directory');
    if (verb === 'add' && rest.length < this.#rules.length)
      throw new IpRefusal('RTNETLINK answers: File exists');
    this.#rules = verb === 'add' ? [...rest, rule] : rest;
  }

  /** What Docker does after Join: the sandbox's end leaves this namespace. */
  moveToSandbox(name: string): void {
    if (!this.links.delete(name)) throw new Error(`no link ${name} to be moved into a sandbox`);
  }

  /** A link that goes takes its other end and the routes over it along. @throws {IpRefusal} */
  removeLink(name: string): void {
    const link = this.#link(name);
    this.links.delete(name);
    this.#routes = this.#routes.filter(({ dev }) => dev !== name);
    if (link.vxlan !== undefined) {
      this.neighbours.clear();
      this.forwarding.clear();
    }
    if (link.peer !== undefined && this.links.has(link.peer)) this.removeLink(link.peer);
  }

  listLinks(): string {
    return JSON.stringify([...this.links].map(([name, link]) => this.#withAddresses(name, link)));
  }

  listVxlans(): string {
    const found = [...this.links].filter(([, { vxlan }]) => vxlan !== undefined);
    return JSON.stringify(
      found.map(([name, link]) => ({
        ...summary(name, link),
        linkinfo: { info_kind: 'vxlan', info_data: link.vxlan },
      })),
    );
  }

  listAddresses(): string {
    const found = [...this.links].filter(([, { addresses }]) => addresses.length > 0);
    return JSON.stringify(found.map(([name, link]) => this.#withAddresses(name, link)));
  }

  #withAddresses(name: string, link: FakeLink) {
    return {
      ...summary(name, link),
      addr_info: link.addresses.map((address) => ({ family: 'inet', ...address, label: name })),
    };
  }

  /** @param numeric `-N`, which prints protocols as numbers */
  listRoutes(filter: (route: FakeRoute) => boolean): string {
    const found = this.#routes.filter(filter).map(({ type, table, metric, ...route }) => ({
      ...(type === 'unicast' ? {} : { type }),
      ...route,
      ...(table === 'main' ? {} : { table }),
      ...(metric === '0' ? {} : { metric: Number(metric) }),
      flags: [],
    }));
    return JSON.stringify(found);
  }

  #link(name: string): FakeLink {
    const link = this.links.get(name);
    if (link === undefined) throw new IpRefusal(`Cannot find device "${name}"`);
    return link;
  }

  #addLink(command: string, [name = '', ...words]: string[]): void {
    if (name.length > 15)
      throw new IpRefusal(`Error: argument "${name}" is wrong: "name" not a valid ifname`);
    const text = words.join(' ');
    const veth = /^mtu (\d+) type veth peer name (\S+) address ([\da-f:]{17}) mtu (\d+)$/.exec(text);
    const vxlan =
      /^(?:address (\S+) )?mtu (\d+) type vxlan id (\d+) dstport (\d+) local (\S+) nolearning$/.exec(text);
    if (veth !== null) {
      const [, mtu, peer = '', , peerMtu] = veth;
      if (this.links.has(name) || this.links.has(peer)) throw new IpRefusal('RTNETLINK answers: File exists');
      this.links.set(name, { up: false, mtu: Number(mtu), peer, addresses: [] });
      this.links.set(peer, { up: false, mtu: Number(peerMtu), peer: name, addresses: [] });
    } else if (vxlan !== null) {
      const [, mac = '', mtu, id, port, local = ''] = vxlan;
      const data = { id: Number(id), port: Number(port), local };
      const twin = [...this.links.values()].some(
        (other) => other.vxlan?.id === data.id && other.vxlan.port === data.port,
      );
      if (twin || this.links.has(name)) throw new IpRefusal('RTNETLINK answers: File exists');
      this.links.set(name, { up: false, mtu: Number(mtu), vxlan: data, mac, addresses: [] });
    } else {
      throw new Error(`the fake ip does not know: ip ${command}`);
    }
    if (name.length > 15)
      throw new IpRefusal(`Error: argument "${name}" is wrong: "name" not a valid ifname`);
  }

  #setLink(command: string, [name = '', ...words]: string[]): void {
    const link = this.#link(name);
    const text = words.join(' ');
    if (text === 'addrgenmode none') return;
    if (text !== 'up') throw new Error(`the fake ip does not know: ip ${command}`);
    if (link.vxlan !== undefined && this.boundPorts.has(link.vxlan.port))
      throw new IpRefusal('RTNETLINK answers: Address already in use');
    link.up = true;
  }

  #replaceRoute(route: FakeRoute): void {
    if (route.dev !== undefined) this.#link(route.dev);
    if (route.prefsrc !== undefined && !this.#isLocal(route.prefsrc))
      throw new IpRefusal('Error: Invalid prefsrc address.');
    this.#routes = [...this.#routes.filter((other) => slot(other) !== slot(route)), route];
  }

  #deleteRoute(route: FakeRoute): void {
    const rest = this.#routes.filter((other) => slot(other) !== slot(route));
    if (rest.length === this.#routes.length) throw new IpRefusal('RTNETLINK answers: No such process');
    this.#routes = rest;
  }

  #isLocal(address: string): boolean {
    const ofLinks = [...this.links.values()].flatMap(({ addresses }) => addresses.map(({ local }) => local));
    const ofRoutes = this.#routes.filter(({ type }) => type === 'local').map(({ dst }) => dst);
    return [...ofLinks, ...ofRoutes].includes(address);
  }
}

const kernelRoute = { table: 'main', protocol: '2', metric: '0' };

function slot({ table, dst, metric }: FakeRoute): string {
  return `${table} ${dst} ${metric}`;
}

function summary(name: string, { up, mtu, mac = '' }: FakeLink) {
  return { ifname: name, flags: up ? ['BROADCAST', 'UP', 'LOWER_UP'] : ['BROADCAST'], mtu, address: mac };
}

interface FakeRule {
  /** As it was given. */
  text: string;
  priority: number;
  dst?: string;
  dstlen?: number;
  iif?: string;
  fwmark?: string;
  fwmask?: string;
  table?: string;
  goto?: number;
  suppress_prefixlen?: number;
  protocol: string;
}

function unknown(command: string): never {
  throw new Error(`the fake ip does not know: ip ${command}`);
}

function parseRule(command: string, words: string[]): FakeRule {
  const text = words.join(' ');
  const [, priority, not, dst, dstlen, iif, mark, , mask, action, target, suppressed, protocol = ''] =
    /^pref (\d+)( not)?(?: to ([\d.]+)\/(\d+))?(?: iif (\S+))?(?: fwmark (0x[\da-f]+)(\/(0x[\da-f]+))?)? (nop|goto|lookup)(?: (\d+|main))?(?: suppress_prefixlength (\d+))? protocol (\d+)$/.exec(
      text,
    ) ?? unknown(command);
  return {
    text,
    priority: Number(priority),
    ...(not === undefined ? {} : { not: null }),
    ...(dst === undefined ? {} : { dst, dstlen: Number(dstlen) }),
    ...(iif === undefined ? {} : { iif }),
    ...(mark === undefined ? {} : { fwmark: `0x${Number(mark).toString(16)}` }),
    ...(mask === undefined ? {} : { fwmask: mask }),
    ...(action === 'nop'
      ? { nop: null }
      : action === 'goto'
        ? { goto: Number(target) }
        : { table: target ?? '' }),
    ...(suppressed === undefined ? {} : { suppress_prefixlen: Number(suppressed) }),
    protocol,
  };
}

/** Without a value. */
const flags = ['onlink'];
const attributes = ['via', 'dev', 'table', 'src', 'metric', 'scope', 'proto'];

function parseRoute(command: string, words: string[]): FakeRoute {
  const rest = [...words];
  const type = ['local', 'unreachable'].includes(rest[0] ?? '') ? (rest.shift() ?? '') : 'unicast';
  const dst = rest.shift() ?? '';
  const given = new Map<string, string>();
  while (rest.length > 0) {
    if (flags.includes(rest[0] ?? '')) rest.shift();
    const [name = '', value = ''] = rest.splice(0, 2);
    if (!attributes.includes(name) || value === '')
      throw new Error(`the fake ip does not know: ip ${command}`);
    given.set(name, value);
  }
  const dev = given.get('dev');
  const prefsrc = given.get('src');
  const gateway = given.get('via');
  return {
    type,
    dst,
    ...(dev === undefined ? {} : { dev }),
    ...(gateway === undefined ? {} : { gateway }),
    ...(prefsrc === undefined ? {} : { prefsrc }),
    table: given.get('table') ?? 'main',
    protocol: given.get('proto') ?? '3',
    metric: given.get('metric') ?? '0',
  };
}
