// Owns doing within this process what `nft -f -` would do, for the few elements that each container brings and takes away:
// nft is a process, and reads all there is before it changes anything. Must not decide what is done, and leaves every
// transaction in which there is anything else to nft.
import { isIPv4 } from 'node:net';
import type { InProcess } from './iproute.ts';
import { linkPrefix, table } from './names.ts';
import { attribute, how, nested, Netlink, NetlinkError, text, type Request } from './netlink.ts';
import { nftMessage, transact } from './nfnetlink.ts';

/* <linux/netfilter/nf_tables.h>. */
const inSet = { table: 1, set: 2, elements: 3 } as const;
const NFTA_LIST_ELEM = 1;
const NFTA_SET_ELEM_KEY = 1;
const NFTA_DATA_VALUE = 1;
const interfaceNameBytes = 16;

/** More are left to a process: nothing else is done in this one meanwhile. */
const maxElements = 200;

const verbs = {
  add: ['addElements', how.create],
  delete: ['deleteElements', 0],
} as const;
type Verb = keyof typeof verbs;

/** Speaks for the network namespace that this process is in now. @throws {NetlinkError} */
export function nftElements(): InProcess {
  const netlink = new Netlink('netfilter');
  return (tool, args, input, sandbox) => {
    // In sandboxes there are no such sets.
    const changes = sandbox === undefined ? read(tool, args, input) : undefined;
    if (changes === undefined) return undefined;
    try {
      transact(netlink, changes);
      return { stdout: '', stderr: '', exitCode: 0 };
    } catch (error) {
      if (!(error instanceof NetlinkError)) throw error;
      return { stdout: '', stderr: `Error: Could not process rule: ${error.message}\n`, exitCode: 1 };
    }
  };
}

/** Whether {@link nftElements} does it. */
export function areElements(...command: Parameters<InProcess>): boolean {
  return read(...command) !== undefined;
}

/** @returns undefined for what is not known */
function read(...[tool, args, input = '']: Parameters<InProcess>): Request[] | undefined {
  if (tool !== 'nft' || args.join(' ') !== '-f -' || input === '') return undefined;
  const changes: Request[] = [];
  let count = 0;
  for (const line of input.trimEnd().split('\n')) {
    const matched = /^(add|delete) element inet (\S+) (\w+) \{ (.+) \}$/.exec(line);
    if (matched?.[2] !== table) return undefined;
    const [, verb = '', , set = '', list = ''] = matched;
    const keys = list.split(', ').map(keyOf);
    if (!keys.every((key) => key !== undefined) || (count += keys.length) > maxElements) return undefined;
    changes.push(change(verb as Verb, set, keys));
  }
  return changes;
}

/** Of a link of ours or an address, and an address: in no set of intervals there is such a pair. */
function keyOf(element: string): Buffer | undefined {
  const [first = '', second = '', ...more] = element.split(' . ');
  if (more.length > 0 || !isIPv4(second)) return undefined;
  if (isIPv4(first)) return Buffer.concat([bytesOf(first), bytesOf(second)]);
  if (!first.startsWith(linkPrefix) || !/^[\w-]{1,15}$/.test(first)) return undefined;
  const name = Buffer.alloc(interfaceNameBytes);
  name.write(first);
  return Buffer.concat([name, bytesOf(second)]);
}

function bytesOf(address: string): Buffer {
  return Buffer.from(address.split('.').map(Number));
}

function change(verb: Verb, set: string, keys: readonly Buffer[]): Request {
  const elements = keys.map((key) =>
    nested(NFTA_LIST_ELEM, nested(NFTA_SET_ELEM_KEY, attribute(NFTA_DATA_VALUE, key))),
  );
  const [what, flags] = verbs[verb];
  return nftMessage(
    'inet',
    what,
    flags,
    attribute(inSet.table, text(table)),
    attribute(inSet.set, text(set)),
    nested(inSet.elements, ...elements),
  );
}
