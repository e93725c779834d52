// Owns the tests of what apt is told when Debian packages are fetched.
// Must not fetch any.
import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { aptConf } from '../../../rootfs/debian.ts';

describe('Debian packages', () => {
  let dir: string;
  before(async () => (dir = await mkdtemp(join(tmpdir(), 'causeway-apt-'))));
  after(() => rm(dir, { recursive: true, force: true }));

  it('Debian packages come from signed lists only, whatever the machine’s own apt would accept', async () => {
    const options = [
      'APT::Get::AllowUnauthenticated',
      'Acquire::AllowInsecureRepositories',
      'Acquire::AllowWeakRepositories',
      'Acquire::AllowDowngradeToInsecureRepositories',
    ];
    const machines = join(dir, 'machine.conf');
    await writeFile(machines, options.map((option) => `${option} "true";\n`).join(''));
    const own = join(dir, 'apt.conf');
    await writeFile(own, aptConf(dir));
    const dump = async (...args: string[]): Promise<Map<string, string>> => {
      const { stdout } = await execa('apt-config', [...args, 'dump'], { env: { APT_CONFIG: machines } });
      return new Map(
        stdout.split('\n').flatMap((line) => {
          const [, option, value] = /^(\S+) "(.*)";$/.exec(line) ?? [];
          return option === undefined ? [] : [[option, value ?? '']];
        }),
      );
    };
    const before = await dump();
    for (const option of options) assert.equal(before.get(option), 'true', `${option} is set here`);
    const after = await dump('-c', own);
    for (const option of options) assert.equal(after.get(option), 'false', option);
  });
});
