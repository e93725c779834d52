// Owns one check of one task: does it answer?
// Must not judge what an answer means for the task, nor when to ask.
import { request } from 'node:http';
import { connect } from 'node:net';

/** What is asked; see store/records.ts, HealthCheck. */
export interface Check {
  protocol: 'tcp' | 'http';
  port: number;
  /** Of http; default `/`. */
  path?: string | undefined;
}

/**
 * @param address IPv4
 * @returns why it is not healthy, in words for the user; undefined: it is
 */
export function probe(check: Check, address: string, timeoutMs: number): Promise<string | undefined> {
  return check.protocol === 'tcp'
    ? probeTcp(address, check.port, timeoutMs)
    : probeHttp(address, check, timeoutMs);
}

const inTime = (timeoutMs: number): string => `no answer in ${timeoutMs} ms`;

function probeTcp(host: string, port: number, timeoutMs: number): Promise<string | undefined> {
  return new Promise((resolve) => {
    const socket = connect({ host, port, timeout: timeoutMs });
    const end = (why?: string): void => {
      socket.destroy();
      resolve(why);
    };
    socket.once('connect', () => end());
    socket.once('timeout', () => end(inTime(timeoutMs)));
    socket.once('error', (error) => end(error.message));
  });
}

function probeHttp(
  host: string,
  { port, path = '/' }: Check,
  timeoutMs: number,
): Promise<string | undefined> {
  return new Promise((resolve) => {
    const signal = AbortSignal.timeout(timeoutMs);
    // Every check by a connection of its own: one that is held proves less.
    const asked = request({ host, port, path, agent: false, signal, headers: { 'user-agent': 'causeway' } });
    asked.once('response', ({ statusCode = 0 }) => {
      // Whatever the body, the status says all.
      asked.destroy();
      resolve(statusCode >= 200 && statusCode < 400 ? undefined : `status ${statusCode}`);
    });
    // Destroying what has been answered may tell an error, too; the answer was first.
    asked.on('error', (error) => resolve(signal.aborted ? inTime(timeoutMs) : error.message));
    asked.end();
  });
}
