/** Codes as they are stored: fields of a few bits in 32-bit words, and floats of 4 bits. */

/** Where fields lie: `count` of `bits` each, from the lowest bit of `words[start]`, on to `words[start + stride]`, … */
export interface Fields {
  readonly start: number;
  readonly stride: number;
  readonly count: number;
  readonly bits: number;
}

/**
 * Unpacks unsigned fields that follow one another without gaps, over the bounds of words where `bits` does not divide
 * 32, into `out` from its start.
 */
export function unpackFields(words: Uint32Array, fields: Fields, out: Uint8Array): void {
  const { start, stride, count, bits } = fields;
  const mask = (1 << bits) - 1;
  for (let i = 0; i < count; i++) {
    const at = i * bits;
    const word = start + (at >>> 5) * stride;
    const shift = at & 31;
    let field = words[word] >>> shift;
    // Shifts are taken modulo 32, so the carried part is added only where there is one.
    if (shift + bits > 32) field |= words[word + stride] << (32 - shift);
    out[i] = field & mask;
  }
}

/** Words that `count` fields take. */
export function wordsOf(count: number, bits: number): number {
  return Math.ceil((count * bits) / 32);
}

/** Values of the 4-bit float E2M1 by code (OCP Microscaling Formats). */
export const E2M1: readonly number[] = [
  ...[0, 0.5, 1, 1.5, 2, 3, 4, 6],
  ...[-0, -0.5, -1, -1.5, -2, -3, -4, -6],
];
