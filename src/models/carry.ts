/** Steps that carry a state from token to token, on the tape: which rows are a sequence's, and what it goes on from. */
import type { Buffer } from "../backend/contract/training.js";
import type { KeptName } from "../backend/contract/program.js";
import type { CarryStep } from "../backend/contract/recurrent.js";
import { causalConv, gatherRows, recurrence, type Carried } from "../tensor/ops/index.js";
import type { Graph, Tensor } from "../tensor/tensor.js";

/** A step on sequences of equal length, one after the other. `inputs`: the rows of the values that it reads. */
export type RunCarried = (g: Graph, inputs: readonly Tensor[], carried: Carried) => Tensor;

/** `kept`: the block's tensors by name. */
export function carriedStep(step: CarryStep, kept: (name: KeptName) => Tensor): RunCarried {
  const optional = (name: KeptName | undefined) => (name === undefined ? undefined : kept(name));
  if (step.op === "conv")
    return (g, [x], carried) => causalConv(g, x, kept(step.weight), optional(step.bias), carried);
  return (g, [x, time, beta], carried) =>
    recurrence(
      g,
      {
        ...{ x, step: time, beta },
        rate: kept(step.rate),
        bias: kept(step.bias),
        skip: optional(step.skip),
      },
      step,
      carried,
    );
}

/** Sequences that share rows, as `SharedRows` has them: each runs over all of its rows, padding behind them. */
export function runShared(
  g: Graph,
  run: RunCarried,
  inputs: readonly Tensor[],
  { sequences, spread, collect }: { sequences: number; spread: Buffer; collect: Buffer },
): Tensor {
  const rows = inputs.map((input) => gatherRows(g, input, spread));
  return gatherRows(g, run(g, rows, { batch: sequences }), collect);
}
