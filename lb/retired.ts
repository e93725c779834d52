// Owns which real servers took connections a moment ago and take none any more.
// Must not know what is done about it.
import { difference } from '../delta/list.ts';
import { takers, type VirtualServer } from './model.ts';

/** Follows the virtual servers from one state to the next; the cost is that of the change. */
export class Retirements {
  #servers: readonly VirtualServer[] = [];
  /** Address to the number of virtual servers it takes connections of. */
  readonly #taking = new Map<string, number>();
  readonly #retired = new Set<string>();

  /** @returns the addresses that took connections once, are no real server that takes any now, and are not done with */
  next(servers: readonly VirtualServer[]): string[] {
    const { removed, added } = difference(this.#servers, servers);
    this.#servers = servers;
    const count = ({ address }: { address: string }, by: number): void => {
      this.#taking.set(address, (this.#taking.get(address) ?? 0) + by);
    };
    for (const taker of added.flatMap(takers)) {
      count(taker, 1);
      this.#retired.delete(taker.address);
    }
    const left = removed.flatMap(takers);
    for (const taker of left) count(taker, -1);
    for (const { address } of left) if (this.#taking.get(address) === 0) this.#retired.add(address);
    for (const address of this.#retired) this.#taking.delete(address);
    return [...this.#retired];
  }

  /** What was to be done about these is done. */
  done(addresses: readonly string[]): void {
    for (const address of addresses) this.#retired.delete(address);
  }
}
