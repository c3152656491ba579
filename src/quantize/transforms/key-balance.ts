/**
 * Keys balanced before their matrix turns them: what all keys have in common is taken off, and channels that queries weigh
 * little give way to those that they weigh much. Source: docs/methods.md, Keys and values.
 *
 * A score errs by q·δ, δ what rounding leaves of a key. After a rotation δ is alike in all channels, and as large as the
 * key's reach; so with k′ = d∘k and q′ = q/d the error is as |q/d|·|d∘k|, least where d = √(σ(q)/σ(k)).
 */
import type { RealArray } from "../../backend/contract/training.js";
import { attentionsOf, type BlockProgram } from "../../backend/contract/program.js";
import { halfFloats } from "../../checkpoint/element-types.js";
import { floatToHalfBits } from "../../common/half.js";
import { binary, gatherRows, kronecker, reshape, unary } from "../../tensor/ops/index.js";
import { Tensor, type Graph } from "../../tensor/tensor.js";
import type { ParameterValues } from "../schema/parameters.js";
import type { InitialValues } from "./affine.js";
import type { KeyBalance } from "../../backend/contract/packed.js";

/** On a backend, [kvHeads·headDim] each. */
export interface BoundKeyBalance {
  readonly diag: Tensor;
  readonly shift: Tensor;
}

/** Both or nothing. */
export function bindKeyBalance(
  diag: Tensor | undefined,
  shift: Tensor | undefined,
): BoundKeyBalance | undefined {
  return diag && shift && { diag, shift };
}

/** (k − shift) ∘ diag, [rows, kvHeads·headDim]. */
export function balanceKeys(g: Graph, k: Tensor, { diag, shift }: BoundKeyBalance): Tensor {
  return binary(g, "mul", binary(g, "sub", k, shift, "row"), diag, "row");
}

/** q ∘ 1/diag, [rows, heads·headDim]: of the KV head that a query head reads. */
export function balanceQueries(
  g: Graph,
  q: Tensor,
  { diag }: BoundKeyBalance,
  headDim: number,
): Tensor {
  const kvHeads = diag.size / headDim;
  const heads = q.cols / headDim;
  const factor = new Tensor([kvHeads, headDim], g.values(unary(g, "reciprocal", diag)), false);
  const owner = Int32Array.from({ length: heads }, (_, head) =>
    Math.floor((head * kvHeads) / heads),
  );
  const each = gatherRows(g, factor, g.indices(owner));
  return binary(g, "mul", q, reshape(g, each, [heads * headDim]), "row");
}

/** What a block's keys go through, on a backend; any part may be absent. */
export interface BoundKeyTransform {
  readonly balance?: BoundKeyBalance;
  /** P and P⁻ᵀ, [headDim, headDim]. */
  readonly matrix?: Tensor;
  readonly inverseT?: Tensor;
}

/** Keys as the cache gets them, before its grid. */
export function transformKeys(g: Graph, k: Tensor, { balance, matrix }: BoundKeyTransform): Tensor {
  const balanced = balance ? balanceKeys(g, k, balance) : k;
  return matrix ? kronecker(g, balanced, { right: matrix }) : balanced;
}

/** Queries that meet such keys. */
export function transformQueries(
  g: Graph,
  q: Tensor,
  { balance, inverseT }: BoundKeyTransform,
  headDim: number,
): Tensor {
  const balanced = balance ? balanceQueries(g, q, balance, headDim) : q;
  return inverseT ? kronecker(g, balanced, { right: inverseT }) : balanced;
}

/** What is known of keys, about their mean, and of the queries that read them, about zero: [kvHeads·headDim] each. */
export interface HeadMoments {
  readonly keyMean: Float64Array;
  readonly keyVariance: Float64Array;
  readonly querySquare: Float64Array;
}

/** Shapes of the parameters of a block whose keys are balanced, by name. `width`: kvHeads·headDim. */
export function balanceShapes(width: number): Record<string, number[]> {
  return { "k_head.diag": [width], "k_head.shift": [width] };
}

/** As parameters of a block. */
export function setBalance(values: InitialValues, { diag, shift }: KeyBalance): void {
  for (const [part, data] of Object.entries({ diag, shift }))
    values.set(`k_head.${part}`, { shape: [data.length], data: Float64Array.from(data) });
}

/** The inverse; undefined where a block's keys are not balanced. */
export function balanceOf(values: ParameterValues | undefined): KeyBalance | undefined {
  const [diag, shift] = ["diag", "shift"].map((part) => values?.get(`k_head.${part}`)?.data);
  return diag && shift && { diag: Float32Array.from(diag), shift: Float32Array.from(shift) };
}

/** Whether keys may all be shifted: not where a score's own size counts, in a soft cap or beside a sink's. */
export function shiftsKeys(program: BlockProgram): boolean {
  return attentionsOf(program).every(
    ({ softcap, sinks }) => softcap === undefined && sinks === undefined,
  );
}

/** Of σ(q)/σ(k). Less than the ½ that the argument above gives: measured (docs/decisions.md). */
const EXPONENT = 0.375;
/** A channel's least share of the mean variance: one that nothing passes through would be blown up without bound. */
const FLOOR = 1e-4;

/** `shifts`: whether one shift of all scores changes nothing. Numbers as 16 bits hold them. */
export function keyBalance(
  { keyMean, keyVariance, querySquare }: HeadMoments,
  headDim: number,
  shifts: boolean,
): KeyBalance {
  const diag = new Float64Array(keyMean.length);
  for (let head = 0; head < diag.length; head += headDim) {
    const floored = (values: RealArray): number[] => {
      const own = Array.from(values.subarray(head, head + headDim));
      const floor = FLOOR * (own.reduce((sum, x) => sum + x, 0) / headDim) + Number.MIN_VALUE;
      return own.map((x) => Math.max(x, floor));
    };
    const [q, k] = [floored(querySquare), floored(keyVariance)];
    const logs = q.map((x, i) => (EXPONENT / 2) * (Math.log(x) - Math.log(k[i])));
    // Of no consequence to a head's grid; keeps the numbers near 1.
    const middle = logs.reduce((sum, x) => sum + x, 0) / headDim;
    logs.forEach((x, i) => (diag[head + i] = Math.exp(x - middle)));
  }
  return {
    diag: stored(diag),
    shift: shifts ? stored(keyMean) : new Float32Array(keyMean.length),
  };
}

function stored(values: RealArray): Float32Array {
  const halves = halfFloats();
  return Float32Array.from(values, (x) => halves[floatToHalfBits(x)]);
}
