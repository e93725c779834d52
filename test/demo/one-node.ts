// Owns the demo of one node: a published port and a VIP, and whom the tasks see.
// Must not need Consul: the store is embedded.
import { pluginName } from '../../rootfs/create.ts';
import { loadImage, type Image } from '../lab/image.ts';
import type { Lab } from '../lab/lab.ts';
import {
  allRun,
  ask,
  createNetwork,
  createService,
  echoInside,
  echoOutside,
  published,
  putPlugin,
  say,
  troublesOf,
  vipOf,
  visitorOn,
  type Answer,
  type Question,
  type Show,
} from './stage.ts';

const replicas = 3;

/** Makes the Swarm in the lab: plugin, network, and two services. */
async function deploy(lab: Lab, image: Image, signal: AbortSignal): Promise<void> {
  const node = lab.first;
  say("swarm: one node, with the tasks' image and the plugin");
  await Promise.all([lab.formSwarm({ signal }), loadImage(node, image), putPlugin(node, signal)]);
  await node.docker(['plugin', 'enable', pluginName], { signal });
  await createNetwork(node, signal);
  say(
    `service: docker service create --name web --replicas ${replicas} --network front -p ${published}:80 …`,
  );
  const hostname = ['--hostname', '{{.Service.Name}}.{{.Task.Slot}}'];
  const web = ['--name', 'web', '--replicas', String(replicas), '--publish', `${published}:80`];
  await createService(node, image, [...hostname, ...web], signal);
  // A neighbour on the same network, to reach the service by its name and so by its VIP.
  await createService(node, image, [...hostname, '--name', 'visitor'], signal);
  await allRun(node, signal);
}

/** Prints what was answered, request by request. */
function print(answers: Answer[], real: string): void {
  console.log(`\n   request  answered by  saw the client as    took    (client really: ${real})`);
  for (const [index, { task = '-', client = '-', ms, error }] of answers.entries()) {
    const mark = error ?? (client === real ? '' : '◄ not the client');
    console.log(
      `   ${String(index + 1).padEnd(9)}${task.padEnd(13)}${client.padEnd(17)}${String(ms).padStart(5)} ms    ${mark}`.trimEnd(),
    );
  }
}

async function show(lab: Lab, signal: AbortSignal): Promise<string[]> {
  const { client, first: node } = lab;
  const port: Question = {
    from: client,
    program: echoOutside,
    url: `http://${node.address}:${published}/`,
    real: client.address,
    tasks: replicas,
  };
  say(`a client outside the cluster, ${client.address}, asks the published port: ${port.url}`);
  const fromOutside = await ask(port, signal);
  print(fromOutside, client.address);

  const visitor = await visitorOn(node, 'visitor', signal);
  const vip = await vipOf(node, 'web', visitor.network);
  console.log();
  const name: Question = {
    from: visitor,
    program: echoInside,
    url: 'http://web/',
    real: visitor.address,
    tasks: replicas,
  };
  say(`another task, ${visitor.address}, asks the service by name, and so its VIP ${vip}: ${name.url}`);
  const fromInside = await ask(name, signal);
  print(fromInside, visitor.address);

  const { engine } = (await node.admin('/status')) as { engine: { name: string; why: string } };
  console.log(`
   client ${client.address} ──► router ──► node ${node.address}:${published}     visitor ${visitor.address} ──► VIP ${vip}:80
                                              │                                                │
                                              └───────► Causeway, engine ${engine.name.padEnd(5)} ◄─────────────────┘
                                                        │        │        │
                                                      web.1    web.2    web.3     each sees the client's own address

   engine ${engine.name}: ${engine.why}`);
  return [...troublesOf(fromOutside, port), ...troublesOf(fromInside, name)];
}

async function printNext(lab: Lab): Promise<void> {
  const { first: node, name } = lab;
  const inNode = `npm run -s lab -- exec --name ${name} ${node.name} --`;
  console.log(`
   It stays up until you press Ctrl-C. To try next, in another terminal in this directory:

   ask again        npm run -s lab -- ask --name ${name} http://${node.address}:${published}/
   scale            ${inNode} docker service scale -d web=5
   the tasks        ${inNode} docker service ps web
   the rules        ${inNode} nft list table inet causeway
   what it knows    npm run -s lab -- causeway --name ${name} ${node.name}
   crash it         kill -9 ${(await node.pidsOf('causeway')).join(' ')}
   by your docker   export DOCKER_HOST=${node.dockerHost}
`);
}

export const oneNode: Show = {
  nodes: 1,
  deploy,
  show,
  conclusion: "every task answered, and each saw the client's own address",
  printNext,
};
