// Owns the ways out of a sandbox on several networks: what leaves with an endpoint's address leaves by that endpoint's
// link, whichever of them Docker made the default. Must not decide which endpoints there are.
import { routeProtocol, sandboxPriority } from './names.ts';
import { CommandError, type Runner } from './run.ts';

/** How answers from one address leave a sandbox. */
export interface WayOut {
  /** Of the endpoint. */
  address: string;
  /** Of its network. */
  gateway: string;
}

export interface WaysOut {
  ways: readonly WayOut[];
  /**
   * The sandbox begins nothing to the outside, whatever default route Docker gave it: answers alone leave it. Undefined: as it
   * is.
   */
  closed: boolean | undefined;
}

/** What a batch says of what is there already, or not there any more, or never was. */
const settled =
  /^(Command failed|RTNETLINK answers: (File exists|No such process|No such file or directory)|Error: (ipv4: )?FIB table does not exist)/;

/**
 * Makes these ways, and takes away those that were there before and are not among them; what is there already stays.
 * @param sandbox path of its network namespace
 * @throws {NamespaceError} when the sandbox cannot be entered
 * @throws {CommandError} when Docker has not set up its links yet
 */
export async function leadOut(
  run: Runner,
  sandbox: string,
  { ways, closed }: WaysOut,
  before: readonly WayOut[] = [],
): Promise<void> {
  const left = before.filter(({ address }) => ways.every((way) => way.address !== address));
  const { only, unaddressed, nothing } = sandboxPriority;
  const shut = [
    // All of table main but default routes.
    `lookup main suppress_prefixlength 0 priority ${only}`,
    // A server that answers datagrams from a socket without an address has no other way. Not for TCP: who calls outside is
    // told at once that there is none.
    ...ways.map(({ address }) => `ipproto udp lookup ${tableOf(address)} priority ${unaddressed}`),
    `unreachable priority ${nothing}`,
  ];
  const lines = [
    // First what needs no link.
    ...(closed === true ? shut.map(added) : []),
    ...(closed === false
      ? [nothing, only, ...ways.map(() => unaddressed)].map((priority) => `rule del priority ${priority}`)
      : []),
    ...ways.flatMap((way) => [added(ruleOf(way)), `route replace ${routeOf(way)}`]),
    ...left.flatMap((way) => [
      `rule del ${ruleOf(way)}`,
      `rule del ipproto udp lookup ${tableOf(way.address)} priority ${unaddressed}`,
      // It went with its link, if that has gone.
      `route del ${routeOf(way)}`,
    ]),
  ];
  if (lines.length === 0) return;
  try {
    await run('ip', ['-4', '-force', '-batch', '-'], { input: lines.join('\n') + '\n', sandbox });
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    const serious = error.stderr.split('\n').filter((line) => line !== '' && !settled.test(line));
    if (serious.length > 0 || error.stderr === '') throw error;
  }
}

const added = (rule: string): string => `rule add ${rule} protocol ${routeProtocol}`;

function ruleOf({ address }: WayOut): string {
  return `from ${address} lookup ${tableOf(address)} priority ${sandboxPriority.wayOut}`;
}

/** Without a device: the kernel finds the one by which it reaches the gateway, whatever Docker called it. */
function routeOf({ address, gateway }: WayOut): string {
  return `default via ${gateway} table ${tableOf(address)} proto ${routeProtocol}`;
}

/** The routing table of an endpoint in its sandbox: named by its address, which no other endpoint there has. */
function tableOf(address: string): number {
  return address.split('.').reduce((number, octet) => number * 256 + Number(octet), 0);
}
