/** Loads whatever can be run: an original checkpoint, an artifact, or either's simulated model. */

import type { Backend } from "../../backend/contract/training.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import { openCheckpoint } from "../../checkpoint/open.js";
import { PlanishError } from "../../common/errors.js";
import { LanguageModel } from "../../models/language-model.js";
import {
  isArtifact,
  loadArtifact,
  readQuantizationInfo,
  type QuantizationInfo,
} from "./artifact.js";
import type { ClipCounter } from "../block/clip-counts.js";
import type { Scheme } from "../../backend/contract/scheme.js";
import { schemeOf } from "./quantization-info.js";
import { readKeptParameters, simulatedModel } from "./simulated-model.js";

export interface LoadedModel extends Disposable {
  readonly model: LanguageModel;
  /** Open while the model is: configuration and tokenizer come from it. */
  readonly checkpoint: Checkpoint;
  /** How an artifact came to be; absent for an original. */
  readonly info?: QuantizationInfo;
  /** Activations beyond an artifact's static grids, counted since it was loaded. */
  readonly clipping?: ClipCounter;
}

/**
 * Loads the model at a local path onto a backend; the caller disposes it.
 * @throws PlanishError when the path holds no model, or one that is damaged or not supported.
 */
export function loadModel(backend: Backend, path: string): LoadedModel {
  if (isArtifact(path)) return loaded(loadArtifact(backend, path));
  const checkpoint = openCheckpoint(path);
  try {
    return loaded({ model: LanguageModel.load(backend, checkpoint), checkpoint });
  } catch (error) {
    checkpoint[Symbol.dispose]();
    throw error;
  }
}

/**
 * Loads an original with its weights, activations and cache rounded to nearest on the scheme's grids, as
 * `--method rtn` would pack it.
 */
export function loadRounded(backend: Backend, path: string, scheme: Scheme): LoadedModel {
  const checkpoint = openCheckpoint(path);
  try {
    return loaded({ model: simulatedModel(backend, checkpoint, scheme), checkpoint });
  } catch (error) {
    checkpoint[Symbol.dispose]();
    throw error;
  }
}

/**
 * Loads what an artifact was packed from: the original's weights with the run's learned parameters, grids computed on
 * the fly. Weights are rounded to nearest (or where learned offsets say), also for runs that rounded by GPTQ.
 * @throws PlanishError when `source` is not the original of the artifact, or the parameters were not kept.
 */
export async function loadSimulated(
  backend: Backend,
  artifact: string,
  source: string,
): Promise<LoadedModel> {
  const info = readQuantizationInfo(artifact);
  if (info.method === "keep")
    throw new PlanishError(
      `${artifact} has its source's own weights, and nothing was computed for them that could be simulated; leave out --simulated`,
    );
  const checkpoint = openCheckpoint(source);
  try {
    if ((await checkpoint.hash()) !== info.source.hash)
      throw new PlanishError(
        `${source} is not what ${artifact} was made from (${info.source.name}, hash ${info.source.hash.slice(0, 16)}); give that model as the source`,
      );
    const learned = info.layers.some(({ parameters }) => Object.keys(parameters).length > 0);
    const parameters = learned ? readKeptParameters(artifact) : undefined;
    const model = simulatedModel(backend, checkpoint, schemeOf(info), parameters);
    return loaded({ model, checkpoint, info });
  } catch (error) {
    checkpoint[Symbol.dispose]();
    throw error;
  }
}

function loaded(parts: Omit<LoadedModel, typeof Symbol.dispose>): LoadedModel {
  return {
    ...parts,
    [Symbol.dispose]: () => {
      parts.model[Symbol.dispose]();
      parts.checkpoint[Symbol.dispose]();
    },
  };
}
