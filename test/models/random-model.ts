/** Small checkpoints with random weights of any architecture whose weights lie in tensors of their own. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { NormPlace } from "../../src/backend/contract/program.js";
import { writeSafetensors } from "../../src/checkpoint/safetensors.js";
import { Random } from "../../src/common/random.js";
import { blockPrograms, parseModelConfig } from "../../src/models/architectures/index.js";
import { partsOf } from "../../src/models/weights.js";

/** Writes config.json and model.safetensors. `biases`: of linears and norms, where the architecture has them. */
export async function writeRandomModel(
  directory: string,
  json: Readonly<Record<string, unknown>>,
  seed: number,
  biases: { readonly linears?: boolean; readonly norms?: boolean } = {},
): Promise<void> {
  const { architecture, config } = parseModelConfig(json);
  const { names } = architecture;
  const random = new Random(seed);
  const tensors = new Map<string, { shape: readonly number[]; data: Float32Array }>();
  const put = (name: string, shape: readonly number[], scale: number, centre = 0) => {
    const length = shape.reduce((a, b) => a * b, 1);
    const data = Float32Array.from({ length }, () => centre + scale * random.normal());
    tensors.set(name, { shape, data });
  };
  const norm = (prefix: string, place: NormPlace) => {
    for (const { path, rows } of partsOf(place)) {
      put(`${prefix}${path}.weight`, [rows], 0.2, 1 - (place.offset ?? 0));
      if (biases.norms) put(`${prefix}${path}.bias`, [rows], 0.3);
    }
  };
  const { hiddenSize, vocabSize, tiedEmbeddings } = config;
  put(names.embedding, [vocabSize, hiddenSize], 1);
  if (!tiedEmbeddings) put(names.lmHead, [vocabSize, hiddenSize], 0.3);
  for (const [layer, program] of blockPrograms(config).entries()) {
    const prefix = names.blockPrefix(layer);
    for (const place of Object.values(program.linears))
      for (const { path, rows } of partsOf(place)) {
        put(`${prefix}${path}.weight`, [rows, place.shape[1]], 1 / Math.sqrt(place.shape[1]));
        if (biases.linears) put(`${prefix}${path}.bias`, [rows], 0.3);
      }
    for (const place of Object.values(program.norms)) norm(prefix, place);
  }
  const path = names.finalNorm.replace(/\.weight$/, "");
  norm("", { path, width: hiddenSize, offset: config.gainOffset });
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, "config.json"), JSON.stringify(json));
  await writeSafetensors(
    join(directory, "model.safetensors"),
    [...tensors].map(([name, { shape, data }]) => ({
      name,
      type: "F32" as const,
      shape,
      data: () => new Uint8Array(data.buffer),
    })),
  );
}
