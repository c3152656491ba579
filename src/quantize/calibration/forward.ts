/** The full-precision model's hidden states over the calibration set, block by block. */
import { setImmediate as nextTurn } from "node:timers/promises";
import type { Backend } from "../../backend/contract/training.js";
import { InterruptedError } from "../../common/errors.js";
import { runBlock, plainHooks, type BlockWeights } from "../../models/interpret.js";
import { stateWidth, type ModelConfig } from "../../models/config.js";
import type { BlockProgram } from "../../backend/contract/program.js";
import { embed, endLayerTensors, type EndLayerWeights } from "../../models/language-model.js";
import { freeTensor, Graph } from "../../tensor/tensor.js";
import { sampleRange, type Activations, type TokenWindows } from "../schema/windows.js";

/** Hidden states before the first block, of every window. */
export function embedAll(
  backend: Backend,
  config: ModelConfig,
  endLayers: EndLayerWeights,
  windows: TokenWindows,
): Activations {
  const { samples, time } = windows;
  const hidden = stateWidth(config);
  const data = new Float32Array(samples * time * hidden);
  for (let s = 0; s < samples; s++) {
    using g = new Graph(backend);
    const ids = windows.ids.slice(s * time, (s + 1) * time);
    data.set(g.read(embed(g, config, endLayers, ids, 1)), s * time * hidden);
  }
  return { data, samples, time, hidden };
}

/** One block's full-precision outputs over the calibration set, in float32. */
export async function forwardAll(
  backend: Backend,
  program: BlockProgram,
  weights: BlockWeights,
  inputs: Activations,
  outputs: Activations,
  layer: number,
  signal: AbortSignal | undefined,
): Promise<void> {
  using arena = backend.arena();
  const hooks = plainHooks(weights);
  for (let s = 0; s < inputs.samples; s++) {
    if (signal?.aborted) throw new InterruptedError(`stopped before block ${layer}`);
    using g = new Graph(backend, { arena });
    const x = g.constant([inputs.time, inputs.hidden], sampleRange(inputs, s, 1));
    const y = runBlock(g, program, weights, hooks, x, { layer, batch: 1 });
    sampleRange(outputs, s, 1).set(g.read(y));
    await nextTurn();
  }
}

export function freeEndLayers(backend: Backend, endLayers: EndLayerWeights): void {
  for (const t of endLayerTensors(endLayers)) freeTensor(backend, t);
}
