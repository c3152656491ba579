/** Packing of integer codes of 4, 5 and 6 bits: the one home of the artifact's layouts. */

/** How codes narrower than a byte lie in one; unsigned codes stand beside offsets. */
export interface CodePacking {
  readonly bits: 4 | 5 | 6;
  readonly signed: boolean;
}

/** Codes that end where a byte does, by their bits. */
const TOGETHER = { 4: 2, 5: 8, 6: 4 } as const;

/**
 * Bytes of one packed row: two codes of 4 bits a byte, eight of 5 bits in five, four of 6 bits in three, the last of these
 * padded with 0.
 */
export function packedRowBytes(cols: number, bits: CodePacking["bits"]): number {
  const together = TOGETHER[bits];
  return Math.ceil(cols / together) * ((together * bits) / 8);
}

/**
 * Codes [rows, cols] → uint8 [rows, packedRowBytes]: two's complement (or unsigned) codes one after the other, the earlier
 * column in the lower bits.
 */
export function packCodes(
  codes: Int8Array,
  rows: number,
  cols: number,
  { bits }: CodePacking,
): Uint8Array {
  const width = packedRowBytes(cols, bits);
  const out = new Uint8Array(rows * width);
  const mask = 2 ** bits - 1;
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < cols; c++) {
      const place = c * bits;
      const at = r * width + (place >> 3);
      const shifted = (codes[r * cols + c] & mask) << (place & 7);
      out[at] |= shifted;
      if (shifted > 0xff) out[at + 1] |= shifted >> 8;
    }
  return out;
}

export function unpackCodes(
  packed: Uint8Array,
  rows: number,
  cols: number,
  { bits, signed }: CodePacking,
): Int8Array {
  const width = packedRowBytes(cols, bits);
  const out = new Int8Array(rows * cols);
  const mask = 2 ** bits - 1;
  const [sign, span] = signed ? [2 ** (bits - 1), 2 ** bits] : [2 ** bits, 0];
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < cols; c++) {
      const place = c * bits;
      const at = r * width + (place >> 3);
      const within = place & 7;
      const word = within + bits > 8 ? packed[at] | (packed[at + 1] << 8) : packed[at];
      const code = (word >> within) & mask;
      out[r * cols + c] = code >= sign ? code - span : code;
    }
  return out;
}
