// Owns letting a new connection end the rest of an old one in a sandbox. The reasons are in
// docs/adr/0015-reopened-connections.md. Must not know which sandboxes there are.
import { table } from './names.ts';
import { priority, protocols, tcpFlags, type SandboxTables, type Table } from './nft-tables.ts';

/** In a sandbox, of its own: what leads questions for names there comes and goes without it. */
const reopenTable = `${table}-reopen`;

/**
 * A SYN to a connection in TIME_WAIT or FIN-WAIT-2 is a listener's, if there is one: `tproxy` takes the old socket away,
 * finds the listener not transparent, does not match, and the packet goes on as ever.
 */
function rules(addresses: readonly string[], name = reopenTable): Table {
  const { fin, syn, rst, ack } = tcpFlags;
  return {
    name,
    chains: [
      {
        name: 'reopen',
        // Behind what the container itself redirects (at dstnat): the socket is known by what arrives.
        ...{ hook: 'prerouting', priority: priority.dstnat + 10 },
        rules: addresses.map((address) => [
          { field: 'ip daddr', is: address },
          { field: 'meta l4proto', is: protocols.tcp },
          { field: 'tcp flags', is: syn, of: fin | syn | rst | ack },
          { tproxy: 'ip daddr' },
        ]),
      },
    ],
  };
}

/**
 * @param sandbox path of its network namespace
 * @param addresses of its endpoints
 * @throws {NamespaceError} @throws {TableError}
 */
export function letReopen(
  tables: Pick<SandboxTables, 'put' | 'remove'>,
  sandbox: string,
  addresses: readonly string[],
): void {
  if (addresses.length === 0) tables.remove(sandbox, reopenTable);
  else tables.put(sandbox, rules(addresses));
}

/** Whether this kernel can (CONFIG_NFT_TPROXY). */
export function canReopen(tables: Pick<SandboxTables, 'takes'>): boolean {
  return tables.takes(rules(['127.0.0.1'], `${table}-trial`));
}
