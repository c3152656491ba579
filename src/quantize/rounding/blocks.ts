/**
 * Weights onto GGUF's block types: scales by search (`grids/block-steps.ts`), codes by GPTQ on these, then scales again that
 * are best for the codes, and codes again for these scales, as long as the product with real activations gains.
 *
 * With H the activations' second moment, what is made small is Σ over rows of (w − q)·H·(w − q)ᵀ. For given codes it is
 * quadratic in the scales of a row, and a few steps of conjugate gradients lead close to its minimum. Ours.
 */
import type { RealArray } from "../../backend/contract/buffer.js";
import type { StoredCodes } from "../../checkpoint/checkpoint.js";
import { BLOCK_FORMATS, type WrittenType } from "../../checkpoint/gguf-blocks.js";
import { storedCodes } from "../../checkpoint/gguf-codes.js";
import { putCodes, putSteps, type PlainBlockType } from "../../checkpoint/gguf-encode.js";
import { dequantized } from "../grids/groups.js";
import { codeRange, fitBlocks } from "../grids/block-steps.js";
import { roundWithFactor, type FactoredMoment } from "./gptq.js";

export interface BlockProblem {
  readonly type: WrittenType;
  /** [rows, cols], row-major. */
  readonly weight: RealArray;
  readonly rows: number;
  readonly cols: number;
  readonly factor: FactoredMoment;
  /** Damped diagonal of H: what an error counts in the search of scales, by column. */
  readonly importance: RealArray;
  /** A matrix [rows, cols] times H. */
  readonly timesMoment: (x: Float32Array) => RealArray;
  /** How often scales are fitted to codes, and codes to these (default 2); types with blocks in blocks have none. */
  readonly refits?: number;
}

const STEPS = 6;
const PLAIN = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"] as const satisfies readonly PlainBlockType[];

/** Steps as GPTQ takes them: a group without a scale holds one value, whatever its codes. */
function stepsOf(type: WrittenType, bytes: Uint8Array): StoredCodes {
  const shape = [
    (bytes.byteLength / BLOCK_FORMATS[type].blockBytes) * BLOCK_FORMATS[type].blockElements,
  ];
  const steps = storedCodes(
    { name: "weight", file: "rounding", type, shape, bytes: bytes.length },
    bytes,
  );
  return { ...steps, scale: steps.scale.map((s) => s || 1) };
}

/** Blocks of the type with each weight at the nearest point of the scales that the search finds. */
export function roundToNearest(type: WrittenType, weight: RealArray, cols: number): Uint8Array {
  const bytes = fitBlocks(type, weight, cols, new Float32Array(cols).fill(1));
  const { scale, offset, group } = stepsOf(type, bytes);
  const { low, high } = codeRange(type);
  const codes = new Int8Array(weight.length);
  for (let i = 0; i < codes.length; i++) {
    const n = Math.floor(i / group);
    const code = Math.round((weight[i] - (offset?.[n] ?? 0)) / scale[n]);
    codes[i] = Math.min(Math.max(code, low), high);
  }
  putCodes(type, bytes, codes);
  return bytes;
}

interface Rounded {
  readonly bytes: Uint8Array;
  readonly steps: StoredCodes;
  readonly codes: Int8Array;
  /** W − Q, and its product with H. */
  readonly error: Float32Array;
  readonly product: RealArray;
  /** The error of each row. */
  readonly cost: Float64Array;
}

/** Blocks of the type, ready for the file. */
export function roundToBlocks(problem: BlockProblem): Uint8Array {
  const { type, weight, rows, cols, importance, refits = 2 } = problem;
  const plain = PLAIN.find((name) => name === type);
  let best = rounded(problem, fitBlocks(type, weight, cols, importance));
  for (let pass = 0; plain && pass < refits; pass++) {
    const next = rounded(problem, refitted(problem, plain, best));
    const gained = next.cost.reduce((sum, cost, r) => sum + Math.min(0, cost - best.cost[r]), 0);
    best = betterRows(best, next, rows, cols);
    if (gained === 0) break;
  }
  putCodes(type, best.bytes, best.codes);
  return best.bytes;
}

function rounded(problem: BlockProblem, bytes: Uint8Array): Rounded {
  const { type, weight, rows, cols, factor, timesMoment } = problem;
  const steps = stepsOf(type, bytes);
  const { codes } = roundWithFactor({ weight, rows, cols, ...steps }, factor);
  const values = dequantized(codes, cols, steps);
  const error = Float32Array.from(weight, (w, i) => w - values[i]);
  const product = timesMoment(error);
  const cost = new Float64Array(rows);
  for (let i = 0; i < error.length; i++) cost[Math.floor(i / cols)] += error[i] * product[i];
  return { bytes, steps, codes, error, product, cost };
}

/** Blocks with scales (and offsets) that suit the codes of a rounding. */
function refitted(
  { rows, cols, importance, timesMoment }: BlockProblem,
  type: PlainBlockType,
  { steps, codes, product }: Rounded,
): Uint8Array {
  const { group, scale, offset } = steps;
  const groups = scale.length;
  const parts = offset ? 2 : 1;
  const perRow = groups / rows;
  const unknowns = groups * parts;
  /** What a change of scales and offsets does to the weights. */
  const spread = (change: Float64Array): Float32Array => {
    const out = new Float32Array(rows * cols);
    for (let i = 0; i < out.length; i++) {
      const n = Math.floor(i / group);
      out[i] = change[n] * codes[i] + (offset ? change[groups + n] : 0);
    }
    return out;
  };
  /** Its transpose. */
  const gathered = (values: RealArray): Float64Array => {
    const out = new Float64Array(unknowns);
    for (let i = 0; i < values.length; i++) {
      const n = Math.floor(i / group);
      out[n] += codes[i] * values[i];
      if (offset) out[groups + n] += values[i];
    }
    return out;
  };
  const diagonal = new Float64Array(unknowns);
  for (let i = 0; i < codes.length; i++) {
    const n = Math.floor(i / group);
    diagonal[n] += importance[i % cols] * codes[i] ** 2;
    if (offset) diagonal[groups + n] += importance[i % cols];
  }
  /** Sum by row over what belongs to it. */
  const dots = (a: Float64Array, b: Float64Array): Float64Array => {
    const out = new Float64Array(rows);
    for (let i = 0; i < unknowns; i++) out[Math.floor((i % groups) / perRow)] += a[i] * b[i];
    return out;
  };
  const conditioned = (r: Float64Array): Float64Array =>
    r.map((value, i) => (diagonal[i] > 0 ? value / diagonal[i] : 0));

  const change = new Float64Array(unknowns);
  const residual = gathered(product);
  let z = conditioned(residual);
  const direction = z.slice();
  let power = dots(residual, z);
  for (let step = 0; step < STEPS; step++) {
    const image = gathered(timesMoment(spread(direction)));
    const curvature = dots(direction, image);
    const length = power.map((p, r) => (curvature[r] > 0 ? p / curvature[r] : 0));
    for (let i = 0; i < unknowns; i++) {
      const row = Math.floor((i % groups) / perRow);
      change[i] += length[row] * direction[i];
      residual[i] -= length[row] * image[i];
    }
    z = conditioned(residual);
    const next = dots(residual, z);
    for (let i = 0; i < unknowns; i++) {
      const row = Math.floor((i % groups) / perRow);
      direction[i] = z[i] + (power[row] > 0 ? next[row] / power[row] : 0) * direction[i];
    }
    power = next;
  }
  const moved = (values: Float32Array, from: number): Float32Array =>
    values.map((value, n) => value + change[from + n]);
  return putSteps(type, moved(scale, 0), offset && moved(offset, groups));
}

/** Of each row the rounding with the smaller error. */
function betterRows(a: Rounded, b: Rounded, rows: number, cols: number): Rounded {
  const rowBytes = a.bytes.length / rows;
  const perRow = a.steps.scale.length / rows;
  type Rows = Uint8Array | Int8Array | RealArray;
  const take = (into: Rows, from: Rows, width: number, row: number): void =>
    into.set(from.subarray(row * width, (row + 1) * width), row * width);
  for (let row = 0; row < rows; row++) {
    if (b.cost[row] >= a.cost[row]) continue;
    take(a.bytes, b.bytes, rowBytes, row);
    take(a.codes, b.codes, cols, row);
    take(a.steps.scale, b.steps.scale, perRow, row);
    if (a.steps.offset && b.steps.offset) take(a.steps.offset, b.steps.offset, perRow, row);
    take(a.product, b.product, cols, row);
    a.cost[row] = b.cost[row];
  }
  return a;
}
