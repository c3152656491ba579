/** Reference AdamW step. Source: Loshchilov & Hutter 2019, algorithm 2. */

import type { AdamWArgs } from "../../contract/training.js";
import { reals } from "./views.js";

/**
 * g = gradScale·grad; m = β1·m + (1−β1)·g; v = β2·v + (1−β2)·g²;
 * param = param·(1 − lr·weightDecay) − lr·(m/(1−β1^step))/(√(v/(1−β2^step)) + ε); then clamped to ±bound.
 */
export function adamW(args: AdamWArgs): void {
  const { length, beta1, beta2, learningRate } = args;
  const param = reals(args.param, length, "adamW param");
  const grad = reals(args.grad, length, "adamW grad");
  const moment1 = reals(args.moment1, length, "adamW moment1");
  const moment2 = reals(args.moment2, length, "adamW moment2");
  const correction1 = 1 - beta1 ** args.step;
  const correction2 = 1 - beta2 ** args.step;
  for (let i = 0; i < length; i++) {
    const g = grad[i] * args.gradScale;
    const m = beta1 * moment1[i] + (1 - beta1) * g;
    const v = beta2 * moment2[i] + (1 - beta2) * g * g;
    moment1[i] = m;
    moment2[i] = v;
    const update = m / correction1 / (Math.sqrt(v / correction2) + args.epsilon);
    const next = param[i] * (1 - learningRate * args.weightDecay) - learningRate * update;
    param[i] = args.bound === undefined ? next : Math.min(args.bound, Math.max(-args.bound, next));
  }
}
