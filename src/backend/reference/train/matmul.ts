/**
 * Reference matrix products. Sums run in float64 whatever the buffers hold, and `precision` is ignored:
 * this is what the other backends' shorter formats are measured against. Operands are packed so that the
 * inner loop walks memory in order; apart from that nothing here is tuned.
 */

import type { IntMatmulArgs, MatmulArgs, MatmulOperand } from "../../contract/training.js";
import { codes8, optionalReals, reals, realsOrCodes } from "./views.js";

/** One operand as a dense row-major float64 matrix, transposition undone. */
function pack(
  operand: MatmulOperand,
  rows: number,
  cols: number,
  batch: number,
  what: string,
): Float64Array {
  const transposed = operand.transposed ?? false;
  const storedRows = transposed ? cols : rows;
  const storedCols = transposed ? rows : cols;
  const stride = operand.stride ?? storedCols;
  const start = (operand.offset ?? 0) + batch * (operand.batchStride ?? 0);
  const needed = storedRows * storedCols === 0 ? 0 : start + (storedRows - 1) * stride + storedCols;
  const source = realsOrCodes(operand.buffer, needed, what);
  const packed = new Float64Array(rows * cols);
  for (let r = 0; r < storedRows; r++) {
    const from = start + r * stride;
    if (transposed) for (let c = 0; c < storedCols; c++) packed[c * cols + r] = source[from + c];
    else for (let c = 0; c < storedCols; c++) packed[r * cols + c] = source[from + c];
  }
  return packed;
}

/** acc[j] = Σ_κ a[aStart + κ]·b[κ·n + j], four κ at a time to spare passes over `acc`. */
function rowTimesMatrix(
  a: Float64Array,
  aStart: number,
  b: Float64Array,
  k: number,
  n: number,
  acc: Float64Array,
): void {
  acc.fill(0);
  let kk = 0;
  for (; kk + 4 <= k; kk += 4) {
    const a0 = a[aStart + kk];
    const a1 = a[aStart + kk + 1];
    const a2 = a[aStart + kk + 2];
    const a3 = a[aStart + kk + 3];
    const b0 = kk * n;
    const b1 = b0 + n;
    const b2 = b1 + n;
    const b3 = b2 + n;
    for (let j = 0; j < n; j++)
      acc[j] += a0 * b[b0 + j] + a1 * b[b1 + j] + a2 * b[b2 + j] + a3 * b[b3 + j];
  }
  for (; kk < k; kk++) {
    const a0 = a[aStart + kk];
    const b0 = kk * n;
    for (let j = 0; j < n; j++) acc[j] += a0 * b[b0 + j];
  }
}

/**
 * out[i,j] = alpha·nScale[j]·Σ_κ a[i,κ]·kScale[κ]·b[κ,j] + bias[j], plus the previous out[i,j] when accumulating;
 * for each of `batch` products. Strides, transposition and offsets as MatmulOperand says.
 */
export function matmul(args: MatmulArgs): void {
  const { m, n, k, out } = args;
  const alpha = args.alpha ?? 1;
  const batches = args.batch ?? 1;
  const kScale = optionalReals(args.kScale, k, "matmul kScale");
  const nScale = optionalReals(args.nScale, n, "matmul nScale");
  const bias = optionalReals(args.bias, n, "matmul bias");
  const outStride = out.stride ?? n;
  const acc = new Float64Array(n);
  let packedB: Float64Array | undefined;
  for (let batch = 0; batch < batches; batch++) {
    const a = pack(args.a, m, k, batch, "matmul a");
    if (kScale)
      for (let i = 0; i < m; i++) for (let kk = 0; kk < k; kk++) a[i * k + kk] *= kScale[kk];
    // A right-hand side shared by all products (no batchStride) is packed once.
    if (packedB === undefined || args.b.batchStride)
      packedB = pack(args.b, k, n, batch, "matmul b");
    const start = (out.offset ?? 0) + batch * (out.batchStride ?? 0);
    const target = reals(
      out.buffer,
      m * n === 0 ? 0 : start + (m - 1) * outStride + n,
      "matmul out",
    );
    for (let i = 0; i < m; i++) {
      rowTimesMatrix(a, i * k, packedB, k, n, acc);
      const row = start + i * outStride;
      for (let j = 0; j < n; j++) {
        let value = alpha * acc[j];
        if (nScale) value *= nScale[j];
        if (bias) value += bias[j];
        target[row + j] = args.accumulate ? target[row + j] + value : value;
      }
    }
  }
}

/** out[i,j] = aScale[i]·bScale[j]·Σ_κ a[i,κ]·b[j,κ] (+ bias[j]); the sum of int8 products is an exact int32. */
export function intMatmul(args: IntMatmulArgs): void {
  const { m, n, k } = args;
  const a = codes8(args.a, m * k, "intMatmul a");
  const b = codes8(args.b, n * k, "intMatmul b");
  const aScale = reals(args.aScale, m, "intMatmul aScale");
  const bScale = reals(args.bScale, n, "intMatmul bScale");
  const bias = optionalReals(args.bias, n, "intMatmul bias");
  const out = reals(args.out, m * n, "intMatmul out");
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < n; j++) {
      let sum = 0;
      for (let kk = 0; kk < k; kk++) sum = (sum + a[i * k + kk] * b[j * k + kk]) | 0;
      out[i * n + j] = aScale[i] * bScale[j] * sum + (bias ? bias[j] : 0);
    }
  }
}
