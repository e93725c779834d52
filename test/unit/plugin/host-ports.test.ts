// Owns the tests of which ports a container gets on its node.
// Must not test how they are led to it.
import assert from 'node:assert/strict';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { createServer, type AddressInfo } from 'node:net';
import { chooseHostPorts, tryHostPort, type TakenPort, type PortProbe } from '../../../plugin/host-ports.ts';
import { PortBinding } from '../../../plugin/protocol.ts';
import type { HostPort } from '../../../store/records.ts';

const free: PortProbe = () => Promise.resolve(undefined);
const binding = (rest: Partial<PortBinding> = {}): PortBinding =>
  PortBinding.parse({ Proto: 6, Port: 80, HostPort: 8080, HostPortEnd: 8080, ...rest });
const choose = (bindings: PortBinding[], taken: TakenPort[] = [], trial = free): Promise<HostPort[]> =>
  chooseHostPorts(bindings, taken, trial, () => 0.5);

describe('ports of a container on its node', () => {
  it('host ports are those asked for, for each protocol, at one address or all', async () => {
    assert.deepEqual(
      await choose([
        binding(),
        binding({ Proto: 17, HostIP: '0.0.0.0' }),
        binding({ Proto: 132, HostIP: '192.0.2.1', Port: 9 }),
      ]),
      [
        { protocol: 'tcp', port: 8080, targetPort: 80 },
        { protocol: 'udp', port: 8080, targetPort: 80 },
        { protocol: 'sctp', address: '192.0.2.1', port: 8080, targetPort: 9 },
      ],
    );
  });

  it('host ports are chosen from the range, or from free ones where none was asked for', async () => {
    const busy: PortProbe = (_, __, port) => Promise.resolve(port === 8001 ? 'EADDRINUSE' : undefined);
    const taken: TakenPort[] = [{ protocol: 'tcp', port: 8000, by: 'service web' }];
    const range = binding({ HostPort: 8000, HostPortEnd: 8005 });
    assert.deepEqual(
      (await choose([range, range], taken, busy)).map(({ port }) => port),
      [8002, 8003],
    );
    const [chosen] = await choose([binding({ HostPort: 0, HostPortEnd: 0 })]);
    assert.equal(chosen?.port, 57_344);
  });

  it('one host port may serve different addresses and protocols', async () => {
    const taken: TakenPort[] = [
      { protocol: 'tcp', address: '192.0.2.1', port: 8080, by: 'another container' },
    ];
    assert.equal((await choose([binding({ HostIP: '192.0.2.2' }), binding({ Proto: 17 })], taken)).length, 2);
    await assert.rejects(choose([binding()], taken), /8080\/tcp .*another container/);
    await assert.rejects(choose([binding({ HostIP: '192.0.2.1' })], taken), /another container/);
  });

  it('7,501 host ports are found while others have their turn', async () => {
    const bindings = Array.from({ length: 7_501 }, (_, at) =>
      binding({ Proto: 17, Port: 10_000 + at, HostPort: 10_000 + at, HostPortEnd: 10_000 + at }),
    );
    let [longest, last] = [0, performance.now()];
    const clock = setInterval(() => {
      longest = Math.max(longest, performance.now() - last);
      last = performance.now();
    }, 5);
    const ports = await choose(bindings.reverse(), [], tryHostPort).finally(() => clearInterval(clock));
    assert.equal(ports.length, 7_501);
    assert.deepEqual([ports[0]?.port, ports.at(-1)?.port], [10_000, 17_500]);
    assert.ok(longest < 1_000, `nobody else had a turn for ${longest} ms`);
  });

  it('a host port that cannot be had: the error has the reason', async () => {
    const failing =
      (code: string): PortProbe =>
      () =>
        Promise.resolve(code);
    await assert.rejects(
      choose([binding()], [], failing('EADDRINUSE')),
      /8080\/tcp .*listens there.*Free it/,
    );
    const range = binding({ HostPort: 8000, HostPortEnd: 8002 });
    await assert.rejects(choose([range], [], failing('EADDRINUSE')), /port 8000-8002\/tcp/);
    await assert.rejects(
      choose([binding({ HostIP: '192.0.2.9' })], [], failing('EADDRNOTAVAIL')),
      /192\.0\.2\.9 is no address of this node/,
    );
    await assert.rejects(choose([binding({ HostIP: '2001:db8::1' })]), /2001:db8::1 yet/);
    await assert.rejects(choose([binding({ Proto: 47 })]), /protocol 47 cannot/);
  });

  it('host ports are tried on the node itself', async () => {
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const socket = createSocket('udp4').bind(port, '127.0.0.1');
    await once(socket, 'listening');
    for (const protocol of ['tcp', 'udp'] as const) {
      assert.equal(await tryHostPort(protocol, '', port), 'EADDRINUSE');
      assert.equal(await tryHostPort(protocol, '127.0.0.1', port), 'EADDRINUSE');
      assert.equal(await tryHostPort(protocol, '127.0.0.2', port), undefined);
      assert.equal(await tryHostPort(protocol, '192.0.2.77', port), 'EADDRNOTAVAIL');
    }
    server.close();
    socket.close();
  });
});
