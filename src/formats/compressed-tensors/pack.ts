/** Codes as compressed-tensors packs them: unsigned fields in 32-bit words along rows, without gaps. */

/**
 * Packs signed codes [rows, columns] of `bits` bits: each is offset to be unsigned, and follows the one before it from
 * the lowest bit on, over the ends of words. Returns [rows, ⌈columns·bits/32⌉] words.
 */
export function packWords(
  codes: ArrayLike<number>,
  rows: number,
  columns: number,
  bits: number,
): Uint32Array {
  const width = Math.ceil((columns * bits) / 32);
  const words = new Uint32Array(rows * width);
  const offset = 2 ** (bits - 1);
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++) {
      const field = codes[row * columns + column] + offset;
      const at = column * bits;
      const word = row * width + (at >>> 5);
      const shift = at & 31;
      words[word] |= field << shift;
      if (shift + bits > 32) words[word + 1] |= field >>> (32 - shift);
    }
  return words;
}
