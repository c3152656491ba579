/**
 * The beginning of a trained model as a model of its own, for tests of what happens to a run (same bytes, stopping,
 * resuming): these hold for any number of blocks, and every block costs a second.
 */
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { writeSafetensors, type TensorEntry } from "../../src/checkpoint/safetensors.js";
import { parseModelConfig } from "../../src/models/architectures/index.js";

/** Writes the first `blocks` blocks of the Hugging Face directory `from`, with all around them, to `to`. */
export async function writeFirstBlocks(from: string, to: string, blocks: number): Promise<void> {
  using source = openCheckpoint(from);
  const { architecture, config } = parseModelConfig(source.config);
  if (blocks > config.numLayers) throw new Error(`${from} has ${config.numLayers} blocks`);
  const dropped = Array.from({ length: config.numLayers - blocks }, (_, i) =>
    architecture.names.blockPrefix(blocks + i),
  );
  cpSync(from, to, { recursive: true });
  const path = join(to, "config.json");
  const json = JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>;
  writeFileSync(path, JSON.stringify({ ...json, num_hidden_layers: blocks }));
  const entries = [...source.tensors.values()]
    .filter(({ name }) => !dropped.some((prefix) => name.startsWith(prefix)))
    .map(({ name, type, shape }) => ({
      name,
      type: type as TensorEntry["type"],
      shape,
      data: () => source.readBytes(name),
    }));
  await writeSafetensors(join(to, "model.safetensors"), entries);
}
