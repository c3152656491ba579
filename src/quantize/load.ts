/** Loads whatever can be run: an original checkpoint or an artifact. */

import type { Backend } from "../backend/backend.js";
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { openCheckpoint } from "../checkpoint/open.js";
import { LanguageModel } from "../models/language-model.js";
import { isArtifact, loadArtifact, type QuantizationInfo } from "./artifact.js";

export interface LoadedModel extends Disposable {
  readonly model: LanguageModel;
  /** Open while the model is: configuration and tokenizer come from it. */
  readonly checkpoint: Checkpoint;
  /** How an artifact came to be; absent for an original. */
  readonly info?: QuantizationInfo;
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

function loaded(parts: Omit<LoadedModel, typeof Symbol.dispose>): LoadedModel {
  return {
    ...parts,
    [Symbol.dispose]: () => {
      parts.model[Symbol.dispose]();
      parts.checkpoint[Symbol.dispose]();
    },
  };
}
