/** A block of a tiny fixture with inputs and targets, as methods are given them; and what a method makes of it. */
import { join } from "node:path";
import { createCpuBackend } from "../../src/backend/cpu/train/backend.js";
import { parseScheme } from "../../src/backend/contract/scheme.js";
import { blockProgram } from "../../src/models/architectures/index.js";
import { runBlock, plainHooks } from "../../src/models/interpret.js";
import { parseSource } from "../../src/models/source.js";
import { readBlock, uploadBlock } from "../../src/models/weights.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { Random } from "../../src/common/random.js";
import { silentProgress } from "../../src/common/progress.js";
import { foldBlock } from "../../src/quantize/block/fold.js";
import { packedLayer } from "../../src/quantize/block/packed-block.js";
import { countExpertTokens } from "../../src/quantize/calibration/experts.js";
import { findMethod, METHODS } from "../../src/quantize/methods/index.js";
import { resolveRecipe } from "../../src/quantize/run/pipeline.js";
import { Graph } from "../../src/tensor/tensor.js";

export const SAMPLES = 4;
export const TIME = 64;

/** A fixture's block, with inputs of which some channels are large. */
export function blockJob(name: string, layer: number) {
  const backend = createCpuBackend();
  using source = openCheckpoint(join(import.meta.dirname, "../fixtures/architectures", name));
  const { architecture, config } = parseSource(source);
  const block = readBlock(source, architecture, config, layer);
  const weights = uploadBlock(backend, block);
  const program = blockProgram(config, layer);
  const random = new Random(7);
  const hidden = config.hiddenSize;
  const data = Float32Array.from(
    { length: SAMPLES * TIME * hidden },
    (_, i) => random.normal() * (i % hidden < 2 ? 6 : 1),
  );
  const inputs = { data, samples: SAMPLES, time: TIME, hidden };
  const targets = { ...inputs, data: new Float32Array(data.length) };
  for (let s = 0; s < SAMPLES; s++) {
    using g = new Graph(backend);
    const at = s * TIME * hidden;
    const x = g.constant([TIME, hidden], data.subarray(at, at + TIME * hidden));
    const y = runBlock(g, program, weights, plainHooks(weights), x, { layer, batch: 1 });
    targets.data.set(g.read(y), at);
  }
  const expertTokens = countExpertTokens(backend, program, weights, inputs, layer);
  const progress = silentProgress.task("", 0);
  const common = { backend, config, layer, program, seed: 3, block, weights };
  return { ...common, inputs, targets, expertTokens, progress };
}

/** Methods that round weights, whatever the source. */
export const CALIBRATED = METHODS.filter((method) => !("keep" in method)).map(({ name }) => name);

/** Calibrates, folds and runs the packed block on the first sample. */
export async function quantizedBlock(method: string, parts: ReturnType<typeof blockJob>) {
  const found = findMethod(method);
  const { program, layer } = parts;
  const scheme = parseScheme(method === "flattenquant" ? "w8a8kv16" : "w4a4kv4");
  const { recipe } = resolveRecipe(
    found,
    undefined,
    method === "flatquant" || method === "spinquant" ? { samples: SAMPLES, seqLen: TIME } : {},
  );
  const outcome = await found.calibrateBlock?.({ ...parts, scheme, recipe });
  const packed = foldBlock(parts.block, { program, scheme }, outcome?.parameters ?? new Map());
  const { weights, hooks } = packedLayer(parts.backend, program, scheme, packed);
  using g = new Graph(parts.backend);
  const { hidden } = parts.inputs;
  const x = g.constant([TIME, hidden], parts.inputs.data.subarray(0, TIME * hidden));
  const y = g.read(runBlock(g, program, weights, hooks, x, { layer, batch: 1 }));
  return { report: outcome?.report, packed, y };
}
