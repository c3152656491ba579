/**
 * Folds a block's parameters into its weights, in float64: transforms into weights, diag into the norm or the
 * upstream rows, P_v into v_proj, then codes and scales. Source: spec/flatquant.md, Calibration ("After training").
 */
import { createReferenceBackend } from "../backend/reference/index.js";
import type { RealArray } from "../backend/backend.js";
import type { LinearRole, LinearSite, ModelConfig } from "../models/config.js";
import { uploadBlock, type HostBlock, type HostLinear, type HostNorm } from "../models/weights.js";
import { frozen, Graph, type Tensor } from "../tensor/tensor.js";
import { floatToHalfBits } from "../checkpoint/half.js";
import { halfFloats } from "../checkpoint/element-types.js";
import { bindMatrix, type Side } from "./transforms/affine.js";
import type { WeightRounder } from "./rounding/rounder.js";
import { bindSimulated, type BlockDescription } from "./simulated-block.js";
import type { ClipLogits, PackedBlock, PackedLinear, PackedTransform } from "./packed-block.js";

/**
 * Whether a positive factor per channel of a site's activation can be folded into what comes before it. Norms give
 * way, unless they stand after the residual sum: then the residual stream itself feeds the linears, and scaling it
 * would scale the residual too. The MLP's inner activation gives way through the gate's linear half, or through ReLU.
 */
export function diagFolds(config: ModelConfig, site: LinearSite): boolean {
  switch (site) {
    case "attn_in":
    case "mlp_in":
      return config.normPlacement !== "after";
    case "mlp_down":
      return config.mlp.gated || config.mlp.activation === "relu";
    case "attn_out":
      return false;
  }
}

/** Parameter values on the host, by name. */
export type ParameterValues = ReadonlyMap<
  string,
  { readonly shape: readonly number[]; readonly data: RealArray }
>;

/**
 * Deterministic: the same values (and the same rounder) give the same packed block on every machine. Without a
 * rounder weights go to the nearest point of their grid, or where learned offsets say.
 */
export function foldBlock(
  block: HostBlock,
  description: BlockDescription,
  values: ParameterValues,
  rounder?: WeightRounder,
): PackedBlock {
  const backend = createReferenceBackend({ realType: "f64" });
  const params = new Map<string, Tensor>();
  for (const [name, { shape, data }] of settleMatrices(values))
    params.set(name, frozen(backend, shape, data));
  using g = new Graph(backend);
  const simulated = bindSimulated(g, description, uploadBlock(backend, block), params);
  const host = (t: Tensor | undefined): Float32Array | undefined =>
    t && Float32Array.from(g.read(t));
  const diagOf = (site: LinearSite): RealArray | undefined => {
    const diag = values.get(`${site}.diag`)?.data;
    if (diag && !diagFolds(description.config, site))
      throw new Error(`a diag at ${site} folds into nothing in ${description.config.architecture}`);
    return diag;
  };
  const clipOf = (name: string): ClipLogits | undefined => {
    const max = values.get(`clip.${name}.a_max`);
    const min = values.get(`clip.${name}.a_min`);
    return max && min ? { max: max.data[0], min: min.data[0] } : undefined;
  };

  const linears: Partial<Record<LinearRole, PackedLinear>> = {};
  for (const [role, l] of Object.entries(block.linears) as [LinearRole, HostLinear][]) {
    const unrounded = simulated.unroundedWeight(role);
    const folded = simulated.roundedWeight(role, unrounded);
    const bias = host(simulated.bias(role));
    // mlp_down's diag multiplies up_proj's output rows: their scales (or weights) and bias.
    const rowFactors = role === "up" ? diagOf("mlp_down") : undefined;
    const scale = folded.codes && (backend.read(folded.codes.scale) as RealArray);
    const quantized = folded.codes &&
      scale && {
        codes:
          rounder?.(role, g.read(unrounded), l.weight.shape, scale, folded.codes.bits) ??
          (backend.read(folded.codes.codes) as Int8Array),
        scale: scaleRows(scale, rowFactors, 1),
      };
    linears[role] = {
      path: l.path,
      shape: [l.weight.shape[0], l.weight.shape[1]],
      quantized,
      weight: quantized ? undefined : scaleRows(g.read(folded), rowFactors, l.weight.shape[1]),
      bias: bias && scaleRows(bias, rowFactors, 1),
      activationClip: clipOf(l.path),
    };
  }

  const transforms: Partial<Record<LinearSite, PackedTransform>> = {};
  for (const site of ["attn_in", "attn_out", "mlp_in", "mlp_down"] as const) {
    const t = simulated.transforms[site];
    if (!t?.left && !t?.right) continue;
    // attn_out's single matrix acts over heads: it is the left factor.
    transforms[site] =
      site === "attn_out"
        ? { left: host(t.right?.p) }
        : { left: host(t.left?.p), right: host(t.right?.p) };
  }
  const key = simulated.transforms.k_head?.right;
  return {
    inputNorm: scaleNorm(block.inputNorm, diagOf("attn_in")),
    postNorm: scaleNorm(block.postNorm, diagOf("mlp_in")),
    qNorm: block.qNorm,
    kNorm: block.kNorm,
    linears,
    transforms,
    keyTransform: key && {
      matrix: Float32Array.from(g.read(key.p)),
      inverseT: Float32Array.from(g.read(key.inverseT)),
    },
    keyClip: clipOf("k"),
    valueClip: clipOf("v"),
  };
}

function scaleRows(data: RealArray, factors: RealArray | undefined, cols: number): Float32Array {
  return factors
    ? Float32Array.from(data, (x, i) => x * factors[Math.floor(i / cols)])
    : Float32Array.from(data);
}

function scaleNorm(norm: HostNorm, diag: RealArray | undefined): HostNorm {
  if (!diag) return norm;
  const scaled = (data: RealArray) => Float32Array.from(data, (x, i) => x * diag[i]);
  return {
    path: norm.path,
    gain: { shape: norm.gain.shape, data: scaled(norm.gain.data) },
    bias: norm.bias && { shape: norm.bias.shape, data: scaled(norm.bias.data) },
  };
}

/**
 * Replaces every run-time matrix by what the artifact will hold: P itself, rounded to 16 bits. Its inverse is then
 * taken of the rounded one, so that folding into weights and the transform at run time cancel exactly.
 */
export function settleMatrices(values: ParameterValues): ParameterValues {
  const backend = createReferenceBackend({ realType: "f64" });
  using g = new Graph(backend);
  const params = new Map<string, Tensor>();
  for (const [name, { shape, data }] of values) params.set(name, frozen(backend, shape, data));
  const settled = new Map(values);
  for (const name of values.keys()) {
    const match = /^(.+)\.[upq](|_left|_right)$/.exec(name);
    if (!match) continue;
    const [, site, side] = match as unknown as [string, string, Side];
    const pair = bindMatrix(g, params, site, side);
    if (!pair) continue;
    for (const part of ["u", "s", "v", "q", "r"]) settled.delete(`${site}.${part}${side}`);
    const halves = halfFloats();
    const rounded = Float64Array.from(g.read(pair.p), (x) => halves[floatToHalfBits(x)]);
    settled.set(`${site}.p${side}`, { shape: pair.p.shape, data: rounded });
  }
  return settled;
}
