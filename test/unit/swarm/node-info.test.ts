// Owns the tests of how often Docker is asked about the node itself.
// Must not test what is made of the answer.
import assert from 'node:assert/strict';
import type { Info, Node } from '../../../swarm/docker.ts';
import { NodeInfo } from '../../../swarm/node-info.ts';

describe('what Docker says of the node itself', () => {
  const { signal } = new AbortController();
  const nodes = (...ids: string[]): Node[] => ids.map((ID) => ({ ID })) as Node[];
  let now = 0;
  let asked = 0;
  let swarm: Info['Swarm'];
  const info = new NodeInfo(
    {
      info: () => {
        asked += 1;
        return Promise.resolve({ Swarm: swarm });
      },
    },
    () => now,
  );
  /** How often Docker is asked for it. */
  const asks = async (list?: Node[]): Promise<number> => {
    asked = 0;
    assert.equal(await info.get(list, signal), swarm);
    return asked;
  };

  it('the node’s own info is read every ten seconds while the Swarm lists the node, else at once', async () => {
    swarm = { NodeID: 'a', ControlAvailable: true };
    assert.equal(await asks(nodes('a', 'b')), 1);
    now += 9_000;
    assert.equal(await asks(nodes('a', 'b')), 0);
    now += 1_000;
    assert.equal(await asks(nodes('a', 'b')), 1);
    swarm = { NodeID: 'c', ControlAvailable: true };
    assert.equal(await asks(nodes('c')), 1);
  });

  it('the node’s own info is read at once when a manager gets no list any more, as after it left', async () => {
    swarm = { NodeID: '', LocalNodeState: 'inactive', ControlAvailable: false };
    assert.equal(await asks(), 1);
  });

  it('the node’s own info is read once a second where there is no list, as on a worker', async () => {
    assert.equal(await asks(), 0);
    now += 1_000;
    assert.equal(await asks(), 1);
  });
});
