// Owns reading what a user says by labels: how a service is balanced, and to whom it or a container's port is published.
// Must not know how that is done, nor where labels come from.
import { Address4 } from 'ip-address';
import {
  localities,
  schedulers,
  type HealthCheck,
  type PolicyRecord,
  type Timeouts,
} from '../store/records.ts';

const prefix = 'causeway.';

/** What labels say, and which of them say nothing that can be used: each in words for the user. */
export interface Read<T> {
  value: T;
  problems: string[];
  /** One of them was to say who may use published ports: nobody may, until it can be read. */
  closed?: true;
}

/** Names that mean to say so, misspelt or not: what somebody wanted to keep closed is not open for a slip of his. */
const isAboutAccess = (name: string): boolean =>
  /^causeway\.(publish(\.|$)|.*(allow|deny|bind)$)/.test(name.trim().toLowerCase());

/** A reader throws an {@link Unusable} that completes the sentence "LABEL=VALUE: …". */
type Readers<T> = Record<string, (text: string) => T>;

class Unusable extends Error {}

/** What labels may say of published ports, whoever publishes them: a service, or a single container. */
const ofContainer: Readers<PolicyRecord> = {
  'causeway.lb.timeout': (text) => ({ timeout: timeouts(text) }),
  'causeway.publish.bind': (text) => ({ bind: list(text, addressOrDevice) }),
  'causeway.publish.allow': (text) => ({ allow: widest(list(text, cidr)) }),
  'causeway.publish.deny': (text) => ({ deny: widest(list(text, cidr)) }),
};

/** What a service's labels may say. */
const ofService: Readers<PolicyRecord> = {
  ...ofContainer,
  'causeway.lb.scheduler': (text) => ({ scheduler: oneOf(schedulers, text) }),
  'causeway.lb.affinity': (text) => ({ affinity: whole(text, 1, 86_400, 'seconds') }),
  'causeway.lb.locality': (text) => ({ locality: oneOf(localities, text) }),
  'causeway.lb.drain': (text) => ({ drain: whole(text, 0, 86_400, 'seconds') }),
  'causeway.lb.slow-start': (text) => ({ slowStart: whole(text, 1, 3_600, 'seconds') }),
  'causeway.health': (text) => ({ health: check(text) }),
  'causeway.health.interval': (text) => ({ healthInterval: whole(text, 1, 3_600, 'seconds') }),
  'causeway.health.rise': (text) => ({ healthRise: whole(text, 1, 100, 'checks') }),
  'causeway.health.fall': (text) => ({ healthFall: whole(text, 1, 100, 'checks') }),
};

/** What the labels of a service's containers may say. */
const ofTask: Readers<{ weight: number }> = {
  'causeway.lb.weight': (text) => ({ weight: whole(text, 1, 100, 'parts') }),
};

/** @param labels of the service itself (`--label`) */
export function readPolicy(labels: Record<string, string> | null | undefined): Read<PolicyRecord> {
  const policy = closing(
    read(labels, ofService, ofTask, 'a label of containers: set it by --container-label'),
  );
  if (policy.value.health === undefined)
    for (const [name, text] of Object.entries(labels ?? {}))
      if (name in ofService && name.startsWith('causeway.health.'))
        policy.problems.push(`${name}=${text}: nothing is checked without causeway.health`);
  const { slowStart, scheduler, affinity } = policy.value;
  const fixed =
    scheduler !== undefined && !growing.has(scheduler) ? `causeway.lb.scheduler=${scheduler}` : undefined;
  const why = affinity === undefined ? fixed : `causeway.lb.affinity=${affinity}`;
  if (slowStart !== undefined && why !== undefined) {
    policy.problems.push(`causeway.lb.slow-start=${slowStart}: no share grows with ${why}`);
    delete policy.value.slowStart;
  }
  return policy;
}

/** Schedulers that give each task its share: to others all are the same, or each client has its task. */
const growing: ReadonlySet<string> = new Set(['wrr', 'wlc']);

/** @param labels of a container that is of no service (`docker run --label`) */
export function readContainerPolicy(labels: Record<string, string> | null | undefined): Read<PolicyRecord> {
  return closing(
    read(labels, ofContainer, { ...ofService, ...ofTask }, 'a label of services, not of single containers'),
  );
}

/** The access that was not understood as a part of the policy. */
function closing<T extends PolicyRecord>(found: Read<T>): Read<T> {
  return found.closed ? { ...found, value: { ...found.value, closed: true } } : found;
}

/** @param labels of the service's containers (`--container-label`) */
export function readTaskPolicy(labels: Record<string, string> | null | undefined): Read<{ weight?: number }> {
  return read(labels, ofTask, ofService, 'a label of services: set it by --label');
}

function read<T extends object>(
  labels: Record<string, string> | null | undefined,
  readers: Readers<T>,
  misplaced: Readers<unknown>,
  hint: string,
): Read<Partial<T>> {
  const value: Partial<T> = {};
  const problems: string[] = [];
  let closed = false;
  for (const [name, text] of Object.entries(labels ?? {}).sort(([a], [b]) => (a < b ? -1 : 1))) {
    if (!name.trim().toLowerCase().startsWith(prefix)) continue;
    try {
      const reader = readers[name];
      if (reader === undefined)
        throw new Unusable(
          name in misplaced
            ? hint
            : `no such label; there are ${Object.keys({ ...readers, ...misplaced })
                .sort()
                .join(', ')}`,
        );
      Object.assign(value, reader(text.trim()));
    } catch (error) {
      if (!(error instanceof Unusable)) throw error;
      const closes = isAboutAccess(name);
      closed ||= closes;
      problems.push(
        `${name}=${text}: ${error.message}${closes ? '. Published ports are closed to everybody until it is put right' : ''}`,
      );
    }
  }
  return { value, problems, ...(closed && { closed }) };
}

function oneOf<T extends string>(choices: readonly T[], text: string): T {
  const found = choices.find((choice) => choice === text);
  if (found === undefined) throw new Unusable(`must be one of ${choices.join(', ')}`);
  return found;
}

function whole(text: string, min: number, max: number, unit: string): number {
  const number = /^\d{1,9}$/.test(text) ? Number(text) : NaN;
  if (!(number >= min && number <= max))
    throw new Unusable(`must be a whole number of ${unit}, ${min} to ${max}`);
  return number;
}

/** `tcp:PORT` or `http:PORT/PATH`. */
function check(text: string): HealthCheck {
  const [, protocol, digits = '', path] = /^(tcp|http):(\d{1,5})(\/[\x21-\x7e]*)?$/.exec(text) ?? [];
  const port = Number(digits);
  if (port < 1 || port > 65_535 || (protocol !== 'http' && (protocol !== 'tcp' || path !== undefined)))
    throw new Unusable('must be tcp:PORT or http:PORT/PATH');
  return { protocol, port, ...(protocol === 'http' && { path: path ?? '/' }) };
}

/** `tcp:SECONDS,fin:SECONDS,udp:SECONDS`, one of them or more. */
function timeouts(text: string): Timeouts {
  const found: Timeouts = {};
  for (const item of text.split(',')) {
    const [, kind, digits = ''] = /^\s*(tcp|fin|udp):(.*?)\s*$/.exec(item) ?? [];
    if ((kind !== 'tcp' && kind !== 'fin' && kind !== 'udp') || found[kind] !== undefined)
      throw new Unusable(
        'must be tcp:SECONDS, fin:SECONDS, udp:SECONDS, or some of them with commas between',
      );
    found[kind] = whole(digits, 1, 2_592_000, 'seconds');
  }
  return found;
}

function list(text: string, item: (text: string) => string): string[] {
  const items = text.split(',').map((each) => each.trim());
  if (items.includes('')) throw new Unusable('must be a list with commas between its items');
  return [...new Set(items.map(item))].sort();
}

function isAddress(text: string): boolean {
  return Address4.isValid(text) && !text.includes('/');
}

function addressOrDevice(text: string): string {
  if (isAddress(text)) return text;
  // As the kernel takes names of devices, without what nft would read as more than a name.
  if (/^[a-zA-Z][a-zA-Z0-9._@-]{0,14}$/.test(text)) return text;
  throw new Unusable(`${text} is neither an IPv4 address nor the name of a device`);
}

/** @returns the subnet as such: 10.1.2.3/8 is 10.0.0.0/8; an address alone is a subnet of one */
function cidr(text: string): string {
  if (!Address4.isValid(text))
    throw new Unusable(`${text} is neither an IPv4 address nor a subnet like 10.0.0.0/8`);
  const subnet = new Address4(text);
  return `${subnet.startAddress().correctForm()}/${subnet.subnetMask}`;
}

/** Without subnets of others among them. */
function widest(cidrs: readonly string[]): string[] {
  const subnets = cidrs.map((text) => ({ text, subnet: new Address4(text) }));
  return subnets
    .filter(
      ({ text, subnet }) => !subnets.some((other) => other.text !== text && subnet.isInSubnet(other.subnet)),
    )
    .map(({ text }) => text);
}
