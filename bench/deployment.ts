// Owns what is measured: a one-node Swarm with the plugin, and the same web server on Causeway and on Docker's overlay.
// Must not measure anything.
import * as z from 'zod';
import { createPlugin, pluginName } from '../rootfs/create.ts';
import type { Lab } from '../test/lab/lab.ts';
import type { Command, Host } from '../test/lab/node.ts';
import { until } from '../test/support/until.ts';
import { enablePlugin } from '../test/lab/slow.ts';

/** In every server's container. */
export const ports = {
  /** HTTP for connections that were balanced. */
  web: 8000,
  /**
   * The same for those that come by the container's own address. On a port of their own they never meet what a
   * balanced connection with the same client port has left: the server's TIME_WAIT, and an entry in conntrack that
   * would make NAT look for another port.
   */
  webDirect: 8001,
  iperf: 5201,
} as const;

/** Where {@link ports.web} and {@link ports.iperf} are published. */
export interface Published {
  web: number;
  iperf: number;
}

/** Limits generous enough for an emulated processor, in milliseconds. */
const startMs = 600_000;
const commandMs = 300_000;

const nginxConf = `daemon off;
worker_processes 1;
error_log stderr;
pid /tmp/nginx.pid;
events { worker_connections 4096; }
http {
  access_log off;
  sendfile on;
  tcp_nopush on;
  client_body_temp_path /tmp/body;
  proxy_temp_path /tmp/proxy;
  fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi;
  scgi_temp_path /tmp/scgi;
  server {
    listen ${ports.web} backlog=4096;
    listen ${ports.webDirect} backlog=4096;
    root /srv;
  }
}
`;

/** A container's network, to run the host's programs in. Its address is that on the network it was created for. */
export type Task = Pick<Host, 'address' | 'exec'>;

/** A server and how it is reached. */
export interface Server {
  task: Task;
  vip: string;
  published: Published;
  /** In CIDR form. */
  subnet: string;
}

const container = z.object({
  State: z.object({ Pid: z.number() }),
  NetworkSettings: z.object({ Networks: z.record(z.string(), z.object({ IPAddress: z.string() })) }),
});
const service = z.object({
  Endpoint: z.object({ VirtualIPs: z.array(z.object({ NetworkID: z.string(), Addr: z.string() })) }),
});
const network = z.object({
  Id: z.string(),
  IPAM: z.object({ Config: z.array(z.object({ Subnet: z.string() })) }),
});

/** Deploys what is measured on the first node of a lab. */
export class Deployment {
  readonly #lab: Lab;
  /** The id of the image of all tasks, which must be loaded. */
  readonly #image: string;
  readonly #signal: AbortSignal | undefined;

  constructor(lab: Lab, image: string, signal?: AbortSignal) {
    this.#lab = lab;
    this.#image = image;
    this.#signal = signal;
  }

  /** Makes the lab a Swarm with the plugin, which is created unless the engine has it. */
  async prepare(env: string[] = []): Promise<void> {
    const plugins = await this.#docker(['plugin', 'ls', '--format', '{{.Name}}']);
    if (!plugins.split('\n').includes(pluginName)) {
      await createPlugin(async (args) => ({ stdout: await this.#docker(args) }));
    }
    if (env.length > 0) await this.#docker(['plugin', 'set', pluginName, ...env]);
    await enablePlugin(this.#lab.first, pluginName, this.#signal);
    await this.#lab.formSwarm(this.#signal ? { signal: this.#signal } : {});
    await this.#docker(['config', 'create', 'nginx', '-'], nginxConf);
  }

  /** A network of Causeway's, or of Docker's own overlay driver. */
  async network(name: string, driver: 'causeway' | 'overlay'): Promise<void> {
    const words =
      driver === 'overlay' ? ['overlay'] : [pluginName, '--ipam-driver', pluginName, '--scope', 'swarm'];
    await this.#docker(['network', 'create', '--driver', ...words, name]);
  }

  /** One task that serves HTTP and iperf3, published through the routing mesh of the network's driver. */
  async server(name: string, onNetwork: string, published: Published): Promise<Server> {
    const words = [
      ...['--config', 'source=nginx,target=/nginx.conf'],
      ...['--publish', `${published.web}:${ports.web}`, '--publish', `${published.iperf}:${ports.iperf}`],
    ];
    const task = await this.#task(name, onNetwork, words, 'iperf3 --server & exec nginx -c /nginx.conf');
    const { Id, IPAM } = network.parse(await this.#inspect('network', onNetwork));
    const { Endpoint } = service.parse(await this.#inspect('service', name));
    const vip = Endpoint.VirtualIPs.find(({ NetworkID }) => NetworkID === Id)?.Addr.split('/')[0];
    const subnet = IPAM.Config[0]?.Subnet;
    if (vip === undefined || subnet === undefined) throw new Error(`${name} has no VIP on ${onNetwork}.`);
    return { task, vip, published, subnet };
  }

  /** One task that does nothing, to ask from. */
  visitor(name: string, onNetwork: string): Promise<Task> {
    return this.#task(name, onNetwork, [], 'exec sleep 1000000');
  }

  /** Creates a service of one task and waits until its container runs. @throws Error with what Docker says of it */
  async #task(name: string, onNetwork: string, words: string[], command: string): Promise<Task> {
    const create = ['service', 'create', '--detach', '--quiet', '--no-resolve-image', '--name', name];
    const entry = ['--entrypoint', '/usr/bin/sh', this.#image, '-c', command];
    await this.#docker([...create, '--network', onNetwork, ...words, ...entry]);
    const filter = ['--filter', `label=com.docker.swarm.service.name=${name}`];
    const id = await until(
      `${name} runs`,
      async () => (await this.#docker(['ps', '--quiet', ...filter])) || undefined,
      { timeoutMs: startMs, everyMs: 300, signal: this.#signal },
    ).catch(async (error: unknown) => {
      this.#signal?.throwIfAborted();
      const said = await this.#docker(['service', 'ps', '--no-trunc', name]);
      throw new Error(`Service ${name} did not start:\n${said}`, { cause: error });
    });
    const { State, NetworkSettings } = container.parse(await this.#inspect('container', id));
    const address = NetworkSettings.Networks[onNetwork]?.IPAddress;
    if (address === undefined) throw new Error(`${name} is not on ${onNetwork}.`);
    const enter: Command = ['nsenter', '--target', String(State.Pid), '--net', '--'];
    return { address, exec: (rest, options) => this.#lab.first.exec([...enter, ...rest], options) };
  }

  async #inspect(kind: string, name: string): Promise<unknown> {
    return JSON.parse(await this.#docker([kind, 'inspect', '--format', '{{json .}}', name]));
  }

  async #docker(args: readonly string[], input?: string): Promise<string> {
    const { stdout } = await this.#lab.first.docker(args, {
      timeout: commandMs,
      signal: this.#signal,
      ...(input === undefined ? {} : { input }),
    });
    return stdout;
  }
}
