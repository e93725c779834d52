// Owns the test of what people set of their Docker Engine: with each setting the main job is done, and after a restart.
// Must not test the main job itself; single-node.test.ts does.
import assert from 'node:assert/strict';
import { inspect } from 'node:util';
import { createPlugin, pluginName } from '../../rootfs/create.ts';
import { labNameFor, parseEngine } from '../lab/engines.ts';
import { loadImage, prepareImage, type Image } from '../lab/image.ts';
import { Lab } from '../lab/lab.ts';
import type { DockerdSettings, LabNode } from '../lab/node.ts';
import { until } from '../support/until.ts';
import { enablePlugin, reviveWhereSlow } from '../lab/slow.ts';
import { slowness } from '../slowness.ts';
import { ask, askFrom, clients, errors, within, type Answer } from './questions.ts';

const engine = parseEngine(process.env['CAUSEWAY_TEST_ENGINE'] ?? '28');
const labName = labNameFor('test-settings');
const patience = { timeoutMs: 150_000 * slowness, everyMs: 250 * slowness };

/** Each is what an operator has written into daemon.json, or the unit file. */
const settings: Record<string, DockerdSettings> = {
  'refuses API versions as old as 1.43': { env: { DOCKER_MIN_API_VERSION: '1.44' } },
  'has no proxies for ports': { args: ['--userland-proxy=false'] },
  'makes no rules for iptables': { args: ['--iptables=false', '--ip6tables=false'] },
  'takes its own subnets from where Causeway takes its': {
    args: ['--default-address-pool', 'base=10.64.0.0/16,size=24', '--bip', '10.64.32.1/24'],
  },
  // 28.5 knows it by this alone; the option is Docker 29's.
  ...(engine === '28' && { 'makes its rules by nftables': { env: { DOCKER_FIREWALL_BACKEND: 'nftables' } } }),
};

interface Status {
  docker: { version?: string; api?: string; error?: string };
  services: unknown;
  kernel: unknown;
}

describe(`Docker ${engine} as people set it`, function () {
  this.timeout(600_000 * slowness);
  let lab: Lab;
  let node: LabNode;
  let image: Image;

  const docker = async (...args: string[]): Promise<string> => (await node.docker(args)).stdout;

  before(async () => {
    image = await prepareImage();
    await Lab.down(labName);
    lab = await Lab.up({ name: labName, engine });
    node = lab.first;
    await loadImage(node, image);
    await createPlugin((args) => node.docker(args));
    await enablePlugin(node, pluginName);
    await lab.formSwarm();
    const network = [
      '-d',
      pluginName,
      '--ipam-driver',
      pluginName,
      '--scope',
      'swarm',
      '--attachable',
      'front',
    ];
    await docker('network', 'create', ...network);
    const create = ['service', 'create', '--detach', '--quiet', '--no-resolve-image', '--network', 'front'];
    await docker(...create, '--name', 'web', '-p', '8080:80', image.id, 'serve', '--http', '80');
    await docker(...create, '--name', 'asker', image.id, 'serve');
  });
  after(() => Lab.down(labName));

  async function restartWith(dockerd: DockerdSettings): Promise<void> {
    node.dockerd = dockerd;
    await node.restartDocker();
    await reviveWhereSlow(node, pluginName);
    await until('each task has the network that it was given', haveNetworks, patience);
  }

  /**
   * Docker 28 may start a task twice where it comes before its networks, and give up the links of the second start with those of
   * the first ("cannot delete running task" in its log): that task runs without any network, of whatever driver, and Swarm takes it
   * for running. It is replaced here, as its user would have to.
   */
  async function haveNetworks(): Promise<boolean> {
    const running = (await docker('ps', '--quiet', '--no-trunc')).split('\n').filter(Boolean);
    const format = '{{.NetworkSettings.Networks.front.IPAddress}}';
    const addresses = await Promise.all(running.map((id) => docker('inspect', '--format', format, id)));
    const without = running.filter((_, at) => addresses[at] === '');
    if (without.length > 0) await node.docker(['rm', '--force', ...without], { reject: false });
    return running.length >= 2 && without.length === 0;
  }

  /** Waits for answers without an error. @returns whom the tasks saw */
  async function answered(what: string, question: () => Promise<Answer[]>): Promise<string[]> {
    let list: Answer[] = [];
    await until(
      what,
      async () => {
        list = await question();
        return errors(list).length === 0;
      },
      patience,
    ).catch(async () => {
      const { services, kernel } = (await node.admin('/status')) as Status;
      const { stdout } = await node.docker(['service', 'ps', '--no-trunc', 'web'], { reject: false });
      const instead = inspect({ services, kernel }, { depth: 8, compact: 8, breakLength: 160 });
      assert.fail(`${what}: ${errors(list).join()}\n${stdout}\n${instead}`);
    });
    return clients(list);
  }

  async function doesItsJob(): Promise<void> {
    const asked = (port: number) => () =>
      ask(lab.client, ['http', `http://${node.address}:${port}/`, '--count', '2', ...within(1)]);
    assert.deepEqual(await answered('the published port', asked(8080)), [lab.client.address]);
    const [vip = ''] = (
      await docker('service', 'inspect', '--format', '{{range .Endpoint.VirtualIPs}}{{.Addr}} {{end}}', 'web')
    )
      .split(' ')
      .filter((address) => !address.startsWith('10.0.0.'))
      .map((address) => address.split('/')[0]!);
    for (const name of [vip, 'web'])
      await answered(name, async () => {
        const filter = 'label=com.docker.swarm.service.name=asker';
        const asker = await docker('ps', '--quiet', '--no-trunc', '--filter', filter);
        return askFrom(node, asker, ['http', `http://${name}/`, '--count', '2', ...within(1)]);
      });
    const run = ['run', '--detach', '--name', 'single', '--network', 'front', '-p', '8095:80'];
    await docker(...run, image.id, 'serve', '--http', '80');
    assert.deepEqual(await answered('the port of a container', asked(8095)), [lab.client.address]);
    await docker('rm', '--force', 'single');
  }

  for (const [name, dockerd] of Object.entries(settings))
    it(`does its job where Docker ${name}`, async () => {
      await restartWith(dockerd);
      await doesItsJob();
      assert.equal(((await node.admin('/status')) as Status).docker.error, undefined);
    });

  it('Docker refuses the API version of 20.10: the plugin speaks one that it accepts', async () => {
    await restartWith(settings['refuses API versions as old as 1.43'] ?? {});
    const old = ['curl', '-s', '--unix-socket', '/run/docker.sock', 'http://docker/v1.41/info'] as const;
    assert.match((await node.exec(old)).stdout, /client version 1\.41 is too old/);
    const { api } = await until(
      'the engine has spoken',
      async () => {
        const status = (await node.admin('/status').catch(() => undefined)) as Status | undefined;
        return status?.docker.api === undefined ? undefined : status.docker;
      },
      patience,
    );
    assert.ok(Number(api?.split('.')[1]) >= 44, api);
  });

  it('Docker hangs: the plugin says so, and no longer when it goes on', async () => {
    const dockerd = await node.pidsOf('dockerd');
    for (const pid of dockerd) process.kill(pid, 'SIGSTOP');
    try {
      const { error } = await until(
        'it is told',
        async () => {
          const { docker: state } = (await node.admin('/healthz')) as Status;
          return state.error === undefined ? undefined : state;
        },
        patience,
      );
      assert.match(error ?? '', /^Docker does not answer: .*; see if dockerd runs$/);
    } finally {
      for (const pid of dockerd) process.kill(pid, 'SIGCONT');
    }
    await until(
      'it is over',
      async () => ((await node.admin('/healthz')) as Status).docker.error === undefined,
      patience,
    );
  });

  it('live-restore in a Swarm: containers are not kept, by Docker’s own word', async () => {
    node.dockerd = { args: ['--live-restore'] };
    await node.stopDocker();
    await assert.rejects(
      node.startDocker(),
      /--live-restore daemon configuration is incompatible with swarm mode/,
    );
    node.dockerd = {};
    await node.startDocker();
    await reviveWhereSlow(node, pluginName);
    await until('each task has the network that it was given', haveNetworks, patience);
    await doesItsJob();
  });
});
