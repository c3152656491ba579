/** Reference losses over rows of logits or plain vectors. */

import type { MseArgs, NllArgs, RealArray, SoftmaxKlArgs } from "../../contract/training.js";
import { PlanishError } from "../../../common/errors.js";
import { indices, optionalReals, reals } from "./views.js";

/** loss[0] = (1/length)·Σ (a_i − b_i)². */
export function mse(args: MseArgs): void {
  const a = reals(args.a, args.length, "mse a");
  const b = reals(args.b, args.length, "mse b");
  let sum = 0;
  for (let i = 0; i < args.length; i++) sum += (a[i] - b[i]) ** 2;
  reals(args.loss, 1, "mse loss")[0] = sum / args.length;
}

/** log Σ_c exp(x[start+c]), shifted by the maximum so that it cannot overflow. */
function logSumExp(x: RealArray, start: number, cols: number): number {
  let max = -Infinity;
  for (let c = 0; c < cols; c++) if (x[start + c] > max) max = x[start + c];
  let sum = 0;
  for (let c = 0; c < cols; c++) sum += Math.exp(x[start + c] - max);
  return max + Math.log(sum);
}

/** nll[r] = logsumexp(logits[r,:]) − logits[r, target_r]; 0 where the target is −1. Throws on any other target outside the row. */
export function nll(args: NllArgs): void {
  const { rows, cols } = args;
  const logits = reals(args.logits, rows * cols, "nll logits");
  const targets = indices(args.targets, rows, "nll targets");
  const out = reals(args.nll, rows, "nll nll");
  for (let r = 0; r < rows; r++) {
    const target = targets[r];
    if (target < -1 || target >= cols) {
      throw new PlanishError(
        `nll: target ${target} of row ${r} is not a token id; give 0 … ${cols - 1}, or -1 to leave the row out`,
      );
    }
    out[r] = target === -1 ? 0 : logSumExp(logits, r * cols, cols) - logits[r * cols + target];
  }
}

/**
 * With p = softmax(teacher_r) and q = softmax(student_r): kl[r] = Σ p·(log p − log q),
 * gradStudent = gradScale·(q − p).
 */
export function softmaxKl(args: SoftmaxKlArgs): void {
  const { rows, cols } = args;
  const teacher = reals(args.teacher, rows * cols, "softmaxKl teacher");
  const student = reals(args.student, rows * cols, "softmaxKl student");
  const kl = reals(args.kl, rows, "softmaxKl kl");
  const gradStudent = optionalReals(args.gradStudent, rows * cols, "softmaxKl gradStudent");
  for (let r = 0; r < rows; r++) {
    const start = r * cols;
    const teacherLse = logSumExp(teacher, start, cols);
    const studentLse = logSumExp(student, start, cols);
    let sum = 0;
    for (let i = start; i < start + cols; i++) {
      const logP = teacher[i] - teacherLse;
      const logQ = student[i] - studentLse;
      const p = Math.exp(logP);
      sum += p * (logP - logQ);
      if (gradStudent) gradStudent[i] = args.gradScale * (Math.exp(logQ) - p);
    }
    kl[r] = sum;
  }
}
