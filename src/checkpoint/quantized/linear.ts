/** The arithmetic that formats share: a matrix of codes times scales, each of which spans a part of it. */
import { rounderTo } from "./rounding.js";
import type { DenseType } from "./reading.js";

/** A matrix `(code − zero) · scale`, rounded once. */
export interface ScaledCodes {
  readonly rows: number;
  readonly columns: number;
  readonly type: DenseType;
  /** Codes of a row into `out`. */
  readonly codes: (row: number, out: CodeRow) => void;
  readonly scales: Float32Array;
  /** Zero points, placed as the scales are; absent: 0. */
  readonly zeros?: ArrayLike<number>;
  /** Position in `scales` of what a row's columns start from. */
  readonly scaleRow: (row: number) => number;
  /** By column, what is added to it. */
  readonly scaleColumn: ArrayLike<number>;
}

/** One row of codes: integers or small floats, exact in float32. */
export type CodeRow = Float32Array;

/**
 * Dequantizes. A difference of a code and its zero point is a small integer, and its product with a scale of at most 24
 * bits is exact in double precision: each value is rounded to float32, then to the type, as packages do that compute in
 * float32 and store 16 bits.
 */
export function dequantize(matrix: ScaledCodes): Float32Array {
  const { rows, columns, scales, zeros, scaleColumn } = matrix;
  const out = new Float32Array(rows * columns);
  const codes = new Float32Array(columns);
  const round = rounderTo(matrix.type);
  for (let row = 0; row < rows; row++) {
    matrix.codes(row, codes);
    const base = matrix.scaleRow(row);
    for (let column = 0; column < columns; column++) {
      const at = base + scaleColumn[column];
      const code = zeros ? codes[column] - zeros[at] : codes[column];
      out[row * columns + column] = round(Math.fround(code * scales[at]));
    }
  }
  return out;
}

/** By column, the number of its group of `size` neighbours. */
export function groupsOf(columns: number, size: number): Int32Array {
  return Int32Array.from({ length: columns }, (_, column) => Math.floor(column / size));
}
