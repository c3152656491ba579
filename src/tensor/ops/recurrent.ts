/** Short causal convolutions and recurrences of matrices: what carries a state from row to row. */
import { PlanishError } from "../../common/errors.js";
import type { Buffer } from "../../backend/contract/training.js";
import type { RecurrenceShape } from "../../backend/contract/recurrent.js";
import type { Graph, Tensor } from "../tensor.js";

/** Sequences of equal length, one after the other, and what they go on from. */
export interface Carried {
  readonly batch: number;
  /** The sequences' states, which the op replaces; absent: they begin with zeros. Not while gradients are recorded. */
  readonly state?: Buffer;
}

function refuseTrainedStates(g: Graph, op: string, state: Buffer | undefined): void {
  if (state && g.recording)
    throw new PlanishError(`[${op}] has no gradient of the state that a sequence goes on from`);
}

function refuseTrained(g: Graph, op: string, frozen: readonly (Tensor | undefined)[]): void {
  if (frozen.some((tensor) => tensor && g.needs(tensor)))
    throw new PlanishError(`[${op}] has no gradient of its weights; they must be frozen`);
}

/** Each channel by itself. x: [batch·time, channels]; weight: [channels, …, taps]; bias: [channels]. */
export function causalConv(
  g: Graph,
  x: Tensor,
  weight: Tensor,
  bias: Tensor | undefined,
  { batch, state }: Carried,
): Tensor {
  refuseTrainedStates(g, "causalConv", state);
  refuseTrained(g, "causalConv", [weight, bias]);
  const { rows, cols: channels } = x;
  const shape = { batch, time: rows / batch, channels, taps: weight.cols };
  const kernel = g.values(weight);
  const out = g.real(x.size);
  g.kernels.causalConv({
    ...shape,
    x: g.values(x),
    weight: kernel,
    bias: bias && g.values(bias),
    state,
    out,
  });
  return g.result(x.shape, out, [x], (grad) => {
    const gradX = g.real(x.size);
    g.kernels.causalConvBackward({ ...shape, weight: kernel, grad, gradX });
    g.accumulate(x, gradX);
  });
}

export interface RecurrenceInputs {
  /** [batch·time, width]. */
  readonly x: Tensor;
  /** [batch·time, heads]. */
  readonly step: Tensor;
  readonly beta?: Tensor;
  /** [heads], frozen. */
  readonly rate: Tensor;
  readonly bias: Tensor;
  readonly skip?: Tensor;
}

/** See RecurrenceStep in recurrent.ts of the contract; out: [batch·time, heads·valueDim]. */
export function recurrence(
  g: Graph,
  { x, step, beta, rate, bias, skip }: RecurrenceInputs,
  sizes: RecurrenceShape,
  { batch, state }: Carried,
): Tensor {
  refuseTrainedStates(g, "recurrence", state);
  refuseTrained(g, "recurrence", [rate, bias, skip]);
  const { rows } = x;
  const { heads, keyHeads, keyDim, valueDim, width, at, scale, epsilon, limits } = sizes;
  const shared = {
    ...{ heads, keyHeads, keyDim, valueDim, width, at, scale, epsilon, limits },
    ...{ batch, time: rows / batch },
    x: g.values(x),
    step: g.values(step),
    beta: beta && g.values(beta),
    rate: g.values(rate),
    bias: g.values(bias),
    skip: skip && g.values(skip),
  };
  const out = g.real(rows * heads * valueDim);
  g.kernels.recurrence({ ...shared, state, out });
  return g.result([rows, heads * valueDim], out, [x, step, beta], (grad) => {
    const gradX = g.real(x.size);
    const gradStep = g.real(step.size);
    const gradBeta = beta && g.real(beta.size);
    g.kernels.recurrenceBackward({ ...shared, grad, gradX, gradStep, gradBeta });
    g.accumulate(x, gradX);
    g.accumulate(step, gradStep);
    if (beta) g.accumulate(beta, gradBeta);
  });
}
