// Owns the tests of reading where Docker's resolver listens, and of the rules that lead questions there and here.
// Must not need a kernel: the docker tests show that it works.
import assert from 'node:assert/strict';
import { canRedirect, parseResolverPorts, redirect, undirect } from '../../net/redirect.ts';
import { CommandError, type Runner } from '../../net/run.ts';

const udpTitles =
  '   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops            ';
const tcpTitles =
  '  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode                                                     ';
const rest = '00000000:00000000 00:00000000 00000000     0        0 93187 2 0000000000000000 0';

function sockets(udp: string[], tcp: string[]): string {
  const lines = (list: string[]): string[] => list.map((line, index) => `  ${index}: ${line} ${rest}`);
  return `${[udpTitles, ...lines(udp), tcpTitles, ...lines(tcp)].join('\n')}\n`;
}

describe('parseResolverPorts', () => {
  it('finds both ports of Docker’s resolver among other sockets', () => {
    const text = sockets(
      ['00000000:0035 00000000:0000 07', '0B00007F:9C75 00000000:0000 07'],
      ['0100007F:0050 00000000:0000 0A', '0B00007F:9C74 0B00007F:1234 01', '0B00007F:9C76 00000000:0000 0A'],
    );
    assert.deepEqual(parseResolverPorts(text), { udp: 0x9c75, tcp: 0x9c76 });
  });

  it('finds none before it listens on both', () => {
    assert.equal(parseResolverPorts(sockets([], [])), undefined);
    assert.equal(parseResolverPorts(sockets(['0B00007F:9C75 00000000:0000 07'], [])), undefined);
    assert.equal(parseResolverPorts(''), undefined);
  });
});

describe('redirect', () => {
  const calls: { command: string; input: string | undefined; sandbox: string | undefined }[] = [];
  const run: Runner = (tool, args, { input, sandbox } = {}) => {
    calls.push({ command: [tool, ...args].join(' '), input, sandbox });
    return Promise.resolve('');
  };
  beforeEach(() => calls.splice(0));

  it('works in the sandbox alone, and replaces what was there', async () => {
    await redirect(run, '/sys', {
      sandbox: '/host/run/docker/netns/a',
      gateway: '10.64.0.1',
      port: 4795,
      resolver: { udp: 40053, tcp: 40054 },
    });
    assert.deepEqual(
      calls.map(({ command, sandbox }) => [command, sandbox]),
      [
        ['tee /sys/ipv4/conf/all/route_localnet', '/host/run/docker/netns/a'],
        ['nft -f -', '/host/run/docker/netns/a'],
      ],
    );
    const rules = calls[1]?.input ?? '';
    assert.match(rules, /^add table ip causeway\ndelete table ip causeway\n/);
    assert.match(rules, /ip daddr 127\.0\.0\.11 tcp dport 53 dnat to 10\.64\.0\.1:4795/);
    assert.match(rules, /ip saddr 10\.64\.0\.1 udp dport 4795 dnat to 127\.0\.0\.11:40053/);
  });

  it('is taken back without an error where there was none', async () => {
    await undirect(run, '/host/run/docker/netns/a');
    assert.deepEqual(calls[0]?.input, 'add table ip causeway\ndelete table ip causeway\n');
  });

  it('is only tried on a kernel that can tell whether somebody listens', async () => {
    assert.equal(await canRedirect(run), true);
    assert.match(calls[0]?.command ?? '', /--check/);
    const refuse: Runner = (tool) =>
      Promise.reject(new CommandError(tool, 1, 'Error: Could not process rule'));
    assert.equal(await canRedirect(refuse), false);
  });
});
