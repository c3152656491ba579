/**
 * What an artifact can hold of a block's learned parameters: matrices, clips and folded norms have 16 bits. Settling
 * rounds them first, so that everything derived from them (inverses, folded weights, integer codes) belongs to the
 * values that will run, and the simulated model of settled parameters is the artifact's own arithmetic.
 */
import type { HostNorm } from "../../backend/contract/packed.js";
import type { RealArray } from "../../backend/contract/training.js";
import { createReferenceBackend } from "../../backend/reference/train/backend.js";
import { halfFloats } from "../../checkpoint/element-types.js";
import { floatToHalfBits } from "../../common/half.js";
import type { HostBlock } from "../../models/weights.js";
import {
  siteNamed,
  sitesOf,
  type BlockProgram,
  type LinearSite,
} from "../../backend/contract/program.js";
import { frozen, Graph, type Tensor } from "../../tensor/tensor.js";
import { parameterName, parameterOf, type ParameterValues } from "../schema/parameters.js";
import { bindMatrix } from "./affine.js";

/**
 * Whether a positive factor per channel of a site's activation can be folded into what comes before it (`Upstream`). Norms
 * give way, unless the residual stream itself feeds the linears: scaling it would scale the residual too. The MLP's
 * inner activation gives way through the gate's linear half, or through ReLU, and attention's output through v.
 */
export function diagFolds(program: BlockProgram, site: LinearSite): boolean {
  return siteNamed(program, site).upstream !== undefined;
}

type Values = Map<string, { readonly shape: readonly number[]; readonly data: RealArray }>;

/**
 * The parameters as the artifact will hold them: every run-time matrix P itself in 16 bits (instead of its SVD or
 * Cayley seeds), diag such that norm · diag is a 16-bit number where a norm takes it, clipping logits in 16 bits.
 * Weight clips and rounding offsets, which only shape the integers, stay. Settling twice changes nothing.
 */
export function settleParameters(
  program: BlockProgram,
  block: HostBlock,
  values: ParameterValues,
): ParameterValues {
  const settled: Values = new Map(values);
  settleMatrices(settled, values);
  for (const { site, upstream } of sitesOf(program)) {
    const diag = values.get(`${site}.diag`);
    if (diag && upstream?.kind === "norm")
      settled.set(`${site}.diag`, {
        shape: diag.shape,
        data: settleDiag(block.norms[upstream.norm], diag.data),
      });
  }
  for (const [name, { shape, data }] of values)
    if (isActivationClip(name)) settled.set(name, { shape, data: Float64Array.from(data, toHalf) });
  return settled;
}

function isActivationClip(name: string): boolean {
  const parameter = parameterOf(name);
  return parameter.kind === "clip" && parameter.target === "a";
}

function settleMatrices(settled: Values, values: ParameterValues): void {
  const backend = createReferenceBackend({ realType: "f64" });
  using g = new Graph(backend);
  const params = new Map<string, Tensor>();
  for (const [name, { shape, data }] of values) params.set(name, frozen(backend, shape, data));
  for (const name of values.keys()) {
    const parameter = parameterOf(name);
    // Each matrix once: by itself or by the seed that every way of holding it has.
    if (parameter.kind !== "matrix" || !["u", "p", "q"].includes(parameter.part)) continue;
    const { site, side } = parameter;
    const pair = bindMatrix(g, params, site, side);
    if (!pair) continue;
    for (const part of ["u", "s", "v", "q", "r"] as const)
      settled.delete(parameterName({ kind: "matrix", site, part, side }));
    const rounded = Float64Array.from(g.read(pair.p), toHalf);
    settled.set(`${site}.p${side}`, { shape: pair.p.shape, data: rounded });
  }
}

/** d' with gain·d' = half(gain·d), in single precision because that is how parameters are kept. */
function settleDiag({ gain }: HostNorm, diag: RealArray): Float64Array {
  return Float64Array.from(diag, (d, i) =>
    gain.data[i] === 0 ? d : Math.fround(toHalf(gain.data[i] * d) / gain.data[i]),
  );
}

function toHalf(x: number): number {
  return halfFloats()[floatToHalfBits(x)];
}
