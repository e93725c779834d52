// Owns the tests of the sockets by which DNS comes over UDP: one port, left and come back to.
// Must not test what is answered.
import assert from 'node:assert/strict';
import { createSocket, type Socket } from 'node:dgram';
import { setTimeout as sleep } from 'node:timers/promises';
import { PreparedAnswers } from '../../dns/prepared.ts';
import { UdpService } from '../../dns/udp.ts';

const host = '127.0.0.1';

/** Answers each question with its own name. */
function service(name: string): UdpService {
  const udp: UdpService = new UdpService({
    prepared: new PreparedAnswers(),
    onQuestion: () => undefined,
    onMiss: (_, address, port) => udp.send(Buffer.from(name), address, port),
    onError: (error) => assert.fail(error),
  });
  return udp;
}

describe('DNS: a port that is left', () => {
  let askers: Socket[] = [];
  let services: UdpService[] = [];
  const answers: string[] = [];

  beforeEach(() => {
    answers.length = 0;
    // The kernel spreads by the asker's port.
    askers = Array.from({ length: 16 }, () => createSocket('udp4'));
    for (const asker of askers) asker.on('message', (answer) => answers.push(answer.toString()));
    services = [];
  });
  afterEach(async () => {
    for (const asker of askers) asker.close();
    for (const udp of services) await udp.close();
  });

  const open = async (name: string, port = 0): Promise<UdpService> => {
    const udp = service(name);
    services.push(udp);
    await udp.listen(port, host);
    return udp;
  };
  const askAll = (port: number): void => {
    for (const asker of askers) asker.send('question', port, host);
  };
  const got = async (count: number): Promise<void> => {
    for (let tries = 0; answers.length < count && tries < 400; tries += 1) await sleep(5);
    await sleep(20);
  };

  it('loses no question, neither what waits nor what comes, and is answered from elsewhere', async () => {
    const one = await open('one');
    const port = one.port ?? 0;
    const other = await open('other', port);
    askAll(port);
    // They are sent one turn of the queue later (Node looks up the address), and read by nobody before the loop goes round.
    for (let turn = 0; turn < 10; turn += 1) await new Promise<void>((resolve) => process.nextTick(resolve));
    const leaving = one.leave((answer, to, toPort) =>
      other.send(Buffer.concat([answer, Buffer.from(' from elsewhere')]), to, toPort),
    );
    for (let round = 0; round < 20; round += 1) {
      askAll(port);
      await sleep(5);
    }
    await leaving;
    askAll(port);
    const count = askers.length * 22;
    await got(count);
    assert.equal(answers.length, count);
    assert.deepEqual(answers.slice(-askers.length), Array(askers.length).fill('other'));
    assert.equal(one.port, undefined);
  });

  it('is had again', async () => {
    const one = await open('one');
    const port = one.port ?? 0;
    const other = await open('other', port);
    const leaving = one.leave(() => undefined);
    // While it is still leaving.
    await one.listen(port, host);
    await leaving;
    await other.close();
    askAll(port);
    await got(askers.length);
    assert.deepEqual(answers, Array(askers.length).fill('one'));
    assert.equal(one.port, port);
  });
});
