// Owns the settings: environment variables of the plugin, with `docker plugin set` in mind.
// Must not read anything but the environment it is given.
import * as z from 'zod';
import { logLevels } from './log.ts';

/** A setting that cannot be used. The message names the variable, what it takes, and how to set it. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
}

const integer = (low: number, high: number) => z.coerce.number().int().min(low).max(high);

/** The addresses behind `consul://`. */
function addressesOf(setting: string): ({ host: string; port: number } | undefined)[] {
  return setting
    .replace(/^.*:\/\//, '')
    .split(',')
    .map(parseAddress);
}

const pem = z
  .string()
  .regex(
    /^(|\/run\/.+|-----BEGIN [\s\S]+)$/,
    'takes a PEM text, or the path of a PEM file below /run on the host',
  )
  .default('');

const adminForm = /^(unix:\/\/\/.+|tcp:\/\/(127(\.\d+){3}|localhost|\[::1\]):\d+)$/;

const consulForm = /^consul(\+https)?:\/\/[^,/]+(,[^,/]+)*$/;

/** One of the addresses of `CAUSEWAY_STORE`: HOST:PORT, an IPv6 address in brackets. */
function parseAddress(text: string): { host: string; port: number } | undefined {
  if (!URL.canParse(`http://${text}`)) return undefined;
  const { hostname, port, pathname, username } = new URL(`http://${text}`);
  if (pathname !== '/' || username !== '' || hostname === '') return undefined;
  return {
    host: hostname.replace(/^\[|\]$/g, ''),
    port: port === '' ? (text.endsWith(':80') ? 80 : 8500) : Number(port),
  };
}

const Environment = z.object({
  CAUSEWAY_STORE: z
    .string()
    .refine(
      (text) =>
        text === 'embedded' ||
        (consulForm.test(text) && addressesOf(text).every((address) => address !== undefined)),
      'takes embedded, or consul://HOST:PORT[,HOST:PORT…] (consul+https:// for TLS)',
    )
    .default('embedded'),
  CAUSEWAY_CONSUL_TOKEN: z
    .string()
    .regex(/^[\x21-\x7e]*$/, 'takes a token of Consul, without spaces or line breaks')
    .default(''),
  CAUSEWAY_CONSUL_CA: pem,
  CAUSEWAY_CONSUL_CERT: pem,
  CAUSEWAY_CONSUL_KEY: pem,
  CAUSEWAY_CONSUL_PREFIX: z
    .string()
    .regex(/^[^/].*\/$/, 'takes a prefix of keys that ends in /, such as causeway/')
    .default('causeway/'),
  CAUSEWAY_CONSUL_DC: z.string().default(''),
  CAUSEWAY_PEER_PORT: integer(1, 65535).default(4793),
  CAUSEWAY_LB: z.enum(['auto', 'ipvs', 'nft'], 'takes auto, ipvs or nft').default('auto'),
  CAUSEWAY_LOG: z.enum(logLevels, `takes ${logLevels.join(', ')}`).default('info'),
  CAUSEWAY_ADMIN: z
    .string()
    .refine(
      // The URL parser knows how large a port may be.
      (text) => adminForm.test(text) && URL.canParse(text),
      'takes unix:///PATH or tcp://LOOPBACK-ADDRESS:PORT',
    )
    .default('unix:///run/causeway/admin.sock'),
  CAUSEWAY_FABRIC_PORT: integer(1, 65535).default(4790),
  CAUSEWAY_FABRIC_VNI: integer(1, 0xffffff).default(4790),
  CAUSEWAY_NODE_ADDR: z.union([z.literal(''), z.ipv4()], 'takes an IPv4 address of this node').default(''),
  CAUSEWAY_HOST_ACCESS: z.enum(['on', 'off'], 'takes on or off').default('off'),
  CAUSEWAY_DNS: z.enum(['on', 'off'], 'takes on or off').default('on'),
  CAUSEWAY_DNS_PORT: integer(1, 65535).default(4795),
  CAUSEWAY_DEFAULT_POOL: z.cidrv4('takes an IPv4 subnet such as 10.64.0.0/12').default('10.64.0.0/12'),
  CAUSEWAY_DEFAULT_POOL_SIZE: integer(8, 29).default(20),
  // Not for users: where config.json mounts a host's directories in the plugin, and Docker expects the socket.
  CAUSEWAY_HOST_RUN: z.string().default('/host/run'),
  CAUSEWAY_HOST_SYSCTL: z.string().default('/host/sys-net'),
  CAUSEWAY_DATA: z.string().default('/data'),
  CAUSEWAY_SOCKET: z.string().default('/run/docker/plugins/causeway.sock'),
});

export type Config = z.infer<typeof Environment>;

/** Where the shared state lives. */
export type StoreSetting =
  | { kind: 'embedded' }
  | {
      kind: 'consul';
      addresses: [{ host: string; port: number }, ...{ host: string; port: number }[]];
      tls: boolean;
    };

/** @param setting `CAUSEWAY_STORE`, as {@link parseConfig} has checked it */
export function parseStore(setting: string): StoreSetting {
  const [first, ...others] =
    setting === 'embedded' ? [] : addressesOf(setting).filter((one) => one !== undefined);
  if (first === undefined) return { kind: 'embedded' };
  return { kind: 'consul', addresses: [first, ...others], tls: setting.startsWith('consul+https:') };
}

/** @throws {ConfigError} */
export function parseConfig(environment: Readonly<Record<string, string | undefined>>): Config {
  const given = Object.entries(environment).filter(
    ([name, value]) => name.startsWith('CAUSEWAY_') && value !== '',
  );
  const unknown = given.map(([name]) => name).filter((name) => !(name in Environment.shape));
  if (unknown.length > 0) {
    throw new ConfigError(
      `unknown setting ${unknown.join(', ')}: the settings are ${Object.keys(Environment.shape).join(', ')}`,
    );
  }
  const parsed = Environment.safeParse(Object.fromEntries(given));
  if (parsed.success) return checkPool(parsed.data);
  const troubles = parsed.error.issues.map(({ path, message }) => {
    const name = String(path[0]);
    return `${name}=${shown(name, environment[name] ?? '')}: ${message}; set it with docker plugin set PLUGIN ${name}=…`;
  });
  throw new ConfigError(troubles.join('\n'));
}

/** Docker's log is no place for what opens Consul, nor for whole PEM texts. */
function shown(name: string, value: string): string {
  if (/TOKEN|_KEY$|_CERT$|_CA$/.test(name)) return `(${value.length} characters, not shown)`;
  return value.replace(/\/\/[^/]*@/g, '//(not shown)@');
}

/** @throws {ConfigError} when not even one subnet of the default size fits into the default pool */
function checkPool(config: Config): Config {
  const { CAUSEWAY_DEFAULT_POOL: pool, CAUSEWAY_DEFAULT_POOL_SIZE: size } = config;
  if (size >= Number(pool.split('/')[1])) return config;
  throw new ConfigError(
    `CAUSEWAY_DEFAULT_POOL_SIZE=${size}: no /${size} fits into CAUSEWAY_DEFAULT_POOL=${pool}; ` +
      'set a larger number, or a larger pool, with docker plugin set PLUGIN NAME=…',
  );
}
