// Owns the test that nobody is refused in the moment in which the rules change: at full rate, as that moment is microseconds.
// Must not test tasks that come and go: cluster.test.ts does, with what Docker does meanwhile.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { execa } from 'execa';
import { slowness } from '../slowness.ts';
import { nodeAddress, World, type TestEndpoint, type TestService } from './world.ts';

const engine = process.env['CAUSEWAY_TEST_LB'] ?? 'nft';
const durationMs = 20_000;

describe(`rules that change under load, engine ${engine}`, function () {
  this.timeout(120_000 * slowness);
  let world: World;
  let service: TestService;
  const web: TestEndpoint[] = [];

  before(async () => {
    // What is written to the log for each command costs more than the command.
    world = await World.up({ env: () => ({ CAUSEWAY_LB: engine, CAUSEWAY_LOG: 'info' }) });
    const front = await world.network('front');
    for (const name of ['web0', 'web1', 'web2', 'web3']) {
      const endpoint = await world.attach(front);
      await world.peer(endpoint.sandbox).serve({ name, tcp: 80 });
      web.push(endpoint);
    }
    service = await world.service('web', front, ['8080:80'], web);
  });
  after(() => world.down());

  it('no connection to a published port is refused while the shares of its tasks change', async function () {
    const program = join(import.meta.dirname, 'connect-program.ts');
    const client = execa(
      'nsenter',
      [`--net=${world.client.path}`, process.execPath, program, nodeAddress, '8080'],
      { stdin: 'pipe' },
    );
    let changes = 0;
    for (const began = performance.now(); performance.now() - began < durationMs; changes += 1)
      await world.scale(service, web, [1 + (changes % 3), 1, 1, 1 + (changes % 2)]);
    client.stdin.end();
    const { connected, failures } = JSON.parse((await client).stdout) as {
      connected: number;
      failures: string[];
    };
    this.test!.title += `: ${connected} connections, ${changes} changes`;
    assert.ok(connected > 0 && changes > 0);
    assert.deepEqual(failures, []);
  });
});
