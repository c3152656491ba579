/** Nibble packing of integer codes: the one home of the artifact's int4 layout. */

/** Bytes of one packed row: two codes a byte, a last odd column padded with 0. */
export function packedRowBytes(cols: number): number {
  return Math.ceil(cols / 2);
}

/** Codes in [−8, 7], [rows, cols] → uint8 [rows, ⌈cols/2⌉]: two's-complement nibbles, even column in the low one. */
export function packNibbles(codes: Int8Array, rows: number, cols: number): Uint8Array {
  const width = packedRowBytes(cols);
  const out = new Uint8Array(rows * width);
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < cols; c++) {
      const nibble = codes[r * cols + c] & 0xf;
      out[r * width + (c >> 1)] |= (c & 1) === 0 ? nibble : nibble << 4;
    }
  return out;
}

export function unpackNibbles(packed: Uint8Array, rows: number, cols: number): Int8Array {
  const width = packedRowBytes(cols);
  const out = new Int8Array(rows * cols);
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < cols; c++) {
      const byte = packed[r * width + (c >> 1)];
      const nibble = (c & 1) === 0 ? byte & 0xf : byte >> 4;
      out[r * cols + c] = nibble >= 8 ? nibble - 16 : nibble;
    }
  return out;
}
