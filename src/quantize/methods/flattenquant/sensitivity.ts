/**
 * What one linear at 4 bits costs its block (ours): the added squared error of the block's output, relative to that
 * output, with all other linears at 8 bits. Unlike a divergence of histograms it sees what a linear's output is for: a
 * small relative error of keys can turn attention around.
 */
import { relativeError } from "../../../common/ratio.js";
import { runBlock } from "../../../models/interpret.js";
import { meanSquaredError } from "../../../tensor/ops/index.js";
import { freeTensor, frozen, Graph, type Tensor } from "../../../tensor/tensor.js";
import { sampleRange } from "../../schema/windows.js";
import type { ParameterValues } from "../../schema/parameters.js";
import type { BlockJob } from "../../schema/method.js";
import { bindSimulated } from "../../block/simulated-block.js";

/** Windows on which it is measured. */
const WINDOWS = 2;

/** Mean squared error of the block's output with these parameters, over the mean square of the output. */
export function blockError(job: BlockJob<unknown>, parameters: ParameterValues): number {
  const { backend, program, scheme, weights, inputs, targets, layer } = job;
  const tensors = new Map<string, Tensor>();
  for (const [name, { shape, data }] of parameters) tensors.set(name, frozen(backend, shape, data));
  const description = { program, scheme };
  const shape = [inputs.time, inputs.hidden];
  let error = 0;
  let power = 0;
  using arena = backend.arena();
  for (let s = 0; s < Math.min(WINDOWS, inputs.samples); s++) {
    using g = new Graph(backend, { arena });
    const hooks = bindSimulated(g, description, weights, tensors);
    const x = g.constant(shape, sampleRange(inputs, s, 1));
    const target = g.constant(shape, sampleRange(targets, s, 1));
    const y = runBlock(g, program, weights, hooks, x, { layer, batch: 1 });
    error += g.scalar(meanSquaredError(g, y, target));
    power += g.scalar(
      meanSquaredError(g, target, g.constant(shape, new Float32Array(target.size))),
    );
  }
  for (const tensor of tensors.values()) freeTensor(backend, tensor);
  return relativeError(error, power);
}
