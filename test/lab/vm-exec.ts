// Owns the command line of the virtual machine: boot, run one command in it, exit as it does.
// Must not do anything vm.ts does not offer to tests.
//
// usage: node test/lab/vm-exec.ts [--memory MIB] [--timeout SECONDS] [--env NAME=VALUE]... [--console] [--docker] [--] COMMAND...
//   --docker  with the disk of vm/docker.ts, mounted at /docker-data
import { parseArgs } from 'node:util';
import { prepareDockerDisk } from './vm/docker.ts';
import { Vm, VmError } from './vm.ts';

const { values, positionals } = parseArgs({
  options: {
    memory: { type: 'string', default: '4096' },
    timeout: { type: 'string', default: '3600' },
    env: { type: 'string', multiple: true, default: [] },
    console: { type: 'boolean', default: false },
    docker: { type: 'boolean', default: false },
  },
  allowPositionals: true,
});
const [file, ...args] = positionals;
if (file === undefined)
  throw new Error('Which command shall run in the machine? See the head of vm-exec.ts.');

const interrupted = new AbortController();
for (const name of ['SIGINT', 'SIGTERM'] as const) {
  process.once(name, () => interrupted.abort(new Error(`Ended by ${name}.`)));
}
const env = Object.fromEntries(
  values.env.map((pair) => {
    const at = pair.indexOf('=');
    return [pair.slice(0, at), pair.slice(at + 1)];
  }),
);
try {
  const progress = (line: string): void => console.error(`vm: ${line}`);
  const { signal } = interrupted;
  await using vm = await Vm.boot({
    name: 'exec',
    memoryMiB: Number(values.memory),
    signal,
    progress,
    ...(values.docker ? { disks: [await prepareDockerDisk({ progress, signal })] } : {}),
    ...(values.console ? { onConsole: (text) => process.stderr.write(text) } : {}),
  });
  const { exitCode } = await vm.run([file, ...args], {
    env,
    timeoutMs: Number(values.timeout) * 1000,
    onStdout: (text) => process.stdout.write(text),
    onStderr: (text) => process.stderr.write(text),
    signal,
  });
  process.exitCode = exitCode;
} catch (error) {
  if (!(error instanceof VmError) && !interrupted.signal.aborted) throw error;
  console.error(`vm: ${(error as Error).message}`);
  process.exitCode = 1;
}
