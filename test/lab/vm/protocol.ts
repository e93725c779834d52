// Owns the messages between the harness and the agent in the virtual machine: one JSON object per line.
// Must not hold any behaviour: both ends import it, and one of them runs without node_modules.

/** From the harness. `id` is chosen by it and names a command from then on. */
export type Request =
  | { id: number; start: CommandLine }
  /** Ends the command and all it started that stayed in its process group. Ignored when it has ended. */
  | { id: number; kill: NodeJS.Signals };

export interface CommandLine {
  argv: [string, ...string[]];
  cwd: string;
  /** The whole environment: nothing is inherited. */
  env: Record<string, string>;
  /** Written to its standard input, which is then closed. */
  input: string;
}

/** From the agent. Bytes are base64: a chunk may end within a character. */
export type Reply =
  /** The first line: the agent listens. */
  | { ready: true }
  | { id: number; stdout: string }
  | { id: number; stderr: string }
  /** Last of a command. Its output is complete. */
  | { id: number; exit: { code: number | null; signal: NodeJS.Signals | null } }
  /** Last of a command that could not be started. */
  | { id: number; failed: string };
