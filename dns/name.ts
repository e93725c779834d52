// Owns names: as text and as they are on the wire.
// Must not know what a name stands for.

/** Bytes of a label without its length byte, and of a whole name with all of them and the root (RFC 1035 §3.1). */
export const maxLabelBytes = 63;
export const maxNameBytes = 255;

/** Labels of printable ASCII but for the dot between them and the backslash that escapes. */
const writable = /^(?:[!-\-/-[\]-~]{1,63}\.)*[!-\-/-[\]-~]{1,63}$/;

/** Of a name as text: it has neither the length byte in front nor the root's at the end. */
export const maxTextLength = maxNameBytes - 2;

const dot = 0x2e;
const backslash = 0x5c;

/**
 * @param name with or without the dot at its end
 * @returns the name in lower case and without that dot; undefined when it is none that can be written or asked for here
 */
export function canonical(name: string): string | undefined {
  const text = name.endsWith('.') ? name.slice(0, -1) : name;
  // Not the other way round: there are letters outside ASCII whose lower case is inside it.
  return text.length <= maxTextLength && writable.test(text) ? text.toLowerCase() : undefined;
}

/** @param text a name for which {@link canonical} gives one, in any case */
export function toWire(text: string): Buffer {
  const bytes = Buffer.allocUnsafe(text.length + 2);
  let length = 0;
  for (let at = text.length; at > 0; at -= 1) {
    const code = text.charCodeAt(at - 1);
    bytes[at] = code === dot ? length : code;
    length = code === dot ? 0 : length + 1;
  }
  bytes[0] = length;
  bytes[text.length + 1] = 0;
  return bytes;
}

/**
 * A name without compression, as it has to be in a question.
 *
 * @returns its text in lower case, and where it ends; undefined when it is malformed or goes beyond the message. Bytes that
 * are no part of a host's name are escaped as in zone files (RFC 1035 §5.1), so that different names have different texts.
 */
export function readPlainName(message: Buffer, start: number): { text: string; end: number } | undefined {
  let text = '';
  let at = start;
  for (;;) {
    const length = message[at];
    // The two upper bits of a length byte mark a pointer, or are reserved.
    if (length === undefined || length > maxLabelBytes) return undefined;
    const next = at + 1 + length;
    if (next > message.length || next - start > maxNameBytes) return undefined;
    if (length === 0) return { text, end: next };
    if (at > start) text += '.';
    text += labelText(message, at + 1, next);
    at = next;
  }
}

function labelText(message: Buffer, start: number, end: number): string {
  for (let at = start; at < end; at += 1)
    if (!isPlain(message[at] ?? 0)) return escapedText(message, start, end);
  return message.toString('latin1', start, end).toLowerCase();
}

function isPlain(byte: number): boolean {
  return byte > 0x20 && byte < 0x7f && byte !== dot && byte !== backslash;
}

function escapedText(message: Buffer, start: number, end: number): string {
  return Array.from(message.subarray(start, end), (byte) =>
    isPlain(byte) ? String.fromCharCode(byte).toLowerCase() : `\\${byte.toString().padStart(3, '0')}`,
  ).join('');
}

/**
 * A name that may be compressed (RFC 1035 §4.1.4).
 *
 * @returns the name without compression, and where it ends in the message; undefined when it is malformed
 */
export function readName(message: Buffer, start: number): { wire: Buffer; end: number } | undefined {
  const parts: Buffer[] = [];
  let bytes = 0;
  let at = start;
  let end: number | undefined;
  // A pointer has to lead backwards from all that was read so far, so that no chain of them is endless.
  let earliest = start;
  for (;;) {
    const length = message[at];
    if (length === undefined) return undefined;
    if (length >= 0xc0) {
      const low = message[at + 1];
      if (low === undefined) return undefined;
      end ??= at + 2;
      at = ((length & 0x3f) << 8) | low;
      if (at >= earliest) return undefined;
      earliest = at;
      continue;
    }
    const next = at + 1 + length;
    bytes += 1 + length;
    if (length > maxLabelBytes || next > message.length || bytes > maxNameBytes) return undefined;
    parts.push(message.subarray(at, next));
    if (length === 0) return { wire: Buffer.concat(parts, bytes), end: end ?? next };
    at = next;
  }
}

/** @returns where a name that may be compressed ends, without looking at what a pointer leads to */
export function skipName(message: Buffer, start: number): number | undefined {
  let at = start;
  for (;;) {
    const length = message[at];
    if (length === undefined) return undefined;
    if (length >= 0xc0) return at + 2 <= message.length ? at + 2 : undefined;
    if (length > maxLabelBytes) return undefined;
    at += 1 + length;
    if (length === 0) return at <= message.length ? at : undefined;
  }
}
