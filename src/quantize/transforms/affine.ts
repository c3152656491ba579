/**
 * Learnable invertible matrices and the Kronecker pairs made of them.
 * Source: docs/methods.md, Kronecker transform and flatquant (paper section 3.2, appendix B.1).
 */
import { PlanishError } from "../../common/errors.js";
import { randomOrthogonal, type Random } from "../../common/random.js";
import { binary, cayley, inverse, matmul, unary } from "../../tensor/ops/index.js";
import type { Graph, Tensor } from "../../tensor/tensor.js";
import { parameterOf, type Side } from "../schema/parameters.js";

export type Parametrisation = "svd" | "direct";

/** Named trainable tensors of one block. */
export type Parameters = ReadonlyMap<string, Tensor>;

/** Initial values of named parameters, before they are put on a device. */
export type InitialValues = Map<string, { shape: readonly number[]; data: Float64Array }>;

/** Largest size served by one dense matrix when it has no factors. */
const LARGEST_DENSE = 512;

/**
 * The factor pair n = n_l·n_r, n_l ≤ n_r, closest to √n. A prime gives [1, n] (one dense matrix on the right).
 * @throws PlanishError for primes above 512; `where` names the layer.
 */
export function kroneckerFactors(n: number, where: string): readonly [number, number] {
  for (let left = Math.floor(Math.sqrt(n)); left >= 2; left--)
    if (n % left === 0) return [left, n / left];
  if (n > LARGEST_DENSE)
    throw new PlanishError(
      `${where}: size ${n} is prime, so it has no Kronecker factors, and a dense ${n}×${n} transform is larger than the ${LARGEST_DENSE} allowed; quantize this model with --method rtn`,
    );
  return [1, n];
}

/** Starts P as an orthogonal matrix: U and V from random orthogonal seeds, singular values one. */
export function initMatrix(
  values: InitialValues,
  site: string,
  side: Side,
  n: number,
  kind: Parametrisation,
  random: Random,
): void {
  if (kind === "direct") {
    values.set(`${site}.p${side}`, { shape: [n, n], data: randomOrthogonal(n, random) });
    return;
  }
  values.set(`${site}.u${side}`, { shape: [n, n], data: randomOrthogonal(n, random) });
  values.set(`${site}.s${side}`, { shape: [n], data: new Float64Array(n).fill(1) });
  values.set(`${site}.v${side}`, { shape: [n, n], data: randomOrthogonal(n, random) });
}

/**
 * Starts P as the given orthogonal matrix and keeps it one while it is learned: P = R·Cayley(X), where R = `start` is
 * never changed, and X begins at zero, whose Cayley map is the identity.
 */
export function initOrthogonal(
  values: InitialValues,
  site: string,
  side: Side,
  n: number,
  start: Float64Array,
): void {
  values.set(`${site}.r${side}`, { shape: [n, n], data: start });
  values.set(`${site}.q${side}`, { shape: [n, n], data: new Float64Array(n * n) });
}

/** Whether a parameter is what learning starts from and never changes. */
export function isFixedParameter(name: string): boolean {
  const parameter = parameterOf(name);
  if (parameter.kind === "matrix") return parameter.part === "r";
  return parameter.kind === "shift" || (parameter.kind === "diag" && parameter.site === "k_head");
}

export interface MatrixPair {
  /** P. */
  readonly p: Tensor;
  /** P⁻ᵀ. */
  readonly inverseT: Tensor;
}

/** Orthogonal matrices of a graph by their seeds. */
export type FormedOrthogonals = ReadonlyMap<Tensor, Tensor>;

/**
 * The Cayley maps of all orthogonal seeds, one after the other: each alone is a long chain of small steps, and a GPU
 * does neighbouring ones side by side (also in the backward pass, where they are neighbours again).
 */
export function formOrthogonals(g: Graph, params: Parameters): FormedOrthogonals {
  const formed = new Map<Tensor, Tensor>();
  for (const [name, seed] of params) {
    const parameter = parameterOf(name);
    if (parameter.kind === "matrix" && ["q", "u", "v"].includes(parameter.part))
      formed.set(seed, cayley(g, seed));
  }
  return formed;
}

/**
 * P and P⁻ᵀ of one matrix on a graph, from whichever parameters there are: `p` itself, the start `r` and the seed `q`
 * of an orthogonal matrix, or `u`, `s` and `v`; undefined when the site has no such matrix.
 */
export function bindMatrix(
  g: Graph,
  params: Parameters,
  site: string,
  side: Side,
  formed: FormedOrthogonals = new Map(),
): MatrixPair | undefined {
  const orthogonal = (seed: Tensor): Tensor => formed.get(seed) ?? cayley(g, seed);
  const direct = params.get(`${site}.p${side}`);
  if (direct) return { p: direct, inverseT: transpose(g, inverse(g, direct)) };
  const seed = params.get(`${site}.q${side}`);
  if (seed) {
    // An orthogonal matrix is its own inverse transpose.
    const turn = orthogonal(seed);
    const start = params.get(`${site}.r${side}`);
    const q = start ? matmul(g, start, turn) : turn;
    return { p: q, inverseT: q };
  }
  const seedU = params.get(`${site}.u${side}`);
  const seedV = params.get(`${site}.v${side}`);
  const s = params.get(`${site}.s${side}`);
  if (!seedU || !seedV || !s) return undefined;
  const u = orthogonal(seedU);
  const v = orthogonal(seedV);
  // U·diag(s)·Vᵀ: scaling U's columns is a broadcast over rows.
  const scaledU = (factors: Tensor) =>
    matmul(g, binary(g, "mul", u, factors, "row"), v, { transposeB: true });
  return { p: scaledU(s), inverseT: scaledU(unary(g, "reciprocal", s)) };
}

function transpose(g: Graph, x: Tensor): Tensor {
  const n = x.shape[0];
  const identity = new Float64Array(n * n);
  for (let i = 0; i < n; i++) identity[i * n + i] = 1;
  return matmul(g, x, g.constant([n, n], identity), { transposeA: true });
}

/** A site's transform on a graph. */
export interface BoundTransform {
  readonly left?: MatrixPair;
  readonly right?: MatrixPair;
  readonly diag?: Tensor;
  /** 1/diag, for the weights. */
  readonly inverseDiag?: Tensor;
}

export function bindTransform(
  g: Graph,
  params: Parameters,
  site: string,
  formed: FormedOrthogonals = new Map(),
): BoundTransform | undefined {
  const left = bindMatrix(g, params, site, "_left", formed);
  const right =
    bindMatrix(g, params, site, "_right", formed) ?? bindMatrix(g, params, site, "", formed);
  const diag = params.get(`${site}.diag`);
  if (!left && !right && !diag) return undefined;
  return { left, right, diag, inverseDiag: diag && unary(g, "reciprocal", diag) };
}
