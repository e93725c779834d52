// Owns the log: pino, with static messages and fields.
// Must not be imported for anything but the type below and its one construction in main.ts.
import { pino, stdSerializers, type Logger } from 'pino';

export type Log = Logger;

export const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const;

/** Writes JSON lines to standard error, which Docker copies into its own log. */
export function createLog(level: (typeof logLevels)[number]): Log {
  return pino(
    // Docker stamps every line and knows process and host.
    {
      level,
      base: {},
      timestamp: false,
      serializers: { error: stdSerializers.err },
      formatters: { level: (label) => ({ level: label }) },
    },
    pino.destination({ fd: 2, sync: true }),
  );
}
