/** Bindings of native/cuda/losses.cu: negative log-likelihood and Kullback–Leibler divergence over rows of logits. */
import type { Kernels } from "../../../contract/training.js";
import { PlanishError } from "../../../../common/errors.js";
import { indices, launch, optionalReal, real, type CudaContext } from "../../context.js";
import { readFlag, startFlag } from "./flag.js";

const THREADS = 256;

export function lossKernels(ctx: CudaContext): Pick<Kernels, "nll" | "softmaxKl"> {
  const { modules } = ctx;
  return {
    nll({ logits, rows, cols, targets, nll }) {
      const flag = startFlag(ctx);
      launch(ctx, modules.get("losses", "nll"), [rows], THREADS, [
        real(logits, rows * cols, "nll logits"),
        rows,
        cols,
        indices(targets, rows, "nll targets"),
        real(nll, rows, "nll nll"),
        flag,
      ]);
      const bad = readFlag(ctx, flag);
      if (bad !== undefined)
        throw new PlanishError(
          `nll: the target of row ${bad} is not a token id; give 0 … ${cols - 1}, or -1 to leave the row out`,
        );
    },
    softmaxKl({ teacher, student, rows, cols, kl, gradStudent, gradScale }) {
      launch(ctx, modules.get("losses", "softmax_kl"), [rows], THREADS, [
        real(teacher, rows * cols, "softmaxKl teacher"),
        real(student, rows * cols, "softmaxKl student"),
        rows,
        cols,
        real(kl, rows, "softmaxKl kl"),
        optionalReal(gradStudent, rows * cols, "softmaxKl gradStudent"),
        gradScale,
      ]);
    },
  };
}
