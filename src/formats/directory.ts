/** Writing a model directory in Hugging Face's form, whole or not at all. */
import { renameSync } from "node:fs";
import { join, resolve } from "node:path";
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { writeSafetensors, type TensorEntry } from "../checkpoint/safetensors.js";
import { makeWorkDirectory, writeAtomically } from "../common/temporary.js";
import { refuseExisting } from "../quantize/artifact/artifact.js";

export interface ModelDirectory {
  readonly out: string;
  /** Where the tokenizer and generation settings come from. */
  readonly checkpoint: Checkpoint;
  readonly config: Readonly<Record<string, unknown>>;
  readonly tensors: Iterable<TensorEntry>;
  /** Small files beside, by name. */
  readonly files?: Readonly<Record<string, unknown>>;
  /** Name of the file of weights, where it is not the usual one. */
  readonly weights?: string;
  readonly signal?: AbortSignal;
}

/** Writes the directory under a temporary name and renames it. Returns the bytes of its tensors. */
export async function writeModelDirectory(model: ModelDirectory): Promise<{ bytes: number }> {
  const { checkpoint, signal } = model;
  const out = resolve(model.out);
  refuseExisting(out);
  using work = makeWorkDirectory(out);
  const place = (name: string): string => join(work.content, name);
  const { dataBytes } = await writeSafetensors(
    place(model.weights ?? "model.safetensors"),
    model.tensors,
    { format: "pt" },
    { signal },
  );
  const tokenizer = checkpoint.tokenizerFiles();
  const files = {
    "config.json": model.config,
    "generation_config.json": checkpoint.generationConfig,
    "tokenizer.json": tokenizer.tokenizer,
    "tokenizer_config.json": tokenizer.config,
    ...model.files,
  };
  for (const [name, content] of Object.entries(files))
    if (content !== undefined)
      writeAtomically(place(name), `${JSON.stringify(content, undefined, 2)}\n`);
  refuseExisting(out);
  renameSync(work.content, out);
  return { bytes: dataBytes };
}
