/** The alphabet of byte-level tokenizers: each byte as a printable character, as GPT-2 chose them. */

const encoder = new TextEncoder();

const BYTE_CHARACTERS: readonly string[] = (() => {
  const printable = (byte: number): boolean =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) =>
    String.fromCharCode(printable(byte) ? byte : next++),
  );
})();

const CHARACTER_BYTES: ReadonlyMap<string, number> = new Map(
  BYTE_CHARACTERS.map((character, byte) => [character, byte]),
);

/** A text's UTF-8 bytes, each as its character. */
export function toByteCharacters(text: string): string {
  let result = "";
  for (const byte of encoder.encode(text)) result += BYTE_CHARACTERS[byte];
  return result;
}

/** The bytes that a token's characters stand for; a token with other characters stands for its own UTF-8. */
export function fromByteCharacters(token: string): Uint8Array {
  const bytes = new Uint8Array(token.length);
  for (let i = 0; i < token.length; i++) {
    const byte = CHARACTER_BYTES.get(token[i]);
    if (byte === undefined) return encoder.encode(token);
    bytes[i] = byte;
  }
  return bytes;
}
