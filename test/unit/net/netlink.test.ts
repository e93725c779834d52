// Owns the tests of what a refusal of the kernel says.
// Must not need a kernel.
import assert from 'node:assert/strict';
import { constants } from 'node:os';
import { NetlinkError } from '../../../net/netlink.ts';

it('a netlink error tells what the kernel does not know from what fails at the moment', () => {
  const { ENOENT, EINVAL, ERANGE, EOPNOTSUPP, EPROTONOSUPPORT, ENOMEM, EPERM, EMFILE, EBUSY } =
    constants.errno;
  for (const code of [ENOENT, EINVAL, ERANGE, EOPNOTSUPP, EPROTONOSUPPORT])
    assert.equal(new NetlinkError(code).isUnsupported, true, String(code));
  for (const code of [ENOMEM, EPERM, EMFILE, EBUSY])
    assert.equal(new NetlinkError(code).isUnsupported, false, String(code));
});
