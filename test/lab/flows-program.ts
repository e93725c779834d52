// Owns flows of UDP on schedule, each from a port of its own that stays the same, and how long each is without an answer.
// Must not import anything but Node's own modules: it is started by itself, in the network namespace of the client.
//
// usage: node test/lab/flows-program.ts HOST PORT INTERVAL-MS LOCAL-PORT…
//   Prints `ready` when each flow was answered, goes on until SIGTERM, and then prints one line of JSON for each:
//   {port, answers, silentMs, silentAt, moved, tasks}: the longest time between two answers in milliseconds, when it began
//   in milliseconds of Unix time, whether another task answered after it than before, and how many did at all.
import { createSocket } from 'node:dgram';
import { setTimeout as sleep } from 'node:timers/promises';

const [host, port, interval, ...localPorts] = process.argv.slice(2);
if (host === undefined || localPorts.length === 0)
  throw new Error('Which flows? See the head of flows-program.ts.');

/** How long an answer may be under way. */
const lastAnswersMs = 500;

interface Flow {
  port: number;
  answers: number;
  silentMs: number;
  silentAt: number;
  moved: boolean;
  tasks: Set<string>;
  end: () => Promise<void>;
}

const flows: Flow[] = localPorts.map((text) => {
  const socket = createSocket('udp4');
  const flow: Flow = {
    ...{ port: Number(text), answers: 0, silentMs: 0, silentAt: 0, moved: false },
    ...{ tasks: new Set(), end },
  };
  let last: { at: number; task: string } | undefined;
  /** @param task '' for nobody */
  const hear = (at: number, task: string): void => {
    if (last !== undefined && at - last.at > flow.silentMs)
      Object.assign(flow, { silentMs: at - last.at, silentAt: last.at, moved: task !== last.task });
    last = { at, task };
  };
  socket.on('message', (message) => {
    const { task } = JSON.parse(message.toString()) as { task: string };
    hear(Date.now(), task);
    flow.answers += 1;
    flow.tasks.add(task);
    if (flow.answers === 1 && flows.every(({ answers }) => answers > 0)) console.log('ready');
  });
  // A refusal is told by silence.
  socket.on('error', () => undefined);
  socket.bind(flow.port);
  const timer = setInterval(() => socket.send('?', Number(port), host), Number(interval));
  async function end(): Promise<void> {
    clearInterval(timer);
    await sleep(lastAnswersMs);
    // One that is not answered any more is silent until now.
    hear(Date.now() - lastAnswersMs, '');
    socket.close();
    console.log(JSON.stringify({ ...flow, tasks: flow.tasks.size }));
  }
  return flow;
});
process.once('SIGTERM', () => void Promise.all(flows.map(({ end }) => end())));
