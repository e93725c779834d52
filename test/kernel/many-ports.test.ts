// Owns the tests of services that publish thousands of ports, with real packets, for the engine that
// CAUSEWAY_TEST_LB names.
// Must not test how they are written (unit/store/port-ranges.test.ts).
import assert from 'node:assert/strict';
import { slowness } from '../slowness.ts';
import type { Peer } from './peer.ts';
import { clientAddress, nodeAddress, World, type TestEndpoint, type TestNetwork } from './world.ts';

const engine = process.env['CAUSEWAY_TEST_LB'] ?? 'nft';
const [first, middle, last] = [10_000, 13_750, 17_500];
const all = (): string[] =>
  Array.from({ length: last - first + 1 }, (_, at) => `${first + at}:${first + at}/udp`);

describe(`thousands of published ports, engine ${engine}`, function () {
  this.timeout(180_000 * slowness);
  let world: World;
  let front: TestNetwork;
  let client: Peer;

  before(async () => {
    world = await World.up({ env: () => ({ CAUSEWAY_LB: engine }) });
    front = await world.network('front', { subnet: '10.77.0.0/16' });
    client = world.peer(world.client);
  });
  after(() => world.down());

  async function server(name: string): Promise<TestEndpoint> {
    const endpoint = await world.attach(front);
    for (const port of [first, middle, last]) await world.peer(endpoint.sandbox).serve({ name, udp: port });
    await world.peer(endpoint.sandbox).serve({ name, tcp: 80 });
    return endpoint;
  }

  async function served(name: string): Promise<void> {
    for (const port of [first, middle, last]) {
      const { server: by, client: seen } = await client.ask(nodeAddress, port, { protocol: 'udp' });
      assert.deepEqual([by, seen], [name, clientAddress], String(port));
    }
  }

  it('thousands of ports of a service, the same on its tasks, are one virtual server, beside that of another service', async () => {
    const pbx = await server('pbx');
    const web = await server('web');
    const big = await world.service('pbx', front, all(), [pbx]);
    const small = await world.service('web', front, ['8080:80'], [web]);
    await served('pbx');
    assert.equal((await client.ask(nodeAddress, 8080)).server, 'web');
    const { virtualServers } = await world.status();
    assert.equal(virtualServers.filter(({ id }) => id.startsWith('port-udp')).length, 1);
    await world.removeService(big);
    await world.removeService(small);
    for (const endpoint of [pbx, web]) await world.detach(endpoint);
  });
});
