// Owns putting build/plugin into a Docker Engine as causeway/net:latest: `npm run plugin:create`.
// Must not enable the plugin, nor touch one that is there already: both are the operator's decision.
import { execa, ExecaError } from 'execa';
import { buildPlugin, pluginDir } from './build.ts';

/** The name networks are created with. Swarm matches drivers by the full name, tag included. */
export const pluginName = 'causeway/net:latest';

/** Runs the docker command with these arguments against one engine and resolves with its output, or rejects. */
export type Docker = (args: string[]) => Promise<{ stdout: string }>;

/** The plugin could not be created. The message says why and what to do. */
export class CreateError extends Error {
  readonly code = 'PLUGIN_CREATE';
}

/**
 * Sees that the plugin can be created, before time is spent on building it.
 *
 * @throws {CreateError} no docker command, no engine answering, or a plugin of that name exists.
 */
export async function checkEngine(docker: Docker): Promise<void> {
  try {
    await docker(['version', '--format', '{{.Server.Version}}']);
  } catch (error) {
    const missing = error instanceof ExecaError && error.code === 'ENOENT';
    throw new CreateError(
      missing
        ? 'There is no docker command on this machine. Install Docker Engine 20.10 or newer, or try `npm run demo`, which brings its own.'
        : `No Docker Engine answers at ${process.env['DOCKER_HOST'] ?? 'its default socket'}. Start it, or set DOCKER_HOST. (${reason(error)})`,
      { cause: error },
    );
  }
  const { stdout: installed } = await docker(['plugin', 'ls', '--format', '{{.Name}}']);
  if (installed.split('\n').includes(pluginName)) {
    throw new CreateError(
      `${pluginName} exists in this engine. To replace it: docker plugin disable ${pluginName}; docker plugin rm ${pluginName}`,
    );
  }
}

/** Creates the plugin, disabled, from build/plugin, which must have been built. @throws {CreateError} */
export async function createPlugin(docker: Docker): Promise<void> {
  try {
    await docker(['plugin', 'create', pluginName, pluginDir]);
  } catch (error) {
    throw new CreateError(`docker plugin create failed: ${reason(error)}`, { cause: error });
  }
}

function reason(error: unknown): string {
  if (!(error instanceof ExecaError)) return String(error);
  const stderr: unknown = error.stderr;
  return typeof stderr === 'string' && stderr !== '' ? stderr : error.shortMessage;
}

if (import.meta.main) {
  try {
    const docker: Docker = (args) => execa('docker', args);
    await checkEngine(docker);
    console.log('building the plugin');
    await buildPlugin({ progress: (line) => console.log(`  ${line}`) });
    console.log(`creating ${pluginName}`);
    await createPlugin(docker);
    console.log(`Created. Enable it with: docker plugin enable ${pluginName}`);
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    process.exitCode = 1;
  }
}
