// Owns what runs inside the virtual machine for the part `ipvs`: a lab there, and the comparison on its kernel.
// Must not be run on a machine of anybody's: it is main.ts that boots a virtual one.
//
// usage: node bench/guest.ts DATA-ROOT ROUNDS SECONDS
//   Progress goes to standard error, the result as one line of JSON to standard output.
import { readFile, writeFile } from 'node:fs/promises';
import { release } from 'node:os';
import { join } from 'node:path';
import { Lab } from '../test/lab/lab.ts';
import { readDockersPrograms } from '../test/lab/slow.ts';
import { comparePaths } from './paths.ts';

const [data, rounds, seconds] = process.argv.slice(2);
if (data === undefined) throw new Error('Which data root? See the head of guest.ts.');
const progress = (line: string): void => console.error(line);

progress("reading Docker's programs");
await readDockersPrograms();
// Docker's sandboxes take this from the machine's first namespace, where a Docker Engine would be that is not in a lab;
// without it Docker's own mesh gets no answer back.
await writeFile('/proc/sys/net/ipv4/ip_forward', '1');
await using lab = await Lab.up({ name: 'bench', data: [data], progress });
try {
  const findings = await comparePaths({
    lab,
    engine: 'ipvs',
    dockersMesh: true,
    rounds: Number(rounds),
    seconds: Number(seconds),
    progress,
  });
  console.log(JSON.stringify({ kernel: release(), findings }));
} catch (error) {
  // It is gone with the machine.
  const log = await readFile(join(lab.first.dir, 'dockerd.log'), 'utf8');
  const troubles = log.split('\n').filter((line) => /level=(warning|error|fatal)/.test(line));
  progress(`Docker's last troubles:\n${troubles.slice(-20).join('\n')}`);
  throw error;
}
