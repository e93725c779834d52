// Owns how many published ports fit into a record: neighbours that are led alike are written as one.
// Must not know whose ports they are.

/** What a port is led to, besides its numbers. */
interface Port {
  port: number;
  targetPort: number;
}

/** A port as it is written. */
export type Stored<T extends Port> = T & {
  /** How many neighbours this one stands for, itself among them: each is led to the next port of the container. */
  count?: number;
};

/**
 * Shorter rows are written port by port, as before there were ranges: a node with an earlier version reads the first port
 * of a range, and leaves the others to Docker's own mesh.
 */
const shortest = 64;

/** @returns the ports, each for itself */
export function unfoldPorts<T extends Port>(stored: readonly (T & { count?: number | undefined })[]): T[] {
  return stored.flatMap(({ count, ...first }) => {
    if (count === undefined) return [first as unknown as T];
    return Array.from({ length: count }, (_, at) => ({
      ...(first as unknown as T),
      port: first.port + at,
      targetPort: first.targetPort + at,
    }));
  });
}

/** @returns the same ports, long rows of neighbours as one */
export function foldPorts<T extends Port>(ports: readonly T[]): Stored<T>[] {
  const stored: Stored<T>[] = [];
  let row: T[] = [];
  const close = (): void => {
    const [first] = row;
    if (first !== undefined && row.length >= shortest) stored.push({ ...first, count: row.length });
    else stored.push(...row);
    row = [];
  };
  for (const port of ports) {
    const [first] = row;
    if (first !== undefined && !isNext(first, port, row.length)) close();
    row.push(port);
  }
  close();
  return stored;
}

function isNext<T extends Port>(first: T, other: T, distance: number): boolean {
  if (other.port !== first.port + distance || other.targetPort !== first.targetPort + distance) return false;
  const keys = Object.keys(first) as (keyof T)[];
  return (
    keys.length === Object.keys(other).length &&
    keys.every((key) => key === 'port' || key === 'targetPort' || first[key] === other[key])
  );
}
