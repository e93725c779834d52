// Owns running commands inside the virtual machine, for the harness outside, over a virtio serial port.
// Must not import anything but Node's own modules: it is compiled to a single file of the initramfs.
//
// usage: node agent.js PORT
//   It ends, and with it the machine, when the harness closes the port.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createReadStream, createWriteStream, openSync } from 'node:fs';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import type { CommandLine, Reply, Request } from './protocol.ts';

// Open once: a virtio serial port can be held by one opener only.
const fd = openSync(process.argv[2]!, 'r+');
const requests = createInterface({ input: createReadStream('', { fd, autoClose: false }) });
const replies = createWriteStream('', { fd, autoClose: false });
const processes = new Map<number, number>();

async function send(reply: Reply): Promise<void> {
  if (!replies.write(`${JSON.stringify(reply)}\n`)) await once(replies, 'drain');
}

async function run(id: number, { argv: [file, ...args], cwd, env, input }: CommandLine): Promise<void> {
  // detached: a process group of its own, so that a kill reaches its children too.
  const child = spawn(file, args, { cwd, env, detached: true, stdio: 'pipe' });
  // A command that does not read its input ends the pipe early; that is no failure.
  child.stdin.on('error', () => {}).end(input);
  const failed = new Promise<string>((resolve) => child.once('error', (error) => resolve(error.message)));
  const closed = once(child, 'close') as Promise<[number | null, NodeJS.Signals | null]>;
  closed.catch(() => {});
  if (child.pid === undefined) return send({ id, failed: await failed });

  processes.set(id, child.pid);
  const forward = async (from: Readable, name: 'stdout' | 'stderr') => {
    for await (const chunk of from) {
      const data = (chunk as Buffer).toString('base64');
      await send(name === 'stdout' ? { id, stdout: data } : { id, stderr: data });
    }
  };
  await Promise.all([forward(child.stdout, 'stdout'), forward(child.stderr, 'stderr')]);
  const [code, signal] = await closed;
  processes.delete(id);
  await send({ id, exit: { code, signal } });
}

function kill(id: number, signal: NodeJS.Signals): void {
  const leader = processes.get(id);
  if (leader === undefined) return;
  try {
    process.kill(-leader, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

await send({ ready: true });
for await (const line of requests) {
  const request = JSON.parse(line) as Request;
  if ('kill' in request) kill(request.id, request.kill);
  else void run(request.id, request.start);
}
process.exit();
