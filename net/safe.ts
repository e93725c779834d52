// Owns the one check on the way into a tool's standard input: what comes out of records is words there, never a command.
// Must not know what the words mean.

/** For `ip`, `bridge`, `ipvsadm`, and what stands in sets of nft: what ends a line, quotes or comments is not in it. */
export const words = /^[\w .,:/@=*-]+$/;

/** A rule of nft: in it, too, nothing ends the command or hides its rest. */
export const aRule = /^[^;#\\\n\r\0\u0080-\uffff]+$/;

/** Some record is not as Causeway writes it. */
export class UnsafeInput extends Error {
  override readonly name = 'UnsafeInput';

  constructor(tool: string, text: string) {
    super(
      `${JSON.stringify(text)} was not given to ${tool}: it holds what has no place there. Some record of the store was ` +
        'not written by Causeway',
    );
  }
}

/** @returns the text. @throws {UnsafeInput} when it holds anything else */
export function safe(tool: string, text: string, allowed: RegExp): string {
  if (!allowed.test(text)) throw new UnsafeInput(tool, text);
  return text;
}

/** A line that was not carried out, and why not. */
export interface RefusedLine {
  line: string;
  why: string;
}

/** Parts the lines that may be given to the tool from those that may not. */
export function sortOut(tool: string, lines: readonly string[]): { sound: string[]; refused: RefusedLine[] } {
  const sound = lines.filter((line) => words.test(line));
  const refused = lines.filter((line) => !words.test(line));
  return { sound, refused: refused.map((line) => ({ line, why: new UnsafeInput(tool, line).message })) };
}
