// Owns the tests of what is known of Docker's own networks, and of a node whose records are its own alone.
// Must not need Docker.
import assert from 'node:assert/strict';
import { isApart, whyNotAlone } from '../../../plugin/apart.ts';
import { poolsOf, subnetsOf } from '../../../plugin/taken.ts';
import { openEmbedded } from '../../../store/embedded.ts';
import { openRecords } from '../../../store/records.ts';
import type { Network, Node } from '../../../swarm/docker.ts';

const network = (Name: string, Driver: string, Scope: string, ...subnets: string[]): Network => ({
  ...{ Id: Name, Name, Driver, Scope, Internal: false },
  IPAM: { Driver: 'default', Config: subnets.map((Subnet) => ({ Subnet })) },
});

describe('what Docker has for itself', () => {
  it('Docker’s own subnets are those of the Swarm’s networks of its drivers, and not what one host has', () => {
    const list = [
      network('ingress', 'overlay', 'swarm', '10.0.0.0/24'),
      network('bridge', 'bridge', 'local', '172.17.0.0/16'),
      network('front', 'causeway/net:latest', 'swarm', '10.64.0.0/20'),
      { ...network('host', 'host', 'local'), IPAM: null },
    ];
    assert.deepEqual(subnetsOf(list), [
      { cidr: '10.0.0.0/24', what: "the subnet of Docker's network ingress" },
    ]);
  });

  it('Docker’s own pools count if somebody chose them: by default they are nearly everything', () => {
    assert.deepEqual(
      poolsOf(['10.0.0.0/8', '10.64.0.0/16']).map(({ cidr }) => cidr),
      ['10.64.0.0/16'],
    );
  });
});

describe('a node whose records are its own', () => {
  const node = (ID: string, manager: boolean, ...plugins: string[]): Node => ({
    ...{ ID, Status: { State: 'ready' }, ManagerStatus: manager ? { Leader: false } : null },
    Description: {
      Hostname: `host-${ID}`,
      Engine: { Plugins: plugins.map((Name) => ({ Type: 'Network', Name })) },
    },
  });
  const networks = [network('front', 'causeway/net:latest', 'swarm')];
  const look = (...nodes: Node[]) => ({
    ...{ networks, addressPools: [] },
    swarm: { leader: true, services: [], tasks: [], nodes, unreadable: new Map<string, string>() },
  });
  const plugin = 'causeway/net:latest';

  it('a node with its own records is apart as a worker, and where another manager may lead', () => {
    assert.equal(isApart({ networks, addressPools: [], swarm: undefined }), true);
    assert.equal(isApart(look(node('1', true), node('2', true))), true);
    assert.equal(isApart(look(node('1', true), node('2', false))), false);
    assert.equal(isApart(look()), false, 'it is in no Swarm');
  });

  it('a node with its own records is warned of others with Causeway, not of those with Docker alone', async () => {
    const store = openEmbedded(':memory:');
    const records = openRecords(store);
    const addresses = { subnet: '10.64.0.0/20', gateway: '10.64.0.1', internal: false };
    await records.networks.put('front', { v: 1, id: 'front', ...addresses, allocated: true });
    const alone = look(node('1', true, plugin), node('2', false, 'overlay', 'bridge'));
    assert.equal(await whyNotAlone(alone, records), undefined);
    const several = look(node('1', true, plugin), node('2', false, 'overlay', plugin));
    assert.match(
      (await whyNotAlone(several, records)) ?? '',
      /on host-1, host-2, .*set CAUSEWAY_STORE to one/,
    );
    await store.close();
  });
});
