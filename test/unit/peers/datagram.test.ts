// Owns the tests of the heartbeat on the wire.
// Must not need sockets.
import assert from 'node:assert/strict';
import { createSecretKey, randomBytes } from 'node:crypto';
import {
  datagramBytes,
  decode,
  digestOf,
  encode,
  noRevision,
  revisionDigestOf,
  type Datagram,
} from '../../../peers/datagram.ts';

const secret = createSecretKey('the secret of the cluster', 'utf8');
const a = digestOf('node-a');
const b = digestOf('node-b');
const datagram: Datagram = {
  kind: 'ask',
  interval: 250,
  sender: a,
  stamp: 0x0123456789abcdefn,
  echo: 0xfedcba9876543210n,
  revision: revisionDigestOf('42'),
};

describe('a heartbeat', () => {
  it('a heartbeat is read as it was written, in the same number of bytes both ways', () => {
    for (const kind of ['ask', 'answer'] as const) {
      const bytes = encode({ ...datagram, kind }, b, secret);
      assert.equal(bytes.length, datagramBytes);
      assert.deepEqual(decode(bytes, b, secret), { ...datagram, kind });
    }
  });

  it('a heartbeat is accepted only by the node it is for, and only with the secret', () => {
    const bytes = encode(datagram, b, secret);
    assert.equal(decode(bytes, a, secret), undefined);
    assert.equal(decode(bytes, digestOf('node-c'), secret), undefined);
    assert.equal(decode(bytes, b, createSecretKey('another secret', 'utf8')), undefined);
  });

  it('a heartbeat with any bit changed is dropped', () => {
    const bytes = encode(datagram, b, secret);
    for (let bit = 0; bit < bytes.length * 8; bit += 1) {
      const changed = Buffer.from(bytes);
      changed[bit >> 3]! ^= 1 << (bit & 7);
      assert.equal(decode(changed, b, secret), undefined, `bit ${bit}`);
    }
  });

  it('garbage of any length is not taken for a heartbeat', () => {
    const bytes = encode(datagram, b, secret);
    for (let length = 0; length < 200; length += 1) {
      assert.equal(decode(randomBytes(length), b, secret), undefined);
      if (length !== bytes.length) {
        assert.equal(
          decode(Buffer.concat([bytes, bytes, bytes, bytes]).subarray(0, length), b, secret),
          undefined,
        );
      }
    }
  });

  it('a heartbeat has room for every revision, and for none', () => {
    assert.equal(revisionDigestOf(''), noRevision);
    assert.notEqual(revisionDigestOf('1'), revisionDigestOf('2'));
    const none = { ...datagram, revision: noRevision };
    assert.deepEqual(decode(encode(none, b, secret), b, secret), none);
  });
});
