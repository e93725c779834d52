// Owns writing nft tables of a few rules into sandboxes within this process: there `nft -f -` would be two processes for each
// container. A table is data, in nft's words as far as they are needed here. Must not know what a table is for.
import { isIPv4 } from 'node:net';
import { inNamespace } from './namespace.ts';
import { attribute, how, nested, Netlink, NetlinkError, text, type Request } from './netlink.ts';
import { nftMessage, rehearse, transact } from './nfnetlink.ts';

/** Of family `ip`. */
export interface Table {
  name: string;
  chains: readonly Chain[];
}

/** `type filter`, with policy accept. */
export interface Chain {
  name: string;
  hook: keyof typeof hooks;
  priority: number;
  rules: readonly (readonly Statement[])[];
}

type Value = string | number;

/** An expression of nft, or a statement. */
export type Statement =
  | { field: Field; is: Value; of?: number }
  | { field: Field; isNot: Value }
  /** With the checksums that cover it. */
  | { field: keyof typeof checksums; set: Value }
  | { tproxy: { address: string; port: number } | 'ip daddr' }
  | 'notrack';

/** The tables of sandboxes; tests that need no kernel pass their own. */
export interface SandboxTables {
  /**
   * In place of the former one of its name, if there is one.
   * @param sandbox path of its network namespace
   * @throws {NamespaceError} @throws {TableError}
   */
  put: (sandbox: string, table: Table) => void;
  /** Succeeds where there is none. @throws {NamespaceError} @throws {TableError} */
  remove: (sandbox: string, name: string) => void;
  /** Whether this kernel knows all that is in such a table; it is not made. */
  takes: (table: Table) => boolean;
}

/** The kernel does not take a table. */
export class TableError extends Error {
  override readonly name = 'TableError';
}

/* <linux/netfilter.h>, <linux/netfilter_ipv4.h>, <linux/netfilter/nf_tables.h>. Numbers are sent with the highest byte first. */
const hooks = { prerouting: 0, output: 3 } as const;
export const priority = { raw: -300, mangle: -150, dstnat: -100 } as const;
/** What `meta l4proto` may be. */
export const protocols = { tcp: 6, udp: 17 } as const;
/** What `ct direction` may be. */
export const directions = { original: 0, reply: 1 } as const;
export const tcpFlags = { fin: 1, syn: 2, rst: 4, ack: 16 } as const;

const AF_INET = 2;
const NF_ACCEPT = 1;
const NLM_F_APPEND = 0x800;
const ofTable = { name: 1 } as const;
const ofChain = { table: 1, name: 3, hook: 4, policy: 5, type: 7 } as const;
const ofHook = { number: 1, priority: 2 } as const;
const ofRule = { table: 1, chain: 2, expressions: 4 } as const;
const NFTA_LIST_ELEM = 1;
const ofExpression = { name: 1, data: 2 } as const;
const NFTA_DATA_VALUE = 1;
const ofMeta = { to: 1, key: 2 } as const;
const ofConnection = { to: 1, key: 2, direction: 3 } as const;
const ofPayload = {
  ...{ to: 1, base: 2, offset: 3, length: 4, from: 5 },
  ...{ checksumType: 6, checksumOffset: 7, checksumFlags: 8 },
} as const;
const ofComparison = { register: 1, operator: 2, value: 3 } as const;
const ofBitwise = { from: 1, to: 2, length: 3, mask: 4, xor: 5 } as const;
const ofImmediate = { to: 1, value: 2 } as const;
const ofTproxy = { family: 1, address: 2, port: 3 } as const;
const operators = { equal: 0, unequal: 1 } as const;
/** NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER. */
const headers = { network: 1, transport: 2 } as const;
const NFT_PAYLOAD_CSUM_INET = 1;
const NFT_PAYLOAD_L4CSUM_PSEUDOHDR = 1;

/** Registers of 16 bytes. */
const first = 1;
const second = 2;

type Source =
  { meta: number } | { ct: number; direction?: number } | { header: keyof typeof headers; offset: number };

/** What a rule looks at, and of how many bytes it is. `ct original`: as the first packet of the connection had it. */
const fields = {
  iifname: { meta: 6, bytes: 16 },
  'meta l4proto': { meta: 16, bytes: 1 },
  'ct direction': { ct: 1, bytes: 1 },
  'ct original ip daddr': { ct: 20, direction: directions.original, bytes: 4 },
  'ct original proto-dst': { ct: 12, direction: directions.original, bytes: 2 },
  'ip saddr': { header: 'network', offset: 12, bytes: 4 },
  'ip daddr': { header: 'network', offset: 16, bytes: 4 },
  'udp sport': { header: 'transport', offset: 0, bytes: 2 },
  'tcp flags': { header: 'transport', offset: 13, bytes: 1 },
} as const satisfies Record<string, Source & { bytes: number }>;

export type Field = keyof typeof fields;

/** Where in its header the checksum over a field is, and whether those of TCP and UDP cover it besides. */
const checksums = {
  'ip saddr': { offset: 10, flags: NFT_PAYLOAD_L4CSUM_PSEUDOHDR },
  'udp sport': { offset: 6, flags: 0 },
} as const;

export const sandboxTables: SandboxTables = {
  put: (sandbox, table) => {
    inSandbox(sandbox, table.name, (netlink) => {
      const former = isThere(netlink, table.name) ? [deletion(table.name)] : [];
      transact(netlink, [...former, ...creation(table)]);
    });
  },
  remove: (sandbox, name) => {
    inSandbox(sandbox, name, (netlink) => {
      if (isThere(netlink, name)) transact(netlink, [deletion(name)]);
    });
  },
  takes: (table) => {
    try {
      speak((netlink) => {
        rehearse(netlink, creation(table));
      });
      return true;
    } catch (error) {
      // The answer counts for as long as the process runs: a lack of memory, say, tells nothing of the kernel.
      if (error instanceof NetlinkError) return !error.isUnsupported;
      throw error;
    }
  },
};

function inSandbox(sandbox: string, name: string, act: (netlink: Netlink) => void): void {
  try {
    inNamespace(sandbox, () => {
      speak(act);
    });
  } catch (error) {
    if (!(error instanceof NetlinkError)) throw error;
    throw new TableError(
      `the kernel refuses the nft table ip ${name} in ${sandbox}: ${error.message} (it has to have nf_tables with the ` +
        'expressions ct and tproxy, CONFIG_NFT_CT and CONFIG_NFT_TPROXY, and memory)',
      { cause: error },
    );
  }
}

/** Nothing stays open: it would keep the namespace alive. */
function speak(act: (netlink: Netlink) => void): void {
  const netlink = new Netlink('netfilter');
  try {
    act(netlink);
  } finally {
    netlink.close();
  }
}

/** Asked, so that nothing is deleted in a new sandbox: on some kernels a deletion waits for an RCU grace period. */
function isThere(netlink: Netlink, name: string): boolean {
  try {
    netlink.batch([nftMessage('ip', 'getTable', 0, attribute(ofTable.name, text(name)))]);
    return true;
  } catch (error) {
    if (error instanceof NetlinkError && error.isMissing) return false;
    throw error;
  }
}

function deletion(name: string): Request {
  return nftMessage('ip', 'deleteTable', 0, attribute(ofTable.name, text(name)));
}

function creation({ name: table, chains }: Table): Request[] {
  return [
    nftMessage('ip', 'addTable', how.create, attribute(ofTable.name, text(table))),
    ...chains.flatMap(({ name, hook, priority: at, rules }) => [
      nftMessage(
        ...(['ip', 'addChain', how.create] as const),
        attribute(ofChain.table, text(table)),
        attribute(ofChain.name, text(name)),
        nested(ofChain.hook, u32be(ofHook.number, hooks[hook]), u32be(ofHook.priority, at)),
        u32be(ofChain.policy, NF_ACCEPT),
        attribute(ofChain.type, text('filter')),
      ),
      ...rules.map((rule) =>
        nftMessage(
          ...(['ip', 'addRule', how.create | NLM_F_APPEND] as const),
          attribute(ofRule.table, text(table)),
          attribute(ofRule.chain, text(name)),
          nested(ofRule.expressions, ...rule.flatMap(expressionsOf)),
        ),
      ),
    ]),
  ];
}

function expressionsOf(statement: Statement): Buffer[] {
  if (statement === 'notrack') return [expression('notrack')];
  if ('tproxy' in statement) {
    const to = statement.tproxy;
    const family = u32be(ofTproxy.family, AF_INET);
    const address = u32be(ofTproxy.address, first);
    if (to === 'ip daddr') return [load(to), expression('tproxy', family, address)];
    return [
      immediate(first, bytesOf(to.address, 4)),
      immediate(second, bytesOf(to.port, 2)),
      expression('tproxy', family, address, u32be(ofTproxy.port, second)),
    ];
  }
  const { bytes } = fields[statement.field];
  if ('set' in statement) return [immediate(first, bytesOf(statement.set, bytes)), store(statement.field)];
  if ('isNot' in statement)
    return [load(statement.field), compare('unequal', bytesOf(statement.isNot, bytes))];
  const mask = statement.of === undefined ? [] : [keep(bytesOf(statement.of, bytes))];
  return [load(statement.field), ...mask, compare('equal', bytesOf(statement.is, bytes))];
}

/** Into the first register. */
function load(field: Field): Buffer {
  const source: Source & { bytes: number } = fields[field];
  if ('meta' in source) return expression('meta', u32be(ofMeta.to, first), u32be(ofMeta.key, source.meta));
  if ('ct' in source) {
    const { direction } = source;
    return expression(
      'ct',
      u32be(ofConnection.to, first),
      u32be(ofConnection.key, source.ct),
      ...(direction === undefined ? [] : [attribute(ofConnection.direction, Buffer.from([direction]))]),
    );
  }
  return expression('payload', u32be(ofPayload.to, first), ...placeOf(source));
}

/** From the first register. */
function store(field: keyof typeof checksums): Buffer {
  const { offset, flags } = checksums[field];
  return expression(
    'payload',
    u32be(ofPayload.from, first),
    ...placeOf(fields[field]),
    u32be(ofPayload.checksumType, NFT_PAYLOAD_CSUM_INET),
    u32be(ofPayload.checksumOffset, offset),
    u32be(ofPayload.checksumFlags, flags),
  );
}

function placeOf({
  header,
  offset,
  bytes,
}: Extract<Source, { header: unknown }> & { bytes: number }): Buffer[] {
  return [
    u32be(ofPayload.base, headers[header]),
    u32be(ofPayload.offset, offset),
    u32be(ofPayload.length, bytes),
  ];
}

function keep(mask: Buffer): Buffer {
  return expression(
    'bitwise',
    u32be(ofBitwise.from, first),
    u32be(ofBitwise.to, first),
    u32be(ofBitwise.length, mask.length),
    data(ofBitwise.mask, mask),
    data(ofBitwise.xor, Buffer.alloc(mask.length)),
  );
}

function compare(operator: keyof typeof operators, value: Buffer): Buffer {
  return expression(
    'cmp',
    u32be(ofComparison.register, first),
    u32be(ofComparison.operator, operators[operator]),
    data(ofComparison.value, value),
  );
}

function immediate(register: number, value: Buffer): Buffer {
  return expression('immediate', u32be(ofImmediate.to, register), data(ofImmediate.value, value));
}

function expression(name: string, ...attributes: Buffer[]): Buffer {
  return nested(
    NFTA_LIST_ELEM,
    attribute(ofExpression.name, text(name)),
    ...(attributes.length === 0 ? [] : [nested(ofExpression.data, ...attributes)]),
  );
}

function data(type: number, value: Buffer): Buffer {
  return nested(type, attribute(NFTA_DATA_VALUE, value));
}

function u32be(type: number, value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32BE(value);
  return attribute(type, bytes);
}

/** As it is in a packet; a name is filled up with zeros. */
function bytesOf(value: Value, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  if (typeof value === 'number') bytes.writeUIntBE(value, 0, length);
  else if (isIPv4(value)) bytes.set(value.split('.').map(Number));
  else bytes.write(value);
  return bytes;
}
