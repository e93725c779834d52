// Owns a model of nftables as far as Causeway's transactions use it: one table, atomically changed, with the kernel's
// refusals. Must reject every line it does not know, so that a test cannot pass on a rule language of its own.

interface FakeSet {
  kind: 'set' | 'map';
  declaration: string;
  elements: Map<string, string>;
}

interface FakeChain {
  hook: string | undefined;
  rules: string[];
}

/** What the kernel answers to a line of a transaction that cannot be. */
export class NftRefusal extends Error {
  override readonly name = 'NftRefusal';
}

const absent = 'No such file or directory';
const exists = 'File exists';
const busy = 'Device or resource busy';

const line =
  /^(?<verb>add|delete|flush) (?<kind>table|set|map|chain|rule|element|ct timeout) inet causeway(?: (?<name>[\w.-]+))?(?: (?<rest>.+))?$/;

/** The table `inet causeway`. */
class FakeTable {
  readonly sets = new Map<string, FakeSet>();
  readonly chains = new Map<string, FakeChain>();
  readonly timeouts = new Map<string, string>();

  clone(): FakeTable {
    const copy = new FakeTable();
    for (const [name, set] of this.sets) copy.sets.set(name, { ...set, elements: new Map(set.elements) });
    for (const [name, chain] of this.chains) copy.chains.set(name, { ...chain, rules: [...chain.rules] });
    for (const [name, timeout] of this.timeouts) copy.timeouts.set(name, timeout);
    return copy;
  }

  set(name: string): FakeSet {
    const set = this.sets.get(name);
    if (set === undefined) throw new NftRefusal(absent);
    return set;
  }

  chain(name: string): FakeChain {
    const chain = this.chains.get(name);
    if (chain === undefined) throw new NftRefusal(absent);
    return chain;
  }

  addSet(kind: 'set' | 'map', name: string, declaration: string): void {
    if (!this.sets.has(name)) this.sets.set(name, { kind, declaration, elements: new Map() });
  }

  addChain(name: string, hook: string | undefined): void {
    if (!this.chains.has(name)) this.chains.set(name, { hook, rules: [] });
  }

  addRule(name: string, rule: string): void {
    for (const [, set = ''] of rule.matchAll(/@(\w+)/g)) this.set(set);
    for (const [, target = ''] of rule.matchAll(/(?:jump|goto) ([\w.-]+)/g)) this.chain(target);
    for (const [, timeout = ''] of rule.matchAll(/ct timeout set "([^"]+)"/g))
      if (!this.timeouts.has(timeout)) throw new NftRefusal(absent);
    this.chain(name).rules.push(rule);
  }

  addTimeout(name: string, declaration: string): void {
    if ((this.timeouts.get(name) ?? declaration) !== declaration) throw new NftRefusal(exists);
    this.timeouts.set(name, declaration);
  }

  deleteTimeout(name: string): void {
    const used = [...this.chains.values()].some(({ rules }) =>
      rules.some((rule) => rule.includes(`"${name}"`)),
    );
    if (used) throw new NftRefusal(busy);
    if (!this.timeouts.delete(name)) throw new NftRefusal(absent);
  }

  addElement(name: string, key: string, value: string): void {
    const { elements } = this.set(name);
    const target = /^goto (.+)$/.exec(value)?.[1];
    if (target !== undefined) this.chain(target);
    if ((elements.get(key) ?? value) !== value) throw new NftRefusal(exists);
    elements.set(key, value);
  }

  deleteElement(name: string, key: string): void {
    if (!this.set(name).elements.delete(key)) throw new NftRefusal(absent);
  }

  deleteChain(name: string): void {
    const { rules } = this.chain(name);
    const isTarget = [...this.sets.values()].some(({ elements }) =>
      [...elements.values()].includes(`goto ${name}`),
    );
    if (rules.length > 0 || isTarget) throw new NftRefusal(busy);
    this.chains.delete(name);
  }
}

export class FakeNft {
  #table: FakeTable | undefined;

  /** The table's rules by chain, its elements by set, its timeout policies; undefined without a table. */
  get table():
    | {
        chains: ReadonlyMap<string, FakeChain>;
        sets: ReadonlyMap<string, FakeSet>;
        timeouts: ReadonlyMap<string, string>;
      }
    | undefined {
    return this.#table;
  }

  /**
   * `nft -f -`: all lines or none.
   * @throws {NftRefusal} as the kernel would
   */
  load(text: string): void {
    this.#table = this.check(text);
  }

  /** `nft --check -f -`. @returns what would be. @throws {NftRefusal} as the kernel would */
  check(text: string): FakeTable | undefined {
    let table = this.#table?.clone();
    for (const command of text.split('\n').filter((each) => each !== '')) table = step(table, command);
    return table;
  }

  /** `nft -j list table inet causeway`, without what Causeway does not read. @throws {NftRefusal} */
  list(): string {
    const table = this.#table;
    if (table === undefined) throw new NftRefusal(absent);
    const sets = [...table.sets].map(([name, { kind, declaration, elements }]) => ({
      [kind]: { family: 'inet', name, table: 'causeway', ...elementsOf(declaration, elements) },
    }));
    const chains = [...table.chains.keys()].map((name) => ({
      chain: { family: 'inet', table: 'causeway', name },
    }));
    const timeouts = [...table.timeouts.keys()].map((name) => ({
      'ct timeout': { family: 'inet', name, table: 'causeway' },
    }));
    const rules = [...table.chains].flatMap(([chain, { rules: list }]) =>
      list.map(() => ({ rule: { family: 'inet', table: 'causeway', chain, expr: [] } })),
    );
    return JSON.stringify({
      nftables: [{ metainfo: { json_schema_version: 1 } }, ...timeouts, ...sets, ...chains, ...rules],
    });
  }
}

function step(table: FakeTable | undefined, command: string): FakeTable | undefined {
  const { verb = '', kind = '', name = '', rest = '' } = line.exec(command)?.groups ?? {};
  const what = `${verb} ${kind}`;
  if (what === 'add table') return table ?? new FakeTable();
  if (table === undefined) throw new NftRefusal(absent);
  switch (what) {
    case 'delete table':
      return undefined;
    case 'add set':
    case 'add map':
      table.addSet(kind as 'set' | 'map', name, body(command, rest));
      return table;
    case 'add chain':
      table.addChain(name, rest === '' ? undefined : body(command, rest));
      return table;
    case 'add ct timeout':
      table.addTimeout(name, body(command, rest));
      return table;
    case 'delete ct timeout':
      table.deleteTimeout(name);
      return table;
    case 'add rule':
      table.addRule(name, rest);
      return table;
    case 'add element':
      for (const [key, value] of elements(command, rest)) table.addElement(name, key, value);
      return table;
    case 'delete element':
      for (const [key] of elements(command, rest)) table.deleteElement(name, key);
      return table;
    case 'flush chain':
      table.chain(name).rules.length = 0;
      return table;
    case 'delete chain':
      table.deleteChain(name);
      return table;
    default:
      throw new Error(`the fake nft does not know: ${command}`);
  }
}

function body(command: string, text: string): string {
  const inner = /^\{ (.+) \}$/.exec(text)?.[1];
  if (inner === undefined) throw new Error(`the fake nft does not know: ${command}`);
  return inner;
}

function elements(command: string, text: string): [string, string][] {
  return body(command, text)
    .split(', ')
    .map((element) => {
      const [key = '', value = ''] = element.split(' : ');
      return [key, value];
    });
}

/** Elements in libnftables' JSON; the key is absent without any. */
function elementsOf(declaration: string, list: ReadonlyMap<string, string>): { elem?: unknown[] } {
  if (list.size === 0) return {};
  const [keyType = '', valueType] = /^type(?:of)? ([^;]+);/.exec(declaration)?.[1]?.split(' : ') ?? [];
  const elem = [...list].map(([key, value]) =>
    valueType === undefined ? valueOf(keyType, key) : [valueOf(keyType, key), valueOf(valueType, value)],
  );
  return { elem };
}

function valueOf(type: string, text: string): unknown {
  const types = type.split(' . ');
  if (types.length > 1)
    return { concat: text.split(' . ').map((part, at) => valueOf(types[at] ?? '', part)) };
  if (type === 'verdict') return { goto: { target: text.replace('goto ', '') } };
  if (type === 'inet_service' || type === 'mark' || type === 'ct zone') return Number(text);
  const [addr = '', len] = text.split('/');
  return len === undefined ? text : { prefix: { addr, len: Number(len) } };
}
