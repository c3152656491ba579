/** Opens a checkpoint by path, whatever its form. */

import { statSync } from "node:fs";
import { basename, dirname } from "node:path";
import { PlanishError } from "../common/errors.js";
import type { Checkpoint } from "./checkpoint.js";
import { FileReader, describeFsError } from "./file-reader.js";
import { openGguf } from "./gguf.js";
import { looksLikeGguf } from "./gguf-parser.js";
import { openHfDirectory } from "./hf-directory.js";

const ACCEPTED =
  "a model directory (config.json, safetensors weights, tokenizer.json), a .safetensors file in one, or a .gguf file";

/**
 * Opens a local checkpoint: a directory in Hugging Face's form, a `.safetensors` file of one, or a `.gguf`
 * file. Only headers are read. The caller disposes it. Throws PlanishError naming what is accepted.
 */
export function openCheckpoint(path: string): Checkpoint {
  let isDirectory: boolean;
  try {
    isDirectory = statSync(path).isDirectory();
  } catch (error) {
    throw new PlanishError(`cannot open ${path}: ${describeFsError(error)}; give ${ACCEPTED}`, {
      cause: error,
    });
  }
  if (isDirectory) return openHfDirectory(path);
  if (path.endsWith(".safetensors") || path.endsWith(".safetensors.index.json")) {
    return openHfDirectory(dirname(path), basename(path));
  }
  if (path.endsWith(".gguf") || startsLikeGguf(path)) return openGguf(path);
  throw new PlanishError(`cannot open ${path}: give ${ACCEPTED}`);
}

/** Files in a download cache go by their hash, without an ending. */
function startsLikeGguf(path: string): boolean {
  using reader = new FileReader(path);
  return looksLikeGguf(reader);
}
