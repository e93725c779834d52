// Owns the test of a three-node Swarm in real Docker Engines with real Consul servers: the mesh over all nodes, and what
// happens when a part of it is lost.
// Must not reach into the plugin: what a user of docker can see and do is what counts.
import assert from 'node:assert/strict';
import { pluginName } from '../../rootfs/create.ts';
import { startLoad } from '../lab/asking.ts';
import { defaultEngine, labNameFor } from '../lab/engines.ts';
import { imageName, loadImage, prepareImage } from '../lab/image.ts';
import { Lab } from '../lab/lab.ts';
import type { LabNode } from '../lab/node.ts';
import { setTimeout as sleep } from 'node:timers/promises';
import { until } from '../support/until.ts';
import { slowness } from '../slowness.ts';
import {
  ask,
  askFrom,
  clients,
  errors,
  findAddresses,
  lookUp,
  tasks,
  within,
  type Answer,
} from './questions.ts';

interface Status {
  nodes: { name: string; unreachable: boolean }[];
  kernel: { settled: boolean };
  store: { connected: boolean; pending: number };
}

const labName = labNameFor('test-cluster');

const arpa = (address: string): string => `${address.split('.').reverse().join('.')}.in-addr.arpa`;

const patience = { timeoutMs: 180_000 * slowness, everyMs: 300 };

describe(`a three-node Swarm in Docker ${defaultEngine()}`, function () {
  this.timeout(900_000 * slowness);
  let lab: Lab;
  let first: LabNode;

  const docker = async (...args: string[]): Promise<string> => (await first.docker(args)).stdout;
  const status = async (node: LabNode): Promise<Status> => (await node.admin('/status')) as Status;
  const url = (node: LabNode, port = 8080): string => `http://${node.address}:${port}/`;

  /** Ids of the running containers of a service on a node. */
  async function running(node: LabNode, service: string): Promise<string[]> {
    const filter = `label=com.docker.swarm.service.name=${service}`;
    const { stdout } = await node.docker(['ps', '--quiet', '--no-trunc', '--filter', filter]);
    return stdout.split('\n').filter(Boolean);
  }

  async function createService(name: string, ...words: string[]): Promise<void> {
    const create = ['service', 'create', '--detach', '--quiet', '--no-resolve-image', '--name', name];
    await docker(...create, ...words, imageName, 'serve', '--http', '80', '--echo', '7');
  }

  /** A service's VIP on a network; those on Docker's `ingress` come first, and are none of ours. */
  async function vipOf(service: string, network: string): Promise<string> {
    const id = await docker('network', 'inspect', '--format', '{{.ID}}', network);
    const of = `{{if eq .NetworkID "${id}"}}{{.Addr}}{{end}}`;
    const format = `{{range .Endpoint.VirtualIPs}}${of}{{end}}`;
    const [vip = ''] = (await docker('service', 'inspect', '--format', format, service)).split('/');
    assert.ok(vip, `${service} has a VIP on ${network}`);
    return vip;
  }

  /** Waits until the port answers from this many tasks on each of the nodes, without an error. */
  async function serving(port: number, count: number, nodes: readonly LabNode[] = lab.nodes): Promise<void> {
    for (const node of nodes) {
      let list: Answer[] = [];
      const instead = async (): Promise<unknown> => ({
        answers: list,
        tasks: (await node.docker(['service', 'ps', '--no-trunc', 'web'], { reject: false })).stdout,
        status: await status(node).catch(String),
      });
      await until(
        `port ${port} of ${node.name} answers from ${count} tasks`,
        async () => {
          list = await ask(lab.client, ['http', url(node, port), '--count', String(2 * count), ...within(1)]);
          return tasks(list).length === count && errors(list).length === 0;
        },
        { ...patience, instead },
      );
    }
  }

  async function askersRun(): Promise<void> {
    await until(
      'an asker runs everywhere',
      async () => {
        const counts = await Promise.all(lab.nodes.map((node) => running(node, 'asker')));
        return counts.every(({ length }) => length === 1);
      },
      patience,
    );
  }

  /** Addresses on `front` of the running tasks of `web` on these nodes. */
  async function webAddresses(nodes: readonly LabNode[]): Promise<string[]> {
    const lists = await Promise.all(
      nodes.map(async (node) => {
        const list = await running(node, 'web');
        const format = '{{.NetworkSettings.Networks.front.IPAddress}}';
        return list.length === 0 ? '' : (await node.docker(['inspect', '--format', format, ...list])).stdout;
      }),
    );
    return lists.join('\n').split('\n').filter(Boolean).sort();
  }

  /** The mesh answers as it should: a second later so do the names, on each of these nodes, neither more nor less. */
  async function namesAgree(nodes: readonly LabNode[] = lab.nodes): Promise<void> {
    await sleep(1_000 * slowness);
    const expected = await webAddresses(nodes);
    for (const node of nodes) {
      const [asker] = await running(node, 'asker');
      assert.deepEqual(await lookUp(node, asker, ['tasks.web A']), [expected], node.name);
    }
  }

  before(async () => {
    const image = await prepareImage();
    await Lab.down(labName);
    lab = await Lab.up({ name: labName, nodes: 3 });
    ({ first } = lab);
    await Promise.all(lab.nodes.map((node) => loadImage(node, image)));
    await lab.startConsul({ servers: 3 });
    await lab.installPlugin({ set: { CAUSEWAY_STORE: lab.consulStore } });
    await lab.formSwarm({ managers: 3 });
    await until(
      'all nodes know each other',
      async () => {
        const seen = await Promise.all(lab.nodes.map((node) => status(node).catch(() => undefined)));
        return seen.every((one) => one?.nodes.length === 3);
      },
      patience,
    );
    const network = [
      'network',
      'create',
      '--driver',
      pluginName,
      '--ipam-driver',
      pluginName,
      '--scope',
      'swarm',
    ];
    await docker(...network, '--attachable', '--subnet', '10.99.0.0/24', 'front');
    await docker(...network, 'back');
    const published = ['-p', '8080:80', '-p', '8081:7/udp', '-p', '8082:7'];
    await createService(
      'web',
      '--network',
      'name=front,alias=www',
      '--replicas',
      '6',
      ...published,
      '--stop-grace-period',
      '2s',
    );
    await createService('asker', '--network', 'front', '--mode', 'global');
    await createService('stranger', '--network', 'back');
    await serving(8080, 6);
    await askersRun();
    // A node that was slow to answer Swarm for a moment has got none, and gets none by itself.
    await until(
      'tasks of web run on each node',
      async () => {
        const counts = await Promise.all(lab.nodes.map((node) => running(node, 'web')));
        if (counts.every(({ length }) => length > 0)) return true;
        await docker('service', 'update', '--detach', '--quiet', '--force', 'web');
        return false;
      },
      { ...patience, everyMs: 20_000, instead: () => docker('service', 'ps', '--no-trunc', 'web') },
    );
    await serving(8080, 6);
  });
  after(() => Lab.down(labName));

  it('each node’s published port answers from all tasks, which see the client’s address #engines', async () => {
    for (const node of lab.nodes) {
      const list = await ask(lab.client, ['http', url(node), '--count', '12']);
      assert.deepEqual([tasks(list).length, clients(list), errors(list)], [6, [lab.client.address], []]);
      const datagrams = await ask(lab.client, ['udp', `${node.address}:8081`, '--count', '12']);
      assert.deepEqual([tasks(datagrams).length, clients(datagrams)], [6, [lab.client.address]]);
    }
  });

  it('the VIP answers a task of each node, and each node itself #engines', async () => {
    for (const node of lab.nodes) {
      const [asker] = await running(node, 'asker');
      const list = await askFrom(node, asker, ['http', 'http://web/', '--count', '12']);
      assert.deepEqual([tasks(list).length, errors(list)], [6, []], node.name);
      const own = await ask(node, ['http', 'http://127.0.0.1:8080/', '--count', '12']);
      assert.deepEqual([tasks(own).length, errors(own)], [6, []], node.name);
    }
  });

  it('two networks are kept apart #engines', async () => {
    const vip = await vipOf('web', 'front');
    for (const node of lab.nodes)
      for (const container of await running(node, 'stranger')) {
        const list = await askFrom(node, container, [
          'http',
          `http://${vip}/`,
          '--count',
          '1',
          '--timeout',
          '700',
        ]);
        assert.deepEqual(tasks(list), []);
      }
  });

  it('attachable containers take part, on every node #engines', async () => {
    for (const node of lab.nodes) {
      const { stdout: container } = await node.docker([
        'run',
        '--detach',
        '--network',
        'front',
        imageName,
        'serve',
      ]);
      const list = await askFrom(node, container, ['http', 'http://web/', '--count', '12']);
      assert.deepEqual([tasks(list).length, errors(list)], [6, []], node.name);
      await node.docker(['rm', '--force', container]);
    }
  });

  it('every name of a network is answered on each node, and of no other network', async () => {
    const vip = await vipOf('web', 'front');
    const [asker] = await running(first, 'asker');
    const format = '{{.Name}} {{.Config.Hostname}} {{.NetworkSettings.Networks.front.IPAddress}}';
    const { stdout } = await first.docker(['inspect', '--format', format, asker ?? '']);
    const [name = '', host = '', address = ''] = stdout.replace(/^\//, '').split(' ');
    const questions = [
      ...['web A', 'WEB.front A', 'web.front.causeway.internal A', 'web.causeway.internal A'],
      ...[`${name} A`, `${host} A`, `${asker?.slice(0, 12) ?? ''}.front A`, 'www A', `${vip} PTR`],
      ...['web AAAA', 'nobody.causeway.internal A', 'tasks.web A', '_80._tcp.web SRV'],
    ].map((question) => question.replace(/^([\d.]+) PTR$/, (_, ip: string) => `${arpa(ip)} PTR`));
    for (const node of lab.nodes) {
      const [container] = await running(node, 'asker');
      const looked = await until(
        `all names are known on ${node.name}`,
        async () => {
          const answers = await lookUp(node, container, questions);
          return Array.isArray(answers[4]) && answers;
        },
        { ...patience, instead: () => lookUp(node, container, questions) },
      );
      const [taskAddresses, services] = looked.splice(-2);
      assert.deepEqual(
        looked,
        [
          [vip],
          [vip],
          [vip],
          [vip],
          [address],
          [address],
          [address],
          [vip],
          ['web.front'],
          'ENODATA',
          'ENOTFOUND',
        ],
        node.name,
      );
      assert.deepEqual([taskAddresses?.length, services?.length], [6, 6]);
      const kinds = questions
        .filter((question) => question.endsWith(' A'))
        .map((question) => question.slice(0, -2));
      const known = new Map([
        [name, address],
        [host, address],
        [`${asker?.slice(0, 12) ?? ''}.front`, address],
      ]);
      for (const [at, found] of (await findAddresses(node, container, kinds)).entries()) {
        const kind = kinds[at] ?? '';
        const expected =
          kind === 'tasks.web' ? taskAddresses : kind.startsWith('nobody') ? [] : [known.get(kind) ?? vip];
        assert.deepEqual(found, { glibc: expected, musl: expected }, `${kind} on ${node.name}`);
      }
      for (const stranger of await running(node, 'stranger'))
        assert.deepEqual(await lookUp(node, stranger, ['web.causeway.internal A', `${arpa(vip)} PTR`]), [
          'ENOTFOUND',
          'ENOTFOUND',
        ]);
    }
  });

  it('no request is lost while all tasks of a service are replaced, long ones among them #engines', async () => {
    const create = ['service', 'create', '--detach', '--quiet', '--no-resolve-image', '--name', 'rolling'];
    const update = ['--update-parallelism', '3', '--update-delay', '0s', '--stop-grace-period', '15s'];
    // Without it Swarm takes a task for running before it listens, and goes on to the next. With one that takes so long
    // nothing happens for a while before the next old tasks have to leave the balancers.
    const health = ['--health-cmd', 'wget -q -O - http://127.0.0.1/', '--health-interval', '6s'];
    const rest = ['--network', 'front', '--replicas', '6', '-p', '8090:80', imageName, 'serve'];
    await docker(...create, ...update, ...health, ...rest);
    await serving(8090, 6);
    const state = async (): Promise<string> =>
      docker(
        'service',
        'inspect',
        '--format',
        '{{with .UpdateStatus}}{{.StartedAt}} {{.State}}{{end}}',
        'rolling',
      );
    const tasksOf = async (): Promise<string[]> =>
      (await Promise.all(lab.nodes.map((node) => running(node, 'rolling')))).flat().sort();
    for (const order of ['stop-first', 'start-first']) {
      const [last, old] = [await state(), await tasksOf()];
      const loads = await Promise.all(
        lab.nodes.flatMap((node) => [
          startLoad(lab.client, url(node, 8090), { intervalMs: 50, timeoutMs: 5_000 }),
          startLoad(lab.client, `${url(node, 8090)}slow?ms=2000`, { intervalMs: 400, timeoutMs: 10_000 }),
        ]),
      );
      await docker('service', 'update', '--detach', '--quiet', '--force', '--update-order', order, 'rolling');
      await until(
        'the update is complete, and the old tasks have ended',
        async () => {
          const [now, left] = [await state(), await tasksOf()];
          return (
            now !== last &&
            now.endsWith('completed') &&
            left.length === 6 &&
            !left.some((id) => old.includes(id))
          );
        },
        // Each look starts four programs, and the nodes share two processors with them.
        { ...patience, everyMs: 2_000, instead: state },
      );
      const outcomes = (await Promise.all(loads.map((load) => load.stop()))).flat();
      assert.deepEqual(
        outcomes.filter(({ error }) => error !== undefined),
        [],
        order,
      );
      assert.ok(outcomes.length > 300, `${outcomes.length}`);
    }
    await docker('service', 'rm', 'rolling');
  });

  it('names: no task that is gone, and each that serves: scaled, killed, cut off and back', async () => {
    const web = async (): Promise<string[]> =>
      (await Promise.all(lab.nodes.map((node) => running(node, 'web')))).flat();
    await docker('service', 'scale', '--detach', 'web=4');
    await until('the others have stopped', async () => (await web()).length === 4, patience);
    await serving(8080, 4);
    await namesAgree();
    const [victim = ''] = await web();
    for (const node of lab.nodes)
      if ((await running(node, 'web')).includes(victim)) await node.docker(['rm', '--force', victim]);
    await until(
      'the killed task is replaced',
      async () => {
        const now = await web();
        return now.length === 4 && !now.includes(victim);
      },
      patience,
    );
    await serving(8080, 4);
    await namesAgree();

    const third = lab.node('n3');
    const others = lab.nodes.filter((node) => node !== third);
    await docker('service', 'scale', '--detach', 'web=6');
    await serving(8080, 6);
    const cutAt = performance.now();
    await lab.cut(third);
    await until(
      'its tasks are unreachable',
      async () => {
        const states = await Promise.all(others.map(status));
        return states.every(({ nodes }) =>
          nodes.some(({ name, unreachable }) => name === third.name && unreachable),
        );
      },
      patience,
    );
    await namesAgree(others);
    await sleep(30_000 - (performance.now() - cutAt));
    await lab.heal(third);
    await until(
      'Swarm has its six tasks, and no other',
      async () => (await webAddresses(lab.nodes)).length === 6,
      patience,
    );
    await askersRun();
    await serving(8080, 6);
    await namesAgree();
  });

  it('a node without a task whose Docker is restarted, and its plugin with it, loses no request', async () => {
    const ingress = lab.node('n3');
    const create = ['service', 'create', '--detach', '--quiet', '--no-resolve-image', '--name', 'elsewhere'];
    const where = ['--constraint', 'node.hostname!=n3', '--network', 'front', '--replicas', '4'];
    await docker(...create, ...where, '-p', '8091:80', imageName, 'serve');
    await serving(8091, 4, [ingress]);
    const loads = await Promise.all([
      startLoad(lab.client, url(ingress, 8091), { intervalMs: 20, timeoutMs: 5_000 }),
      startLoad(lab.client, `${url(ingress, 8091)}slow?ms=3000`, { intervalMs: 200, timeoutMs: 10_000 }),
    ]);
    await ingress.restartDocker();
    await until(
      'the plugin is back',
      async () => (await status(ingress).catch(() => undefined))?.kernel.settled === true,
      patience,
    );
    await sleep(3_000);
    const outcomes = (await Promise.all(loads.map((load) => load.stop()))).flat();
    assert.deepEqual(
      outcomes.filter(({ error }) => error !== undefined),
      [],
    );
    assert.ok(outcomes.length > 200, `${outcomes.length}`);
    await docker('service', 'rm', 'elsewhere');
    await askersRun();
    await serving(8080, 6);
  });

  it('Consul is away: no request fails, a crashed task is replaced, and afterwards all agree', async () => {
    await lab.stopConsul(undefined, { kill: true });
    const words = ['--count', '1500', '--interval', '20', '--timeout', '3000'];
    const asking = lab.nodes.map((node) => ask(lab.client, ['http', url(node), ...words]));
    const [victim] = await running(first, 'asker');
    await first.docker(['kill', victim ?? '']);
    await until(
      'the crashed task is replaced',
      async () => {
        const [next] = await running(first, 'asker');
        if (next === undefined || next === victim) return false;
        const list = await askFrom(first, next, [
          'http',
          'http://web/',
          '--count',
          '12',
          '--timeout',
          '1000',
        ]);
        return tasks(list).length === 6 && errors(list).length === 0;
      },
      patience,
    );
    await docker('service', 'update', '--detach', '--quiet', '--publish-add', '8085:80', 'asker');
    await serving(8085, 3);
    for (const answers of await Promise.all(asking)) {
      assert.deepEqual(errors(answers), []);
      assert.equal(answers.length, 1500);
    }
    await lab.startConsul();
    await until(
      'every node and the store agree',
      async () => {
        const states = await Promise.all(lab.nodes.map(status));
        if (!states.every(({ store, kernel }) => store.connected && store.pending === 0 && kernel.settled))
          return false;
        const diffs = await Promise.all(lab.nodes.map((node) => node.admin('/diff')));
        return diffs.every((diff) => JSON.stringify(diff) === '{"missing":[],"extra":[],"different":[]}');
      },
      patience,
    );
    await serving(8080, 6);
  });

  it('Consul’s leader is lost: nobody notices', async () => {
    const words = ['--count', '500', '--interval', '20', '--timeout', '3000'];
    const asking = lab.nodes.map((node) => ask(lab.client, ['http', url(node), ...words]));
    await lab.stopConsul(first, { kill: true });
    await docker('service', 'scale', '--detach', 'web=5');
    await serving(8080, 5);
    for (const answers of await Promise.all(asking)) assert.deepEqual(errors(answers), []);
    await lab.startConsul();
    await docker('service', 'scale', '--detach', 'web=6');
    await serving(8080, 6);
  });

  it('the leading manager loses its power and returns: the cluster goes on', async () => {
    const others = lab.nodes.slice(1);
    const [second] = others;
    assert.ok(second);
    await lab.kill(first);
    await until(
      'its tasks are unreachable',
      async () => {
        const states = await Promise.all(others.map(status));
        return states.every(({ nodes }) => nodes.some(({ unreachable }) => unreachable));
      },
      patience,
    );
    for (const node of others) {
      const list = await ask(lab.client, ['http', url(node), '--count', '24', '--timeout', '2000']);
      assert.deepEqual(errors(list), [], node.name);
    }
    // Swarm starts its tasks elsewhere once it takes the node for lost.
    await serving(8080, 6, others);
    await lab.boot(first);
    await serving(8080, 6);
    await until(
      'nobody is unreachable',
      async () => {
        const states = await Promise.all(lab.nodes.map((node) => status(node).catch(() => undefined)));
        return states.every((one) => one?.nodes.every(({ unreachable }) => !unreachable));
      },
      patience,
    );
  });

  it('everything is removed: nothing is left #engines', async () => {
    // The managers may be electing still: the one that came back takes part.
    await until(
      'the services are removed',
      async () => {
        const { failed, stdout } = await first.docker(['service', 'ls', '--quiet'], { reject: false });
        const left = stdout.split('\n').filter(Boolean);
        if (left.length > 0) await first.docker(['service', 'rm', ...left], { reject: false });
        return !failed && left.length === 0;
      },
      patience,
    );
    await until(
      'the networks can be removed',
      async () => {
        await first.docker(['network', 'rm', 'front', 'back'], { reject: false });
        return !/front|back/.test(await docker('network', 'ls', '--format', '{{.Name}}'));
      },
      patience,
    );
    for (const node of lab.nodes)
      await until(
        `the kernel of ${node.name} is as it was`,
        async () => {
          const { stdout: rules } = await node.exec(['nft', 'list', 'ruleset'], { reject: false });
          const { stdout: links } = await node.exec(['ip', '-o', 'link']);
          const { stdout: policy } = await node.exec(['ip', 'rule']);
          return ![rules, links, policy].some((text) => /causeway|cw-|proto 197/.test(text));
        },
        // What the node lost with its power is collected a minute after it was missed.
        patience,
      );
  });
});
