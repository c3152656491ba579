/** What native/cuda/engine/rows.cu computes, stated plainly in float64 on emulated memory. */
import { silu, type Launch } from "./emulated-launch.js";
import type { EmulatedMemory } from "./emulated-memory.js";

/** x / √(mean square + epsilon) · gain. */
export function normalize(row: Float64Array, gain: Float32Array, epsilon: number): void {
  const square = row.reduce((sum, value) => sum + value * value, 0) / row.length;
  row.forEach((value, i) => (row[i] = (value / Math.sqrt(square + epsilon)) * gain[i]));
}

export function centre(row: Float64Array): void {
  const mean = row.reduce((sum, value) => sum + value, 0) / row.length;
  row.forEach((value, i) => (row[i] = value - mean));
}

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));

/** To some 10⁻⁹ of 1, by the series of the error function or its complement's continued fraction. */
function erf(x: number): number {
  if (Math.abs(x) > 3) {
    let fraction = 0;
    for (let k = 60; k > 0; k--) fraction = k / 2 / (Math.abs(x) + fraction);
    const rest = Math.exp(-x * x) / (Math.sqrt(Math.PI) * (Math.abs(x) + fraction));
    return Math.sign(x) * (1 - rest);
  }
  let [term, sum] = [x, x];
  for (let n = 1; n < 60; n++) {
    term *= (-x * x) / n;
    sum += term / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * sum;
}

const ACTIVATIONS: readonly ((x: number) => number)[] = [
  silu,
  (x) => Math.max(x, 0),
  (x) => Math.max(x, 0) ** 2,
  (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  sigmoid,
];

export function runRows(memory: EmulatedMemory, { kernel, grid, args }: Launch): void {
  const row = (at: number, stride: number, index: number, cols: number) =>
    memory.view(Float32Array, at + 4 * index * stride, cols);
  const { OP = 0, KIND = 0 } = kernel.defines;
  switch (kernel.name) {
    case "norm_rows": {
      const [x, xStride, cols, gain, bias, gains, epsilon, out, outStride] = args;
      for (let r = 0; r < grid[0]; r++)
        for (let g = 0; g < grid[1]; g++) {
          const from = row(x + 4 * g * cols, xStride, r, cols);
          const values = Float64Array.from(from);
          const first = gains > 1 ? g * cols : 0;
          if (KIND === 1) centre(values);
          normalize(values, memory.view(Float32Array, gain + 4 * first, cols), epsilon);
          if (bias)
            memory
              .view(Float32Array, bias + 4 * first, cols)
              .forEach((add, c) => (values[c] += add));
          row(out + 4 * g * cols, outStride, r, cols).set(values);
        }
      return;
    }
    case "pair_rows": {
      const [a, aStride, b, bStride, rows, cols, out, outStride] = args;
      for (let r = 0; r < rows; r++) {
        const [x, y] = [row(a, aStride, r, cols), row(b, bStride, r, cols)];
        row(out, outStride, r, cols).set(x.map((value, c) => (OP ? value * y[c] : value + y[c])));
      }
      return;
    }
    case "activate_rows": {
      const [gate, gateStride, x, xStride, rows, cols, alpha, limit, out, outStride] = args;
      for (let r = 0; r < rows; r++) {
        const gates = gate ? row(gate, gateStride, r, cols) : undefined;
        row(out, outStride, r, cols).set(
          row(x, xStride, r, cols).map((value, c) => {
            if (!gates) return ACTIVATIONS[OP](value);
            if (OP < 6) return ACTIVATIONS[OP](gates[c]) * value;
            const g = Math.min(gates[c], limit);
            return (Math.min(Math.max(value, -limit), limit) + 1) * g * sigmoid(alpha * g);
          }),
        );
      }
      return;
    }
    case "scale_rows": {
      const [x, xStride, rows, cols, factor, by, out, outStride] = args;
      const number = by ? memory.view(Float32Array, by, 1)[0] : factor;
      for (let r = 0; r < rows; r++)
        row(out, outStride, r, cols).set(row(x, xStride, r, cols).map((value) => value * number));
      return;
    }
    default: {
      const [positions, frequencies, half, turning, factor, cosine, sine] = args;
      for (let r = 0; r < grid[0]; r++) {
        const position = memory.rest(Int32Array, positions)[r];
        for (let i = 0; i < half; i++) {
          const angle = position * memory.rest(Float64Array, frequencies)[i];
          const size = i < turning ? factor : 1;
          memory.rest(Float32Array, cosine)[r * half + i] = size * Math.cos(angle);
          memory.rest(Float32Array, sine)[r * half + i] = size * Math.sin(angle);
        }
      }
    }
  }
}
