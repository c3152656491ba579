/** One block of a job, from files that were fetched and checked to a file of parameters and a report. */
import { closeSync, openSync, readFileSync, readSync, statSync } from "node:fs";
import type { Backend } from "../../backend/contract/training.js";
import { MOST_BYTES_AT_ONCE } from "../../common/bytes.js";
import { LIMITS, parseJson } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { firstIssue } from "../../common/issues.js";
import type { ProgressTask } from "../../common/progress.js";
import { blockProgram, parseModelConfig } from "../../models/architectures/index.js";
import { freeBlock, uploadBlock } from "../../models/weights.js";
import { stateWidth } from "../../models/config.js";
import { forwardAll } from "../calibration/forward.js";
import { findMethod } from "../methods/index.js";
import { calibrateOneBlock } from "../run/block-unit.js";
import { writeParameters } from "../run/journal.js";
import type { BlockReport } from "../schema/method.js";
import type { Activations } from "../schema/windows.js";
import { readBlockFile } from "./block-files.js";
import { descriptionSchema, schemeOf, validated, type Description } from "./documents.js";

/** Files of a block's work on a worker's own disk. */
export interface BlockFiles {
  readonly description: string;
  /** States that enter block `from`. */
  readonly states: string;
  /** Weights of blocks `from` … `layer`. */
  readonly weights: readonly string[];
  /** Where the parameters shall be. */
  readonly parameters: string;
}

/** @throws PlanishError when the settings are not known here, or a file is not what it should be; InterruptedError. */
export async function calibrateFromFiles(
  backend: Backend,
  files: BlockFiles,
  { from, layer }: { readonly from: number; readonly layer: number },
  progress: ProgressTask,
  signal: AbortSignal,
): Promise<BlockReport> {
  const text = readFileSync(files.description, "utf8");
  const run = validated(descriptionSchema, parseJson(text, "the run"), "the run");
  const { config } = parseModelConfig(run.config);
  if (layer >= config.numLayers || from > layer || files.weights.length !== layer - from + 1)
    throw new PlanishError(
      `block ${layer} with states of block ${from} is none of the model's ${config.numLayers}`,
    );
  const method = findMethod(run.method);
  const settings = {
    backend,
    config,
    method,
    scheme: schemeOf(run),
    recipe: recipeOf(run),
    seed: run.seed,
  };
  const shape = { samples: run.samples, time: run.time, hidden: stateWidth(config) };
  let inputs: Activations = { ...shape, data: readStates(files.states, shape) };
  for (let at = from; ; at++) {
    const program = blockProgram(config, at);
    const block = readBlockFile(files.weights[at - from], program);
    const weights = uploadBlock(backend, block);
    try {
      const outputs = { ...shape, data: new Float32Array(inputs.data.length) };
      await forwardAll(backend, program, weights, inputs, outputs, at, signal);
      if (at === layer) {
        const unit = { layer, block, weights, inputs, outputs };
        const { parameters, report } = await calibrateOneBlock(settings, unit, progress, signal);
        await writeParameters(files.parameters, parameters);
        return report;
      }
      inputs = outputs;
    } finally {
      freeBlock(backend, weights);
    }
  }
}

function recipeOf({ method: name, recipe }: Description): Record<string, unknown> {
  const result = findMethod(name).recipe.safeParse(recipe);
  if (result.success) return result.data as Record<string, unknown>;
  const { field, reason } = firstIssue(result.error);
  throw new PlanishError(`recipe field "${field}" of method "${name}": ${reason}`);
}

function readStates(path: string, shape: Omit<Activations, "data" | "statistics">): Float32Array {
  const count = shape.samples * shape.time * shape.hidden;
  const found = statSync(path).size;
  if (count * 4 > LIMITS.bytes || found !== count * 4)
    throw new PlanishError(
      `the states hold ${found} bytes, and ${shape.samples} windows of ${shape.time} tokens and ${shape.hidden} channels are ${count * 4}`,
    );
  const data = new Float32Array(count);
  const file = openSync(path, "r");
  try {
    for (let at = 0; at < data.byteLength;) {
      const size = Math.min(MOST_BYTES_AT_ONCE, data.byteLength - at);
      at += readSync(file, new Uint8Array(data.buffer, at, size));
    }
  } finally {
    closeSync(file);
  }
  return data;
}
