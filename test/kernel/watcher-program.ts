// Owns what a node is in the tests of peers/: it watches one other node, and tells every verdict as a line of JSON.
// Must not assert anything.
import { createSecretKey } from 'node:crypto';
import { openPeers } from '../../peers/peers.ts';

/** The only argument, as JSON. */
export interface Settings {
  self: { id: string; address: string };
  peer: { id: string; address: string };
  port: number;
  secret: string;
  /** What it offers; '' for nothing. */
  offer: string;
}

export type Line =
  | { verdict: string; /** Unix time in ms. */ at: number }
  | { offered: unknown }
  | { level: string; message: string; fields: object };

const tell = (line: Line): boolean => process.stdout.write(JSON.stringify(line) + '\n');

const { self, peer, port, secret, offer } = JSON.parse(process.argv[2] ?? '') as Settings;
const logged = (level: string) => (fields: object, message: string) => void tell({ level, message, fields });
const key = createSecretKey(secret, 'utf8');
const peers = await openPeers({
  self,
  port,
  secret: () => key,
  pendingWrites: { revision: () => offer, read: () => offer },
  onPendingWrites: (_, offered) => void tell({ offered }),
  log: { info: logged('info'), warn: logged('warn'), debug: logged('debug') },
});
const say = (): void => {
  tell({ verdict: peers.state().get(peer.id)?.verdict ?? '', at: Date.now() });
};
peers.onChange(say);
peers.watch([peer]);
say();
