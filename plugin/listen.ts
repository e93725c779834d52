// Owns opening and closing HTTP listeners on unix sockets and loopback ports.
// Must not know what is served.
import { chmod, mkdir, unlink } from 'node:fs/promises';
import { createServer, type RequestListener, type Server } from 'node:http';
import { dirname } from 'node:path';

/** A path of a unix socket, or a loopback address and port. */
export type Address = { path: string } | { host: string; port: number };

/**
 * Opens a listener. A socket file that is left over is replaced: the plugin's directories have one owner.
 * @param handler what is asked before it is there waits for it
 * @throws the error of the operating system, e.g. EADDRINUSE for a port
 */
export async function listen(
  handler: RequestListener | Promise<RequestListener>,
  address: Address,
): Promise<Server> {
  const server = createServer(
    handler instanceof Promise
      ? (request, response) => void handler.then((answer) => answer(request, response))
      : handler,
  );
  // Docker keeps its connections. One that we closed just as it sends a call by it would break the call, and what Docker's
  // client then sends once more has no content.
  server.keepAliveTimeout = 0;
  if ('path' in address) {
    await mkdir(dirname(address.path), { recursive: true, mode: 0o755 });
    await unlink(address.path).catch((error: unknown) => {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    });
  }
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(address, () => {
      server.off('error', reject);
      resolve();
    });
  });
  if ('path' in address) await chmod(address.path, 0o600);
  return server;
}

/** Stops listening and waits for answers under way; kept connections without a request are closed. */
export function close(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve());
    server.closeIdleConnections();
  });
}
