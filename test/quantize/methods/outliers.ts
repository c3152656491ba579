/**
 * Plants outlier channels into a model without changing what it computes: gains (and biases) of a block's norms are
 * multiplied by factors up to `largest` in a few channels, and the columns of the linears that read them divided by the
 * same.
 */
import { cpSync } from "node:fs";
import { join } from "node:path";
import { openCheckpoint } from "../../../src/checkpoint/open.js";
import { writeSafetensors, type TensorEntry } from "../../../src/checkpoint/safetensors.js";
import { Random } from "../../../src/common/random.js";
import { blockProgram, parseModelConfig } from "../../../src/models/architectures/index.js";
import { sitesOf } from "../../../src/backend/contract/program.js";

export interface Planting {
  readonly seed: number;
  /** Channels per norm. */
  readonly perBlock: number;
  /** Factors are spread from half of this to all of it. */
  readonly largest: number;
}

/** Writes a copy of the Hugging Face directory `from` with outliers to `to`. */
export async function plantOutliers(from: string, to: string, planting: Planting): Promise<void> {
  using source = openCheckpoint(from);
  const { architecture, config } = parseModelConfig(source.config);
  const { names } = architecture;
  const random = new Random(planting.seed);
  const changed = new Map<string, Float32Array>();
  const scale = (name: string, factors: Float64Array, divide: boolean): void => {
    if (!source.tensors.has(name)) return;
    const data = source.read(name);
    const width = factors.length;
    changed.set(
      name,
      Float32Array.from(data, (v, i) => (divide ? v / factors[i % width] : v * factors[i % width])),
    );
  };
  for (let layer = 0; layer < config.numLayers; layer++) {
    const prefix = names.blockPrefix(layer);
    const program = blockProgram(config, layer);
    for (const { linears, upstream } of sitesOf(program)) {
      if (upstream?.kind !== "norm") continue;
      const norm = program.norms[upstream.norm].path;
      const factors = new Float64Array(config.hiddenSize).fill(1);
      for (let c = 0; c < planting.perBlock; c++)
        factors[random.below(config.hiddenSize)] =
          planting.largest * (0.5 + 0.5 * (c / Math.max(1, planting.perBlock - 1)));
      scale(`${prefix}${norm}.weight`, factors, false);
      scale(`${prefix}${norm}.bias`, factors, false);
      for (const linear of linears)
        scale(`${prefix}${program.linears[linear].path}.weight`, factors, true);
    }
  }
  cpSync(from, to, { recursive: true });
  const entries: TensorEntry[] = [...source.tensors.values()].map(({ name, type, shape }) => {
    const data = changed.get(name);
    if (data) return { name, type: "F32", shape, data: () => new Uint8Array(data.buffer) };
    return { name, type: type as TensorEntry["type"], shape, data: () => source.readBytes(name) };
  });
  await writeSafetensors(join(to, "model.safetensors"), entries);
}
