// Owns which version of the Docker Engine's API is spoken, and which engines are known not to do.
// Must not ask the engine; docker.ts does.
import * as z from 'zod';

/**
 * The newest version whose answers were read by tests (Docker 28.5). Of what is read here nothing changed from 1.41
 * (Docker 20.10) to 1.57 (29.10) but that a container's `Aliases` are without its short id from 1.45 on.
 */
export const newestApiVersion = '1.51';

/** What `GET /version` says. */
export const EngineVersion = z.object({
  /** Such as `28.5.2+dfsg4`. */
  Version: z.string().default(''),
  ApiVersion: z.string().regex(/^\d+\.\d+$/),
  MinAPIVersion: z
    .string()
    .regex(/^\d+\.\d+$/)
    .optional()
    .catch(undefined),
});
export type EngineVersion = z.infer<typeof EngineVersion>;

/** @returns the newest version that both know, but never one older than the engine takes */
export function chooseApiVersion({ ApiVersion, MinAPIVersion }: EngineVersion): string {
  const newest = isOlder(ApiVersion, newestApiVersion) ? ApiVersion : newestApiVersion;
  return MinAPIVersion !== undefined && isOlder(newest, MinAPIVersion) ? MinAPIVersion : newest;
}

/** 1.9 is older than 1.41. */
function isOlder(one: string, other: string): boolean {
  const [major, minor] = one.split('.').map(Number) as [number, number];
  const [otherMajor, otherMinor] = other.split('.').map(Number) as [number, number];
  return major < otherMajor || (major === otherMajor && minor < otherMinor);
}

/**
 * @param version of the engine
 * @returns what makes this engine unfit, and the remedy
 */
export function engineFault(version: string): string | undefined {
  // https://github.com/moby/moby/pull/51558
  if (!/^29\.0\.[0-2](?!\d)/.test(version)) return undefined;
  return (
    `Docker ${version} ends with a crash when a container leaves its gateway network while any network driver that is ` +
    'a plugin is in use: update Docker to 29.0.3 or later'
  );
}
