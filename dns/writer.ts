// Owns writing a message: numbers, names with compression, records, and going back when one does not fit.
// Must not decide what is written.

/** A pointer has 14 bits (RFC 1035 §4.1.4). */
const maxPointer = 0x3fff;
export const headerBytes = 12;
export const maxMessageBytes = 65_535;

/** A compressed name that is the question's: it begins right after the header. */
export const questionPointer = 0xc000 | headerBytes;

/** Where the counts of a message's sections are in its header. */
export const sections = { question: 4, answer: 6, authority: 8, additional: 10 } as const;

/** Writes one message at a time; {@link begin} forgets the last. */
export class MessageWriter {
  /** Far more than a message may have, so that one record may go beyond before it is noticed. */
  readonly #bytes = Buffer.allocUnsafe(2 * (maxMessageBytes + 1));
  #at = 0;
  #limit = maxMessageBytes;
  /** Names without compression, as latin1, and where they are. */
  readonly #names = new Map<string, number>();

  /**
   * @param question as it is on the wire: name, type and class
   * @param limit bytes that the message may have
   */
  begin(id: number, flags: number, question: Buffer, limit: number): void {
    this.#names.clear();
    this.#limit = limit;
    this.#bytes.fill(0, 0, headerBytes);
    this.#bytes.writeUInt16BE(id, 0);
    this.#bytes.writeUInt16BE(flags, 2);
    this.#at = headerBytes;
    if (question.length === 0) return;
    this.#bytes.writeUInt16BE(1, sections.question);
    this.bytes(question);
  }

  /** Bytes written so far. */
  get length(): number {
    return this.#at;
  }

  /** Keeps so many bytes free for what has to come at the end. */
  reserve(bytes: number): void {
    this.#limit -= bytes;
  }

  /** @returns false if the record did not fit: then nothing was written */
  record(section: 'answer' | 'authority' | 'additional', write: () => void): boolean {
    const start = this.#at;
    write();
    if (this.#at > this.#limit) {
      this.#at = start;
      for (const [name, at] of this.#names) if (at >= start) this.#names.delete(name);
      return false;
    }
    const count = sections[section];
    this.#bytes.writeUInt16BE(this.#bytes.readUInt16BE(count) + 1, count);
    return true;
  }

  uint16(value: number): void {
    this.#at = this.#bytes.writeUInt16BE(value, this.#at);
  }

  uint32(value: number): void {
    this.#at = this.#bytes.writeUInt32BE(value, this.#at);
  }

  bytes(bytes: Buffer): void {
    this.#at += bytes.copy(this.#bytes, this.#at);
  }

  /** One string of a TXT record, up to 255 bytes. */
  text(text: string): void {
    const length = this.#bytes.write(text, this.#at + 1, 255, 'utf8');
    this.#bytes[this.#at] = length;
    this.#at += 1 + length;
  }

  /** What follows the length that is filled in afterwards. */
  data(write: () => void): void {
    const length = this.#at;
    this.#at += 2;
    write();
    this.#bytes.writeUInt16BE(this.#at - length - 2, length);
  }

  /**
   * @param wire a whole name without compression
   * @param compress false where receivers need not know compression (RFC 3597 §4); others may then point to this name
   */
  name(wire: Buffer, compress: boolean): void {
    for (let at = 0; ; at += 1 + (wire[at] ?? 0)) {
      const length = wire[at] ?? 0;
      if (length === 0) {
        this.bytes(wire.subarray(at));
        return;
      }
      const rest = wire.toString('latin1', at);
      const known = this.#names.get(rest);
      if (known !== undefined && compress) {
        this.uint16(0xc000 | known);
        return;
      }
      if (known === undefined && this.#at <= maxPointer) this.#names.set(rest, this.#at);
      this.bytes(wire.subarray(at, at + 1 + length));
    }
  }

  /** Lets others point to a name that was written as bytes. */
  known(wire: Buffer, start: number): void {
    for (let at = 0; (wire[at] ?? 0) !== 0; at += 1 + (wire[at] ?? 0))
      this.#names.set(wire.toString('latin1', at), start + at);
  }

  setFlags(flags: number): void {
    this.#bytes.writeUInt16BE(this.#bytes.readUInt16BE(2) | flags, 2);
  }

  /** @returns a copy of what was written */
  finish(): Buffer {
    return Buffer.from(this.#bytes.subarray(0, this.#at));
  }
}
