/**
 * Static per-tensor grids as wide as the tensors are: what a per-tensor baseline rounds on. The fields and checks are for
 * any method's recipe (docs/methods.md, Grids).
 */
import { z } from "zod";
import { createReferenceBackend } from "../../backend/reference/train/backend.js";
import { UsageError } from "../../common/errors.js";
import { uploadBlock } from "../../models/weights.js";
import { siteOfLinear, type LinearName } from "../../backend/contract/program.js";
import { frozen, Graph, type Tensor } from "../../tensor/tensor.js";
import { captureMaxima } from "../calibration/maxima.js";
import type { ParameterValues } from "../schema/parameters.js";
import type { BlockJob } from "../schema/method.js";
import { formatScheme, type Scheme } from "../../backend/contract/scheme.js";
import { bindSimulated } from "./simulated-block.js";
import { NO_SPLIT } from "../transforms/split.js";
import { gridParameters } from "../grids/tensor.js";

export const granularityFields = {
  /**
   * "row": a scale per weight row, and per token while the model runs. "tensor": one scale per weight and one per
   * activation, the latter from the calibration text.
   */
  granularity: z.enum(["row", "tensor"]),
};

export const granularityDefaults = { granularity: "row" as "row" | "tensor" };

/** @throws UsageError for groups where `what` has one static step for a whole tensor. */
export function refuseGroups(what: string, scheme: Scheme): void {
  if (scheme.blocks)
    throw new UsageError(
      `${what} has one step for each whole weight and activation and chooses no bits by budget; leave out --budget`,
    );
  if (scheme.weightGroup || scheme.activationGroup)
    throw new UsageError(
      `${what} has one step for each whole weight and activation, and scheme ${formatScheme(scheme)} asks for groups; leave the groups out`,
    );
}

/** @throws UsageError for static grids of tensors that are not rounded. */
export function checkGranularity(
  method: string,
  scheme: Scheme,
  recipe: { readonly granularity: "row" | "tensor" },
): void {
  const { weightBits, activationBits } = scheme;
  if (recipe.granularity === "tensor" && (weightBits > 8 || activationBits > 8))
    throw new UsageError(
      `granularity "tensor" of method "${method}" is for weights and activations of at most 8 bits, and scheme ${formatScheme(scheme)} has more; give one such as w8a8kv16, or granularity "row"`,
    );
  if (recipe.granularity === "tensor")
    refuseGroups(`granularity "tensor" of method "${method}"`, scheme);
}

/**
 * `parameters` (diags, transforms) with a grid for each linear of the block: thresholds are the largest magnitudes of the
 * weight as it will be rounded and of the full-precision activation over the calibration set. Matrices at a site are
 * not supported: their activations' maxima are not known.
 */
export function withFullRangeGrids(
  job: BlockJob<unknown>,
  parameters: ParameterValues,
): ParameterValues {
  const { block, program, scheme } = job;
  const maxima = captureMaxima(job.backend, program, job.weights, job.inputs, job.layer);
  const largest = (values: ArrayLike<number>): number => {
    let most = 0;
    for (let i = 0; i < values.length; i++) most = Math.max(most, Math.abs(values[i]));
    return most;
  };
  const roles = Object.keys(block.linears);
  const grids = (thresholds: (role: LinearName) => { weight: number; activation: number }) =>
    new Map([
      ...parameters,
      ...roles.flatMap((role) => {
        const { weight, activation } = thresholds(role);
        return [
          ...gridParameters(block.linears[role]?.path ?? role, {
            weightBits: scheme.weightBits,
            activationBits: scheme.activationBits,
            weightThreshold: weight,
            activationThreshold: activation,
            split: NO_SPLIT,
          }),
        ];
      }),
    ]);
  // With any grids in place the block shows each weight as it will meet them.
  const backend = createReferenceBackend({ realType: "f64" });
  using g = new Graph(backend);
  const tensors = new Map<string, Tensor>();
  for (const [name, { shape, data }] of grids(() => ({ weight: 1, activation: 1 })))
    tensors.set(name, frozen(backend, shape, data));
  const description = { program, scheme };
  const bound = bindSimulated(g, description, uploadBlock(backend, block), tensors);
  return grids((role) => {
    const { site } = siteOfLinear(program, role);
    const diag = parameters.get(`${site}.diag`)?.data;
    return {
      weight: largest(g.read(bound.unroundedWeight(role))),
      activation: largest(maxima[site].map((max, j) => max * (diag?.[j] ?? 1))),
    };
  });
}
