// Owns the test of workloads as users have them, with servers from Debian's packages: proxies in front of a scaled
// service, a cluster that finds itself by name, a collector of logs, Docker's overlay beside Causeway.
// Must not reach into the plugin: what the workloads and their users see is what counts.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { ask, askFrom, clients, errors, findAddresses, tasks } from '../docker/questions.ts';
import { startLoad } from '../lab/asking.ts';
import { loadImage, prepareImage } from '../lab/image.ts';
import { Lab } from '../lab/lab.ts';
import type { Host, LabNode } from '../lab/node.ts';
import { until } from '../support/until.ts';
import { prepareWorkloads } from './image.ts';

const patience = { timeoutMs: 150_000, everyMs: 500 };

/** Asks so often, and prints who answered and which client the proxy saw. */
const askProxy = `
const [url, count] = process.argv.slice(1);
for (let at = 0; at < Number(count); at += 1) {
  try {
    const answer = await fetch(url, { signal: AbortSignal.timeout(3000), headers: { connection: 'close' } });
    console.log(JSON.stringify({ ...(await answer.json()), client: answer.headers.get('x-seen') }));
  } catch (error) { console.log(JSON.stringify({ error: String(error.cause ?? error) })); }
}`;

/** Sends one line of syslog from each of the ports. */
const sendLog = `
const { createSocket } = require('node:dgram');
const [host, port, text, ...ports] = process.argv.slice(1);
for (const from of ports) {
  const socket = createSocket('udp4').bind(Number(from), () =>
    socket.send('<13>Nov 30 00:00:00 sender app: ' + text + from, Number(port), host, () => socket.close()));
}`;

describe('workloads on a three-node Swarm', function () {
  this.timeout(600_000);
  let lab: Lab;
  let first: LabNode;

  const docker = async (...args: string[]): Promise<string> => (await first.docker(args)).stdout;

  async function deploy(name: string): Promise<void> {
    const file = join(import.meta.dirname, `${name}.yml`);
    await first.exec(['docker', 'stack', 'deploy', '--resolve-image=never', '-c', file, name], {
      timeout: 60_000,
    });
  }

  async function remove(name: string): Promise<void> {
    await docker('stack', 'rm', name);
    await until(
      `stack ${name} is gone`,
      async () => {
        const left = await Promise.all(
          lab.nodes.map((node) => running(node, `com.docker.stack.namespace=${name}`)),
        );
        return left.flat().length === 0;
      },
      patience,
    );
  }

  /** Ids of the running containers with a label on a node. */
  async function running(node: LabNode, label: string): Promise<string[]> {
    const { stdout } = await node.docker(['ps', '--quiet', '--no-trunc', '--filter', `label=${label}`]);
    return stdout.split('\n').filter(Boolean);
  }

  const ofService = (node: LabNode, name: string): Promise<string[]> =>
    running(node, `com.docker.swarm.service.name=${name}`);

  /** Every running container of a service, with its node. */
  async function everywhere(name: string): Promise<{ node: LabNode; id: string }[]> {
    const lists = await Promise.all(
      lab.nodes.map(async (node) => (await ofService(node, name)).map((id) => ({ node, id }))),
    );
    return lists.flat();
  }

  async function inside(node: LabNode, id: string, ...command: string[]): Promise<string> {
    const { stdout } = await node.docker(['exec', id, ...command], { reject: false });
    return stdout;
  }

  async function proxied(
    from: Host,
    url: string,
    count: number,
  ): Promise<{ task?: string; client?: string; error?: string }[]> {
    const { stdout } = await from.exec(
      [process.execPath, '--input-type=module', '-e', askProxy, url, String(count)],
      {
        reject: false,
        timeout: 120_000,
      },
    );
    return stdout
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line) as { task?: string });
  }

  before(async () => {
    const images = [await prepareImage(), await prepareWorkloads()];
    await Lab.down('test-workloads');
    lab = await Lab.up({ name: 'test-workloads', nodes: 3 });
    ({ first } = lab);
    await Promise.all(
      lab.nodes.map(async (node) => {
        for (const image of images) await loadImage(node, image);
      }),
    );
    await lab.startConsul({ servers: 1 });
    await lab.installPlugin({ set: { CAUSEWAY_STORE: lab.consulStore } });
    await lab.formSwarm({ managers: 1 });
  });
  after(() => Lab.down('test-workloads'));

  describe('proxies that find a scaled service by tasks.NAME', () => {
    const proxies = [
      { name: 'nginx', port: 8090 },
      { name: 'HAProxy', port: 8091 },
    ];

    before(() => deploy('proxies'));
    after(() => remove('proxies'));

    /** Waits until so many tasks answer through the proxy. */
    async function balanced(port: number, count: number): Promise<void> {
      let list: Awaited<ReturnType<typeof proxied>> = [];
      await until(
        `${count} tasks answer through port ${port}`,
        async () => {
          list = await proxied(lab.client, `http://${first.address}:${port}/`, 4 * count);
          return tasks(list).length === count && errors(list).length === 0;
        },
        { ...patience, instead: () => Promise.resolve(list) },
      );
    }

    for (const { name, port } of proxies) {
      it(`${name} sees the client’s address by each node, and balances over all tasks`, async () => {
        await balanced(port, 2);
        for (const node of lab.nodes) {
          const list = await proxied(lab.client, `http://${node.address}:${port}/`, 4);
          assert.deepEqual([clients(list), errors(list)], [[lab.client.address], []], node.name);
        }
      });
    }

    it('no request through the proxies fails while the service is scaled up, updated and scaled down', async () => {
      const loads = await Promise.all(
        proxies.map(({ port }) =>
          startLoad(lab.client, `http://${first.address}:${port}/`, { intervalMs: 50, timeoutMs: 8_000 }),
        ),
      );
      await docker('service', 'scale', '--detach', 'proxies_web=6');
      for (const { port } of proxies) await balanced(port, 6);
      await docker(
        'service',
        'update',
        '--detach',
        '--quiet',
        '--force',
        '--update-parallelism',
        '3',
        'proxies_web',
      );
      await until(
        'the update is done',
        async () =>
          (await docker('service', 'inspect', '--format', '{{.UpdateStatus.State}}', 'proxies_web')) ===
          'completed',
        patience,
      );
      await docker('service', 'scale', '--detach', 'proxies_web=2');
      for (const { port } of proxies) await balanced(port, 2);
      const outcomes = await Promise.all(loads.map(({ stop }) => stop()));
      for (const [at, list] of outcomes.entries()) {
        const failed = list.filter(({ error }) => error !== undefined);
        assert.deepEqual([failed, list.length > 100], [[], true], proxies[at]?.name);
      }
    });

    it('an application reaches its own public name by every node', async () => {
      for (const { node, id } of await everywhere('proxies_app'))
        for (const { address } of lab.nodes)
          for (const { port } of proxies) {
            const list = await askFrom(node, id, ['http', `http://${address}:${port}/`, '--count', '2']);
            assert.deepEqual(errors(list), [], `${node.name} → ${address}:${port}`);
          }
    });
  });

  describe('a cluster whose members find each other by name', () => {
    before(() => deploy('cluster'));
    after(() => remove('cluster'));

    it('agents on all nodes gossip, and notice one that is replaced', async () => {
      const alive = async (node: LabNode, id: string): Promise<string[]> =>
        (await inside(node, id, 'consul', 'members'))
          .split('\n')
          .slice(1)
          .filter((line) => line.includes(' alive '))
          .map((line) => line.split(/\s+/)[1]?.split(':')[0] ?? '')
          .sort();
      const agree = (): Promise<boolean> =>
        until(
          'each agent knows all agents by their own addresses',
          async () => {
            const agents = await everywhere('cluster_agent');
            if (agents.length !== 3) return false;
            const own = await Promise.all(
              agents.map(async ({ node, id }) => {
                const format = '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}';
                return (await node.docker(['inspect', '--format', format, id])).stdout;
              }),
            );
            const seen = await Promise.all(agents.map(({ node, id }) => alive(node, id)));
            return seen.every((list) => list.join() === own.toSorted().join());
          },
          patience,
        );
      await agree();
      const [{ node, id } = { node: first, id: '' }] = await everywhere('cluster_agent');
      await node.docker(['kill', id]);
      await until(
        'it is replaced',
        async () => !(await ofService(node, 'cluster_agent')).includes(id),
        patience,
      );
      await agree();
    });
  });

  describe('a cluster whose members are healthy only once they have found each other', () => {
    before(() => deploy('etcd'));
    after(() => remove('etcd'));

    it('etcd comes up by the names of its tasks, and each member has what another was told', async () => {
      await until(
        'Swarm has three healthy members',
        async () =>
          (await docker('service', 'ls', '--filter', 'name=etcd_etcd', '--format', '{{.Replicas}}')) ===
          '3/3',
        { ...patience, instead: () => docker('service', 'ps', '--no-trunc', 'etcd_etcd') },
      );
      const members = await everywhere('etcd_etcd');
      assert.equal(members.length, 3);
      for (const [at, { node, id }] of members.entries()) {
        await inside(node, id, 'etcdctl', 'put', `key-${at}`, `by ${node.name}`);
        for (const other of members)
          assert.match(
            await inside(other.node, other.id, 'etcdctl', 'get', `key-${at}`),
            new RegExp(`by ${node.name}`),
          );
      }
    });
  });

  describe('a collector of logs', () => {
    before(() => deploy('syslog'));
    after(() => remove('syslog'));

    it('rsyslog writes down the address of who sent each line, by every node', async () => {
      await until(
        'it runs everywhere',
        async () => (await everywhere('syslog_rsyslog')).length === 3,
        patience,
      );
      const lines = async (): Promise<string[]> =>
        (
          await Promise.all(
            (await everywhere('syslog_rsyslog')).map(({ node, id }) => inside(node, id, 'cat', '/tmp/log')),
          )
        )
          .join('\n')
          .split('\n');
      const ports = [40001, 40002, 40003, 40004].map(String);
      for (const { name, address } of lab.nodes)
        await until(
          `lines sent to ${name} arrive`,
          async () => {
            await lab.client.exec([
              process.execPath,
              '-e',
              sendLog,
              address,
              '5514',
              `by-${name}-`,
              ...ports,
            ]);
            await sleep(300);
            const log = await lines();
            return ports.every((port) => log.some((line) => line.includes(`by-${name}-${port}`)));
          },
          patience,
        );
      const senders = (await lines())
        .filter((line) => line.includes('by-n'))
        .map((line) => line.split(' ')[0]);
      assert.deepEqual([...new Set(senders)], [lab.client.address]);
    });
  });

  describe('Docker’s overlay beside Causeway', () => {
    before(() => deploy('mixed'));
    after(() => remove('mixed'));

    it('a service on both is reached by every node with the client’s address, and reaches the overlay by name', async () => {
      await until(
        'the gate serves',
        async () =>
          tasks(await ask(lab.client, ['http', `http://${first.address}:8092/`, '--count', '6'])).length ===
          3,
        patience,
      );
      for (const node of lab.nodes) {
        const list = await ask(lab.client, ['http', `http://${node.address}:8092/`, '--count', '6']);
        assert.deepEqual(
          [tasks(list).length, clients(list), errors(list)],
          [3, [lab.client.address], []],
          node.name,
        );
      }
      for (const { node, id } of await everywhere('mixed_gate')) {
        const [found] = await findAddresses(node, id, ['store']);
        assert.equal(found?.glibc.length, 3, 'all tasks of the overlay’s service have an address');
        const list = await askFrom(node, id, ['http', 'http://store/', '--count', '3']);
        assert.deepEqual(errors(list), [], node.name);
      }
    });
  });
});
