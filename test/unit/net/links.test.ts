// Unit test of net/links.ts: what counts as gone when a link is deleted.
import assert from 'node:assert/strict';
import { deleteLink } from '../../../net/links.ts';
import { CommandError, type Runner } from '../../../net/run.ts';

describe('deleteLink', () => {
  const refusing =
    (stderr: string): Runner =>
    () =>
      Promise.reject(new CommandError('ip link del cw-e1', 1, stderr));

  for (const gone of [
    'Cannot find device "cw-e1"',
    // The sandbox at its other end was removed after ip had looked the name up.
    'RTNETLINK answers: No such device',
  ])
    it(`deleteLink succeeds when the link is gone already: ${gone}`, async () => {
      await deleteLink(refusing(gone), 'cw-e1');
    });

  it('deleteLink passes on any other failure', async () => {
    await assert.rejects(
      deleteLink(refusing('RTNETLINK answers: Operation not permitted'), 'cw-e1'),
      /ip link del cw-e1: RTNETLINK answers: Operation not permitted/,
    );
  });
});
