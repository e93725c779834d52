// Owns the one error class of the store room and what each of its codes asks of the caller.
// Must not know which implementation threw it: callers decide by code, never by message.

/**
 * - `unavailable`: the store cannot be reached or cannot write now (no quorum, disk full). Try again later;
 *   nothing may be concluded about its contents, least of all that something is gone. Whether a commit that ended
 *   like this happened is not known.
 * - `forbidden`: the store does not let us. Trying again helps once somebody has corrected its access rules or our
 *   token; until then the same holds as for `unavailable`.
 * - `conflict`: compare-and-set lost too often; the caller may start over.
 * - `corrupt`: what is there cannot be read: a damaged file, or a record that does not fit its schema.
 * - `locked`: another process has the file.
 * - `invalid`: the caller broke the interface (too many operations, a key twice, no JSON). A bug, never retried.
 * - `lost`: a lock is no longer ours. Only ever the reason of `Lock.lost`.
 * - `closed`: the store was closed.
 */
export type StoreErrorCode =
  'unavailable' | 'forbidden' | 'lost' | 'conflict' | 'corrupt' | 'locked' | 'invalid' | 'closed';

/** `message` names the cause and, where there is one, the remedy; `key` is set when one record is at fault. */
export class StoreError extends Error {
  override readonly name = 'StoreError';
  readonly code: StoreErrorCode;
  readonly key: string | undefined;

  constructor(code: StoreErrorCode, message: string, options: { cause?: unknown; key?: string } = {}) {
    super(message, { cause: options.cause });
    this.code = code;
    this.key = options.key;
  }
}
