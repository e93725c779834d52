// Owns the tests of the socket by which an asker's questions come over UDP: left to others, and come back to.
// Must not test what is answered.
import assert from 'node:assert/strict';
import { createSocket, type Socket } from 'node:dgram';
import { setTimeout as sleep } from 'node:timers/promises';
import { PreparedAnswers } from '../../../dns/prepared.ts';
import { UdpService } from '../../../dns/udp.ts';
import { localPort, openSocket } from '../../../net/namespace.ts';

const host = '127.0.0.1';

/** Answers each question with its own name. */
function service(name: string): UdpService {
  const udp: UdpService = new UdpService({
    asker: 'asker',
    prepared: new PreparedAnswers(),
    onQuestion: () => undefined,
    onMiss: (_, address, port) => udp.send(Buffer.from(name), address, port),
    onError: (error) => assert.fail(error),
  });
  return udp;
}

describe('DNS: a socket that is left', () => {
  const askers: Socket[] = [];
  const answers: string[] = [];

  before(() => {
    for (let at = 0; at < 16; at += 1) askers.push(createSocket('udp4'));
    for (const asker of askers) asker.on('message', (answer) => answers.push(answer.toString()));
  });
  after(() => {
    for (const asker of askers) asker.close();
  });
  beforeEach(() => (answers.length = 0));

  const got = async (count: number): Promise<void> => {
    for (let tries = 0; answers.length < count && tries < 400; tries += 1) await sleep(5);
    await sleep(20);
  };

  it('a UDP socket that is handed over loses no question, and can be taken back', async () => {
    const [one, other] = [service('one'), service('other')];
    const socket = openSocket({ protocol: 'udp', local: { address: host, port: 0 } });
    const port = localPort(socket);
    const askAll = (): void => {
      for (const asker of askers) asker.send('question', port, host);
    };
    one.read(socket);
    assert.equal(one.reads, true);
    let asked = 0;
    for (let [from, to] = [one, other], round = 0; round < 20; round += 1, [from, to] = [to, from]) {
      askAll();
      // Sent, and read by nobody before the loop goes round.
      for (let turn = 0; turn < 10; turn += 1)
        await new Promise<void>((resolve) => process.nextTick(resolve));
      const left = from.leave();
      assert.ok(left !== undefined);
      assert.equal(from.reads, false);
      askAll();
      await sleep(2);
      to.read(left);
      askAll();
      await sleep(2);
      asked += 3 * askers.length;
    }
    await got(asked);
    assert.equal(answers.length, asked);
    assert.ok(answers.includes('one') && answers.includes('other'));
    one.close();
    other.close();
  });

  it('a UDP socket of its own is not handed over', async () => {
    const udp = service('own');
    await udp.listen(0, host);
    assert.equal(udp.leave(), undefined);
    assert.equal(udp.reads, true);
    udp.close();
  });
});
