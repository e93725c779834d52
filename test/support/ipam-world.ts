// Owns what the IPAM tests share: an allocator as a plugin has it, spoken to as Docker speaks.
// Must not hold expectations.
import { openEmbedded } from '../../store/embedded.ts';
import type { Store } from '../../store/store.ts';
import type { Truth } from '../../ipam/collect.ts';
import { Ipam, type CollectReport, type IpamOptions } from '../../ipam/ipam.ts';
import type { Space } from '../../ipam/poolid.ts';

export const gatewayOptions = { RequestAddressType: 'com.docker.network.gateway' };

/** One node's allocator. Several share a store as the nodes of a cluster do. */
export class Node {
  readonly store: Store;
  readonly ipam: Ipam;
  readonly inUse: { cidr: string; what: string }[] = [];
  taken: { cidr: string; what: string }[] | undefined = [];
  readonly avoided: { cidr: string; what: string }[] = [];
  /** Name of the service by network and VIP. */
  readonly vips = new Map<string, string>();
  now = 1_000_000;
  /** Leases that were not brought to what was answered. */
  readonly failures: string[] = [];

  constructor(store: Store = openEmbedded(':memory:'), options: Partial<IpamOptions> = {}) {
    this.store = store;
    this.ipam = new Ipam(store, {
      defaultPool: '10.64.0.0/12',
      defaultSize: 20,
      nodeId: 'one',
      inUse: () => Promise.resolve(this.inUse),
      taken: () => Promise.resolve(this.taken),
      avoided: () => Promise.resolve(this.avoided),
      serviceAt: (network, address) => Promise.resolve(this.vips.get(`${network} ${address}`)),
      onFailure: (lease) => this.failures.push(lease),
      now: () => this.now,
      ...options,
    });
  }

  async pool(space: Space, pool = '', subPool = ''): Promise<string> {
    return (await this.ipam.requestPool({ space, pool, subPool, v6: false })).poolId;
  }

  async gateway(poolId: string, address = ''): Promise<string> {
    return (await this.ipam.requestAddress({ poolId, address, options: gatewayOptions })).address;
  }

  async address(poolId: string, address = ''): Promise<string> {
    const granted = await this.ipam.requestAddress({ poolId, address, options: {} });
    await this.ipam.idle();
    return granted.address;
  }

  /** Why an address that is granted for want of another will not be taken by any node. */
  async refusedAddress(poolId: string, address = ''): Promise<string | undefined> {
    return (await this.ipam.requestAddress({ poolId, address, options: {} })).refused;
  }

  /** Resolves when it is done, which Docker does not wait for. */
  async release(poolId: string, address: string): Promise<void> {
    await this.ipam.releaseAddress({ poolId, address: address.split('/')[0] ?? '' });
    await this.ipam.idle();
  }

  bind(space: Space, pool: string, network: string, gateway?: string): Promise<string | undefined> {
    return this.ipam.bindPool({ space, pool, network, gateway });
  }

  unbind(space: Space, network: string): Promise<void> {
    return this.ipam.unbindPool({ space, network });
  }

  collect(truth: Truth): Promise<CollectReport> {
    return this.ipam.collect({ ...truth, graceMs: 60_000 });
  }

  /** As swarmkit's allocator creates a network. @returns the pool id, and what AllocateNetwork would carry on */
  async allocateNetwork(
    network: string,
    subnet: string,
  ): Promise<{ poolId: string; refusal: string | undefined }> {
    const poolId = await this.pool('global', subnet);
    const gateway = await this.gateway(poolId);
    return { poolId, refusal: await this.bind('global', subnet, network, gateway) };
  }

  /** As swarmkit's allocator removes one: FreeNetwork first. */
  async freeNetwork(network: string, poolId: string, gateway: string): Promise<void> {
    await this.unbind('global', network);
    await this.release(poolId, gateway);
    await this.ipam.releasePool(poolId);
  }

  /** As libnetwork creates a Swarm network on the node of its first task. */
  async createNetwork(network: string, subnet: string, gateway: string): Promise<string> {
    const poolId = await this.pool('local', subnet);
    await this.gateway(poolId, gateway);
    const refusal = await this.bind('local', subnet, network, gateway);
    if (refusal === undefined) return poolId;
    await this.release(poolId, gateway);
    await this.ipam.releasePool(poolId);
    throw new Error(refusal);
  }

  /** As libnetwork removes it: releases first, DeleteNetwork last. */
  async deleteNetwork(network: string, poolId: string, gateway: string): Promise<void> {
    await this.release(poolId, gateway);
    await this.ipam.releasePool(poolId);
    await this.unbind('local', network);
  }

  /** Keys under ipam/ without that prefix, but for the guard, which is no state. */
  async keys(): Promise<string[]> {
    const { entries } = await this.store.list('ipam/');
    return entries.map((entry) => entry.key.slice('ipam/'.length)).filter((key) => !key.startsWith('guard/'));
  }

  async leases(): Promise<Record<string, string[]>> {
    const { entries } = await this.store.list('ipam/leases/');
    return Object.fromEntries(
      entries.map(({ key, value }) => [key.split('/').at(-1), (value as { holders: string[] }).holders]),
    ) as Record<string, string[]>;
  }
}
