// Owns the error a user of Docker sees because of what they asked for.
// Must not be used for what is wrong with Causeway itself or with the host.

/** Something asked for that cannot be had. The message names cause and remedy, and is shown by the docker command. */
export class RequestError extends Error {
  override readonly name = 'RequestError';
  /** One word for programs, e.g. `unknown-option`. */
  readonly code: string;

  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}
