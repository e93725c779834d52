// Owns HTTP for Docker's plugin protocol: paths, parsing, and the formats of answers and errors.
// Must not know what a call does.
import express, { type Express, type NextFunction, type Request, type Response } from 'express';
import * as z from 'zod';
import { FabricTaken } from '../net/fabric.ts';
import { IpamError } from '../ipam/errors.ts';
import { RequestError } from './errors.ts';
import type { IpamDriver } from './ipam-driver.ts';
import type { Log } from './log.ts';
import type { NetworkDriver } from './network-driver.ts';
import * as protocol from './protocol.ts';

const contentType = 'application/vnd.docker.plugins.v1.2+json';

/** A call: what it takes, and what becomes of it. An answer without fields is `{}`. */
interface Method {
  schema: z.ZodType;
  act: (request: never) => unknown;
}

function method<S extends z.ZodType>(schema: S, act: (request: z.infer<S>) => unknown): Method {
  return { schema, act };
}

const nothing = z.unknown();

/** Every call of both drivers, by path. */
export function pluginMethods(network: NetworkDriver, ipam: IpamDriver): Record<string, Method> {
  const noOperation = (): void => undefined;
  return {
    // Only asked of plugins that are not managed; answered all the same.
    'Plugin.Activate': method(nothing, () => ({ Implements: ['NetworkDriver', 'IpamDriver'] })),
    'NetworkDriver.GetCapabilities': method(nothing, () => network.capabilities()),
    'NetworkDriver.GwAllocCheck': method(protocol.GwAllocCheck, () => network.checkGatewayAllocation()),
    'NetworkDriver.AllocateNetwork': method(protocol.AllocateNetwork, (request) =>
      network.allocateNetwork(request),
    ),
    'NetworkDriver.FreeNetwork': method(protocol.NetworkOnly, (request) => network.freeNetwork(request)),
    'NetworkDriver.CreateNetwork': method(protocol.CreateNetwork, (request) =>
      network.createNetwork(request),
    ),
    'NetworkDriver.DeleteNetwork': method(protocol.NetworkOnly, (request) => network.deleteNetwork(request)),
    'NetworkDriver.CreateEndpoint': method(protocol.CreateEndpoint, (request) =>
      network.createEndpoint(request),
    ),
    'NetworkDriver.DeleteEndpoint': method(protocol.EndpointOnly, (request) =>
      network.deleteEndpoint(request),
    ),
    'NetworkDriver.EndpointOperInfo': method(protocol.EndpointOnly, (request) =>
      network.operationalInfo(request),
    ),
    'NetworkDriver.Join': method(protocol.Join, (request) => network.join(request)),
    'NetworkDriver.Leave': method(protocol.EndpointOnly, (request) => network.leave(request)),
    // Docker's own gossip of nodes and keys: Causeway learns of nodes from its store.
    'NetworkDriver.DiscoverNew': method(protocol.Discovery, noOperation),
    'NetworkDriver.DiscoverDelete': method(protocol.Discovery, noOperation),
    'NetworkDriver.ProgramExternalConnectivity': method(protocol.ProgramExternalConnectivity, (request) =>
      network.programExternalConnectivity(request),
    ),
    'NetworkDriver.RevokeExternalConnectivity': method(protocol.EndpointOnly, (request) =>
      network.revokeExternalConnectivity(request),
    ),
    'IpamDriver.GetCapabilities': method(nothing, () => ipam.capabilities()),
    'IpamDriver.GetDefaultAddressSpaces': method(nothing, () => ipam.defaultAddressSpaces()),
    'IpamDriver.RequestPool': method(protocol.RequestPool, (request) => ipam.requestPool(request)),
    'IpamDriver.ReleasePool': method(protocol.ReleasePool, (request) => ipam.releasePool(request)),
    'IpamDriver.RequestAddress': method(protocol.RequestAddress, (request) => ipam.requestAddress(request)),
    'IpamDriver.ReleaseAddress': method(protocol.ReleaseAddress, (request) => ipam.releaseAddress(request)),
  };
}

export function createPluginServer(methods: Record<string, Method>, log: Log): Express {
  const app = express();
  app.disable('x-powered-by');
  // Docker names no content type.
  app.use(express.text({ type: () => true, limit: '4mb' }));
  app.post('/:method', async (request: Request<{ method: string }>, response: Response) => {
    const name = request.params.method;
    const known = Object.hasOwn(methods, name) ? methods[name] : undefined;
    if (known === undefined) {
      answer(response, 404, { Err: `${name} is not a call of Causeway's` });
      return;
    }
    const started = performance.now();
    const parsed = parse(name, known.schema, request.body);
    if ('trouble' in parsed) {
      log.warn({ call: name, trouble: parsed.trouble }, 'invalid request from Docker');
      answer(response, 400, { Err: parsed.trouble });
      return;
    }
    try {
      answer(response, 200, (await known.act(parsed.value as never)) ?? {});
      log.debug(
        { call: name, request: parsed.value, milliseconds: Math.round(performance.now() - started) },
        'request done',
      );
    } catch (error) {
      const message = describe(error);
      log[isUsers(error) ? 'warn' : 'error'](
        { call: name, request: parsed.value, error },
        'refused a call of Docker',
      );
      answer(response, 200, { [name.startsWith('IpamDriver.') ? 'Error' : 'Err']: message });
    }
  });
  app.use((_request: Request, response: Response) =>
    answer(response, 404, { Err: 'Causeway takes POST /METHOD' }),
  );
  // Four parameters make it the error handler of express.
  app.use((error: unknown, _request: Request, response: Response, _next: NextFunction) => {
    answer(response, 400, { Err: `the request cannot be read: ${describe(error)}` });
  });
  return app;
}

function answer(response: Response, status: number, body: unknown): void {
  // Not by express's own send(), which adds a charset that this content type does not have.
  response.status(status).setHeader('content-type', contentType);
  response.end(JSON.stringify(body));
}

function parse(name: string, schema: z.ZodType, body: unknown): { value: unknown } | { trouble: string } {
  const text = typeof body === 'string' ? body.trim() : '';
  let json: unknown;
  try {
    // Without arguments Docker sends no body.
    json = text === '' ? {} : JSON.parse(text);
  } catch {
    return { trouble: `${name}: the request is not JSON` };
  }
  const parsed = schema.safeParse(json);
  if (parsed.success) return { value: parsed.data };
  // Docker's client repeats a call whose connection broke, and sends nothing but its name then.
  if (text === '')
    return {
      trouble: `${name}: Docker sent the call without its content, as it does once more after a connection broke: try again`,
    };
  return { trouble: `${name}: ${z.prettifyError(parsed.error).replaceAll('\n', ' ')}` };
}

/** Whether it is about what was asked for, and not about Causeway or the host. */
function isUsers(error: unknown): boolean {
  return error instanceof RequestError || error instanceof IpamError || error instanceof FabricTaken;
}

function describe(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
