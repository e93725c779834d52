// Owns the tests of reading and forgetting flows in a real conntrack, while others delete them too.
// Must not test what clients notice of it; datapath.test.ts does.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { kernelConntrack, type Conntrack, type Flows } from '../../net/conntrack.ts';
import { pluginDir } from '../../rootfs/build.ts';
import { runTool } from '../lab/plugin-process.ts';
import { slowness } from '../slowness.ts';
import { Namespace } from './world.ts';

const count = 2_000;
const published = '203.0.113.4';

/** A flow as conntrack(8) is told of it. */
interface Given {
  protocol?: 'tcp' | 'udp' | 'sctp';
  /** Of TCP. */
  state?: string;
  from?: string;
  asked?: string;
  port: number;
  to: string;
  targetPort?: number;
  zone?: number;
}

describe('flows to addresses that answer no more', function () {
  this.timeout(60_000 * slowness);
  let namespace: Namespace;
  let directory: string;
  let conntrack: Conntrack;

  before(async () => {
    namespace = await Namespace.make(`cw-test-${randomBytes(4).toString('hex')}`);
    directory = await mkdtemp(join(tmpdir(), 'causeway-flows-'));
    conntrack = kernelConntrack({ namespace: namespace.path });
  });
  beforeEach(async () => {
    await tool('-F');
  });
  after(async () => {
    await namespace.remove();
    await rm(directory, { recursive: true });
  });

  const tool = (...args: string[]): Promise<string> => runTool(namespace.path, 'conntrack', args);

  /** Has the kernel remember them, each from another port of its client. */
  async function make(flows: readonly Given[]): Promise<void> {
    const lines = flows.map(
      (
        {
          protocol = 'udp',
          state,
          from = '198.51.100.1',
          asked = published,
          port,
          to,
          targetPort = port,
          zone,
        },
        at,
      ) => {
        const source = 1_024 + at;
        const question = `--orig-src ${from} --orig-dst ${asked} --sport ${source} --dport ${port}`;
        const answer = `--reply-src ${to} --reply-dst ${from} --reply-port-src ${targetPort} --reply-port-dst ${source}`;
        const more = [
          ...(state === undefined ? [] : ['--state', state]),
          ...(protocol === 'sctp' ? ['--orig-vtag', 1, '--reply-vtag', 2] : []),
          ...(zone === undefined ? [] : ['--orig-zone', zone]),
        ];
        return `-I -p ${protocol} -t 60 ${question} ${answer} ${more.join(' ')}\n`;
      },
    );
    // It opens its input by name, which a pipe's end in another root has not.
    const file = join(directory, 'flows');
    await writeFile(file, lines.join(''));
    const root = join(pluginDir, 'rootfs');
    await execa('nsenter', [`--net=${namespace.path}`, `${root}/usr/sbin/conntrack`, '-R', file], {
      env: { LD_LIBRARY_PATH: `${root}/usr/lib/x86_64-linux-gnu` },
    });
  }

  /** @returns who answers, of each flow that there is */
  const left = async (): Promise<string[]> =>
    [...(await tool('-L')).matchAll(/ src=(10\.\S+)/g)].map(([, to = '']) => to).sort();

  it('flows to dead addresses are all forgotten, also when somebody else deletes them at the same time', async () => {
    const retired = ['10.64.0.3', '10.64.0.4'];
    const other = '10.64.0.5';
    const many = (to: string): Given[] => Array.from({ length: count }, () => ({ port: 53, to }));
    await make(many(other));
    // They meet in nearly every round.
    for (let round = 0; round < 5; round += 1) {
      for (const [at, to] of retired.entries())
        await make(many(to).map((flow) => ({ ...flow, asked: `203.0.113.${10 + at}` })));
      assert.equal((await left()).length, 3 * count);
      const endless = retired.map((to) => ({ to }));
      await Promise.all([1, 2, 3].map(() => conntrack.forget({ endless, all: [], shutOut: [] })));
      const rest = await left();
      assert.deepEqual([rest.length, new Set(rest)], [count, new Set([other])]);
    }
  });

  it('flows of UDP are told by whom they ask and who answers, once for all clients', async () => {
    await make([
      { port: 8081, to: '10.77.0.4', targetPort: 80 },
      { port: 8081, to: '10.77.0.4', targetPort: 80, from: '198.51.100.2' },
      { port: 514, to: published },
      { port: 53, to: '10.77.0.5', zone: 7 },
      { protocol: 'tcp', state: 'ESTABLISHED', port: 8081, to: '10.77.0.6' },
    ]);
    const found = (await conntrack.observe()).sort((one, two) => one.port - two.port);
    assert.deepEqual(found, [
      { address: published, port: 53, to: '10.77.0.5', targetPort: 53 },
      { address: published, port: 514, to: published, targetPort: 514 },
      { address: published, port: 8081, to: '10.77.0.4', targetPort: 80 },
    ]);
  });

  /** What is to be forgotten, and the last bytes of the addresses 10.64.0.x that are left then. */
  const cases: Record<string, { flows: Partial<Flows>; given: readonly Given[]; left: readonly string[] }> = {
    'to an address, only what has no end: UDP, and TCP that nobody has answered': {
      flows: { endless: [{ to: '10.64.0.3' }] },
      given: [
        { port: 80, to: '10.64.0.3' },
        { port: 80, to: '10.64.0.3', protocol: 'tcp', state: 'SYN_SENT' },
        { port: 80, to: '10.64.0.3', protocol: 'tcp', state: 'ESTABLISHED' },
        { port: 80, to: '10.64.0.3', protocol: 'sctp', state: 'ESTABLISHED' },
        { port: 80, to: '10.64.0.4' },
      ],
      left: ['3', '3', '4'],
    },
    'to an address by one of its ports, or by a range of them': {
      flows: {
        endless: [
          { protocol: 'udp', port: 80, to: '10.64.0.3' },
          { protocol: 'tcp', port: 9000, count: 10, to: '10.64.0.4' },
        ],
      },
      given: [
        { port: 80, to: '10.64.0.3', targetPort: 8080 },
        { port: 81, to: '10.64.0.3' },
        { port: 80, to: '10.64.0.3', protocol: 'tcp', state: 'SYN_SENT' },
        { port: 9000, to: '10.64.0.4', protocol: 'tcp', state: 'SYN_SENT' },
        { port: 9009, to: '10.64.0.4', protocol: 'tcp', state: 'SYN_SENT' },
        { port: 9010, to: '10.64.0.4', protocol: 'tcp', state: 'SYN_SENT' },
        { port: 9000, to: '10.64.0.4' },
      ],
      left: ['3', '3', '4', '4'],
    },
    'of whoever asked an address, and a port of it': {
      flows: { endless: [{ address: published, protocol: 'udp', port: 53 }] },
      given: [
        { port: 53, to: '10.64.0.3' },
        { port: 53, to: '10.64.0.4', zone: 9 },
        { port: 53, to: '10.64.0.5', asked: '203.0.113.5' },
        { port: 54, to: '10.64.0.6' },
      ],
      left: ['5', '6'],
    },
    'all of an address, established ones and those of other zones among them': {
      flows: { all: ['10.64.0.3'] },
      given: [
        { port: 80, to: '10.64.0.3', protocol: 'tcp', state: 'ESTABLISHED' },
        { port: 80, to: '10.64.0.3', protocol: 'tcp', state: 'ESTABLISHED', zone: 4 },
        { port: 80, to: '10.64.0.3', protocol: 'sctp', state: 'ESTABLISHED' },
        { port: 80, to: '10.64.0.4', protocol: 'tcp', state: 'ESTABLISHED' },
      ],
      left: ['4'],
    },
    'of those who may connect no longer, at that port and task': {
      flows: {
        shutOut: [
          { protocol: 'tcp', port: 80, sources: ['192.0.2.0/24', '198.51.100.7'], addresses: ['10.64.0.3'] },
        ],
      },
      given: [
        { port: 80, to: '10.64.0.3', protocol: 'tcp', state: 'ESTABLISHED', from: '192.0.2.255' },
        { port: 80, to: '10.64.0.3', protocol: 'tcp', state: 'ESTABLISHED', from: '198.51.100.7' },
        { port: 80, to: '10.64.0.3', protocol: 'tcp', state: 'ESTABLISHED', from: '192.0.3.0' },
        { port: 81, to: '10.64.0.3', protocol: 'tcp', state: 'ESTABLISHED', from: '192.0.2.1' },
        { port: 80, to: '10.64.0.4', protocol: 'tcp', state: 'ESTABLISHED', from: '192.0.2.1' },
        { port: 80, to: '10.64.0.3', from: '192.0.2.1' },
      ],
      left: ['3', '3', '3', '4'],
    },
    'of everybody, where a port is closed': {
      flows: { shutOut: [{ protocol: 'udp', sources: ['0.0.0.0/0'], addresses: ['10.64.0.3'] }] },
      given: [
        { port: 80, to: '10.64.0.3', from: '255.255.255.254' },
        { port: 81, to: '10.64.0.3', from: '1.0.0.1' },
        { port: 80, to: '10.64.0.4' },
      ],
      left: ['4'],
    },
    nothing: {
      flows: {},
      given: [{ port: 80, to: '10.64.0.3' }],
      left: ['3'],
    },
  };
  for (const [what, { flows, given, left: rest }] of Object.entries(cases))
    it(`what is forgotten, and nothing else: ${what}`, async () => {
      await make(given);
      await conntrack.forget({ endless: [], all: [], shutOut: [], ...flows });
      assert.deepEqual(
        await left(),
        rest.map((last) => `10.64.0.${last}`),
      );
    });

  it('what is no address is refused, and nothing is forgotten', async () => {
    await make([{ port: 80, to: '10.64.0.3' }]);
    const wrong = conntrack.forget({ endless: [], all: ['10.64.0.3', '10.64.0.300'], shutOut: [] });
    await assert.rejects(wrong, /no address of IPv4: "10.64.0.300"/);
    assert.deepEqual(await left(), ['10.64.0.3']);
  });

  it('others have their turn while a large table is read', async () => {
    for (let part = 0; part < 5; part += 1)
      await make(
        Array.from({ length: 10_000 }, () => ({ port: 53, to: '10.64.0.3', from: `198.51.100.${part}` })),
      );
    let turns = 0;
    const timer = setInterval(() => (turns += 1), 1);
    const began = performance.now();
    await conntrack.observe();
    const took = performance.now() - began;
    clearInterval(timer);
    // Each turn is one of 5 ms, or a part of the table that takes longer.
    assert.ok(turns > took / 50, `${turns} turns in ${took.toFixed(0)} ms`);
  });
});
