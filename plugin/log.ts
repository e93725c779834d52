// Owns the log: pino, with static messages and fields.
// Must not be imported for anything but the type below and its one construction in main.ts.
import { pino, stdSerializers, type Logger } from 'pino';
import { LogStream, openStandardError } from './log-stream.ts';

export type Log = Logger;

export const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const;

/** Writes JSON lines to standard error, which Docker copies into its own log. */
export function createLog(level: (typeof logLevels)[number]): Log {
  const stream = new LogStream({
    fd: openStandardError(),
    leftOut: (lines) =>
      `${JSON.stringify({ level: 'warn', lines, msg: 'lines of the log were left out: Docker did not read them' })}\n`,
  });
  process.once('exit', () => stream.end());
  return pino(
    // Docker stamps every line and knows process and host.
    {
      level,
      base: {},
      timestamp: false,
      serializers: { error: stdSerializers.err },
      formatters: { level: (label) => ({ level: label }) },
    },
    stream,
  );
}
