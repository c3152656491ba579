/** Short convolutions and recurrences have no CUDA kernels yet: each refuses by its name. */
import type { Kernels } from "../../../contract/training.js";
import { PlanishError } from "../../../../common/errors.js";

/** Kernels of the table that this backend has not. */
export const REFUSED_KERNELS = [
  "causalConv",
  "causalConvBackward",
  "recurrence",
  "recurrenceBackward",
] as const satisfies readonly (keyof Kernels)[];

type Refused = (typeof REFUSED_KERNELS)[number];

export function recurrentKernels(): Pick<Kernels, Refused> {
  const refuse = (kernel: Refused) => (): never => {
    throw new PlanishError(
      `[${kernel}] linear attention, state-space layers and short convolutions have no CUDA kernels; run such models with --device cpu`,
    );
  };
  return {
    causalConv: refuse("causalConv"),
    causalConvBackward: refuse("causalConvBackward"),
    recurrence: refuse("recurrence"),
    recurrenceBackward: refuse("recurrenceBackward"),
  };
}
