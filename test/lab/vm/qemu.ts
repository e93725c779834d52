// Owns the QEMU process of one virtual machine: its command line, its console, its end.
// Must not know what runs inside: ../vm.ts talks to the agent through the port.
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import type { Duplex } from 'node:stream';
import type { Parts } from './parts.ts';

/**
 * What programs find and use, they get emulated: without wide registers, and what comes with them, Node starts in three quarters
 * of the time and JavaScript takes as much less.
 */
const cpu = 'qemu64,ssse3=on,sse4.1=on,sse4.2=on,popcnt=on,cx16=on,rdrand=on,rdtscp=on,svm=off';

/** How much of the console is kept, in characters. */
const consoleLimit = 64 * 1024;

/** A disk image of the host, seen as /dev/vda, /dev/vdb, … What is written to it is lost with the machine. */
export interface Disk {
  /** Path of a raw image. */
  image: string;
  /** Directory in the machine on which its file system (ext4) is mounted; it is made when missing. */
  at: string;
}

export interface MachineOptions {
  memoryMiB: number;
  disks: Disk[];
  /** Called with what the kernel and process 1 write to the console, as it comes. */
  onConsole: (text: string) => void;
}

export class Machine {
  /** Two ways to the agent's port: a stream of bytes each. */
  readonly port: Duplex;
  /** Resolves when the process has ended, for whatever reason. */
  readonly ended: Promise<void>;
  readonly #process: ChildProcess;
  #console = '';

  constructor(parts: Parts, { memoryMiB, disks, onConsole }: MachineOptions) {
    const qemu = [parts.qemu, ...qemuArguments(parts, memoryMiB, disks)];
    // The machine must not outlive its harness, not even one that was killed. Not by execa: it gives a further
    // descriptor one direction, and the port has two.
    this.#process = spawn('setpriv', ['--pdeathsig', 'KILL', '--', ...qemu], {
      stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
      env: { ...process.env, LD_LIBRARY_PATH: parts.libraries },
    });
    this.port = this.#process.stdio[3] as unknown as Duplex;
    // QEMU's end resets the connection; `ended` tells.
    this.port.on('error', () => {});
    const keep = (chunk: Buffer) => {
      const text = chunk.toString('latin1');
      this.#console = (this.#console + text).slice(-consoleLimit);
      onConsole(text);
    };
    this.#process.stdout!.on('data', keep);
    this.#process.stderr!.on('data', keep);
    this.#process.on('error', (error) => keep(Buffer.from(`${error.message}\n`)));
    // Not 'exit': what it wrote last is to be in the console by then.
    this.ended = once(this.#process, 'close').then(
      () => {},
      () => {},
    );
  }

  /** The last lines of the console, or of what QEMU itself said. */
  consoleTail(lines = 60): string {
    return this.#console.replaceAll('\r', '').trimEnd().split('\n').slice(-lines).join('\n');
  }

  /** Pulls the plug. Nothing inside is worth an orderly end: all it can write to is in its memory. */
  async kill(): Promise<void> {
    this.#process.kill('SIGKILL');
    await this.ended;
  }
}

function qemuArguments(parts: Parts, memoryMiB: number, disks: Disk[]): string[] {
  return [
    ...parts.firmware.flatMap((dir) => ['-L', dir]),
    ...['-machine', 'pc', '-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
    // Emulation on purpose, also where /dev/kvm exists: a nested one may hang without an error, and figures are to be
    // comparable between machines. One processor: with two, runc livelocked. la57 off: it makes each walk through
    // the page tables a fifth longer.
    ...['-accel', 'tcg,thread=single,tb-size=1024', '-cpu', cpu, '-smp', '1'],
    ...['-m', `${memoryMiB}M`],
    ...['-chardev', 'stdio,id=console,signal=off', '-serial', 'chardev:console'],
    ...['-device', 'virtio-serial-pci', '-chardev', 'socket,id=agent,fd=3'],
    ...['-device', 'virtserialport,chardev=agent,nr=1,name=agent'],
    ...['-fsdev', 'local,id=host,path=/,security_model=none,readonly=on,multidevs=remap'],
    ...['-device', 'virtio-9p-pci,fsdev=host,mount_tag=host'],
    // snapshot: changes go to an unlinked file in TMPDIR.
    ...disks.flatMap(({ image }) => ['-drive', `file=${image},if=virtio,format=raw,snapshot=on`]),
    ...['-kernel', parts.kernel, '-initrd', parts.initramfs, '-append', kernelArguments(parts)],
  ];
}

function kernelArguments(parts: Parts): string {
  const environment = {
    NODE: process.execPath,
    MODULES: parts.modules,
    KMOD: parts.kmod,
    LIBRARIES: parts.libraries,
  };
  return [
    'console=ttyS0 quiet',
    // A panic ends QEMU at once, and with it every wait for an answer.
    'panic=-1 oops=panic',
    // Guards that cost an emulated processor a lot and guard nothing here.
    'mitigations=off lsm= audit=0',
    'tsc=reliable no_timer_check',
    // QEMU finds translated code again by its virtual address. At random addresses every start of a program translates
    // the loader and the C library anew: 44 ms instead of 4.
    'norandmaps nokaslr',
    // Words the kernel does not know become process 1's environment.
    ...Object.entries(environment).map(([name, value]) => `${name}="${value}"`),
  ].join(' ');
}
