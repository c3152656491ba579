/** How the CPU's engine keeps and multiplies linears. */
import type { PackedKind } from "../../contract/inference-kernels.js";
import { formatScheme, type Scheme } from "../../contract/scheme.js";
import { PlanishError } from "../../../common/errors.js";

/** How a scheme's linears are kept and multiplied. @throws PlanishError for the schemes that have no such kernel. */
export function linearKind(scheme: Scheme): PackedKind {
  const { weightBits, weightGroup, activationBits } = scheme;
  if (weightBits >= 16 && activationBits >= 16) return "bf16Bf16";
  if (weightBits >= 16)
    throw new PlanishError(
      `scheme ${formatScheme(scheme)} has no integer kernels: activations of ${activationBits} bits need weights below 16; ` +
        "run it simulated (planish eval, planish generate)",
    );
  if (weightGroup && activationBits >= 16)
    throw new PlanishError(
      `scheme ${formatScheme(scheme)} has no integer kernels: weights in groups need activations below 16 bits; ` +
        "run it simulated (planish eval, planish generate)",
    );
  // Offsets of activations are whole numbers of steps in the simulated model, and the sites' codes know none yet.
  if (scheme.activationOffset)
    throw new PlanishError(
      `scheme ${formatScheme(scheme)} has no integer kernels: activations in groups have no offsets here; ` +
        "leave out the o behind them, or run it simulated (planish eval, planish generate)",
    );
  if (activationBits >= 16) return weightBits <= 4 ? "int4F32" : "int8F32";
  return weightBits <= 4 ? "int4" : "int8";
}
