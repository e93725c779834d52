// Owns the tests of senders of datagrams that never stop and never change their port, as routers send their logs, while what
// they send to comes, goes and changes; for the engine CAUSEWAY_TEST_LB names.
// Must not test who is balanced to: datapath.test.ts does.
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { clientAddress, nodeAddress, World, type TestEndpoint, type TestNetwork } from './world.ts';
import { slowness } from '../slowness.ts';
import type { Peer } from './peer.ts';

/** Milliseconds for some answers, at one question each 50 ms. */
const enough = 400 * slowness;

const engine = process.env['CAUSEWAY_TEST_LB'] ?? 'nft';

describe(`senders that never stop, engine ${engine}`, function () {
  this.timeout(120_000 * slowness);
  let world: World;
  let front: TestNetwork;
  let client: Peer;
  let asker: Peer;
  let localPort = 30_000;

  before(async () => {
    world = await World.up({ env: () => ({ CAUSEWAY_LB: engine }) });
    front = await world.network('front');
    client = world.peer(world.client);
    asker = world.peer((await world.attach(front)).sandbox);
  });
  after(() => world.down());

  async function container(name: string): Promise<TestEndpoint> {
    const endpoint = await world.attach(front);
    await world.peer(endpoint.sandbox).serve({ name, tcp: 80, udp: 80 });
    return endpoint;
  }

  /** `docker run -p`, of a container that has this name. */
  async function run(name: string, port: number, address = ''): Promise<TestEndpoint> {
    const endpoint = await container(name);
    await world.publish(endpoint, [`${address === '' ? '' : `${address}:`}${port}:80/udp`]);
    await world.startContainer(endpoint);
    return endpoint;
  }

  /** Sends from the world, and from a container by the gateway. @returns what waits until this one alone answers both */
  async function send(port: number): Promise<(name: string) => Promise<void>> {
    const senders: [Peer, string, string][] = [
      [client, nodeAddress, `world ${port}`],
      [asker, front.gateway, `container ${port}`],
    ];
    for (const [peer, address, key] of senders)
      await peer.stream(key, address, port, { localPort: (localPort += 1), everyMs: 50 });
    return (name) =>
      world.until(async () => {
        await sleep(enough);
        const heard = await Promise.all(senders.map(([peer, , key]) => peer.answered(key)));
        return heard.every((servers) => servers.length > 3 && servers.every((server) => server === name));
      });
  }

  for (const address of ['', nodeAddress])
    it(`UDP senders reach a container that is started under their packets, and the one that follows it${address && ', at one address'}`, async () => {
      const port = address === '' ? 5514 : 5515;
      const sender = { localPort: (localPort += 1), everyMs: 50 };
      await client.stream(`${port}`, nodeAddress, port, sender);
      const answers = (name: string): Promise<void> =>
        world.until(async () => {
          await sleep(enough);
          const heard = await client.answered(`${port}`);
          return heard.length > 3 && heard.every((server) => server === name);
        });
      const one = await run('one', port, address);
      await answers('one');
      await world.detach(one);
      const two = await run('two', port, address);
      await answers('two');
      await world.detach(two);
    });

  it('UDP senders reach a service that is deployed under their packets, is removed, and deployed again', async () => {
    const reaches = await send(5520);
    for (const name of ['first', 'second']) {
      const task = await container(name);
      const service = await world.service(name, front, ['5520:80/udp'], [task]);
      await reaches(name);
      await world.removeService(service);
      await world.detach(task);
    }
  });

  it('UDP senders follow a port from one service to another while both go on', async () => {
    const [left, right] = [await container('left'), await container('right')];
    const one = await world.service('one', front, ['5530:80/udp', '5531:80/udp', '5532:80'], [left]);
    const other = await world.service('other', front, ['5533:80/udp'], [right]);
    const [moving, staying] = [await send(5530), await send(5531)];
    await moving('left');
    // --publish-rm here, --publish-add there.
    const ports = (service: { id: string }) =>
      world.docker.services.find(({ ID }) => ID === service.id)?.Endpoint?.Ports ?? [];
    const [moved] = ports(one).splice(0, 1);
    ports(other).push(moved ?? assert.fail());
    world.docker.hint();
    await moving('right');
    await staying('left');
    assert.equal((await client.ask(nodeAddress, 5532)).client, clientAddress);
    assert.equal((await client.ask(nodeAddress, 5533, { protocol: 'udp' })).server, 'right');
    await world.removeService(one);
    await world.removeService(other);
  });

  it('UDP senders reach a port that is added to a service, on which others go on', async () => {
    const task = await container('task');
    const service = await world.service('task', front, ['5540:80'], [task]);
    await client.open('kept', nodeAddress, 5540);
    const added = await send(5541);
    const { Endpoint } = world.docker.services.find(({ ID }) => ID === service.id) ?? {};
    Endpoint?.Ports?.push({ Protocol: 'udp', PublishedPort: 5541, TargetPort: 80, PublishMode: 'ingress' });
    world.docker.hint();
    await added('task');
    assert.equal((await client.use('kept')).server, 'task');
    await world.removeService(service);
  });
});
