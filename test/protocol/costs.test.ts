// Owns the bounds of what a container's start and end may cost: processes, commits to the store, and for how many of
// them Docker waits.
// Must not measure time; bench/ does.
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { isKnown } from '../../net/iproute.ts';
import { areElements } from '../../net/nft-elements.ts';
import type { Runner } from '../../net/run.ts';
import type { Store } from '../../store/store.ts';
import { openEmbedded } from '../../store/embedded.ts';
import { HeldStore } from '../fake/held-store.ts';
import { FakeKernel } from '../fake/kernel.ts';
import { bare, endpointRequest, joinRequest, Node, type DockerNetwork } from './node.ts';

const front = 'f'.repeat(64);
/** How long a call may take that waits for no commit, in milliseconds. */
const patience = 400;

const id = (at: number): string => at.toString(16).padStart(12, 'e').padEnd(64, '0');

/** A kernel that tells which commands started a process. */
class CountingKernel extends FakeKernel {
  readonly processes: string[] = [];
  override readonly run: Runner = async (tool, args, options = {}) => {
    const isOwn = isKnown(tool, args, options.input) || areElements(tool, args, options.input);
    if (options.sandbox !== undefined || !isOwn) {
      this.processes.push([tool, ...args].join(' '));
      // Others come meanwhile.
      await sleep(50);
    }
    return this.execute(tool, args, options);
  };
}

describe('what a container costs', () => {
  let kernel: CountingKernel;
  let store: Store;
  let held: HeldStore;
  let node: Node;
  let network: DockerNetwork;

  beforeEach(async () => {
    kernel = new CountingKernel();
    store = openEmbedded(':memory:');
    held = new HeldStore(store);
    node = await Node.start({ kernel, store: held.store });
    network = await node.network(front);
    // What the first one of a network costs is no container's.
    await node.endpoint(network, id(0));
    await node.join(network, id(0));
    await forget();
  });
  afterEach(async () => {
    held.open();
    await node.stop();
    await store.close();
  });

  async function forget(): Promise<void> {
    await node.ipam.idle();
    kernel.processes.length = 0;
    held.commits = 0;
  }

  async function commits(): Promise<number> {
    await node.ipam.idle();
    return held.commits;
  }

  /** How many commits have to be let through, one after the other, until Docker has its answer. */
  async function waitsFor(method: string, body: unknown): Promise<[number, Record<string, unknown>]> {
    held.hold();
    let waited = 0;
    const answer = node.client.call(method, body);
    const isOver = answer.then(
      () => true,
      () => true,
    );
    while (!(await Promise.race([isOver, sleep(patience, false)]))) {
      waited += 1;
      await held.next();
    }
    held.open();
    return [waited, await answer];
  }

  it('a container start takes no process and three commits: both halves of its address, and the endpoint', async () => {
    await node.endpoint(network, id(1));
    assert.deepEqual(kernel.processes, []);
    await node.join(network, id(1));
    assert.deepEqual(kernel.processes, []);
    assert.equal(await commits(), 3);
  });

  it('a container end takes no process and three commits', async () => {
    const address = await node.endpoint(network, id(1));
    await node.join(network, id(1));
    await forget();
    await node.remove(network, id(1), address);
    assert.deepEqual(kernel.processes, []);
    assert.equal(await commits(), 3);
  });

  it('Docker waits for at most two commits at a container’s start, and for one at its end', async () => {
    const waited: Record<string, number> = {};
    const call = async (name: string, body: unknown): Promise<Record<string, unknown>> => {
      const [commits, answer] = await waitsFor(name, body);
      waited[name] = (waited[name] ?? 0) + commits;
      return answer;
    };
    const request = { Address: '', Options: null };
    const given = await call('IpamDriver.RequestAddress', { ...request, PoolID: network.globalPool });
    const address = given['Address'] as string;
    const Address = bare(address);
    await call('IpamDriver.RequestAddress', { ...request, PoolID: network.localPool, Address });
    await call('NetworkDriver.CreateEndpoint', endpointRequest(network, id(1), address));
    await node.ipam.idle();
    await call('NetworkDriver.Join', joinRequest(network, id(1)));
    const ids = { NetworkID: network.id, EndpointID: id(1) };
    await call('NetworkDriver.RevokeExternalConnectivity', ids);
    await call('NetworkDriver.Leave', ids);
    await call('NetworkDriver.DeleteEndpoint', ids);
    await call('IpamDriver.ReleaseAddress', { PoolID: network.localPool, Address });
    await call('IpamDriver.ReleaseAddress', { PoolID: network.globalPool, Address });
    assert.deepEqual(waited, {
      'IpamDriver.RequestAddress': 1,
      'NetworkDriver.CreateEndpoint': 0,
      'NetworkDriver.Join': 1,
      'NetworkDriver.RevokeExternalConnectivity': 0,
      'NetworkDriver.Leave': 1,
      'NetworkDriver.DeleteEndpoint': 0,
      'IpamDriver.ReleaseAddress': 0,
    });
  });

  it('many containers that join at once take no process, and one commit each', async () => {
    const ids = Array.from({ length: 20 }, (_, at) => id(at + 1));
    for (const each of ids) await node.endpoint(network, each);
    await forget();
    await Promise.all(ids.map((each) => node.join(network, each)));
    assert.deepEqual(kernel.processes, []);
    assert.equal(await commits(), 20);
  });
});
