// Owns calling the plugin as Docker does: over its unix socket, without a content type.
// Must not interpret answers.
import { Agent, request } from 'undici';

/** An answer with its HTTP status; `body` is parsed JSON. */
export interface Answer {
  status: number;
  contentType: string;
  body: Record<string, unknown>;
}

export class PluginClient {
  readonly #agent: Agent;

  constructor(socketPath: string) {
    this.#agent = new Agent({ connect: { socketPath } });
  }

  /** @param body JSON, or text that is sent as it is; undefined sends no body */
  async post(method: string, body?: unknown): Promise<Answer> {
    const text = typeof body === 'string' || body === undefined ? body : JSON.stringify(body);
    const response = await request(`http://plugin/${method}`, {
      method: 'POST',
      dispatcher: this.#agent,
      ...(text === undefined ? {} : { body: text }),
    });
    return {
      status: response.statusCode,
      contentType: String(response.headers['content-type']),
      body: (await response.body.json()) as Record<string, unknown>,
    };
  }

  /** A call that must succeed. @throws with the plugin's error */
  async call(method: string, body?: unknown): Promise<Record<string, unknown>> {
    const answer = await this.post(method, body);
    const error = answer.body['Err'] ?? answer.body['Error'];
    if (answer.status !== 200 || error !== undefined) throw new Error(`${method}: ${String(error)}`);
    return answer.body;
  }

  close(): Promise<void> {
    return this.#agent.close();
  }
}
