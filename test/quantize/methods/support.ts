/** What the methods' tests share: the embedded model, tiny runs, and comparisons of logits. */
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createReferenceBackend } from "../../../src/backend/reference/train/backend.js";
import { openCheckpoint } from "../../../src/checkpoint/open.js";
import { packageRoot } from "../../../src/common/package.js";
import { LanguageModel } from "../../../src/models/language-model.js";
import { readBlock, type HostBlock } from "../../../src/models/weights.js";
import type { BlockProgram } from "../../../src/backend/contract/program.js";
import { readDocuments } from "../../../src/quantize/calibration/text.js";
import { foldBlock } from "../../../src/quantize/block/fold.js";
import type { ParameterValues } from "../../../src/quantize/schema/parameters.js";
import { packedLayer } from "../../../src/quantize/block/packed-block.js";
import { parseScheme } from "../../../src/backend/contract/scheme.js";
import { simulatedModel } from "../../../src/quantize/artifact/simulated-model.js";
import { Graph } from "../../../src/tensor/tensor.js";
import { writeFirstBlocks } from "../../models/first-blocks.js";
import { blockProgram } from "../../../src/models/architectures/index.js";

/** Four windows of 64 tokens. */
export const FEW = { samples: 4, seqLen: 64 };

/** A file with a little text: tokenizing all of Wikipedia's sample would take most of a tiny run's time. */
export function smallCalibration(directory: string): string {
  const path = join(directory, "calibration.txt");
  writeFileSync(path, readDocuments("wikipedia").join("\n").slice(0, 60_000));
  return path;
}

export function tinyLlama() {
  return openCheckpoint(join(packageRoot, "models", "tiny-llama"));
}

/** tiny-llama's first three blocks, for what holds at any depth. */
export async function fewBlocks(directory: string) {
  const path = join(directory, "few-blocks");
  await writeFirstBlocks(join(packageRoot, "models", "tiny-llama"), path, 3);
  return openCheckpoint(path);
}

export function digest(directory: string): string {
  return createHash("sha256")
    .update(readFileSync(join(directory, "model.safetensors")))
    .digest("hex");
}

/**
 * Largest difference of logits, relative to the largest logit, that a method's parameters make where nothing is
 * rounded: in the simulated model (float64 throughout), and once they are folded (weights come back in float32).
 */
export function identityErrors(
  parametersOf: (block: HostBlock, program: BlockProgram, layer: number) => ParameterValues,
): { simulated: number; folded: number } {
  const backend = createReferenceBackend({ realType: "f64" });
  const scheme = parseScheme("w16a16kv16");
  using source = tinyLlama();
  const original = LanguageModel.load(backend, source);
  const { architecture, config, endLayers } = original;
  const hosts = original.layers.map((_, layer) => readBlock(source, architecture, config, layer));
  const values = hosts.map((host, layer) => parametersOf(host, blockProgram(config, layer), layer));
  const logits = (model: LanguageModel): Float64Array => {
    using g = new Graph(backend);
    return Float64Array.from(g.read(model.logits(g, model.hidden(g, IDS))));
  };
  const expected = logits(original);
  const largest = expected.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
  const worst = (model: LanguageModel): number => {
    const found = logits(model);
    return expected.reduce((most, x, i) => Math.max(most, Math.abs(x - found[i])), 0) / largest;
  };
  const layers = hosts.map((host, layer) =>
    packedLayer(
      backend,
      blockProgram(config, layer),
      scheme,
      foldBlock(host, { program: blockProgram(config, layer), scheme }, values[layer]),
    ),
  );
  return {
    simulated: worst(simulatedModel(backend, source, scheme, values)),
    folded: worst(new LanguageModel(backend, architecture, config, endLayers, layers)),
  };
}

const IDS = Int32Array.of(3, 1700, 40, 300, 8, 8, 2101);
