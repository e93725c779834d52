// Owns what is wrong with a set of leases, given what Docker says is in use. Pure.
// Must not ask anybody.

/** One use of an address, as Docker tells it. */
export interface Use {
  address: string;
  /** Who must have the lease: `global` for what Swarm gave out, `node/ID` for a container. */
  holder: string;
  /** For a person: `container ID on n1`, `VIP of web`. A task and its container are one: they share it. */
  by: string;
}

export interface Lease {
  address: string;
  holders: readonly string[];
}

export interface Audit {
  /** Addresses that two have. */
  duplicates: string[];
  /** Leases somebody holds and does not use. */
  leaked: string[];
  /** In use without a lease of who uses it. */
  unleased: string[];
}

export function audit(uses: readonly Use[], leases: readonly Lease[]): Audit {
  const byAddress = Map.groupBy(uses, ({ address }) => address);
  const held = new Map(leases.map(({ address, holders }) => [address, holders]));
  const isUsed = (address: string, holder: string): boolean =>
    byAddress.get(address)?.some((use) => use.holder === holder) ?? false;
  return {
    duplicates: [...byAddress].flatMap(([address, list]) => {
      const users = new Set(list.map(({ by }) => by));
      return users.size > 1 ? [`${address}: ${[...users].join(', ')}`] : [];
    }),
    leaked: leases.flatMap(({ address, holders }) =>
      holders.filter((holder) => !isUsed(address, holder)).map((holder) => `${address}: ${holder}`),
    ),
    unleased: uses
      .filter(({ address, holder }) => !(held.get(address)?.includes(holder) ?? false))
      .map(({ address, holder, by }) => `${address}: ${by} (${holder})`),
  };
}
