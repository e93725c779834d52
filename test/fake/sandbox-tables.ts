// Owns a stand-in for the nft tables of sandboxes: what each holds, and what was asked for, in order.
// Must not encode anything: test/kernel/sandbox-tables.test.ts shows that a real kernel takes it.
import { TableError, type SandboxTables, type Table } from '../../net/nft-tables.ts';

export class FakeSandboxTables implements SandboxTables {
  readonly #held = new Map<string, Map<string, Table>>();
  readonly changes: { sandbox: string; put?: string; remove?: string }[] = [];
  /** Makes changes and trials fail. */
  refuses = false;

  /** What a sandbox holds, by name. */
  of(sandbox: string): ReadonlyMap<string, Table> {
    return this.#held.get(sandbox) ?? new Map();
  }

  readonly put = (sandbox: string, table: Table): void => {
    this.changes.push({ sandbox, put: table.name });
    this.#check();
    this.#held.set(sandbox, new Map(this.of(sandbox)).set(table.name, table));
  };

  readonly remove = (sandbox: string, name: string): void => {
    this.changes.push({ sandbox, remove: name });
    this.#check();
    this.#held.get(sandbox)?.delete(name);
  };

  readonly takes = (): boolean => !this.refuses;

  #check(): void {
    if (this.refuses) throw new TableError('refused');
  }
}
