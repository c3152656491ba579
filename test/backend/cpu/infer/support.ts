/** Engines and simulated models from the same rounded blocks, and what tells their logits apart. */
import { createCpuBackend } from "../../../../src/backend/cpu/train/backend.js";
import { loadNativeLibrary } from "../../../../src/backend/cpu/library.js";
import { openCheckpoint } from "../../../../src/checkpoint/open.js";
import { IntegerExecutor } from "../../../../src/engine/processor.js";
import { blockProgram, parseModelConfig } from "../../../../src/models/architectures/index.js";
import { LanguageModel, loadEndLayers } from "../../../../src/models/language-model.js";
import { readBlock } from "../../../../src/models/weights.js";
import { foldBlock } from "../../../../src/quantize/block/fold.js";
import { packedLayer } from "../../../../src/quantize/block/packed-block.js";
import { parseScheme } from "../../../../src/backend/contract/scheme.js";
import { withHalves } from "../../../engine/rounded.js";
import { inferenceSource } from "../../../../src/engine/source.js";

export { mean, median, modelLogits, rowDistances } from "../../../engine/rounded.js";

export interface Pair extends Disposable {
  readonly engine: IntegerExecutor;
  readonly simulated: LanguageModel;
  readonly original: LanguageModel;
}

/** Rounds a checkpoint to nearest on a scheme's grids, for the engine and for the simulated arithmetic alike. */
export function roundedPair(path: string, scheme: string): Pair {
  const backend = createCpuBackend();
  const library = loadNativeLibrary();
  const checkpoint = openCheckpoint(path);
  const { architecture, config } = parseModelConfig(checkpoint.config);
  const parsed = parseScheme(scheme);
  const blocks = Array.from({ length: config.numLayers }, (_, layer) => {
    const host = readBlock(checkpoint, architecture, config, layer);
    return foldBlock(host, { program: blockProgram(config, layer), scheme: parsed }, new Map());
  });
  const simulated = new LanguageModel(
    backend,
    architecture,
    config,
    loadEndLayers(backend, withHalves(checkpoint, architecture), architecture, config),
    blocks.map((block, layer) => packedLayer(backend, blockProgram(config, layer), parsed, block)),
  );
  const engine = new IntegerExecutor(
    library,
    library.threads(),
    inferenceSource({
      checkpoint,
      architecture,
      config,
      scheme: parsed,
      block: (layer) => blocks[layer],
    }),
  );
  const original = LanguageModel.load(backend, checkpoint);
  return {
    engine,
    simulated,
    original,
    [Symbol.dispose]: () => {
      engine[Symbol.dispose]();
      simulated[Symbol.dispose]();
      original[Symbol.dispose]();
      checkpoint[Symbol.dispose]();
    },
  };
}

/** Logits of every token from an engine, [tokens, vocab], in one chunk on pages that are neither first nor in order. */
export async function engineLogits(
  engine: IntegerExecutor,
  ids: Int32Array,
): Promise<Float32Array> {
  const count = Math.ceil(ids.length / engine.pageTokens);
  engine.reserve(count + 2);
  const pages = Int32Array.from({ length: count }, (_, i) => count + 1 - i);
  const [logits] = await engine.step([{ tokens: ids, start: 0, pages, logits: "all" }]);
  if (!logits) throw new Error("no logits");
  return logits;
}

/** Mean negative log-likelihood of each next token. */
export function meanLoss(logits: Float32Array, ids: Int32Array, vocab: number): number {
  let total = 0;
  for (let t = 0; t + 1 < ids.length; t++) {
    const row = logits.subarray(t * vocab, (t + 1) * vocab);
    const top = row.reduce((most, x) => Math.max(most, x), -Infinity);
    const sum = row.reduce((all, x) => all + Math.exp(x - top), 0);
    total += Math.log(sum) + top - row[ids[t + 1]];
  }
  return total / (ids.length - 1);
}
