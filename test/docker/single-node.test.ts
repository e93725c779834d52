// Owns the test of the main job in a real Docker Engine: a one-node Swarm, the plugin as built, real services.
// CAUSEWAY_TEST_LB names the engine this kernel must lead to, CAUSEWAY_TEST_DOCKER a data root of Docker that has the
// image and the plugin already. The tests marked #main are those for which there is time on an emulated processor.
// Must not reach into the plugin: what a user of docker can see and do is what counts.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { pluginDir } from '../../rootfs/build.ts';
import { defaultEngine, labNameFor } from '../lab/engines.ts';
import { imageName, loadImage, prepareImage } from '../lab/image.ts';
import { Lab } from '../lab/lab.ts';
import { startLoad } from '../lab/asking.ts';
import { enablePlugin, readDockersPrograms, reviveWhereSlow } from '../lab/slow.ts';
import { signal } from '../lab/processes.ts';
import { until } from '../support/until.ts';
import type { LabNode } from '../lab/node.ts';
import { slowness } from '../slowness.ts';
import { ask, askFrom, clients, errors, lookUp, tasks, within, type Answer } from './questions.ts';

const plugin = 'causeway/net:latest';
const labName = labNameFor('test-docker');
const engine = process.env['CAUSEWAY_TEST_LB'] ?? 'nft';
const dataRoot = process.env['CAUSEWAY_TEST_DOCKER'];

/** Long enough on a busy machine. Not too often: every look costs a few programs. */
const eventually = (what: string, done: () => Promise<boolean>): Promise<boolean> =>
  until(what, done, { timeoutMs: 150_000 * slowness, everyMs: 250 * slowness });

/** What of Causeway is in a node's kernel, one line each. */
async function traces(node: LabNode): Promise<string[]> {
  const { stdout: rules } = await node.exec(['nft', 'list', 'ruleset'], { reject: false });
  const { stdout: links } = await node.exec(['ip', '-o', 'link']);
  const { stdout: routes } = await node.exec(['ip', 'route', 'show', 'table', 'all', 'proto', '197']);
  return [
    ...rules.split('\n').filter((line) => /causeway|cw-/.test(line)),
    ...links.split('\n').filter((line) => line.includes('cw-')),
    routes,
  ].filter(Boolean);
}

describe(`a one-node Swarm in Docker ${defaultEngine()}, engine ${engine}`, function () {
  this.timeout(600_000 * slowness);
  let lab: Lab;
  let node: LabNode;
  /** By its id: by name, every task would first look for a registry. */
  let image: string;

  const docker = async (...args: string[]): Promise<string> => (await node.docker(args)).stdout;

  async function running(service: string): Promise<string[]> {
    const list = await docker(
      'ps',
      '--quiet',
      '--no-trunc',
      '--filter',
      `label=com.docker.swarm.service.name=${service}`,
    );
    return list.split('\n').filter(Boolean);
  }

  /** Waits until the service has this many running tasks and the mesh answers from each of them. */
  async function serving(service: string, port: number, count: number): Promise<void> {
    await eventually(`${service} answers from ${count} tasks`, async () => {
      if ((await running(service)).length !== count) return false;
      const list = await ask(lab.client, [
        'http',
        `http://${node.address}:${port}/`,
        '--count',
        String(2 * count),
        ...within(1),
      ]);
      return tasks(list).length === count && errors(list).length === 0;
    });
  }

  async function createService(name: string, ...words: string[]): Promise<void> {
    await docker(
      'service',
      'create',
      '--detach',
      '--quiet',
      '--no-resolve-image',
      '--name',
      name,
      ...words,
      image,
      'serve',
      '--http',
      '80',
      '--echo',
      '7',
    );
  }

  const inTask = (container: string | undefined, ...words: string[]): Promise<Answer[]> =>
    askFrom(node, container, words);

  before(async () => {
    await Lab.down(labName);
    if (dataRoot === undefined) {
      const archive = await prepareImage();
      lab = await Lab.up({ name: labName });
      node = lab.first;
      await loadImage(node, archive);
      await docker('plugin', 'create', plugin, pluginDir);
    } else {
      await readDockersPrograms();
      lab = await Lab.up({ name: labName, data: [dataRoot] });
      node = lab.first;
    }
    image = await docker('images', '--quiet', '--no-trunc', imageName);
    await enablePlugin(node, plugin);
    await lab.formSwarm();
    await docker('network', 'create', '-d', plugin, '--ipam-driver', plugin, '--scope', 'swarm', 'front');
    await createService(
      'web',
      '--network',
      'front',
      '--replicas',
      '3',
      '-p',
      '8080:80',
      '-p',
      '8081:7/udp',
      '-p',
      '8082:7',
      '--stop-grace-period',
      '2s',
    );
    await createService('asker', '--network', 'front');
    await serving('web', 8080, 3);
    await eventually('asker runs', async () => (await running('asker')).length === 1);
  });
  after(() => lab.down());

  it('the plugin chose the engine for this kernel by itself #main', async () => {
    const { engine: chosen } = (await node.admin('/status')) as { engine: { name: string } };
    assert.equal(chosen.name, engine);
  });

  it('the published port answers from every task, which sees the client’s address #main', async () => {
    const list = await ask(lab.client, ['http', `http://${node.address}:8080/`, '--count', '9']);
    assert.deepEqual(errors(list), []);
    assert.equal(tasks(list).length, 3);
    assert.deepEqual(clients(list), [lab.client.address]);
    const datagrams = await ask(lab.client, ['udp', `${node.address}:8081`, '--count', '9']);
    assert.equal(tasks(datagrams).length, 3);
    assert.deepEqual(clients(datagrams), [lab.client.address]);
  });

  it('the VIP, which Docker’s own DNS gives, answers another task #main', async () => {
    const list = await inTask((await running('asker'))[0], 'http', 'http://web/', '--count', '9');
    assert.deepEqual(errors(list), []);
    assert.equal(tasks(list).length, 3);
  });

  it('the node itself is answered, by its address and by 127.0.0.1 #main', async () => {
    for (const address of [node.address, '127.0.0.1']) {
      const list = await ask(node, ['http', `http://${address}:8080/`, '--count', '6']);
      assert.deepEqual([tasks(list).length, errors(list)], [3, []], address);
    }
  });

  it('a service that is scaled up and down is followed', async () => {
    for (const count of [5, 2]) {
      await docker('service', 'scale', '--detach', `web=${count}`);
      await serving('web', 8080, count);
    }
  });

  it('a service at scale zero is refused, and comes back from it', async () => {
    await docker('service', 'scale', '--detach', 'web=0');
    const refused = async (): Promise<boolean> => {
      const list = await ask(lab.client, [
        'http',
        `http://${node.address}:8080/`,
        '--count',
        '1',
        ...within(1),
      ]);
      return /ECONNREFUSED/.test(errors(list)[0] ?? '');
    };
    await eventually('the port refuses', refused);
    await docker('service', 'scale', '--detach', 'web=3');
    await serving('web', 8080, 3);
  });

  it('a job is known by its names and its port while it runs, and no longer', async () => {
    const job = ['--mode', 'replicated-job', '--replicas', '2', '--network', 'front', '-p', '8083:80'];
    await createService('job', ...job);
    await serving('job', 8083, 2);
    const [asker] = await running('asker');
    const vip = await inTask(asker, 'http', 'http://job/', '--count', '4');
    assert.deepEqual([tasks(vip).length, errors(vip)], [2, []]);
    const [[name], own] = (await lookUp(node, asker, ['job A', 'tasks.job A'])) as [string[], string[]];
    assert.deepEqual([own.length, own.includes(name!)], [2, false]);
    const [first] = await running('job');
    await docker('kill', '--signal', 'TERM', first!);
    await serving('job', 8083, 1);
    await docker('kill', '--signal', 'TERM', ...(await running('job')));
    await eventually('the port of a job that is done refuses', async () => {
      const list = await ask(lab.client, [
        'http',
        `http://${node.address}:8083/`,
        '--count',
        '1',
        ...within(1),
      ]);
      return /ECONNREFUSED/.test(errors(list).join());
    });
    await eventually('Swarm has heard that both tasks are done', async () =>
      (await docker('service', 'ls', '--filter', 'name=job')).includes('2/2 completed'),
    );
    await docker('service', 'rm', 'job');
  });

  it('no request is lost while a service is scaled down', async () => {
    await docker('service', 'scale', '--detach', 'web=6');
    await serving('web', 8080, 6);
    const asking = ask(lab.client, [
      'http',
      `http://${node.address}:8080/`,
      '--count',
      '300',
      '--interval',
      '20',
      ...within(2),
    ]);
    await docker('service', 'scale', '--detach', 'web=3');
    const list = await asking;
    assert.deepEqual(errors(list), []);
    assert.equal(list.length, 300);
    await serving('web', 8080, 3);
  });

  it('names are answered by Causeway, and left to Docker’s resolver when it is disabled', async () => {
    const [asker] = await running('asker');
    const names = ['web A', 'tasks.web A', 'web.front.causeway.internal A'];
    const led = await until(
      'the name server answers',
      async () => {
        const answers = await lookUp(node, asker, names);
        return Array.isArray(answers[2]) && answers;
      },
      { timeoutMs: 60_000 * slowness, instead: () => lookUp(node, asker, names) },
    );
    assert.deepEqual(led[2], led[0]);
    await docker('plugin', 'disable', '--force', plugin);
    const [web, ...others] = await lookUp(node, asker, names).finally(() => enablePlugin(node, plugin));
    assert.deepEqual(web, led[0]);
    // Docker's resolver does not know this one; its upstream, if there is any, says no, or nothing.
    assert.equal(typeof others[1], 'string');
    await eventually('it answers again', async () => Array.isArray((await lookUp(node, asker, names))[2]));
  });

  it('an attachable container takes part', async () => {
    await docker(
      'network',
      'create',
      '-d',
      plugin,
      '--ipam-driver',
      plugin,
      '--scope',
      'swarm',
      '--attachable',
      '--subnet',
      '10.99.0.0/24',
      'open',
    );
    await createService('api', '--network', 'open', '--replicas', '2');
    await eventually('api runs', async () => (await running('api')).length === 2);
    const container = await docker(
      'run',
      '--detach',
      '--network',
      'open',
      '--ip',
      '10.99.0.200',
      image,
      'serve',
    );
    await eventually(
      'the container reaches both',
      async () => tasks(await inTask(container, 'http', 'http://api/', '--count', '4')).length === 2,
    );
    const list = await inTask(container, 'http', 'http://api/', '--count', '4');
    assert.deepEqual(clients(list), ['10.99.0.200']);
    await assert.rejects(
      docker('run', '--rm', '--network', 'open', '--ip', '10.99.0.200', image, 'serve'),
      /10\.99\.0\.200 is in use/,
    );
    await docker('rm', '--force', container);
    await docker('service', 'rm', 'api');
  });

  it('ports of a single container are published, with the reason where they cannot be #engines', async () => {
    const network = ['network', 'create', '-d', plugin, '--ipam-driver', plugin, '--scope', 'swarm'];
    await docker(...network, '--attachable', 'single');
    const run = (name: string, ...words: string[]) =>
      node.docker(
        ['run', '--detach', '--name', name, '--network', 'single', ...words, image, 'serve', '--http', '80'],
        { reject: false },
      );
    await run('one', '-p', '8095:80', '-p', '127.0.0.1:8096:80', '-p', '80');
    const { endpoints } = (await node.admin('/status')) as {
      endpoints: { ports?: { port: number; address?: string }[] }[];
    };
    const chosen = endpoints.flatMap(({ ports = [] }) => ports).find(({ port }) => port >= 49_153);
    assert.ok(chosen, JSON.stringify(endpoints));
    for (const [host, url, client] of [
      [lab.client, `${node.address}:8095`, lab.client.address],
      [lab.client, `${node.address}:${chosen.port}`, lab.client.address],
      [node, '127.0.0.1:8096', undefined],
    ] as const)
      await eventually(`the container answers at ${url}`, async () => {
        const list = await ask(host, ['http', `http://${url}/`, '--count', '2', ...within(1)]);
        return errors(list).length === 0 && (client === undefined || clients(list).join() === client);
      });
    const outside = await ask(lab.client, ['http', `http://${node.address}:8096/`, '--count', '1']);
    assert.match(errors(outside).join(), /ECONNREFUSED/);
    const again = await run('two', '-p', '8095:80');
    assert.match(again.stderr, /port 8095\/tcp cannot be published: another container/);
    const service = await run('three', '-p', '8080:80');
    assert.match(service.stderr, /port 8080\/tcp cannot be published: service web has published it/);
    const deny = `causeway.publish.deny=${lab.client.address}`;
    await run('four', '-p', '8097:80', '--label', deny);
    await eventually('the node itself is let in', async () => {
      const list = await ask(node, ['http', 'http://127.0.0.1:8097/', '--count', '1', ...within(1)]);
      return errors(list).length === 0;
    });
    const denied = await ask(lab.client, ['http', `http://${node.address}:8097/`, '--count', '1']);
    assert.match(errors(denied).join(), /ECONNREFUSED/);
    await docker('rm', '--force', 'one', 'two', 'three', 'four');
    const gone = await ask(lab.client, ['http', `http://${node.address}:8095/`, '--count', '1']);
    assert.match(errors(gone).join(), /ECONNREFUSED/);
    const hosted = ['--network', 'single', '--publish', 'mode=host,target=80,published=8095'];
    await createService('hosted', ...hosted);
    await serving('hosted', 8095, 1);
    await docker('service', 'update', '--detach', '--label-add', deny, 'hosted');
    await eventually('its service’s label keeps the client out', async () => {
      const list = await ask(lab.client, [
        'http',
        `http://${node.address}:8095/`,
        '--count',
        '1',
        ...within(1),
      ]);
      return /ECONNREFUSED/.test(errors(list).join());
    });
    await docker('service', 'rm', 'hosted');
    await eventually('the network can be removed', async () => {
      await node.docker(['network', 'rm', 'single'], { reject: false });
      return !/single/.test(await docker('network', 'ls', '--format', '{{.Name}}'));
    });
  });

  it('a published port of a service on two networks answers', async () => {
    await docker('network', 'create', '-d', plugin, '--ipam-driver', plugin, '--scope', 'swarm', 'back');
    // By name `back` comes before `front`: Docker makes it the default gateway.
    await createService(
      'both',
      '--network',
      'front',
      '--network',
      'back',
      '--replicas',
      '2',
      '-p',
      '8085:80',
    );
    await serving('both', 8085, 2);
    assert.deepEqual(
      clients(await ask(lab.client, ['http', `http://${node.address}:8085/`, '--count', '4'])),
      [lab.client.address],
    );
    await docker('service', 'rm', 'both');
    await eventually('its tasks are gone', async () => (await running('both')).length === 0);
    await docker('network', 'rm', 'back');
  });

  const networkWords = ['-d', plugin, '--ipam-driver', plugin, '--scope', 'swarm'];

  it('no request is lost while a published service changes its networks, and who shares one with it is answered', async () => {
    await docker('network', 'create', ...networkWords, 'back');
    const health = ['--health-cmd', 'wget -q -O - http://127.0.0.1/', '--health-interval', '1s'];
    const rest = ['--replicas', '2', '--stop-grace-period', '2s', '-p', '8086:80'];
    await createService('moving', '--network', 'front', ...health, ...rest);
    await serving('moving', 8086, 2);
    const load = await startLoad(lab.client, `http://${node.address}:8086/`, {
      ...{ intervalMs: 100 * slowness, timeoutMs: 5_000 * slowness },
    });
    const [asker] = await running('asker');
    for (const change of ['--network-add', '--network-rm']) {
      const old = await running('moving');
      await docker('service', 'update', '--detach', '--quiet', change, 'back', 'moving');
      await eventually('its tasks are others', async () => {
        const now = await running('moving');
        return now.length === 2 && !now.some((id) => old.includes(id));
      });
      await serving('moving', 8086, 2);
      // With `--network-add` Docker’s default route is by `back`, and the link to who asks is that of `front`.
      const list = await inTask(asker, 'http', `http://${node.address}:8086/`, '--count', '4');
      assert.deepEqual([errors(list), tasks(list).length], [[], 2], change);
    }
    const outcomes = await load.stop();
    assert.deepEqual(
      outcomes.filter(({ error }) => error !== undefined),
      [],
    );
    await docker('service', 'rm', 'moving');
    await eventually('its tasks are gone', async () => (await running('moving')).length === 0);
    await docker('network', 'rm', 'back');
  });

  it('an internal network beside Docker’s overlay leaves the way out to that, and its ports answer', async () => {
    await docker('network', 'create', ...networkWords, '--internal', 'inner');
    await docker('network', 'create', '-d', 'overlay', 'public');
    await createService('closed', '--network', 'inner', '-p', '8087:80');
    await createService('mixed', '--network', 'inner', '--network', 'public', '-p', '8088:80');
    for (const [name, port] of [
      ['closed', 8087],
      ['mixed', 8088],
    ] as const)
      await serving(name, port, 1);
    // Nobody listens there: who gets so far is refused.
    const outwards = async (name: string): Promise<string> => {
      const [container] = await running(name);
      return errors(
        await inTask(container, 'http', `http://${lab.client.address}:9/`, '--count', '1'),
      ).join();
    };
    assert.match(await outwards('closed'), /ENETUNREACH/);
    assert.match(await outwards('mixed'), /ECONNREFUSED/);
    for (const name of ['closed', 'mixed']) await docker('service', 'rm', name);
    await eventually('the networks can be removed', async () => {
      await node.docker(['network', 'rm', 'inner', 'public'], { reject: false });
      return !/inner|public/.test(await docker('network', 'ls', '--format', '{{.Name}}'));
    });
  });

  it('swarm-stack.yml is deployed, and serves', async () => {
    const stack = join(import.meta.dirname, '../../swarm-stack.yml');
    const settings = [`WEB_IMAGE=${image}`, 'WEB_PUBLISHED=8070'];
    const deploy = ['docker', 'stack', 'deploy', '--resolve-image=never', '-c', stack, 'demo'];
    await node.exec(['env', ...settings, ...deploy]);
    await serving('demo_web', 8070, 3);
    assert.deepEqual(
      clients(await ask(lab.client, ['http', `http://${node.address}:8070/`, '--count', '6'])),
      [lab.client.address],
    );
    // Docker may find its network in use by a task that has not heard of its end.
    await eventually('the stack is removed', async () => {
      await node.docker(['stack', 'rm', 'demo'], { reject: false });
      return !(await docker('network', 'ls')).includes('demo_front');
    });
  });

  it('docker service ps shows what is wrong with a network', async () => {
    const wrong: [string, string[], RegExp][] = [
      ['option', ['-o', 'speed=fast'], /unknown network option speed/],
      ['overlap', ['--subnet', '198.51.100.0/25'], /198\.51\.100\.\d/],
      ['mtu', ['-o', 'com.docker.network.driver.mtu=9000'], /9000 is larger than 1450/],
    ];
    for (const [name, words, message] of wrong) {
      await docker(
        'network',
        'create',
        '-d',
        plugin,
        '--ipam-driver',
        plugin,
        '--scope',
        'swarm',
        ...words,
        name,
      );
      await createService(`on-${name}`, '--network', name, '--restart-condition', 'none');
      const said = async (): Promise<string> =>
        docker('service', 'ps', '--no-trunc', '--format', '{{.Error}}', `on-${name}`);
      await eventually(`docker service ps tells of ${name}`, async () => message.test(await said())).catch(
        async () => assert.match(await said(), message),
      );
      await docker('service', 'rm', `on-${name}`);
    }
    await eventually('the networks can be removed', async () => {
      for (const [name] of wrong) await node.docker(['network', 'rm', name], { reject: false });
      return (await docker('network', 'ls', '--format', '{{.Name}}'))
        .split('\n')
        .every((name) => wrong.every(([other]) => other !== name));
    });
  });

  it('the plugin is killed under traffic: the data path goes on, and a new service is served afterwards #main', async () => {
    const asking = ask(lab.client, [
      'http',
      `http://${node.address}:8080/`,
      '--count',
      '400',
      '--interval',
      '20',
      ...within(2),
    ]);
    const kept = ask(lab.client, [
      'tcp',
      `${node.address}:8082`,
      '--count',
      '400',
      '--interval',
      '20',
      ...within(2),
    ]);
    const [pid] = await node.pidsOf('causeway');
    assert.ok(pid);
    const [asker] = await running('asker');
    const known = await lookUp(node, asker, ['web A']);
    signal(pid, 'SIGKILL');
    // Docker's resolver answers in its place, from the first question on.
    for (let turn = 0; turn < 5; turn += 1) assert.deepEqual(await lookUp(node, asker, ['web A']), known);
    const [list, longLived] = await Promise.all([asking, kept]);
    assert.deepEqual(errors(list), []);
    assert.deepEqual(errors(longLived), []);
    await eventually('the plugin is back', async () => {
      await reviveWhereSlow(node, plugin);
      return (await node.pidsOf('causeway')).some((other) => other !== pid);
    });
    await createService('after', '--network', 'front', '-p', '8090:80');
    await serving('after', 8090, 1);
    await docker('service', 'rm', 'after');
    await serving('web', 8080, 3);
  });

  for (const kill of [false, true]) {
    it(`traffic comes back after Docker was ${kill ? 'killed' : 'stopped'} and started again #engines`, async () => {
      await node.restartDocker({ kill });
      await reviveWhereSlow(node, plugin);
      await serving('web', 8080, 3);
      const list = await ask(lab.client, ['http', `http://${node.address}:8080/`, '--count', '9']);
      assert.deepEqual([errors(list), clients(list)], [[], [lab.client.address]]);
      await eventually('asker runs', async () => (await running('asker')).length === 1);
      await eventually(
        'the VIP answers',
        async () =>
          tasks(await inTask((await running('asker'))[0], 'http', 'http://web/', '--count', '6')).length ===
          3,
      );
    });
  }

  it('everything is removed: nothing is left #main', async () => {
    await docker('service', 'rm', 'web', 'asker');
    await eventually('all tasks are gone', async () => (await docker('ps', '--quiet')) === '');
    await eventually('the networks can be removed', async () => {
      await node.docker(['network', 'rm', 'front', 'open'], { reject: false });
      return !/front|open/.test(await docker('network', 'ls', '--format', '{{.Name}}'));
    });
    await eventually('the kernel is as it was', async () => (await traces(node)).length === 0).catch(
      async () => assert.deepEqual(await traces(node), []),
    );
    await docker('plugin', 'disable', plugin);
    await docker('plugin', 'rm', plugin);
    assert.deepEqual(await traces(node), []);
  });
});
