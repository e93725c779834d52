// Owns the tests of what netlink's messages tell of Causeway's objects.
// Must not need a kernel: what real ones send is in test/kernel/datapath.test.ts.
import assert from 'node:assert/strict';
import { lossIn } from '../../../net/watch.ts';

function message(type: number, body: number[]): Buffer {
  const bytes = Buffer.alloc(16 + body.length);
  bytes.writeUInt32LE(bytes.length, 0);
  bytes.writeUInt16LE(type, 4);
  bytes.set(body, 16);
  return bytes;
}
const attribute = (type: number, value: Buffer): number[] => {
  const length = 4 + value.length;
  return [length, 0, type, 0, ...value, ...new Array<number>(-length & 3).fill(0)];
};
const route = (protocol: number): number[] => [2, 32, 0, 0, 254, protocol, 0, 1, 0, 0, 0, 0];
const rule = (protocol: number): number[] => [
  ...[2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0],
  ...attribute(6, Buffer.from([1, 0, 0, 0])),
  ...attribute(21, Buffer.from([protocol])),
];
const ofTable = (name: string): number[] => [1, 0, 0, 0, ...attribute(1, Buffer.from(`${name}\0`))];

describe('lossIn', () => {
  const losses = {
    'a route': ['routes', message(25, route(197))],
    'a policy rule': ['routes', message(33, rule(197))],
    'the table': ['nft', message(0x0a02, ofTable('causeway'))],
    'an element of a set': ['nft', message(0x0a0e, ofTable('causeway'))],
  } as const;
  for (const [what, [kind, bytes]] of Object.entries(losses))
    it(`netlink: ${what} is noticed, behind another message too`, () => {
      assert.equal(lossIn(bytes), kind);
      assert.equal(lossIn(Buffer.concat([message(24, route(197)), bytes])), kind);
    });

  const others = {
    'a route of others': message(25, route(2)),
    'a rule of others': message(33, rule(3)),
    'a table of others': message(0x0a02, ofTable('causeway2')),
    'an element that came': message(0x0a0c, ofTable('causeway')),
    'half a message': message(25, route(197)).subarray(0, 20),
    nothing: Buffer.alloc(0),
  };
  for (const [what, bytes] of Object.entries(others))
    it(`netlink: ${what} is ignored`, () => {
      assert.equal(lossIn(bytes), undefined);
    });
});
