// Owns the tests of forgetting flows in a real conntrack, while others delete them too.
// Must not test what clients notice of it; datapath.test.ts does.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { forgetFlows } from '../../net/conntrack.ts';
import { createRunner, type Runner } from '../../net/run.ts';
import { pluginDir } from '../../rootfs/build.ts';
import { slowness } from '../slowness.ts';
import { Namespace } from './world.ts';

const count = 2_000;

describe('flows to addresses that answer no more', function () {
  this.timeout(60_000 * slowness);
  let namespace: Namespace;
  let run: Runner;

  before(async () => {
    namespace = await Namespace.make(`cw-test-${randomBytes(4).toString('hex')}`);
    run = createRunner({
      root: join(pluginDir, 'rootfs'),
      prefix: ['nsenter', `--net=${namespace.path}`],
    });
  });
  after(() => namespace.remove());

  /** Makes flows of UDP to a published address that balancing gave to `to`. */
  async function flows(to: string): Promise<void> {
    const published = to.replace('10.64.0', '203.0.113');
    const lines = Array.from({ length: count }, (_, at) => {
      const [from, port] = [`198.51.100.${at % 250}`, 1_024 + Math.floor(at / 250)];
      const asked = `--orig-src ${from} --orig-dst ${published} --sport ${port} --dport 53`;
      const answer = `--reply-src ${to} --reply-dst ${from} --reply-port-src 53 --reply-port-dst ${port}`;
      return `-I -p udp -t 60 ${asked} ${answer}\n`;
    });
    await run('conntrack', ['-R', '-'], { input: lines.join(''), opensInput: true });
  }

  const left = async (): Promise<string[]> =>
    [...(await run('conntrack', ['-L', '-p', 'udp'])).matchAll(/ src=(10\.\S+)/g)].map(([, to = '']) => to);

  it('flows to dead addresses are all forgotten, also when somebody else deletes them at the same time', async () => {
    const retired = ['10.64.0.3', '10.64.0.4'];
    const other = '10.64.0.5';
    await flows(other);
    // They meet in nearly every round.
    for (let round = 0; round < 5; round += 1) {
      for (const to of retired) await flows(to);
      assert.equal((await left()).length, 3 * count);
      await Promise.all(
        [1, 2, 3].map(() => forgetFlows(run, { endless: retired.map((to) => ({ to })), all: [] })),
      );
      const rest = await left();
      assert.deepEqual([rest.length, new Set(rest)], [count, new Set([other])]);
    }
  });
});
