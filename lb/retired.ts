// Owns which real servers took connections a moment ago and take none any more.
// Must not know what is done about it.
import { difference } from '../delta/list.ts';
import { takers, type VirtualServer } from './model.ts';

/** Follows the virtual servers from one state to the next; the cost is that of the change. */
export class Retirements {
  #servers: readonly VirtualServer[] = [];
  /** Address to the number of virtual servers it takes connections of. */
  readonly #taking = new Map<string, number>();

  /** @returns the addresses that took connections at the last call, and are no real server that takes any now */
  next(servers: readonly VirtualServer[]): string[] {
    const { removed, added } = difference(this.#servers, servers);
    this.#servers = servers;
    const count = ({ address }: { address: string }, by: number): void => {
      this.#taking.set(address, (this.#taking.get(address) ?? 0) + by);
    };
    for (const taker of added.flatMap(takers)) count(taker, 1);
    const left = removed.flatMap(takers);
    for (const taker of left) count(taker, -1);
    const retired = new Set(
      left.map(({ address }) => address).filter((address) => this.#taking.get(address) === 0),
    );
    for (const address of retired) this.#taking.delete(address);
    return [...retired];
  }
}
